"""Estimators by moments, by inclusion probabilities and by extrapolated series.

All take a `Profile` and give real numbers with its batch axes, before clamping. Formulas hold for
0 < n < N; `jaxlab.ndv.estimators.estimate` handles the rest.
"""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import (
    Flags,
    Numbers,
    Stepped,
    bisect,
    hit_curvature,
    hit_slope,
    log1p_curvature,
    log_miss_probability,
    miss_probability,
    namespace,
    poisson_row_shares,
    row_shares,
)
from jaxlab.ndv.terms import Terms, power, squared_variation, summarize

LARGEST_GOODMAN_TERM = 10**15
"""Goodman's estimate is refused when a term of its alternating sum is larger."""
LARGEST_GOODMAN_FREQUENCY = 10**6
"""Goodman's estimate is refused when a value was seen more often: so many factors its term has."""
_MAX_TRIALS = 40
"""Most trials of the smoothing distribution: 3^80 is the largest float32."""
_LOG_FACTORIALS = np.array([math.lgamma(k + 1) for k in range(_MAX_TRIALS + 1)])


def moments_infinite(profile: Profile) -> Numbers:
    """MM0: the root D of d = D (1 - exp(-n / D)), equal classes of an infinite population.

    Returns:
      The estimate, infinite where every sampled value is unique.

    References:
      Bunge and Fitzpatrick 1993, "Estimating the number of species: a review", JASA 88.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    share = t.repeats / t.n

    def is_below(log_y: Numbers) -> Flags:
        return _repeats_less(poisson_row_shares(xp.exp(log_y)), t)

    # The root y = n / D is at least 2 share (as y / 2 bounds the share), and at most n / d.
    low = xp.log(xp.maximum(2 * share, 1e-30))
    high = xp.maximum(xp.log(t.n / t.d), low)
    log_y = bisect(is_below, low, high)
    return xp.where(share > 0, t.n * xp.exp(-log_y), xp.inf)


def moments_finite(profile: Profile) -> Numbers:
    """MM1: the root D of d = D (1 - h(N / D)), equal classes of a finite population.

    References:
      Haas et al. 1995, section 3.4.
    """
    return _moments_finite(summarize(profile))


def moments_second(profile: Profile) -> Numbers:
    """MM2: MM1 corrected for unequal classes by the second-order expansion of h about B = N / MM1.

    d / (1 - h(B) + B^2 gamma^2(MM1) h(B) (g_n'(B) - g_n(B)^2) / 2).

    References:
      Haas et al. 1995, section 3.4; Haas and Stokes 1998, section 3.3.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    first = _moments_finite(t)
    size = t.N / first
    h = miss_probability(size, t.n, t.N)
    bend = hit_curvature(size, t.n, t.N) - hit_slope(size, t.n, t.N) ** 2
    half_square = 0.5 * size * size * squared_variation(first, t)
    skew = xp.where(h > 0, half_square * h * bend, 0.0)
    return t.d / (-xp.expm1(log_miss_probability(size, t.n, t.N)) + skew)


def bootstrap(profile: Profile) -> Numbers:
    """BOOT: d + sum f_i (1 - i / n)^n.

    References:
      Smith and van Belle 1984, "Nonparametric estimation of species richness", Biometrics 40.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    n = t.n[..., None]
    return t.d + xp.sum(t.f * power(-xp.minimum(t.i / n, 1.0), n), axis=-1)


def horvitz_thompson(profile: Profile) -> Numbers:
    """HT: sum f_i / (1 - h(i N / n)), each value weighs the inverse of its chance to be sampled.

    References:
      Haas et al. 1995, section 3.5; Sarndal, Swensson, Wretman 1992, "Model assisted survey
      sampling".
    """
    t = summarize(profile)
    xp = namespace(t.f)
    n, N = t.n[..., None], t.N[..., None]
    return xp.sum(t.f / -xp.expm1(log_miss_probability(t.i * (N / n), n, N)), axis=-1)


def sichel(profile: Profile) -> Numbers:
    """Sichel's estimator: class sizes of a generalised inverse Gaussian-Poisson distribution.

    With a = 2 n / d - ln(n / f1) and b = 2 f1 / d + ln(n / f1), w is a root in (f1 / n, 1) of
    (1 + w) ln w - a w + b = 0, which always has the trivial root r = f1 / n, and
    D = 2 / (b' c') with b' = w ln(w / r) / (1 - w), c' = (1 - w^2) / (n w^2).

    The left side is concave, so that there is at most one other root; it is searched after division
    by w - r, as w = r (1 + x) with x above a few roundings. At the root D = d (1 + x) / x.

    Returns:
      The estimate, infinite where there is no root.

    References:
      Sichel 1986, "Parameter estimation for a word frequency distribution based on occupancy
      theory", Communications in Statistics - Theory and Methods 15; Haas et al. 1995, section 3.6.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    r, rest = t.f1 / t.n, t.repeated_rows / t.n
    start = 2 * t.repeated_values / t.d - rest  # 1 + r - 2 f1 / d

    def is_below(log_x: Numbers) -> Flags:
        # (1 + r + r x) ln(1 + x) / x > 2 f1 / d, without what cancels for small x.
        x = xp.exp(log_x)
        return start + (1 + r + r * x) * log1p_curvature(x) > 0.5 * x * (rest + r * x)

    low = xp.zeros_like(r) + math.log(64 * float(np.finfo(t.f.dtype).eps))
    high = xp.log(xp.maximum(t.repeated_rows / xp.where(t.f1 > 0, t.f1, t.n), 1e-30))
    high = xp.maximum(high, low)
    x = xp.exp(bisect(is_below, low, high))
    has_root = (t.f1 > 0) & is_below(low) & ~is_below(high)
    return xp.where(has_root, t.d * ((1 + x) / x), xp.inf)


def goodman(profile: Profile) -> np.floating | np.ndarray:
    """Goodman's unbiased estimator, on the host only.

    d + sum (-1)^(i + 1) (N - n + i - 1)! (n - i)! / ((N - n - 1)! n!) f_i.

    The one unbiased estimator, of no use when the sample is small: its terms alternate and explode.
    Computed with sixty digits, and refused when a term is above 1e15, a value was seen more than a
    million times, or the profile has a tail.

    Args:
      profile: a host profile.

    Returns:
      The estimate, infinite where it is refused.

    Raises:
      TypeError: for a profile of JAX arrays.

    References:
      Goodman 1949, "On the estimation of the number of classes in a population", Annals of
      Mathematical Statistics 20.
    """
    if namespace(profile.f) is not np:
        raise TypeError("GOODMAN got JAX arrays; it needs sixty digits: pass a host profile")
    shape = (np.size(profile.n), profile.f.shape[-1])
    flat = zip(
        np.reshape(profile.i, shape),
        np.reshape(profile.f, shape),
        *(np.ravel(leaf) for leaf in (profile.n, profile.d, profile.N, profile.d_tail)),
        strict=True,
    )
    return np.array([_goodman(*one) for one in flat]).reshape(np.shape(profile.n))[()]


def smoothed_good_toulmin(profile: Profile) -> Numbers:
    """SGT: d - sum (-t)^i f_i P(L >= i) with t = (N - n) / n and L ~ Binomial(r, 2 / (2 + t)).

    r = floor(log_3(n t^2 / (t - 1)) / 2). For t of at most 1 the series is not smoothed (P = 1).
    Proven up to t of about ln n; far beyond, terms alternate without limit
    (`good_toulmin_is_proven`). The tail has no sign and is left out.

    References:
      Orlitsky, Suresh, Wu 2016, "Optimal prediction of the number of unseen species", PNAS 113,
      arXiv:1511.07428; Good and Toulmin 1956, Biometrika 43.
    """
    xp = namespace(profile.f)
    t = (profile.N - profile.n) / profile.n
    far = xp.where(t > 1, t, 2.0)
    smooth = _smoothed_coefficients(profile.n, far)
    place = xp.minimum(profile.i, _MAX_TRIALS + 1)
    weight = xp.take_along_axis(smooth, place, axis=-1)
    near = xp.minimum(t, 1.0)[..., None]
    plain = xp.exp(profile.i * xp.log(xp.maximum(near, 1e-30)))
    weight = xp.where((t > 1)[..., None], weight, plain)
    sign = xp.where(profile.i % 2 == 1, 1.0, -1.0).astype(profile.f.dtype)
    return profile.d + xp.sum(sign * weight * profile.f, axis=-1)


def good_toulmin_is_proven(profile: Profile) -> Flags:
    """Whether N is within the reach of `smoothed_good_toulmin`: (N - n) / n <= max(1, ln n)."""
    xp = namespace(profile.f)
    t = (profile.N - profile.n) / profile.n
    return t <= xp.maximum(xp.log(profile.n), 1.0)


def _moments_finite(t: Terms) -> Numbers:
    xp = namespace(t.f)

    def is_below(log_size: Numbers) -> Flags:
        return _repeats_less(row_shares(xp.exp(log_size), t.n, t.N), t)

    high = xp.maximum(xp.log(t.N / t.d), 0.0)
    log_size = bisect(is_below, xp.zeros_like(high), high)
    return t.N * xp.where(t.repeats > 0, xp.exp(-log_size), 1.0)


def _repeats_less(shares: tuple[Numbers, Numbers], t: Terms) -> Flags:
    """Whether fewer rows repeat than in the sample, by the share that has its digits."""
    few = t.repeats < 0.5 * t.n
    return namespace(t.f).where(few, shares[0] < t.repeats / t.n, shares[1] > t.d / t.n)


def _smoothed_coefficients(n: Numbers, t: Numbers) -> Stepped:
    """t^i P(L >= i) for i = 0..41 on a last axis; t^i alone would overflow."""
    xp = namespace(n)
    dtype = n.dtype
    trials = xp.floor(0.5 / math.log(3) * xp.log(n * t * (t / (t - 1))))
    trials = xp.clip(trials, 0.0, float(_MAX_TRIALS))[..., None]
    hits = xp.arange(_MAX_TRIALS + 1).astype(dtype)
    hits = xp.broadcast_to(hits, (*t.shape, _MAX_TRIALS + 1))
    misses = xp.maximum(trials - hits, 0.0)
    logs = xp.asarray(_LOG_FACTORIALS.astype(dtype))
    choose = logs[trials.astype(int)] - logs[hits.astype(int)] - logs[misses.astype(int)]
    # ln of C(r, l) theta^l (1 - theta)^(r - l) t^l with theta = 2 / (2 + t).
    scaled = choose + hits * xp.log(2 / (2 / t + 1))[..., None]
    scaled = xp.exp(scaled - misses * xp.log1p(2 / t)[..., None])
    scaled = xp.where(hits <= trials, scaled, 0.0)
    sums = _decayed_sums(scaled, 1 / t)
    return xp.concatenate([sums, xp.zeros_like(sums[..., :1])], axis=-1)


def _decayed_sums(terms: Stepped, decay: Numbers) -> Stepped:
    """Sums over l >= i of terms_l decay^(l - i), from the last one on: one multiplication each."""
    if isinstance(terms, np.ndarray):
        sums = [terms[..., -1]]
        for one in np.moveaxis(terms, -1, 0)[-2::-1]:
            sums.append(one + decay * sums[-1])
        return np.stack(sums[::-1], axis=-1)

    def step(total: Numbers, one: Numbers) -> tuple[Numbers, Numbers]:
        total = one + decay * total
        return total, total

    start, steps = jnp.zeros_like(decay), jnp.moveaxis(terms, -1, 0)
    return jnp.moveaxis(jax.lax.scan(step, start, steps, reverse=True)[1], 0, -1)


def _goodman(i: np.ndarray, f: np.ndarray, n: float, d: float, N: float, d_tail: float) -> float:
    weights = {int(frequency): float(count) for frequency, count in zip(i, f, strict=True) if count}
    most = max(weights, default=0)
    if d_tail > 0 or most > LARGEST_GOODMAN_FREQUENCY:
        return math.inf
    with localcontext() as context:
        context.prec = 60
        rows, left = Decimal(float(n)), Decimal(float(N)) - Decimal(float(n))
        total, product = Decimal(float(d)), Decimal(1)
        for k in range(1, most + 1):
            product *= (left + k - 1) / (rows - k + 1)
            if k not in weights:
                continue
            term = product * Decimal(weights[k])
            if term > LARGEST_GOODMAN_TERM:
                return math.inf
            total += term if k % 2 else -term
        return float(total)
