"""Metrics over clients, fairness, the best evaluation and early stop, against slow forms."""

import math

import numpy as np
import pytest

from jaxlab.federated.monitoring import (
    Report,
    fairness,
    group_means,
    is_larger_better,
    mean_metrics,
    metric_values,
)
from jaxlab.federated.server_state import Evaluation
from jaxlab.federated.stopping import EarlyStop, best_evaluation, convergence, performance_drop
from jaxlab.federated.strategy import ConfigError


def pairs(*rows):
    return np.array(rows, np.float32)


def evaluations(values, metric="val/loss"):
    return [Evaluation(n, 1000 * n, {metric: v, "test/correct": n / 10}) for n, v in
            enumerate(values, 1)]  # fmt: skip


def test_fairness_of_twenty_clients_is_the_published_form():
    x = np.arange(1, 21)[::-1] / 20  # in any order
    assert fairness(x) == pytest.approx(
        {
            "std": 0.2883141, "bottom_decile": 0.15, "top_decile": 0.95, "min": 0.05, "max": 1.0,
            "bottom10%": 0.075, "top10%": 0.975, "cos1": 0.8765231, "entropy": 2.8251924,
        },
        abs=5e-8,
    )  # fmt: skip


def test_equal_clients_are_fair_and_few_have_no_lowest_tenth():
    found = fairness(np.full(9, 0.3))
    assert found["bottom10%"] is None
    assert found["std"] == 0 and found["cos1"] == pytest.approx(1)
    assert found["entropy"] == pytest.approx(math.log(9))


@pytest.mark.parametrize("values, missing", [([0.0, 0.0], {"cos1", "entropy"}),
                                             ([-1.0, 2.0], {"entropy"})])  # fmt: skip
def test_shares_of_nothing_have_no_meaning(values, missing):
    found = fairness(np.array(values))
    assert {name for name, value in found.items() if value is None} == missing | {"bottom10%"}
    assert fairness(np.array([0.0, 1.0, 1.0]))["entropy"] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        fairness(np.array([1.0, np.nan]))


def test_a_report_has_all_forms_and_leaves_clients_without_examples_out():
    kept = {}
    report = Report(
        ("weighted_avg", "avg", "fairness", "group_avg"), (2, 2),
        lambda split, rows: kept.update({split: rows}),
    )  # fmt: skip
    sums = {"correct": pairs([1, 4], [6, 6], [0, 0], [5, 10]), "never": np.zeros((4, 2))}
    found = report("test", sums)
    spread = fairness(np.array([0.25, 1.0, 0.5]))
    assert found == {
        "test/correct": 12 / 20,
        "test/avg/correct": pytest.approx((0.25 + 1 + 0.5) / 3),
        "test/group_1/correct": 0.625,
        "test/group_2/correct": 0.5,
        **{f"test/fairness/correct_{k}": v for k, v in spread.items() if v is not None},
    }
    np.testing.assert_array_equal(kept["test"]["correct"], [0.25, 1.0, np.nan, 0.5])
    assert report("test_unseen", {"correct": pairs([1, 2])}) == {
        "test_unseen/correct": 0.5,
        "test_unseen/avg/correct": 0.5,
    }


def test_a_client_that_has_diverged_is_told_and_not_left_out():
    found = Report()("test", {"loss": pairs([np.nan, 4], [6, 6], [0, 0])})
    assert found.keys() == {"test/loss", "test/avg/loss"}
    assert all(math.isnan(value) for value in found.values())


def test_f1_is_the_mean_over_the_classes_that_occur_or_are_predicted():
    labels, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0])

    def counts(rows):
        one = [(labels[rows] == c, predicted[rows] == c) for c in range(4)]
        return [(2 * (t & p).sum(), t.sum() + p.sum()) for t, p in one]

    split = [counts(slice(0, 3)), counts(slice(3, 5)), counts(slice(5, 5))]
    sums = {f"global/f1@{c}": pairs(*(rows[c] for rows in split)) for c in range(4)}
    # Per class, over all: 2/5, 2/3, 0 and no class 3.
    assert mean_metrics("test", sums) == {"test/global/f1": pytest.approx((2 / 5 + 2 / 3 + 0) / 3)}
    per_client = metric_values(sums)["global/f1"]
    np.testing.assert_allclose(per_client.values, [(2 / 3 + 2 / 3) / 2, 0, np.nan])
    np.testing.assert_array_equal(per_client.is_known, [True, True, False])


