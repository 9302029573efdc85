"""What a user gets wrong in the first hours is told in a sentence, before anything is computed."""

import inspect
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab import federated
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.deployment.agreement import Agreement, find_forms
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import classification, regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.models import LogisticRegression
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.tasks import LossOutput, Task, supervised
from jaxlab.parallel import make_mesh

SCHEDULE = Schedule(2)
SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)
TASK = classification(LogisticRegression(2), SHAPE, masked=True)


def untyped(function):
    """The function as a user has it: only tests look at the types of arguments."""
    return inspect.unwrap(function)


class Untyped:
    """`federated` without the types."""

    def __getattr__(self, name):
        return untyped(getattr(federated, name))


def make_data(y=(0, 1, 0, 1, 1, 0), x=None):
    x = np.arange(18, dtype=np.float32).reshape(6, 3) if x is None else x
    return gather_clients({"x": x, "y": np.asarray(y)}, [np.arange(4), np.arange(4, 6)])


def simulate(task=TASK, data=None, algorithm=None, schedule=None, **options):
    algorithm = algorithm or fed_avg(task, optax.sgd(0.1), SCHEDULE)
    return untyped(make_simulation)(
        CourseConfig(2, 1, Strategy(cohort_size=2)),
        algorithm,
        make_data() if data is None else data,
        task.init(jax.random.key(0)),
        schedule,
        mesh=make_mesh(1, devices=jax.devices()[:1]),
        **options,
    )


def own_task(output):
    """A line through the origin whose loss gives what `output` makes of squared errors."""

    def loss(variables, batch, key, train):
        return output(jnp.square(batch["x"] @ variables["params"]["w"] - batch["y"]))

    return Task(lambda key: {"params": {"w": jnp.zeros(3)}}, loss)


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda e: LossOutput(e.mean(), {}, {}), r"per_example must have shape \(batch,\).*mean"),
        (lambda e: LossOutput(e.mean()[None], {}, {}), r"per_example must have shape \(batch,\)"),
        (lambda e: LossOutput(e[:, None], {}, {}), r"gave float32\[2, 1\]; wanted LossOutput"),
        (lambda e: LossOutput(e > 1, {}, {}), r"must be floats, and is bool\[2\]"),
        (lambda e: LossOutput(e, {}, {"s": e.mean()}), r"score 's' must have shape \(batch,\)"),
        (lambda e: LossOutput(e, {"stats": e}, {}), r"wanted|model_state, \[\], and gave"),
        (lambda e: LossOutput(e, (), {}), r"model_state of a LossOutput must be a dict"),
        (lambda e: e, r"loss of the task gave float32\[2\]; wanted LossOutput"),
        (lambda e: e.mean(), r"loss of the task gave float32\[\]; wanted LossOutput"),
    ],
)
def test_a_loss_that_gives_something_else_is_refused(output, message):
    with pytest.raises(ConfigError, match=message):
        simulate(own_task(output))


def test_a_loss_with_a_number_for_every_example_is_taken():
    assert simulate(own_task(lambda e: LossOutput(e, {}, {"s": e}))).forms.update is not None


@pytest.mark.parametrize(
    "y, message",
    [
        ([0.0, 1, 0, 1, 1, 0], "y is float64; classification wants integers.*astype.*classes=True"),
        ([True, False] * 3, "y is bool; classification wants integers"),
        ([0, 1, 2, 1, 1, 0], "y goes from 0 to 2 and the module has 2 logits.*: 1 of 6 labels"),
        ([0, 1, -1, 1, -1, 0], "y goes from -1 to 1 .*: 2 of 6 labels"),
        ([[0]] * 6, r"y has the shape \(6, 1\); wanted \(examples,\)"),
    ],
)
def test_labels_that_are_no_classes_of_the_logits_are_refused(y, message):
    with pytest.raises(ConfigError, match=f"examples of 'train': {message}"):
        simulate(data=make_data(y))
    with pytest.raises(ConfigError, match=f"examples of 'test': {message}"):
        simulate(splits={"test": make_data(y)})
    with pytest.raises(ConfigError, match="examples of 'held'"):
        simulate(server_splits={"held": make_data(y)})


def test_one_logit_for_two_classes_is_refused():
    with pytest.raises(ConfigError, match="1 logits, for the classes 0 to 0: 3 of 6"):
        simulate(classification(LogisticRegression(1), SHAPE))


def test_inputs_of_another_shape_are_refused():
    data = make_data(x=np.zeros((6, 4), np.float32))
    with pytest.raises(ConfigError, match=r"x has the shape \(4,\).*made for \(3,\)"):
        simulate(data=data)
    with pytest.raises(ConfigError, match=r"there are \['y'\] and no 'x'"):
        simulate(data=gather_clients({"y": np.zeros(2, np.int32)}, [np.arange(1)] * 2))


