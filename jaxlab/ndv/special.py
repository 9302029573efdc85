"""Special functions of sampling without replacement, accurate in float32 and far beyond 2^31 rows.

The formulas of the literature are differences of log-gamma, digamma and trigamma values at N, which
lose every digit in float32 above 1e7 rows and are 10 % off in float64 at 2^40. Here every
difference is taken symbolically (Stirling's series, with the arguments shifted up by ten through
the recurrence of the gamma function), so that only small quantities of one sign are added.

All functions are elementwise and take NumPy arrays (float64, on the host) or JAX arrays (float32,
under `jit` and `vmap`); both run the same code. N is the number of rows, n of sampled rows, x a
class size; all may be fractional.

References:
  Haas, Naughton, Seshadri, Stokes 1995, "Sampling-based estimation of the number of distinct values
  of an attribute", VLDB: equation 5 (h) and the sums g. Abramowitz and Stegun 6.1.40, 6.3.18,
  6.4.12.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Numbers = Float[Array, "*#batch"] | Float[np.ndarray, "*#batch"] | np.floating
"""Real numbers, JAX float32 or NumPy float64; the arguments of a function broadcast together."""
Flags = Bool[Array, "*#batch"] | Bool[np.ndarray, "*#batch"] | np.bool_
"""A yes or no per number."""

Stepped = Float[Array, "*#batch steps"] | Float[np.ndarray, "*#batch steps"]
"""Real numbers with one more axis than the arguments."""

_SHIFT = 10
"""How far arguments are moved up before Stirling's series, whose last term is then below 1e-13."""
_SERIES_BELOW = 0.25
"""Below this argument differences of logarithms come from their series."""


def namespace(x: Any) -> ModuleType:
    """`numpy` for NumPy arrays and scalars, `jax.numpy` for everything else."""
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def log_miss_probability(x: Numbers, n: Numbers, N: Numbers) -> Numbers:
    """Logarithm of h(x), the probability that a sample of n of N rows misses a class of x rows.

    h(x) = C(N - x, n) / C(N, n) for x <= N - n, else 0, continued to fractional x by the gamma
    function. Relative accuracy: a few roundings for every size, also where h(x) is close to 1.

    Args:
      x: class size, at least 0.
      n: rows of the sample, drawn without replacement.
      N: rows of the population.

    Returns:
      ln h(x), at most 0; -inf above N - n.

    References:
      Haas et al. 1995, equation 5.
    """
    small, large, shifted, rest = _sorted_sizes(x, n, N)
    bend, tail = _miss_corrections(small, large, shifted, rest, N)
    log_h = small * namespace(x).log1p(-large / shifted) - bend - tail
    return _zero_beyond(log_h, x, n, N)


def miss_probability(x: Numbers, n: Numbers, N: Numbers) -> Numbers:
    """h(x) of `log_miss_probability`, in [0, 1]."""
    return namespace(x).exp(log_miss_probability(x, n, N))


def row_shares(x: Numbers, n: Numbers, N: Numbers) -> tuple[Numbers, Numbers]:
    """Expected shares of sampled rows that repeat a sampled value, and of those that do not.

    When all classes have x rows, a sample is expected to have d = (N / x)(1 - h(x)) values, which
    is a share (1 - h(x)) N / (n x) of its rows; the others repeat one. The first share is 0 at
    x = 1 and grows with x. Both keep their relative accuracy when they are small, but for a factor
    of x / (x - 1) in the first.

    Args:
      x: class size, at least 1.
      n: rows of the sample.
      N: rows of the population.

    Returns:
      The two shares; they sum to 1.
    """
    xp = namespace(x)
    small, large, shifted, rest = _sorted_sizes(x, n, N)
    bend, tail = _miss_corrections(small, large, shifted, rest, N)
    expected = small * (large / N)
    # -ln h(x) - x n / N, without the common leading part.
    excess = small * _log_excess(large / shifted) + bend + tail - expected * _SHIFT / shifted
    y = expected + excess
    first = -xp.expm1(_zero_beyond(-y, x, n, N)) / (x * (n / N))
    stable = (y * poisson_row_shares(y)[0] - excess) / expected
    return xp.where((expected < 0.5) & (x <= N - n), stable, 1 - first), first


