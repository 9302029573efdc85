import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.layers.dense import Dense

SHAPES = [(5,), (3, 5), (2, 3, 5), (2, 1, 3, 5)]


def _draw(shape):
    return jax.random.normal(jax.random.key(len(shape)), shape)


def _loss(variables, x):
    return jnp.sum(jnp.sin(Dense(4).apply(variables, x)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_rows_one_by_one(shape):
    x = _draw(shape)
    variables = Dense(4).init(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    rows = np.asarray(x, np.float64).reshape(-1, 5)
    want = rows @ kernel  # the bias starts at zero
    got = Dense(4).apply(variables, x)
    np.testing.assert_allclose(got, want.reshape(*shape[:-1], 4), atol=1e-6)
    grads, grad_x = jax.grad(_loss, argnums=(0, 1))(variables, x)
    slope = np.cos(want)
    np.testing.assert_allclose(grads["params"]["kernel"], rows.T @ slope, atol=1e-5)
    np.testing.assert_allclose(grads["params"]["bias"], slope.sum(0), atol=1e-5)
    np.testing.assert_allclose(grad_x, (slope @ kernel.T).reshape(shape), atol=1e-5)


def test_parameters_start_as_those_of_flax():
    x = _draw((2, 5))
    got, want = (module.init(jax.random.key(0), x) for module in (Dense(4), nn.Dense(4)))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_forward_mode_and_vmap_pass_through():
    x = _draw((2, 3, 5))
    variables = Dense(4).init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    _, tangent = jax.jvp(lambda x: Dense(4).apply(variables, x), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, jnp.ones_like(x) @ kernel, atol=1e-5)
    each = jax.vmap(lambda row: Dense(4).apply(variables, row))(x[None])
    np.testing.assert_allclose(each[0], x @ kernel, atol=1e-5)


@pytest.mark.parametrize(("backend", "axes"), [("cpu", 1), ("gpu", 2), ("tpu", 2)])
def test_kernel_gradient_sums_over_one_axis_on_cpus_alone(monkeypatch, backend, axes):
    x = _draw((2, 3, 5))
    variables = Dense(4).init(jax.random.key(0), x)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    text = "".join(str(jax.make_jaxpr(jax.grad(_loss))(variables, x)).split())
    summed = {1: "(([0],[0]),([],[]))", 2: "(([0,1],[0,1]),([],[]))"}
    assert summed[axes] in text
    assert summed[3 - axes] not in text


def test_a_batch_over_devices_stays_so():
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    placed = jax.sharding.NamedSharding(mesh, jax.P("data"))
    x = jax.device_put(_draw((2, 3, 5)), placed)
    variables = Dense(4).init(jax.random.key(0), x)
    compiled = jax.jit(Dense(4).apply).lower(variables, x).compile()
    assert "all-gather" not in compiled.as_text()
    assert compiled(variables, x).sharding.is_equivalent_to(placed, 3)
