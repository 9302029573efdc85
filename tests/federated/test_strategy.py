import pytest

from jaxlab.federated.samplers import make_uniform_sampler
from jaxlab.federated.server import init_server
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.strategy import ConfigError, Strategy, staleness_weight


@pytest.mark.parametrize(
    "settings, wrong",
    [
        ({"kind": "sync"}, "kind='sync' is not one of synchronous, goal"),
        ({"cohort_size": 0}, "cohort_size=0 must be at least 1"),
        ({"cohort_size": 3, "min_updates": 4}, "min_updates=4 .* at most cohort_size=3"),
        ({"cohort_size": 3, "min_updates": 0}, "min_updates=0 must be at least 1"),
        ({"kind": "time_up"}, "time_budget_s=0.0 must be at least a microsecond"),
        ({"kind": "time_up", "time_budget_s": -1.0}, "time_budget_s=-1.0"),
        ({"kind": "goal_achieved", "max_staleness": -1}, "max_staleness=-1 must be"),
        ({"staleness_exponent": -0.5}, "staleness_exponent=-0.5 must not be negative"),
        ({"max_staleness": 2}, "max_staleness=2 is for asynchronous kinds"),
        ({"broadcast": "after_receiving"}, "broadcast='after_receiving' is for asynchronous"),
    ],
)
def test_settings_out_of_range_are_named_with_their_values(settings, wrong):
    with pytest.raises(ConfigError, match=wrong):
        Strategy(**settings)


@pytest.mark.parametrize("value", [1.5, "2"])
def test_a_staleness_that_is_no_integer_is_told(value):
    strategy = Strategy(kind="goal_achieved")
    object.__setattr__(strategy, "max_staleness", value)  # types are checked in tests only
    with pytest.raises(ConfigError, match=f"max_staleness={value!r} must be an integer"):
        strategy.__post_init__()


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match="kind.*; .*cohort_size=-1.*; min_updates"):
        Strategy(kind="none", cohort_size=-1)


@pytest.mark.parametrize(
    "config, wrong",
    [
        (dict(num_clients=4, strategy=Strategy(cohort_size=5)), "cohort_size=5 of 4 clients"),
        (dict(num_clients=4, num_unseen=2, strategy=Strategy(cohort_size=3)), "=3 of 2 clients"),
        (
            dict(num_clients=5, strategy=Strategy(cohort_size=4, min_updates=2)),
            "leaves 3 of 5 clients idle.*needs at least 6 clients",
        ),
        (dict(num_clients=0), "num_clients=0 must be at least 1"),
        (dict(num_clients=1, max_rejected_share=1.5), "max_rejected_share=1.5 must be in"),
        (dict(num_clients=1, max_failures_in_a_row=0), "max_failures_in_a_row=0 must be"),
    ],
)
def test_a_course_that_has_too_few_clients_is_refused_with_the_numbers(config, wrong):
    with pytest.raises(ConfigError, match=wrong):
        CourseConfig(num_rounds=1, **config)


def test_clients_without_examples_do_not_count_as_clients():
    config = CourseConfig(4, 1, Strategy(cohort_size=3))
    with pytest.raises(ConfigError, match="cohort_size=3 of 2 clients that train"):
        init_server(config, 0, make_uniform_sampler(), excluded=(1, 4))


@pytest.mark.parametrize(
    "exponent, expected",
    [
        (0.2, [1, 0.870551, 0.802742, 0.698827, 0.619044]),
        (0.5, [1, 0.707107, 0.57735, 0.408248, 0.301511]),
        (1.0, [1, 0.5, 0.333333, 0.166667, 0.090909]),
    ],
)
def test_late_updates_are_discounted_by_a_power(exponent, expected):
    weights = [staleness_weight(tau, exponent) for tau in (0, 1, 2, 5, 10)]
    assert weights == pytest.approx(expected, abs=1e-6)
