import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from jaxlab.layers.activations import ACTIVATIONS, check_activation

X = np.linspace(-6.0, 6.0, 241)
TANH_GELU = 0.5 * X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)))
CLOSED_FORMS = {
    "quick_gelu": X * expit(1.702 * X),
    "gelu": X * 0.5 * (1 + erf(X / np.sqrt(2))),
    "gelu_new": TANH_GELU,
    "relu": np.maximum(X, 0),
    "swish": X * expit(X),
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_equals_its_closed_form(name):
    got = jax.jit(ACTIVATIONS[name])(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, CLOSED_FORMS[name], atol=1e-6)


def test_the_gelus_differ_by_more_than_the_tolerance():
    assert np.abs(CLOSED_FORMS["gelu"] - CLOSED_FORMS["gelu_new"]).max() > 1e-4
    assert np.abs(CLOSED_FORMS["gelu"] - CLOSED_FORMS["quick_gelu"]).max() > 1e-2


def test_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'gelu_fast' is unknown.*'quick_gelu'"):
        check_activation("gelu_fast")
