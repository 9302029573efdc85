"""Jackknife estimators: first and second order, unsmoothed (DUJ) and smoothed (SJ).

All take a `Profile` and give real numbers with its batch axes, before clamping. Formulas hold for
0 < n < N; `jaxlab.ndv.estimators.estimate` handles the rest.

References:
  Haas and Stokes 1998, "Estimating the number of classes in a finite population", JASA 93;
  Haas, Naughton, Seshadri, Stokes 1995, VLDB.
"""

from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Numbers, hit_slope, miss_probability, namespace
from jaxlab.ndv.terms import Terms, squared_variation, summarize

DEFAULT_CUT = 50
"""Classes seen more often than this are frequent in the stabilised estimator."""
_NEWTON_STEPS = 6


def jackknife_first(profile: Profile) -> Numbers:
    """First-order jackknife, d + ((n - 1) / n) f1.

    References:
      Burnham and Overton 1979, "Robust estimation of population size when capture probabilities
      vary among animals", Ecology 60.
    """
    t = summarize(profile)
    return t.d + (t.n - 1) / t.n * t.f1


def jackknife_second(profile: Profile) -> Numbers:
    """Second-order jackknife, d + ((2 n - 3) / n) f1 - ((n - 2)^2 / (n (n - 1))) f2.

    References:
      Burnham and Overton 1979.
    """
    t = summarize(profile)
    before = namespace(t.f).where(t.n > 1, t.n - 1, 1.0)
    return t.d + (2 * t.n - 3) / t.n * t.f1 - (t.n - 2) / t.n * ((t.n - 2) / before) * t.f2


def duj1(profile: Profile) -> Numbers:
    """DUJ1: d / (1 - (1 - q) f1 / n), what PostgreSQL, MariaDB, Doris and StarRocks use.

    References:
      Haas and Stokes 1998, equation 11.
    """
    return unsmoothed_first(summarize(profile))


def duj2(profile: Profile) -> Numbers:
    """DUJ2: (d - f1 (1 - q) ln(1 - q) gamma^2(DUJ1) / q) / (1 - (1 - q) f1 / n).

    References:
      Haas and Stokes 1998, equation 18b.
    """
    return _unsmoothed_second(summarize(profile))


def duj2a(profile: Profile, cut: int = DEFAULT_CUT) -> Numbers:
    """Stabilised DUJ2: frequent classes are counted, the others estimated without them.

    For i > cut, q x / (1 - (1 - q)^x) = i gives the size x of a class that was seen i times; the
    sizes leave N, n and d, and DUJ2 estimates what is left. What is left of N is at least the rows
    sampled from it.

    Args:
      profile: a profile whose dense part, if it has a tail, goes at least up to `cut`.
      cut: c; classes seen more than c times are frequent.

    References:
      Haas and Stokes 1998, section 4.2 and algorithm 3.2, where c = 50.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    frequent = t.i > cut
    f = xp.where(frequent, t.f, 0.0)
    sizes = _class_sizes(xp.where(frequent, t.i, cut + 1.0), t.q[..., None], cut)
    rare_f = xp.where(frequent, 0.0, t.f)
    n = xp.sum(t.i * rare_f, axis=-1)
    rare = t._replace(
        f=rare_f,
        n=n,
        d=xp.sum(rare_f, axis=-1),
        N=xp.maximum(t.N - xp.sum(f * sizes, axis=-1), n),
        repeated_rows=xp.sum(xp.where(t.i > 1, t.i * rare_f, 0.0), axis=-1),
        s2=xp.sum(t.i * (t.i - 1) * rare_f, axis=-1),
    )
    some = n > 0
    safe = rare._replace(n=xp.where(some, n, 1.0), N=xp.where(some, rare.N, 1.0))
    safe = safe._replace(repeated_rows=xp.where(some, rare.repeated_rows, 1.0))
    return xp.where(some, _unsmoothed_second(safe), 0.0) + xp.sum(f, axis=-1)


def smoothed_jackknife(profile: Profile) -> Numbers:
    """SJ: (d + N h(B) g_{n-1}(B) gamma^2(D0)) / (1 - (N - B - n + 1) f1 / (n N)).

    D0 = (d - f1 / n) / (1 - (N - n + 1) f1 / (n N)) is the first-order estimate and B = N / D0 its
    mean class size.

    References:
      Haas et al. 1995, section 3.3. Some implementations multiply the second term by D0 once more.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    seen = t.repeated_rows / t.n
    first = (t.d - t.f1 / t.n) / (seen + t.f1 / t.n * ((t.n - 1) / t.N))
    size = t.N / first
    slope = miss_probability(size, t.n, t.N) * hit_slope(size, t.n - 1, t.N)
    skew = xp.where(slope > 0, t.N * slope * squared_variation(first, t), 0.0)
    return (t.d + skew) / (seen + t.f1 / t.n * ((size + t.n - 1) / t.N))


def smoothed_jackknife_second(profile: Profile) -> Numbers:
    """SJ2: (d - a ln(1 - q) N gamma^2(DUJ1)) / (1 - a) with a = (1 - q)^B, B = N / DUJ1.

    References:
      Haas and Stokes 1998, section 3.2.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    first = unsmoothed_first(t)
    log_missed = xp.log1p(-t.q) * (t.N / first)
    skew = xp.exp(log_missed) * xp.log1p(-t.q) * t.N * squared_variation(first, t)
    return (t.d - skew) / -xp.expm1(log_missed)


def unsmoothed_first(t: Terms) -> Numbers:
    """DUJ1 of the terms of a profile."""
    return t.d / _seen_share(t)


def _unsmoothed_second(t: Terms) -> Numbers:
    xp = namespace(t.f)
    skew = squared_variation(unsmoothed_first(t), t)
    return (t.d - t.f1 * (1 - t.q) * xp.log1p(-t.q) * skew / t.q) / _seen_share(t)


def _seen_share(t: Terms) -> Numbers:
    """1 - (1 - q) f1 / n, as a sum of positive terms."""
    return t.repeated_rows / t.n + t.q * (t.f1 / t.n)


def _class_sizes(i: Numbers, q: Numbers, cut: int) -> Numbers:
    """The root x of q x / (1 - (1 - q)^x) = i, by Newton from i / q down (convex, monotone).

    For i above `cut` (1 - q)^x is less than e^-cut: above 37 that is below the rounding of 1.
    """
    xp = namespace(i)
    rate = xp.log1p(-q)
    x = i / q
    for _ in range(_NEWTON_STEPS if cut < 37 else 0):
        missed = xp.exp(rate * x)
        x = x - (q * x - i * (1 - missed)) / (q + i * rate * missed)
    return x
