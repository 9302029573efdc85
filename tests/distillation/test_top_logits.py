import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxlab.distillation.responses import logits_kl
from jaxlab.distillation.top_logits import rebuild_logits, top_logits

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(4, 12), (2, 3, 12)])
@pytest.mark.parametrize("k", [1, 5, 11])
def test_the_largest_keep_their_probabilities_and_the_rest_its_mass(shape, k):
    logits = jnp.asarray(3 * RNG.normal(size=shape), jnp.float32)
    found = rebuild_logits(jax.jit(top_logits, static_argnums=1)(logits, k), 12)
    exact = softmax(np.asarray(logits, np.float64), axis=-1)
    rebuilt = softmax(np.asarray(found, np.float64), axis=-1)
    order = np.argsort(-np.asarray(logits), axis=-1)
    top = np.take_along_axis(exact, order[..., :k], axis=-1)
    np.testing.assert_allclose(np.take_along_axis(rebuilt, order[..., :k], axis=-1), top, rtol=1e-5)
    each = (1 - top.sum(axis=-1, keepdims=True)) / (12 - k)
    rest = np.take_along_axis(rebuilt, order[..., k:], axis=-1)
    np.testing.assert_allclose(rest, np.broadcast_to(each, rest.shape), rtol=1e-4)


def test_all_classes_are_the_logits_themselves():
    logits = jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32)
    np.testing.assert_array_equal(rebuild_logits(top_logits(logits, 7), 7), logits)


def test_a_rest_without_mass_is_finite_in_losses():
    logits = jnp.asarray([[500.0, 0.0, -300.0]])
    found = rebuild_logits(top_logits(logits, 1), 3)
    student = jnp.zeros((1, 3))
    loss, gradient = jax.value_and_grad(lambda z: logits_kl(z, found).value)(student)
    assert float(loss) == pytest.approx(np.log(3), rel=1e-6)
    assert np.isfinite(gradient).all()


def test_a_tiny_rest_is_not_lost_in_rounding():
    logits = jnp.asarray([[40.0, 0.0, 1.0, -1.0]])
    found = np.asarray(rebuild_logits(top_logits(logits, 1), 4), np.float64)
    wanted = np.exp([0.0, 1.0, -1.0]).sum() / 3
    np.testing.assert_allclose(np.exp(found[0, 1:]), wanted, rtol=1e-5)


def test_a_wrong_number_is_told():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"top_k={k} of 3 classes"):
            top_logits(jnp.zeros((1, 3)), k)