def test_metrics_without_examples_are_left_out():
    sums = {"loss": pairs([3, 2], [1, 2]), "correct": np.zeros((2, 2))}
    assert mean_metrics("test", sums) == {"test/loss": 1.0}


def test_the_root_stands_beside_the_mean_square():
    assert mean_metrics("test", {"mse": pairs([18, 1], [0, 1])}) == {"test/mse": 9, "test/rmse": 3}


def test_the_improvement_over_a_base_stands_beside_errors_and_shares_of_right_answers():
    sums = {"correct": np.array([[3.0, 4.0], [1.0, 4.0]]), "global/mse": np.array([[1.0, 2.0]] * 2)}
    found = Report(("weighted_avg", "avg"), base=0.5)("test", sums)
    assert found["test/improvement"] == found["test/avg/improvement"] == 0.0  # 1 - 4/8 is the base
    assert found["test/global/improvement"] == 0.0 and found["test/global/mse"] == 0.5
    assert "test/improvement" not in Report(("weighted_avg",))("test", sums)
    server = Report(("avg",), base=0.2)("test_server", sums)
    assert server["test_server/improvement"] == pytest.approx(-150)


def test_groups_are_of_consecutive_clients_and_the_last_may_be_missing():
    values = np.array([1.0, np.nan, 3.0])
    assert group_means(values, [2, 3, 4]) == {1: 1.0, 2: 3.0}
    with pytest.raises(ConfigError, match=r"3 clients in groups of \[2\], 2 in all"):
        group_means(values, [2])


@pytest.mark.parametrize(
    "metric, larger",
    [
        ("val/loss", False), ("test/global/correct", True), ("test/hits@5", True),
        ("test/fairness/correct_std", False), ("test/fairness/loss_entropy", True),
        ("test/fairness/loss_max", False), ("test/fairness/correct_bottom10%", True),
        ("test_unseen/avg/rmse", False), ("test/f1", True),
    ],
)  # fmt: skip
def test_the_name_of_a_metric_tells_which_way_is_better(metric, larger):
    assert is_larger_better(metric) is larger


def test_the_best_evaluation_brings_all_that_was_measured_with_it():
    found = evaluations([3.0, math.nan, 1.0, 1.0, 2.0])
    assert best_evaluation(found, "val/loss") == found[2]
    assert best_evaluation(found, "val/loss", larger_is_better=True) == found[0]
    assert best_evaluation([], "val/loss") is None
    assert best_evaluation(evaluations([math.nan, math.inf]), "val/loss") is None


def test_a_course_has_converged_where_it_ended_early_or_was_best():
    row = evaluations([3.0, 1.0, 2.0])
    assert convergence(row, 4) == {"convergence_round": 3, "convergence_seconds": 0.003}
    best = {"convergence_round": 2, "convergence_seconds": 0.002}
    assert convergence(row, 3, "val/loss") == best
    assert convergence(evaluations([1, 2, 1], "mine"), 3, "mine", larger_is_better=True) == best
    assert convergence(row, 3) == convergence([], 3) == convergence([], 3, "val/loss") == {}


def test_a_drop_is_a_fall_by_more_than_delta_from_one_evaluation_to_the_next():
    def drops(values, *options, **named):
        has_dropped = performance_drop(*options, **named)
        row = evaluations(values, options[0])
        return [has_dropped(row[:count]) for count in range(len(row) + 1)]

    assert drops([2, 3, 3.5, 1, 1.6], "val/loss", 0.5) == [False] * 2 + [True, False, False, True]
    assert drops([0.5, 0.4, 0.4, 0.5], "val/correct") == [False] * 2 + [True, False, False]
    assert drops([1, 2], "mine", larger_is_better=False)[-1]
    assert drops([1, math.nan, math.nan, 2], "val/loss")[2:] == [True, False, False]
    with pytest.raises(ConfigError, match="'val/f1' is not among those of an evaluation: test/cor"):
        performance_drop("val/f1")(evaluations([1]))