def poisson_row_shares(y: Numbers) -> tuple[Numbers, Numbers]:
    """The limit of `row_shares` for large N: 1 - (1 - e^-y) / y and (1 - e^-y) / y.

    Args:
      y: expected sampled rows of a class, above 0.
    """
    xp = namespace(y)
    bounded = xp.minimum(y, 0.5)
    series = xp.ones_like(bounded)
    for k in range(17 if y.dtype == np.float64 else 9, 2, -1):
        series = 1 - bounded / k * series
    first = -xp.expm1(-y) / y
    return xp.where(y < 0.5, bounded / 2 * series, 1 - first), first


def log1p_curvature(x: Numbers) -> Numbers:
    """ln(1 + x) / x - 1 + x / 2 = x^2 / 3 - x^3 / 4 + ..., for x above 0."""
    xp = namespace(x)
    low, high = xp.minimum(x, _SERIES_BELOW), xp.maximum(x, _SERIES_BELOW)
    w = low / (2 + low)
    series = low * low / (4 + 2 * low) + 2 * w * w * (w / low) * _atanh_series(w * w)
    return xp.where(x < _SERIES_BELOW, series, xp.log1p(high) / high - 1 + high / 2)


def hit_slope(x: Numbers, n: Numbers, N: Numbers) -> Numbers:
    """g_n(x) = sum over t = 1..n of 1 / (N - x - n + t) = -h'(x) / h(x), in closed form.

    Args:
      x: class size, at most N - n; larger ones are read as N - n.
      n: number of terms.
      N: rows of the population.

    References:
      Haas et al. 1995, section 3; digamma(N - x + 1) - digamma(N - x - n + 1).
    """
    xp = namespace(x)
    low = xp.maximum(N - x - n, 0.0)
    high = low + n
    terms = xp.zeros_like(low)
    for k in range(1, _SHIFT + 1):
        terms = terms + n / ((low + k) * (high + k))
    low, high = low + _SHIFT, high + _SHIFT
    halves = 0.5 * n / (low * high)
    return xp.log1p(n / low) + terms - halves + _digamma_tail(low) - _digamma_tail(high)


def hit_curvature(x: Numbers, n: Numbers, N: Numbers) -> Numbers:
    """g_n'(x) = sum over t = 1..n of 1 / (N - x - n + t)^2, in closed form.

    Args:
      x: class size, at most N - n; larger ones are read as N - n.
      n: number of terms.
      N: rows of the population.

    References:
      Haas and Stokes 1998, section 3.3; trigamma(N - x - n + 1) - trigamma(N - x + 1).
    """
    xp = namespace(x)
    low = xp.maximum(N - x - n, 0.0)
    high = low + n
    terms = xp.zeros_like(low)
    for k in range(1, _SHIFT + 1):
        terms = terms + n / (low + k) / (high + k) * (1 / (low + k) + 1 / (high + k))
    low, high = low + _SHIFT, high + _SHIFT
    difference = n / low / high
    squares = 0.5 * difference * (1 / low + 1 / high)
    return difference - squares + terms + _trigamma_tail(low) - _trigamma_tail(high)


