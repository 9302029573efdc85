import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.hooks import hook_rounds, hook_task
from jaxlab.federated.local import Limits
from jaxlab.federated.tasks import regression


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
