import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.labelled import classification, regression
from jaxlab.federated.local import (
    Limits,
    evaluate_client,
    make_sgd_step,
    run_steps,
    start_carry,
)
from jaxlab.federated.monitoring import metric_values
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import LossOutput, Task


class Linear(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.outputs)(x)


def make_view(rows, client=0, **arrays):
    """A client of several, so that its offset is not 0."""
    examples = {"row": np.arange(rows + 3, dtype=np.int32), **arrays}
    data = gather_clients(examples, [np.arange(rows, rows + 3), np.arange(rows)])
    return view_client(jax.tree.map(jnp.asarray, data), jnp.int32(1))


@pytest.mark.parametrize(
    "schedule", [Schedule(4, 2), Schedule(4, 7, "step"), Schedule(4, 2, "epoch", True)]
)
def test_a_client_goes_through_all_its_examples_in_every_epoch(schedule):
    rows = 10
    view = make_view(rows)

    def visit(seen, given):
        rows = jnp.where(given.mask, given.batch["row"], 19)
        return jax.lax.dynamic_update_slice(seen, rows[None], (given.step, 0))

    empty = jnp.full((8, 4), -1, jnp.int32)
    limits = Limits(rows, schedule.max_epochs(np.array([rows])))
    seen = run_steps(visit, empty, view, schedule, limits, jax.random.key(0))
    steps = schedule.num_steps(rows)
    assert (seen[steps:] == -1).all() and (seen[:steps] >= 0).all()
    batches = schedule.num_batches(rows)
    for first in range(0, steps, batches):
        epoch = [
            row for row in seen[first : min(first + batches, steps)].ravel().tolist() if row != 19
        ]
        assert len(epoch) == len(set(epoch)) and set(epoch) <= set(range(rows))
    if schedule.unit == "epoch" and not schedule.drop_last:
        assert sorted(seen[:3].ravel().tolist())[:10] == list(range(10))


def test_a_client_without_examples_takes_no_step():
    view = make_view(4)._replace(size=jnp.int32(0))
    counted = run_steps(
        lambda count, given: count + 1,
        jnp.int32(0),
        view,
        Schedule(4),
        Limits(4, 1),
        jax.random.key(0),
    )
    assert counted == 0


def test_steps_of_full_batches_are_gradient_descent():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    view = make_view(5, x=x, y=y)
    task = regression(Linear(), jax.ShapeDtypeStruct((3,), jnp.float32))
    tx, schedule = optax.sgd(0.1), Schedule(8, 4, "step")
    variables = task.init(jax.random.key(1))
    carry = start_carry(task, tx, variables, view, has_penalty=True)
    step = make_sgd_step(
        task,
        tx,
        penalty=lambda params: 0.05 * jnp.square(params["Dense_0"]["kernel"]).sum(),
        grad_transform=lambda grads, params, given: jax.tree.map(lambda g: 2 * g, grads),
    )
    end = run_steps(step, carry, view, schedule, Limits(5, 4), jax.random.key(2))
    w = np.append(np.asarray(variables["params"]["Dense_0"]["kernel"])[:, 0], 0.0).astype(
        np.float64
    )
    rows, losses, penalties = np.c_[x[:5], np.ones(5)].astype(np.float64), [], []
    for _ in range(4):
        error = rows @ w - y[:5]
        losses.append((error**2).sum())
        penalties.append(5 * 0.05 * (w[:3] ** 2).sum())
        w -= 0.1 * 2 * (2 * rows.T @ error / 5 + 0.1 * np.append(w[:3], 0))
    kernel, bias = (
        end.variables["params"]["Dense_0"]["kernel"],
        end.variables["params"]["Dense_0"]["bias"],
    )
    np.testing.assert_allclose(np.append(kernel, bias), w, rtol=1e-5, atol=1e-6)
    assert end.num_samples == 20
    np.testing.assert_allclose(end.sums["loss"], [sum(losses), 20], rtol=1e-5)
    np.testing.assert_allclose(end.sums["regularisation"], [sum(penalties), 20], rtol=1e-5)


