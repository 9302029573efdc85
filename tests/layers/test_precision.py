import jax
import jax.numpy as jnp
import pytest

from jaxlab.layers.precision import full_precision


def _precision_of_product(dtype):
    x = jnp.ones((2, 2), dtype)

    def multiply(x):
        with full_precision(dtype):
            return x @ x

    (product,) = [e for e in jax.make_jaxpr(multiply)(x).eqns if e.primitive.name == "dot_general"]
    return product.params["precision"]


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_float32_is_multiplied_in_float32_on_accelerators(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert _precision_of_product("float32") == highest
    assert _precision_of_product("bfloat16") != highest


def test_the_choice_of_the_user_stands(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.default_matmul_precision("default"):
        assert _precision_of_product("float32") == (jax.lax.Precision.DEFAULT,) * 2


def test_cpus_are_left_alone():
    assert _precision_of_product("float32") is None
