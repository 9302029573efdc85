"""Estimators that pick another one by how unequal the classes look.

All take a `Profile` and give real numbers with its batch axes, before clamping. All branches are
computed and one is taken, so that they vectorise.

References:
  Haas and Stokes 1998, JASA 93, section 5; Haas et al. 1995, VLDB, section 4; Charikar et al. 2000,
  PODS, section 6.
"""

import numpy as np
from scipy.special import chdtri

from jaxlab.ndv.estimators_coverage import gee
from jaxlab.ndv.estimators_jackknife import (
    duj2,
    duj2a,
    smoothed_jackknife,
    unsmoothed_first,
)
from jaxlab.ndv.estimators_shlosser import shlosser, shlosser_third
from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Flags, Numbers, namespace
from jaxlab.ndv.terms import squared_variation, summarize

LOW_VARIATION = 0.9
HIGH_VARIATION = 30.0
"""alpha1 and alpha2 of Haas and Stokes 1998, equation 33."""
_CONFIDENCE = 0.975
_NORMAL_QUANTILE = 1.959963984540054
_TABULATED = 100
_QUANTILES = np.concatenate([[0.0], chdtri(np.arange(1, _TABULATED + 1), 1 - _CONFIDENCE)])
"""0.975 quantiles of chi-square for 0 to 100 degrees of freedom."""


def haas_stokes(profile: Profile) -> Numbers:
    """HS: DUJ2 if gamma^2(DUJ1) is below 0.9, DUJ2A below 30, else SH3.

    References:
      Haas and Stokes 1998, equation 33.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    variation = squared_variation(unsmoothed_first(t), t)
    skewed = xp.where(variation < HIGH_VARIATION, duj2a(profile), shlosser_third(profile))
    return xp.where(variation < LOW_VARIATION, duj2(profile), skewed)


def hybrid_shlosser(profile: Profile, *, compat: bool = False) -> Numbers:
    """HYBSKEW: Shlosser where `is_skewed`, else the smoothed jackknife.

    Where nothing was seen once Shlosser's quotient is 0 / 0; it then answers d, as it does alone.

    Args:
      profile: the profile.
      compat: use the published degrees of freedom, see `is_skewed`.

    References:
      Haas et al. 1995, section 4.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    skewed = is_skewed(profile, compat=compat)
    by_skew = xp.where(t.f1 > 0, shlosser(profile), t.d)
    return xp.where(skewed, by_skew, smoothed_jackknife(profile))


def hybrid_gee(profile: Profile, *, compat: bool = False) -> Numbers:
    """HYBGEE: GEE where `is_skewed`, else the smoothed jackknife.

    Args:
      profile: the profile.
      compat: use the published degrees of freedom, see `is_skewed`.

    References:
      Charikar et al. 2000, section 6.
    """
    skewed = is_skewed(profile, compat=compat)
    return namespace(profile.f).where(skewed, gee(profile), smoothed_jackknife(profile))


def is_skewed(profile: Profile, *, compat: bool = False) -> Flags:
    """Whether a chi-square test at 97.5 % rejects that all sampled classes are of one size.

    u = sum f_i (i - n / d)^2 / (n / d) is compared with the quantile of chi-square with d - 1
    degrees of freedom. The quantile is tabulated up to 100 degrees, between whole numbers
    interpolated, and beyond by Wilson and Hilferty's cube, within 2e-5.

    Args:
      profile: the profile.
      compat: n - 1 degrees of freedom, as printed by Haas et al. 1995, although the statistic has d
        terms and one constraint.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    mean = t.n / t.d
    away = profile.i.astype(t.f.dtype) - mean[..., None]
    tail = profile.s2_tail + profile.n_tail - mean * (2 * profile.n_tail - mean * profile.d_tail)
    u = (xp.sum(profile.f * away * away, axis=-1) + xp.maximum(tail, 0.0)) / mean
    return u > _chi_square_quantile((t.n if compat else t.d) - 1)


def _chi_square_quantile(degrees: Numbers) -> Numbers:
    xp = namespace(degrees)
    table = xp.asarray(_QUANTILES.astype(degrees.dtype))
    degrees = xp.maximum(degrees, 0.0)
    whole = xp.clip(xp.floor(degrees), 0.0, _TABULATED - 1.0)
    place = whole.astype(int)
    low, high = table[place], table[place + 1]
    share = xp.minimum(degrees - whole, 1.0)
    part = 2 / (9 * xp.maximum(degrees, 1.0))
    cube = degrees * (1 - part + _NORMAL_QUANTILE * xp.sqrt(part)) ** 3
    return xp.where(degrees <= _TABULATED, low + share * (high - low), cube)