def test_a_metric_that_is_not_measured_is_told_with_those_that_are():
    wrong = r"'val/f1' is not among .*: test/correct, val/loss\. .*splits=\{'val': \.\.\.\}"
    for ask in (lambda e: best_evaluation(e, "val/f1"), EarlyStop("val/f1")):
        with pytest.raises(ConfigError, match=wrong):
            ask(evaluations([1.0]))
    with pytest.raises(ConfigError, match="whether 'val/charm' is better where it is larger"):
        EarlyStop("val/charm")


def original_best(values, patience, delta, larger):
    """`EarlyStopper` of the original in the mode `best`, as it is written there."""
    best, counter = values[0], 0
    for new in values[1:]:
        worse = new < best + delta if larger else best - delta < new
        best, counter = (best, counter + 1) if worse else (new, 0)
    return counter >= patience


def original_mean(values, patience, delta, larger):
    """The same in the mode `mean`, of the last value alone."""
    if len(values) <= patience:
        return False
    mean = np.mean(values[-patience - 1 : -1])
    return values[-1] < mean + delta if larger else mean - delta < values[-1]


@pytest.mark.parametrize("metric", ["val/loss", "val/correct"])
@pytest.mark.parametrize("mode, original", [("best", original_best), ("mean", original_mean)])
def test_compat_stops_when_the_original_does(metric, mode, original):
    rng = np.random.default_rng(0)
    stopped = []
    for _ in range(300):
        patience, delta = int(rng.integers(1, 4)), float(rng.choice([0, 1]))
        values = rng.integers(0, 4, rng.integers(1, 9)).astype(float)
        stop = EarlyStop(metric, patience, delta, mode, compat=True)
        expected = bool(original(values, patience, delta, "correct" in metric))
        assert stop.is_over(values) is expected, (values, patience, delta)
        stopped.append(expected)
    assert 30 < sum(stopped) < 270


@pytest.mark.parametrize("mode", ["best", "mean"])
def test_a_metric_that_stands_still_ends_a_course_but_not_the_original(mode):
    still = evaluations([1.0] * 9)
    assert EarlyStop("val/loss", 3, mode=mode)(still)
    assert not EarlyStop("val/loss", 3, mode=mode, compat=True)(still)
    assert not EarlyStop("val/loss", 0, mode=mode)(still)
    falling = evaluations([1.0 - 0.05 * n for n in range(9)])
    assert not EarlyStop("val/loss", 3, mode=mode)(falling)
    assert EarlyStop("val/loss", 3, 0.5, mode)(falling)


def test_a_metric_that_is_not_finite_is_no_improvement():
    assert EarlyStop("val/loss", 2).is_over([1.0, math.nan, math.nan])
    assert EarlyStop("val/loss", 2).is_over([math.nan, math.nan])
    assert EarlyStop("val/loss", 2, mode="mean").is_over([1.0, 1.0, math.nan])


def test_many_clients_stop_as_each_would_alone():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3, (7, 12)).astype(float)
    for mode in ("best", "mean"):
        stop = EarlyStop("val/loss", 3, mode=mode)
        state = stop.init((12,))
        for number in range(7):
            state = stop.note(state, values[number])
            alone = [stop.is_over(values[: number + 1, client]) for client in range(12)]
            np.testing.assert_array_equal(stop.has_ended(state), alone)


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: EarlyStop("val/loss", -1), "patience=-1"),
        (lambda: EarlyStop("val/loss", 1, -0.1), "delta=-0.1"),
        (lambda: EarlyStop("val/loss", mode="last"), "mode='last'"),
        (lambda: Report(("median",)), r"forms=\('median',\) must be some of weighted_avg"),
        (lambda: Report(("group_avg",)), "needs group_sizes"),
        (lambda: Report(base=0.0), "base=0.0 must be positive"),
        (lambda: performance_drop("val/loss", -1.0), "delta=-1.0 must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_told(make, wrong):
    with pytest.raises(ConfigError, match=wrong):
        make()