def bisect(is_below: Callable[[Numbers], Flags], low: Numbers, high: Numbers) -> Numbers:
    """The point between `low` and `high` where `is_below` turns from true to false.

    A fixed number of halvings, so that it vectorises: as many as the type has digits, and twelve
    more. Search on a logarithmic scale where the bracket spans orders of magnitude.

    Args:
      is_below: whether a point lies below the root; elementwise.
      low: lower ends.
      high: upper ends.

    Returns:
      The middle of the last interval. Without a change of sign it is one of the ends.
    """
    xp = namespace(low)

    def halve(_: Any, ends: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
        middle = 0.5 * (ends[0] + ends[1])
        below = is_below(middle)
        return xp.where(below, middle, ends[0]), xp.where(below, ends[1], middle)

    num_steps = int(jnp.finfo(low.dtype).nmant) + 12
    ends = (low + xp.zeros_like(high), high + xp.zeros_like(low))
    if xp is np:
        for step in range(num_steps):
            ends = halve(step, ends)
    else:
        ends = jax.lax.fori_loop(0, num_steps, halve, ends)
    return 0.5 * (ends[0] + ends[1])


def _sorted_sizes(x: Numbers, n: Numbers, N: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The smaller and larger of (x, n), N shifted, and what both leave of it (h is symmetric)."""
    xp = namespace(x)
    x = xp.minimum(x, xp.maximum(N - n, 0.0))
    small, large = xp.minimum(x, n), xp.maximum(x, n)
    shifted = N + _SHIFT
    return small, large, shifted, xp.maximum(shifted - large - small, float(_SHIFT))


def _miss_corrections(
    small: Numbers, large: Numbers, shifted: Numbers, rest: Numbers, N: Numbers
) -> tuple[Numbers, Numbers]:
    """What -ln h has beyond -small ln(1 - large / shifted): the curvature, and the rest."""
    xp = namespace(small)
    left = shifted - large
    half = 0.5 * xp.log1p((small / shifted) * (large / rest))
    stirling = _stirling_tail(shifted - small) + _stirling_tail(left)
    stirling = stirling - _stirling_tail(shifted) - _stirling_tail(rest)
    # Undoes the shift, by the recurrence of the gamma function. Term by term, since a sum over an
    # axis of ten keeps a compiler from using its wide registers.
    back = xp.zeros_like(left)
    for k in range(1, _SHIFT + 1, 2):
        one = (small / (N + k)) * (large / (rest - _SHIFT + k))
        two = (small / (N + k + 1)) * (large / (rest - _SHIFT + k + 1))
        back = back + xp.log1p(one + two + one * two)
    return _bend(small, large, shifted), back - half - stirling


def _bend(small: Numbers, large: Numbers, shifted: Numbers) -> Numbers:
    """The growth of z u(small / z) from z = shifted to z = shifted - large.

    u(t) = (1 - t) ln(1 - t) + t = t^2 (1 / 2 + t / 6 + t^2 / 12 + ...). For small t the difference
    of the series is taken term by term, as a divided difference in Horner's scheme.
    """
    xp = namespace(small)
    left = shifted - large
    high, low = xp.minimum(small / left, 1.0), small / shifted
    bounded = xp.minimum(high, _SERIES_BELOW)
    value = slope = xp.zeros_like(high)
    for k in range(26 if high.dtype == np.float64 else 12, -1, -1):
        slope = slope * low + value
        value = value * bounded + 1 / ((k + 1) * (k + 2))
    series = small * low * (large / left) * (value + slope * low)
    direct = left * _entropy_excess(high) - shifted * _entropy_excess(low)
    return xp.where(high < _SERIES_BELOW, series, direct)


def _zero_beyond(log_h: Numbers, x: Numbers, n: Numbers, N: Numbers) -> Numbers:
    return namespace(x).where(x <= N - n, log_h, -np.inf)


def _atanh_series(y: Numbers) -> Numbers:
    """A(y) of atanh(w) = w + w^3 A(w^2), for y up to 1/49."""
    total = namespace(y).zeros_like(y)
    for k in range(10, -1, -1):
        total = total * y + 1 / (2 * k + 3)
    return total


def _entropy_excess(t: Numbers) -> Numbers:
    """u(t) = (1 - t) ln(1 - t) + t, for t in [0, 1]; relative accuracy only away from 0."""
    xp = namespace(t)
    left = 1 - t
    return xp.where(left > 0, left * xp.log(xp.maximum(left, 1e-30)), 0.0) + t


def _log_excess(p: Numbers) -> Numbers:
    """-ln(1 - p) - p = p^2 / 2 + p^3 / 3 + ..., for p in [0, 1)."""
    xp = namespace(p)
    low = xp.minimum(p, _SERIES_BELOW)
    w = low / (2 - low)
    series = low * low / (2 - low) + 2 * w * w * w * _atanh_series(w * w)
    return xp.where(p < _SERIES_BELOW, series, -xp.log1p(-p) - p)


def _stirling_tail(z: Numbers) -> Numbers:
    """lgamma(z + 1) - (z + 1/2) ln z + z - ln(2 pi) / 2, for z of at least 10."""
    y = (1 / z) * (1 / z)
    return (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / z


def _digamma_tail(z: Numbers) -> Numbers:
    """What is ln z + 1 / (2 z) - digamma(z + 1), for z of at least 10."""
    y = (1 / z) * (1 / z)
    return y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))


def _trigamma_tail(z: Numbers) -> Numbers:
    """trigamma(z + 1) - 1 / z + 1 / (2 z^2), for z of at least 10."""
    y = (1 / z) * (1 / z)
    return y / z * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y * (1 / 30 - y * 5 / 66))))
