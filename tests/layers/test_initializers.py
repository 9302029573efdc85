"""The draws of the initialisers: those of the shaped forms, bounds and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.layers.initializers import he_normal, torch_uniform, uniform

SHAPE = (3, 3, 32, 64)


@pytest.mark.parametrize("shape", [(48,), (12, 40), SHAPE])
def test_uniform_draws_are_those_of_the_shaped_form_within_the_bound(shape):
    drawn = uniform(0.5)(jax.random.key(3), shape, jnp.float32)
    wanted = jax.random.uniform(jax.random.key(3), shape, jnp.float32, -0.5, 0.5)
    np.testing.assert_array_equal(drawn, wanted, strict=True)
    assert 0.45 < float(jnp.abs(drawn).max()) <= 0.5
    np.testing.assert_array_equal(torch_uniform(4)(jax.random.key(3), shape, jnp.float32), drawn)


def test_he_normal_is_flaxs():
    drawn = he_normal(jax.random.key(3), SHAPE)
    wanted = nn.initializers.he_normal()(jax.random.key(3), SHAPE)
    np.testing.assert_allclose(drawn, wanted, rtol=1e-6)
    # 18,432 draws: the standard deviation is known to 0.5 %.
    assert float(drawn.std()) == pytest.approx((2 / (3 * 3 * 32)) ** 0.5, rel=0.03)
