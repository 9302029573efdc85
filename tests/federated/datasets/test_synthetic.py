import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.datasets import (
    make_linear_regression,
    make_logistic_mixture,
    make_quadratics,
)
from jaxlab.federated.strategy import ConfigError


def test_the_mixture_is_made_of_its_components():
    data = make_logistic_mixture(
        4, dim=6, num_components=1, noise=0.0, num_val=50, num_test=3000, seed=3
    )
    theta = np.random.default_rng([3, 0]).uniform(-1, 1, (1, 6))[0]
    x, y = data.test.examples["x"], data.test.examples["y"]
    assert x.shape == (12_000, 6) and x.dtype == np.float32 and abs(x).max() <= 1
    scores = x.astype(np.float64) @ theta
    clear = np.abs(scores) > 1e-5  # x was rounded to float32 after y was made
    np.testing.assert_array_equal(y[clear], np.round(1 / (1 + np.exp(-scores[clear]))))
    assert data.val.sizes.tolist() == [50] * 4 and data.info.num_classes == 2


def test_a_client_of_the_mixture_does_not_depend_on_the_others():
    few, many = (make_logistic_mixture(n, dim=5, num_val=10, num_test=0, seed=1) for n in (3, 8))
    count = int(few.train.sizes.sum())
    np.testing.assert_array_equal(few.train.sizes, many.train.sizes[:3])
    np.testing.assert_array_equal(few.train.examples["x"], many.train.examples["x"][:count])
    np.testing.assert_array_equal(few.train.examples["y"], many.train.examples["y"][:count])
    assert list(few.splits) == ["val"]


def test_sizes_of_the_mixture_lie_between_50_and_1000_with_the_quantiles_of_a_lognormal():
    sizes = make_logistic_mixture(400, dim=1, num_val=0, num_test=0).train.sizes
    assert sizes.min() >= 50 and sizes.max() == 1000
    # The median of lognormal(4, 2) is e^4 = 54.6, so half of the sizes are below 104.6; one
    # deviation of the share is 2.5 %.
    assert 0.4 < (sizes < 104.6).mean() < 0.6


def test_the_law_of_the_regression_is_the_same_for_all_clients():
    data = make_linear_regression(5, num_examples=400, dim=3)
    train = data.train.examples
    x = np.concatenate([train["x"], np.ones((2000, 1))], axis=1)
    law, residual, *_ = np.linalg.lstsq(x, train["y"][:, 0], rcond=None)
    assert residual[0] / 2000 < 1e-11
    np.testing.assert_allclose(
        data.test.examples["x"] @ law[:3] + law[3], data.test.examples["y"][:, 0], atol=1e-4
    )
    scales = train["x"].reshape(5, -1).std(axis=1)
    # 1200 draws each: the deviation is known to 2 %.
    np.testing.assert_allclose(scales, [0.5, 1.0, 1.5, 2.0, 2.5], rtol=0.1)
    np.testing.assert_array_equal(data.val.examples["x"][:400], data.val.examples["x"][1600:])


def test_a_step_on_quadratics_has_a_closed_form():
    data = make_quadratics(4, dim=2)
    curvatures = data.train.examples["x"][:, 0, 0]
    np.testing.assert_allclose(curvatures[[0, 3]], [0.02, 12.5], rtol=1e-6)
    np.testing.assert_allclose(
        curvatures[1:] / curvatures[:-1], (12.5 / 0.02) ** (1 / 3), rtol=1e-5
    )
    x = jnp.array([1.0, -2.0])
    grads = jax.vmap(lambda a: jax.grad(lambda x: x @ a @ x / 2)(x))(
        jnp.asarray(data.train.examples["x"])
    )
    stepped = (x[None] - 0.1 * grads).mean(axis=0)
    np.testing.assert_allclose(stepped, (1 - 0.1 * curvatures.mean()) * x, rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_logistic_mixture(0), "num_clients=0 must be at least 1"),
        (lambda: make_logistic_mixture(1, alpha=0.0), "alpha=0.0 must be positive"),
        (lambda: make_quadratics(2, min_curvature=2.0, max_curvature=1.0), "0 < min <= max"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
