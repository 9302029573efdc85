import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.ndv.special import (
    bisect,
    hit_curvature,
    hit_slope,
    log1p_curvature,
    log_miss_probability,
    miss_probability,
    row_shares,
)


@pytest.fixture(scope="module")
def golden(request):
    folder = request.path.parent.parent / "golden"
    with np.load(folder / "ndv_special.npz") as data:
        return data["point"].T, dict(zip(data["name"], data["value"].T, strict=True))


def all_of(x, n, N):
    repeats, firsts = row_shares(x, n, N)
    return {
        "log_miss": log_miss_probability(x, n, N),
        "repeats": repeats,
        "firsts": firsts,
        "slope": hit_slope(x, n, N),
        "curvature": hit_curvature(x, n, N),
    }


def check(ours, golden, x, rtol):
    """Relative to each value, up to 2^40 rows; a share of 0 is met up to rounding."""
    assert set(ours) == set(golden)
    for name, value in ours.items():
        zero = golden[name] == 0
        error = np.abs(np.asarray(value, np.float64) - golden[name])
        assert np.all(error[zero] <= rtol), name
        factor = x / (x - 1 + zero) if name == "repeats" else 1.0
        assert np.all((error <= rtol * factor * np.abs(golden[name]))[~zero]), name


def test_float64_equals_sixty_digits(golden):
    point, values = golden
    assert point[2].max() == 2.0**40 and point.shape[1] > 200
    check(all_of(*point), values, point[0], 1e-12)


def test_float32_equals_sixty_digits(golden):
    """The points are exact in float32, so that only our own rounding counts."""
    point, values = golden
    ours = jax.jit(all_of)(*(jnp.asarray(row, jnp.float32) for row in point))
    check(ours, values, point[0], 1e-5)


def test_a_class_that_cannot_be_missed_is_not():
    x, n, N = np.array([6.0, 7.0, 50.0]), np.full(3, 4.0), np.full(3, 10.0)
    np.testing.assert_allclose(miss_probability(x, n, N), [1 / 210, 0, 0], rtol=1e-12)
    repeats, firsts = row_shares(x, n, N)
    np.testing.assert_allclose(firsts[1:], 10 / (4 * x[1:]), rtol=1e-12)
    np.testing.assert_allclose(repeats + firsts, 1, rtol=1e-12)


def test_counting_equals_the_closed_forms():
    """Whole sizes by their definitions: a product of shares of rows, and sums over t."""
    N, n = 60.0, 17
    for x in (1, 5, 43):
        t = np.arange(1, n + 1)
        args = (np.array(float(x)), np.array(float(n)), np.array(N))
        missed = np.prod((N - x - t + 1) / (N - t + 1))
        np.testing.assert_allclose(miss_probability(*args), missed, rtol=1e-12)
        np.testing.assert_allclose(hit_slope(*args), np.sum(1 / (N - x - n + t)), rtol=1e-12)
        squares = np.sum(1 / (N - x - n + t) ** 2)
        np.testing.assert_allclose(hit_curvature(*args), squares, rtol=1e-12)


@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.2499, 0.2501, 3.0, 1e6])
def test_log1p_curvature_equals_its_series_or_definition(x):
    k = np.arange(2, 60)
    series = np.sum((-1.0) ** k * x**k / (k + 1)) if x < 0.3 else np.log1p(x) / x - 1 + x / 2
    np.testing.assert_allclose(log1p_curvature(np.array(x)), series, rtol=1e-12)


def test_bisect_finds_every_root_on_host_and_device():
    roots = np.array([0.1, 1.0, 2.5, 3.999])

    def search(roots):
        return bisect(lambda x: x * x < roots * roots, 0 * roots, 0 * roots + 4)

    np.testing.assert_allclose(search(roots), roots, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(search)(jnp.float32(roots)), roots, rtol=1e-6)
