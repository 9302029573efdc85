"""Shlosser's estimator and its two modifications by Haas and Stokes.

All take a `Profile` and give real numbers with its batch axes, before clamping. Formulas hold for
0 < q < 1; `jaxlab.ndv.estimators.estimate` handles the rest. Powers go through logarithms, since
(1 + q)^i overflows for frequent values.
"""

from jaxlab.ndv.estimators_jackknife import unsmoothed_first
from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Numbers, namespace
from jaxlab.ndv.terms import Terms, power, summarize


def shlosser(profile: Profile) -> Numbers:
    """SHL: d + f1 sum (1 - q)^i f_i / sum i q (1 - q)^(i - 1) f_i.

    Good on skewed columns; values that all occur many times are over-estimated by up to 1 / q.

    References:
      Shlosser 1981, "On estimation of the size of the dictionary of a long text on the basis of a
      sample", Engineering Cybernetics 19.
    """
    t = summarize(profile)
    return t.d + t.f1 * _shlosser_ratio(t)


def shlosser_second(profile: Profile) -> Numbers:
    """SH2: d + (SHL - d) q (1 + q)^(B - 1) / ((1 + q)^B - 1), with B = N / DUJ1.

    Exact in expectation for classes of equal size.

    References:
      Haas and Stokes 1998, equation 30a.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    size = t.N / unsmoothed_first(t)
    share = t.q / (1 + t.q) / -xp.expm1(-size * xp.log1p(t.q))
    return t.d + t.f1 * _shlosser_ratio(t) * share


def shlosser_third(profile: Profile) -> Numbers:
    """SH3: d + f1 M R^2, where R is Shlosser's ratio.

    M = sum i q^2 (1 - q^2)^(i - 1) f_i / sum (1 - q)^i ((1 + q)^i - 1) f_i.

    References:
      Haas and Stokes 1998, equation 30b.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    q = t.q[..., None]
    top = xp.sum(t.i * q * q * power(-q * q, t.i - 1) * t.f, axis=-1)
    gained = power(-q * q, t.i) * -xp.expm1(-t.i * xp.log1p(q))
    return t.d + t.f1 * (top / xp.sum(gained * t.f, axis=-1)) * _shlosser_ratio(t) ** 2


def _shlosser_ratio(t: Terms) -> Numbers:
    xp = namespace(t.f)
    q = t.q[..., None]
    missed = xp.sum(power(-q, t.i) * t.f, axis=-1)
    return missed / xp.sum(t.i * q * power(-q, t.i - 1) * t.f, axis=-1)