def test_an_evaluation_sums_over_all_examples_and_no_others():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(0, 4, 10).astype(np.int32)
    view = make_view(7, x=x, y=y)
    task = classification(Linear(4), jax.ShapeDtypeStruct((3,), jnp.float32))
    variables = task.init(jax.random.key(0))
    sums = evaluate_client(task, variables, view, 3)
    logits = x[:7].astype(np.float64) @ np.asarray(
        variables["params"]["Dense_0"]["kernel"], np.float64
    )
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), y[:7]]
    np.testing.assert_allclose(sums["loss"], [losses.sum(), 7], rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], [(logits.argmax(1) == y[:7]).sum(), 7])


def test_scores_of_classes_add_up_to_those_over_all_examples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(0, 4, 10).astype(np.int32)
    view, shape = make_view(7, x=x, y=y), jax.ShapeDtypeStruct((3,), jnp.float32)
    task = classification(Linear(5), shape, scores=("f1", "hits@2", "correct"))
    variables = task.init(jax.random.key(0))
    found = metric_values(jax.device_get(evaluate_client(task, variables, view, 3)))
    logits = np.asarray(x[:7] @ variables["params"]["Dense_0"]["kernel"])
    predicted, labels = logits.argmax(axis=1), y[:7]
    per_class = []
    for number in set(predicted.tolist()) | set(labels.tolist()):
        right = ((predicted == number) & (labels == number)).sum()
        said, so = (predicted == number).sum(), (labels == number).sum()
        precision, recall = right / max(said, 1), right / max(so, 1)
        per_class.append(2 * precision * recall / max(precision + recall, 1e-12))
    ranks = (np.argsort(-logits, axis=1) == labels[:, None]).argmax(axis=1)
    assert found.keys() == {"loss", "f1", "hits@2", "correct"}
    np.testing.assert_allclose(found["f1"].values, np.mean(per_class), rtol=1e-6)
    np.testing.assert_allclose(found["hits@2"].values, (ranks < 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["correct"].values, (predicted == labels).mean(), rtol=1e-6)
    with pytest.raises(ConfigError, match="'hits@x' is not one of correct, f1, .*, hits@1"):
        classification(Linear(5), shape, scores=("hits@x",))


def test_scores_of_padded_rows_do_not_count_even_if_they_are_not_finite():
    def loss(variables, batch, key, train):
        values = jnp.where(batch["mask"], variables["params"] * batch["row"], jnp.nan)
        return LossOutput(values, {}, {})

    task, view = Task(lambda key: {"params": jnp.float32(1)}, loss), make_view(5)
    tx = optax.sgd(0.0)
    carry = start_carry(task, tx, {"params": jnp.float32(1)}, view)
    end = run_steps(
        make_sgd_step(task, tx),
        carry,
        view,
        Schedule(4, shuffle=False),
        Limits(5, 1),
        jax.random.key(0),
    )
    np.testing.assert_allclose(end.sums["loss"], [10, 5])


def test_normalisation_over_a_batch_leaves_padded_rows_out():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, mask=None):
            mask = None if mask is None else mask[:, None]
            return nn.BatchNorm(use_running_average=not train, momentum=0.0)(x, mask=mask)

    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    view = make_view(5, x=x, y=x)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    task, tx = regression(Normalised(), shape, masked=True), optax.sgd(0.0)
    variables = task.init(jax.random.key(0))
    schedule, limits = Schedule(8, shuffle=False), Limits(5, 1)
    end = run_steps(
        make_sgd_step(task, tx),
        start_carry(task, tx, variables, view),
        view,
        schedule,
        limits,
        jax.random.key(0),
    )
    mean = end.variables["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, x[:5].mean(axis=0), rtol=1e-6)
    unmasked = regression(Normalised(), shape)
    with pytest.raises(ConfigError, match="Normalised normalises over the batch.*masked=True"):
        run_steps(
            make_sgd_step(unmasked, tx),
            start_carry(unmasked, tx, variables, view),
            view,
            schedule,
            limits,
            jax.random.key(0),
        )
