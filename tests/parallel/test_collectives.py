import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxlab.parallel import make_mesh, shard_map

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
W = np.array([0.5, -1.0, 2.0], np.float32)


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


def sharded_gradient(per_device, mesh):
    mapped = shard_map(per_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    return jax.jit(mapped)(W, X)


EXPECTED = (2 * X.T.astype(np.float64) @ (X.astype(np.float64) @ W) / len(X)).astype(np.float32)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_gradient_of_an_averaged_loss_is_the_gradient_on_one_device(num_devices):
    def per_device(w, x):
        return jax.grad(lambda w: jax.lax.pmean(loss(w, x), "data"))(w)

    got = sharded_gradient(per_device, make_mesh(devices=jax.devices()[:num_devices]))
    np.testing.assert_allclose(got, EXPECTED, rtol=1e-5)


def test_averaging_after_the_gradient_is_wrong_by_the_number_of_devices():
    def per_device(w, x):
        return jax.lax.pmean(jax.grad(loss)(w, x), "data")

    np.testing.assert_allclose(sharded_gradient(per_device, make_mesh()), 8 * EXPECTED, rtol=1e-5)


def test_an_output_that_differs_between_devices_cannot_be_called_replicated():
    with pytest.raises(ValueError, match="replicat"):
        sharded_gradient(lambda w, x: x.sum(), make_mesh())