def test_a_hook_may_change_examples_that_would_not_fit():
    def cut(batch, key, train):
        return {**batch, "x": batch["x"][:, :3]}

    data = make_data(x=np.zeros((6, 4), np.float32))
    assert simulate(federated.hook_task(TASK, batch=cut), data).forms.update is not None


def test_inputs_that_are_not_finite_are_told_once_with_their_clients(caplog):
    x = np.zeros((6, 3), np.float32)
    x[1, 2], x[4:, 0] = np.nan, np.inf
    with caplog.at_level(logging.WARNING):
        simulate(data=make_data(x=x))
        simulate()
    told = [r.getMessage() for r in caplog.records if "NaN or infinite" in r.getMessage()]
    assert len(told) == 1
    assert "'x' of 'train'" in told[0] and "in 3 examples of 2 clients" in told[0]
    assert "client 1 (1), client 2 (2)" in told[0]


class Deaf(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Unmasked(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x.reshape(x.shape[0], 2, 2).sum(axis=1))


def test_modules_that_cannot_be_called_are_told_what_call_must_take():
    with pytest.raises(ConfigError, match=r"Deaf.__call__ takes \['x'\] and no train; wanted __c"):
        classification(Deaf(), SHAPE)
    with pytest.raises(ConfigError, match="and no mask; wanted .*x, \\*, train, mask"):
        classification(Unmasked(), SHAPE, masked=True)
    with pytest.raises(ConfigError, match=r"Unmasked cannot be called with x of float32\[1, 3\]"):
        regression(Unmasked(), SHAPE)
    with pytest.raises(ConfigError, match=r"example must be the shape and type .* is \(3,\)"):
        untyped(supervised)(LogisticRegression(2), (3,), jnp.square)
    with pytest.raises(ConfigError, match="must be a flax.linen module.* and is function"):
        untyped(supervised)(lambda x: x, SHAPE, jnp.square)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "0.1", None])
def test_numbers_of_algorithms_must_be_finite_and_of_a_sign(value):
    sgd, federated = optax.sgd(0.1), Untyped()
    for make in (
        lambda: federated.fed_avg(TASK, sgd, SCHEDULE, prox_mu=value),
        lambda: federated.scaffold(TASK, value, SCHEDULE, 2),
        lambda: federated.scaffold(TASK, 0.1, SCHEDULE, 2, server_rate=value),
        lambda: federated.fed_nova(TASK, value, SCHEDULE),
        lambda: federated.fed_dyn(TASK, sgd, SCHEDULE, 2, alpha=value),
        lambda: federated.ditto(TASK, sgd, SCHEDULE, regularisation=value),
        lambda: federated.pfedme(TASK, sgd, value, SCHEDULE),
        lambda: federated.pfedme(TASK, sgd, 0.1, SCHEDULE, beta=value),
        lambda: federated.mime(TASK, sgd, SCHEDULE, server_rate=value),
        lambda: federated.mime_lite(TASK, sgd, SCHEDULE, server_rate=value),
        lambda: federated.ada_fed_prox(TASK, sgd, SCHEDULE, mu=value),
        lambda: federated.q_fed_avg(TASK, value, SCHEDULE, 1.0),
        lambda: federated.q_fed_avg(TASK, 0.1, SCHEDULE, value),
        lambda: federated.local_entropy(TASK, 0.1, SCHEDULE, gamma=value),
        lambda: federated.sharpness_aware(value),
    ):
        with pytest.raises(ConfigError, match="number"):
            make()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_numbers_of_server_optimizers_and_rules_must_be_in_their_range(value):
    for make in (
        lambda: federated.fed_adam(value),
        lambda: federated.fed_yogi(0.1, tau=value),
        lambda: federated.fed_adam(0.1, b2=value),
        lambda: federated.fed_nova(TASK, 0.1, SCHEDULE, momentum=value),
        lambda: federated.weighted_mean(staleness_exponent=value),
        lambda: federated.trimmed_mean(value),
        lambda: federated.norm_bounding(value),
        lambda: Untyped().multi_krum(value, 1),
    ):
        with pytest.raises(ConfigError, match="must be|must not be|would make"):
            make()


def test_rates_and_optimizers_that_are_mistaken_for_each_other_are_told():
    sgd, federated = optax.sgd(0.1), Untyped()
    plain = "a number such as 0.1, and got an optimizer.*plain gradient steps"
    for make in (
        lambda: federated.scaffold(TASK, sgd, SCHEDULE, 2),
        lambda: federated.fed_nova(TASK, sgd, SCHEDULE),
        lambda: federated.q_fed_avg(TASK, sgd, SCHEDULE, 1.0),
        lambda: federated.local_entropy(TASK, sgd, SCHEDULE),
        lambda: federated.pfedme(TASK, sgd, sgd, SCHEDULE),
    ):
        with pytest.raises(ConfigError, match=plain):
            make()
    for make in (
        lambda: federated.fed_avg(TASK, 0.1, SCHEDULE),
        lambda: federated.fed_avg(TASK, sgd, SCHEDULE, server_tx=1.0),
        lambda: federated.ditto(TASK, 0.1, SCHEDULE),
        lambda: federated.mime(TASK, 0.1, SCHEDULE),
        lambda: federated.fed_rep(TASK, repr, 0.1, SCHEDULE, sgd, SCHEDULE),
    ):
        with pytest.raises(ConfigError, match=r"tx, an optimizer of optax .* and got (0.1|1.0)"):
            make()


