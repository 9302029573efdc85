import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.hooks import hook_rounds, hook_task
from jaxlab.federated.labelled import regression
from jaxlab.federated.local import Limits, train_client
from jaxlab.federated.tasks import LossOutput, Task


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1, use_bias=False)(x)


def test_functions_run_at_every_point_of_local_training():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    data = jax.tree.map(jnp.asarray, gather_clients({"x": x, "y": y}, [np.arange(4)]))
    plain = regression(Linear(), jax.ShapeDtypeStruct((2,), jnp.float32))

    def on_batch(batch, key, train):
        return {**batch, "x": 2 * batch["x"]} if train else batch

    def on_loss(output, variables, batch, train):
        kernel = variables["params"]["Dense_0"]["kernel"]
        return output._replace(per_example=output.per_example + jnp.square(kernel).sum())

    task = hook_task(hook_task(plain, batch=on_batch), loss=on_loss)
    tx = optax.chain(optax.scale(0.5), optax.sgd(0.1), optax.scale(3.0))
    algorithm = hook_rounds(
        fed_avg(task, tx, Schedule(4, 2, shuffle=False)),
        before=lambda received, state, view, key: jax.tree.map(lambda w: w + 1, received),
        after=lambda result, received, key: result._replace(weight=7 * result.weight),
    )
    variables = plain.init(jax.random.key(0))
    view = view_client(data, jnp.int32(0))
    result = algorithm.local(variables, {}, view, Limits(4, 2), jax.random.key(0))
    start = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)[:, 0] + 1
    w = start.copy()
    for _ in range(2):
        w -= 3 * 0.1 * 0.5 * (2 * (2 * x).T @ (2 * x @ w - y) / 4 + 2 * w)
    moved = result.update["params"]["Dense_0"]["kernel"][:, 0]
    np.testing.assert_allclose(moved, w - start, atol=1e-5)
    assert result.weight == 7 * 8
    found = task.loss(
        variables, {"x": jnp.asarray(x), "y": y}, jax.random.key(0), False
    ).per_example
    kernel = start - 1
    np.testing.assert_allclose(found, (x @ kernel - y) ** 2 + (kernel**2).sum(), rtol=1e-5)


@pytest.fixture
def counting():
    """A model of one number whose loss is that number times the one of the batch."""

    def loss(variables, batch, key, train):
        return LossOutput(variables["params"]["w"] * batch["x"], {}, {})

    return Task(lambda key: {"params": {"w": jnp.float32(0)}}, loss)


def view_of(sizes):
    data = gather_clients({"x": np.ones(sum(sizes), np.float32)}, [np.arange(sum(sizes))])
    return view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0))


def test_functions_in_a_list_are_inserted_replaced_and_deleted_by_name(counting):
    hooks = [("double", lambda x: 2 * x), ("less", lambda x: x - 1)]
    hooks.insert(1, ("more", lambda x: x + 5))
    hooks = [(name, (lambda x: 3 * x) if name == "double" else f) for name, f in hooks]
    hooks = [(name, f) for name, f in hooks if name != "less"]
    task = counting
    for _, function in reversed(hooks):
        task = hook_task(task, batch=lambda batch, key, train, f=function: {"x": f(batch["x"])})
    for _, function in hooks:
        task = hook_task(
            task,
            loss=lambda out, variables, batch, train, f=function: out._replace(
                per_example=f(out.per_example)
            ),
        )
    variables, batch = {"params": {"w": jnp.float32(1)}}, {"x": jnp.ones(2)}
    found = task.loss(variables, batch, jax.random.key(0), False).per_example
    np.testing.assert_array_equal(found, np.full(2, 3 * (3 * 1 + 5) + 5))

    transforms = [("double", optax.scale(2.0)), ("decay", optax.add_decayed_weights(1.0))]
    transforms.insert(1, ("sgd", optax.sgd(1.0)))
    tx = optax.named_chain(*transforms)
    updates, _ = tx.update(jnp.float32(3), tx.init(jnp.float32(10)), jnp.float32(10))
    assert updates == -2 * 3 + 10


def test_rounds_are_wrapped_from_the_outside_in(counting):
    algorithm = fed_avg(counting, optax.sgd(0.0), Schedule(2))
    for step in (lambda w: w + 1, lambda w: 2 * w):
        algorithm = hook_rounds(
            algorithm,
            before=lambda received, state, view, key, f=step: jax.tree.map(f, received),
            after=lambda result, received, key, f=step: result._replace(weight=f(result.weight)),
        )
    seen = hook_rounds(algorithm, after=lambda result, received, key: result)
    result = seen.local(
        {"params": {"w": jnp.float32(3)}}, {}, view_of([2]), Limits(2, 1), jax.random.key(0)
    )
    assert result.weight == 2 * (2 + 1)
    np.testing.assert_allclose(result.sums["loss"], [2 * (2 * 3 + 1), 2])


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_gradient_can_be_changed_where_an_epoch_starts_or_ends(counting, place):
    schedule, view = Schedule(2, 3), view_of([5])  # three epochs of three batches
    last = schedule.num_batches(view.size) - 1

    def once_an_epoch(grads, params, given):
        position = given.step % schedule.num_batches(view.size)
        chosen = position == (0 if place == "start" else last)
        return jax.tree.map(lambda g: jnp.where(chosen, g, 0.0), grads)

    end = train_client(
        counting, optax.sgd(1.0), schedule, {"params": {"w": jnp.float32(0)}}, view, Limits(5, 3),
        jax.random.key(0), grad_transform=once_an_epoch,
    )  # fmt: skip
    assert end.variables["params"]["w"] == -3
