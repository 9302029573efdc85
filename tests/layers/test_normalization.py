import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.normalization import BatchNorm, LayerNorm
from jaxlab.parallel import batch_sharding, make_mesh

RNG = np.random.default_rng(0)
X = (3.0 + 2.0 * RNG.normal(size=(8, 3, 2, 4))).astype(np.float32)
SCALE, BIAS = (
    np.array([1.0, 2.0, -1.0, 0.5], np.float32),
    np.array([0.0, 1.0, 2.0, 3.0], np.float32),
)
VARIABLES = {
    "params": {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(BIAS)},
    "batch_stats": {"mean": jnp.full(4, 1.0), "var": jnp.full(4, 4.0)},
}


def normalized(x, axes, epsilon=1e-5):
    x = x.astype(np.float64)
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * SCALE + BIAS


def train(x=X, variables=VARIABLES, **fields):
    return BatchNorm(train=True, **fields).apply(variables, jnp.asarray(x), mutable=["batch_stats"])


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_layer_norm_keeps_its_digits_on_a_large_mean(epsilon):
    x = X + np.float32(1000)
    got = LayerNorm(epsilon).apply({"params": VARIABLES["params"]}, jnp.asarray(x))
    # The mean itself is rounded to 6e-5; the one-pass variance would be off by 5e-2.
    np.testing.assert_allclose(got, normalized(x, (3,), epsilon), atol=2e-3)


def test_layer_norm_computes_in_float32_and_returns_the_inputs_type():
    x = jnp.asarray(X, jnp.bfloat16)
    got = LayerNorm(1e-5).apply({"params": VARIABLES["params"]}, x)
    assert got.dtype == jnp.bfloat16
    expected = normalized(np.asarray(x, np.float32), (3,))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)


def test_training_uses_the_batch_and_records_the_unbiased_variance():
    got, updated = train()
    np.testing.assert_allclose(got, normalized(X, (0, 1, 2)), rtol=1e-5, atol=1e-5)
    wide = X.astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 + 0.1 * wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 3.6 + 0.1 * wide.var(0, ddof=1), rtol=1e-6
    )


def test_evaluation_uses_the_stored_statistics_and_leaves_them():
    got, updated = BatchNorm(train=False).apply(VARIABLES, jnp.asarray(X), mutable=["batch_stats"])
    expected = (X - 1.0) / np.sqrt(4.0 + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], VARIABLES["batch_stats"])


def test_one_value_a_channel_is_finite():
    got, updated = train(X[:1, :1, :1])
    np.testing.assert_allclose(got, np.broadcast_to(BIAS, (1, 1, 1, 4)))
    np.testing.assert_allclose(updated["batch_stats"]["var"], 3.6, rtol=1e-6)


def test_initialisation_leaves_the_statistics_at_rest():
    variables = BatchNorm(train=True).init(jax.random.key(0), jnp.asarray(X))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0.0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1.0)


def test_groups_have_statistics_of_their_own():
    got, updated = train(num_groups=2)
    expected = np.concatenate([normalized(half, (0, 1, 2)) for half in (X[:4], X[4:])])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    variances = [h.astype(np.float64).reshape(-1, 4).var(0, ddof=1) for h in (X[:4], X[4:])]
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 3.6 + 0.1 * np.mean(variances, axis=0), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"a batch of 8 rows .*num_groups=3"):
        train(num_groups=3)


@pytest.mark.parametrize("num_groups", [1, 8])
def test_eight_devices_equal_one(num_groups):
    """Under `jit` the global batch is normalised, whether statistics are synchronised or not."""
    sharded = jax.device_put(X, batch_sharding(make_mesh()))
    got, updated = jax.jit(lambda x: train(x, num_groups=num_groups))(sharded)
    expected, expected_updated = train(num_groups=num_groups)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updated, expected_updated
    )