def test_a_course_has_the_schedule_of_its_algorithm():
    assert simulate().settings["schedule.batch_size"] == 2
    assert simulate(schedule=SCHEDULE).settings["schedule.batch_size"] == 2
    with pytest.raises(ConfigError, match="made with .*batch_size=2.* stands .*batch_size=3"):
        simulate(schedule=Schedule(3))
    unknown = fed_avg(TASK, optax.sgd(0.1), SCHEDULE)._replace(schedule=None)
    with pytest.raises(ConfigError, match="carries no schedule; give one"):
        simulate(algorithm=unknown)
    assert simulate(algorithm=unknown, schedule=SCHEDULE).settings["schedule.batch_size"] == 2
    plain = fed_avg(TASK, optax.sgd(0.1), SCHEDULE)
    for algorithm in (
        federated.scaffold(TASK, 0.1, SCHEDULE, 2),
        federated.keep_local(plain, federated.named("bias")),
        federated.fine_tuned(plain, fed_avg(TASK, optax.sgd(0.1), Schedule(1))),
        federated.train_alone(plain),
        federated.compressed(plain, up=federated.quantize()),
    ):
        assert algorithm.schedule == SCHEDULE and algorithm.task is TASK
    with pytest.raises(ConfigError, match="made with .* stands"):
        federated.fine_tuned(plain, plain, Schedule(7))


def test_an_agreement_has_the_schedule_of_its_algorithm():
    config = CourseConfig(2, 1, Strategy(cohort_size=2))
    algorithm, variables = fed_avg(TASK, optax.sgd(0.1), SCHEDULE), TASK.init(jax.random.key(0))
    example = {"x": SHAPE, "y": jax.ShapeDtypeStruct((), jnp.int32)}
    agreement = Agreement(config, algorithm, variables, SCHEDULE, example)
    assert find_forms(agreement).update is not None
    with pytest.raises(ConfigError, match="made with .*batch_size=2.* stands .*batch_size=3"):
        find_forms(agreement._replace(schedule=Schedule(3)))


def test_what_is_no_aggregator_is_told_how_to_become_one():
    wrong = {
        "function <lambda> is no aggregator: .*StackAggregator": lambda updates, weights: updates,
        r"function median is no aggregator: .* must be called": federated.median,
        r"'median' is no aggregator": "median",
        r"'mine' is called as combine\(updates, weights, staleness\)": federated.StackAggregator(
            lambda updates, weights: updates, name="mine"
        ),
    }
    for message, aggregator in wrong.items():
        with pytest.raises(ConfigError, match=message):
            simulate(aggregator=aggregator)


@pytest.mark.parametrize(
    "combine, message",
    [
        (lambda u, w, s: jax.tree.map(jnp.mean, u), r"bias is float32\[\] and must be .*\(2,\)"),
        (lambda u, w, s: jnp.float32(0), r"gave \{one array: float32\[\]\}; wanted one update"),
        (lambda u, w, s: u, r"kernel is float32\[2, 3, 2\] and must be of the shape \(3, 2\)"),
    ],
)
def test_a_rule_that_gives_no_update_is_refused(combine, message):
    rule = federated.StackAggregator(combine, name="mine")
    simulation = simulate(aggregator=rule)
    with pytest.raises(ConfigError, match=f"'mine' .*{message}"):
        run_course(simulation.course, simulation.start())


def test_a_codec_that_makes_messages_larger_is_told_once(caplog):
    plain = fed_avg(TASK, optax.sgd(0.1), SCHEDULE)
    both = {"up": federated.quantize(8), "down": federated.quantize(16)}
    with caplog.at_level(logging.WARNING):
        simulation = simulate(algorithm=federated.compressed(plain, **both))
        simulation.fingerprint()
    told = [r.getMessage() for r in caplog.records if "without the codec" in r.getMessage()]
    assert len(told) == 2 and {t.split(" takes")[0] for t in told} == {
        "compressed: an update",
        "compressed: the model",
    }
    caplog.clear()
    large = classification(
        LogisticRegression(2), jax.ShapeDtypeStruct((3000,), jnp.float32), masked=True
    )
    data = make_data(x=np.zeros((6, 3000), np.float32))
    plain = fed_avg(large, optax.sgd(0.1), SCHEDULE)
    simulate(large, data, federated.compressed(plain, **both))
    assert not caplog.records
