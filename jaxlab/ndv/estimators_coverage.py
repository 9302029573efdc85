"""Estimators that scale the values seen once: scale-up, GEE, AE, and Chao's and Chao and Lee's.

All take a `Profile` and give real numbers with its batch axes, before clamping. Formulas hold for
0 < n < N; `jaxlab.ndv.estimators.estimate` handles the rest.
"""

import math

from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Flags, Numbers, bisect, namespace
from jaxlab.ndv.terms import Terms, summarize

_LARGEST_MU = 1e18
"""Where the search for the root of AE ends."""


def scale_up(profile: Profile) -> Numbers:
    """Scale-up d / q: the sampled distinct values scaled up, a baseline."""
    return profile.d / profile.q


def error_bound(profile: Profile) -> Numbers:
    """Error-bound estimator, sqrt(N / n) max(f1, 1) + d - f1.

    References:
      Chaudhuri, Motwani, Narasayya 1998, "Random sampling for histogram construction: how much is
      enough?", SIGMOD.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    return xp.sqrt(t.N / t.n) * xp.maximum(t.f1, 1.0) + t.repeated_values


def gee(profile: Profile) -> Numbers:
    """Guaranteed-error estimator, sqrt(N / n) f1 + d - f1.

    Its expected ratio error is O(sqrt(N / n)), which no estimator can beat by more than a constant.
    A near-unique column is under-estimated by about sqrt(N / n): 10 times at 1 %, 4.5 at 5 %. One
    whose values occur about N / n times is over-estimated, up to 2 times at 5 %, 1.5 at 10 % and
    1.25 at 20 %.

    References:
      Charikar, Chaudhuri, Motwani, Narasayya 2000, "Towards estimation error guarantees for
      distinct values", PODS.
    """
    t = summarize(profile)
    return namespace(t.f).sqrt(t.N / t.n) * t.f1 + t.repeated_values


def adaptive(profile: Profile) -> Numbers:
    """AE: d + mu - f1 - f2, where mu is the estimated number of classes seen at most twice.

    mu solves mu - f1 - f2 = f1 (A + mu e) / (B + s e) with s = f1 + 2 f2, e = exp(-s / mu),
    A = sum over i >= 3 of exp(-i) f_i and B = sum over i >= 3 of i exp(-i) f_i, by bisection on a
    logarithmic scale up to 1e18.

    When f2 = 0 and the other counts are large, B vanishes and mu runs away: the equation has no
    root below 1e18 or one far above N, whatever the truth. No automatic choice should use it then.

    Returns:
      The estimate, infinite where there is no root.

    References:
      Charikar et al. 2000, section 5.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    weights = xp.where(t.i >= 3, xp.exp(-t.i) * t.f, 0.0)
    a, b = xp.sum(weights, axis=-1), xp.sum(t.i * weights, axis=-1)
    pair, s = t.f1 + t.f2, t.f1 + 2 * t.f2

    def is_below(log_mu: Numbers) -> Flags:
        # The equation times (B + s e): no differences of nearly equal numbers are left.
        mu = xp.exp(log_mu)
        e = xp.exp(-s / mu)
        return (mu - pair) * b + e * (2 * t.f2 * mu - pair * s) < t.f1 * a

    low = xp.log(xp.maximum(pair, 1e-30))
    high = xp.maximum(low + 1, math.log(_LARGEST_MU))
    log_mu = bisect(is_below, low, high)
    mu = xp.where(is_below(high), xp.inf, xp.exp(log_mu))
    return t.repeated_values - t.f2 + mu


def chao(profile: Profile) -> Numbers:
    """Chao's lower bound d + f1^2 / (2 f2), and its bias-corrected form where f2 = 0.

    References:
      Chao 1984, "Nonparametric estimation of the number of classes in a population", Scandinavian
      Journal of Statistics 11.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    classic = t.d + t.f1 * t.f1 / (2 * xp.where(t.f2 > 0, t.f2, 1.0))
    return xp.where(t.f2 > 0, classic, _chao_corrected(t))


def chao_corrected(profile: Profile) -> Numbers:
    """Bias-corrected Chao, d + f1 (f1 - 1) / (2 (f2 + 1)).

    References:
      Chao 2005, "Species estimation and applications", Encyclopedia of Statistical Sciences.
    """
    return _chao_corrected(summarize(profile))


def chao3(profile: Profile) -> Numbers:
    """Chao's formula without f2, d + f1^2 / (2 (d - f1)).

    Unstable when nearly all values are seen once and f1 or d is noisy.

    References:
      arXiv:2206.05476, equation 3.
    """
    t = summarize(profile)
    return t.d + t.f1 * t.f1 / (2 * t.repeated_values)


def chao3_corrected(profile: Profile) -> Numbers:
    """The form of arXiv:2206.05476's notebook, d + f1 (f1 - 1) / (2 (d - f1 + 1))."""
    t = summarize(profile)
    return t.d + t.f1 * (t.f1 - 1) / (2 * (t.repeated_values + 1))


def chao_lee(profile: Profile) -> Numbers:
    """Chao and Lee's first estimator, d / C + (f1 / C) g with the coverage C = 1 - f1 / n.

    g = max(0, (d / C) s2 / (n (n - 1)) - 1) estimates the squared variation of class sizes.

    References:
      Chao and Lee 1992, "Estimating the number of classes via sample coverage", JASA 87, eq. 2.14.
    """
    t = summarize(profile)
    coverage, _, variation = _chao_lee_terms(t)
    return (t.d + t.f1 * variation) / coverage


def chao_lee_second(profile: Profile) -> Numbers:
    """Chao and Lee's second estimator: g max(0, 1 + n (1 - C) s2 / (n (n - 1) C)) in place of g.

    References:
      Chao and Lee 1992, eq. 2.15.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    coverage, dispersion, variation = _chao_lee_terms(t)
    variation = xp.maximum(variation * (1 + t.f1 * dispersion / coverage), 0.0)
    return (t.d + t.f1 * variation) / coverage


def chao_lee_authors_cpp(profile: Profile) -> Numbers:
    """The C++ program of arXiv:2206.05476: g = max(0, d s2 / (C (n^2 - n - 1))).

    For reproducing published tables only: the -1 slipped into the denominator, so that equal class
    sizes give g = 1 instead of 0.
    """
    t = summarize(profile)
    coverage = t.repeated_rows / t.n
    variation = (t.d / coverage) * (t.s2 / (t.n * t.n - t.n - 1))
    return (t.d + t.f1 * namespace(t.f).maximum(variation, 0.0)) / coverage


def chao_lee_authors_notebook(profile: Profile) -> Numbers:
    """The notebook of arXiv:2206.05476: d / C.

    For reproducing published tables only: an exclusive or in place of a power makes its g negative,
    which is then cut to 0.
    """
    t = summarize(profile)
    return t.d * (t.n / t.repeated_rows)


def _chao_corrected(t: Terms) -> Numbers:
    return t.d + t.f1 * (t.f1 - 1) / (2 * (t.f2 + 1))


def _chao_lee_terms(t: Terms) -> tuple[Numbers, Numbers, Numbers]:
    """Coverage, s2 / (n (n - 1)), and g."""
    xp = namespace(t.f)
    coverage = t.repeated_rows / t.n
    dispersion = t.s2 / t.n / xp.where(t.n > 1, t.n - 1, 1.0)
    return coverage, dispersion, xp.maximum(t.d / coverage * dispersion - 1, 0.0)
