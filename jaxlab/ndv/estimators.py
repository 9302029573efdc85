"""The table of estimators and the rules that all of them obey.

An estimator is a formula on a `Profile`. `estimate` applies one, sends the edge cases their own way
and clamps to what is always true, d <= D <= min(N, d + N - n); the result is never NaN and says in
its status what happened. Profiles of JAX arrays are computed in float32 under `jit` and `vmap`,
profiles of NumPy arrays in float64, by the same code and with the same edge cases.

What no estimator can do: for any one that reads n of N rows and any probability above exp(-n) there
is a column on which, with that probability, the ratio error is at least
sqrt((N - n) / (2 n) ln(1 / probability)) (Charikar et al. 2000; `intervals.worst_case_ratio`). An
additive error of e N needs a sample of the order of N / log N rows (Valiant and Valiant 2011; Wu
and Yang 2019, arXiv:1612.03375). If the schema says that a column is unique, its answer is N.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.ndv import estimators_coverage as coverage
from jaxlab.ndv import estimators_hybrid as hybrid
from jaxlab.ndv import estimators_jackknife as jackknife
from jaxlab.ndv import estimators_moments as moments
from jaxlab.ndv import estimators_shlosser as shlosser
from jaxlab.ndv.arguments import known_name, list_names
from jaxlab.ndv.profile import Profile, check_profile
from jaxlab.ndv.special import Flags, Numbers, namespace
from jaxlab.ndv.terms import Terms, summarize

Formula = Callable[[Profile], Numbers]


class Status(enum.IntEnum):
    """What happened to an estimate; of several that apply, the lowest code above OK.

    Attributes:
      OK: the formula's value.
      EMPTY: no row was sampled, or all are null; the value is 0.
      INVALID: the profile breaks an invariant; the value is d, or 0. Device only:
        `validate_profile`
        raises on the host.
      FULL_SCAN: all rows were read (n >= N or q = 1); the value is d, exactly.
      ALL_UNIQUE: every sampled value is unique; the value is the formula's, clamped, which for many
        is N.
      ALL_REPEATED: no sampled value is unique, and the estimator takes that for complete coverage;
        the value is d.
      NO_ROOT: the equation of the estimator has no root; the value is the upper bound.
      NON_FINITE: the formula divides by zero or was refused; the value is the upper bound.
      OUT_OF_RANGE: N is beyond the reach that the estimator's source proves; the value is the
        formula's, clamped.
      CLAMPED: the formula left [d, min(N, d + N - n)]; the value is the nearer end.
    """

    OK = 0
    EMPTY = 1
    INVALID = 2
    FULL_SCAN = 3
    ALL_UNIQUE = 4
    ALL_REPEATED = 5
    NO_ROOT = 6
    NON_FINITE = 7
    OUT_OF_RANGE = 8
    CLAMPED = 9


class Estimate(NamedTuple):
    """Estimated numbers of distinct values.

    Attributes:
      value: in [d, min(N, d + N - n)]; never NaN.
      status: a `Status` code.
      unclamped: the formula's own value, infinite where it has none.
    """

    value: Float[Array | np.ndarray, "*batch"] | np.floating
    status: Int[Array | np.ndarray, "*batch"] | np.integer
    unclamped: Float[Array | np.ndarray, "*batch"] | np.floating


@dataclass(frozen=True)
class Estimator:
    """One entry of the table.

    Attributes:
      name: the name in the table, as in the literature.
      formula: from a profile with 0 < n < N to the estimate before clamping.
      source: where it was published.
      takes_repeats_as_complete: whether the answer is d when no value was seen once.
      searches_root: whether an infinite value means that its equation has no root.
      host_only: whether it runs on NumPy profiles only.
      is_proven: whether a profile is within the reach of its source; None for everywhere.
    """

    name: str
    formula: Formula
    source: str
    takes_repeats_as_complete: bool = True
    searches_root: bool = False
    host_only: bool = False
    is_proven: Callable[[Profile], Flags] | None = None


_CHARIKAR = "Charikar, Chaudhuri, Motwani, Narasayya, PODS 2000"
_CHAO_LEE = "Chao and Lee, JASA 87, 1992"
_HAAS = "Haas, Naughton, Seshadri, Stokes, VLDB 1995"
_HAAS_STOKES = "Haas and Stokes, JASA 93, 1998"
_PAPER = "Li et al., KDD 2022, arXiv:2206.05476"
_BURNHAM = "Burnham and Overton, Ecology 60, 1979"

_formula_only = partial(Estimator, takes_repeats_as_complete=False)
_TABLE = (
    _formula_only("SCALE", coverage.scale_up, "naive"),
    _formula_only("EB", coverage.error_bound, "Chaudhuri, Motwani, Narasayya, SIGMOD 1998"),
    Estimator("GEE", coverage.gee, _CHARIKAR),
    Estimator("AE", coverage.adaptive, _CHARIKAR, searches_root=True),
    Estimator("CHAO", coverage.chao, "Chao, Scandinavian Journal of Statistics 11, 1984"),
    Estimator("CHAO_BC", coverage.chao_corrected, "Chao, Encyclopedia of Statistical Sciences"),
    Estimator("CHAO3", coverage.chao3, f"{_PAPER}, equation 3"),
    Estimator("CHAO3_BC", coverage.chao3_corrected, f"{_PAPER}, notebook"),
    Estimator("CL1", coverage.chao_lee, _CHAO_LEE),
    Estimator("CL2", coverage.chao_lee_second, _CHAO_LEE),
    Estimator("CL1_AUTHORS_CPP", coverage.chao_lee_authors_cpp, f"{_PAPER}, C++ program"),
    Estimator("CL1_AUTHORS_NB", coverage.chao_lee_authors_notebook, f"{_PAPER}, notebook"),
    Estimator("SHL", shlosser.shlosser, "Shlosser, Engineering Cybernetics 19, 1981"),
    Estimator("SH2", shlosser.shlosser_second, f"{_HAAS_STOKES}, equation 30a"),
    Estimator("SH3", shlosser.shlosser_third, f"{_HAAS_STOKES}, equation 30b"),
    Estimator("JK1", jackknife.jackknife_first, _BURNHAM),
    Estimator("JK2", jackknife.jackknife_second, _BURNHAM),
    Estimator("DUJ1", jackknife.duj1, f"{_HAAS_STOKES}, equation 11"),
    Estimator("DUJ2", jackknife.duj2, f"{_HAAS_STOKES}, equation 18b"),
    Estimator("DUJ2A", jackknife.duj2a, f"{_HAAS_STOKES}, section 4.2"),
    _formula_only("SJ", jackknife.smoothed_jackknife, _HAAS),
    _formula_only("SJ2", jackknife.smoothed_jackknife_second, _HAAS_STOKES),
    _formula_only(
        "MM0",
        moments.moments_infinite,
        "Bunge and Fitzpatrick, JASA 88, 1993",
        searches_root=True,
    ),
    _formula_only("MM1", moments.moments_finite, _HAAS),
    _formula_only("MM2", moments.moments_second, f"{_HAAS}; {_HAAS_STOKES}"),
    _formula_only("BOOT", moments.bootstrap, "Smith and van Belle, Biometrics 40, 1984"),
    _formula_only("HT", moments.horvitz_thompson, f"{_HAAS}, after Horvitz and Thompson 1952"),
    Estimator(
        "SICHEL",
        moments.sichel,
        "Sichel, Communications in Statistics 15, 1986",
        searches_root=True,
    ),
    _formula_only(
        "GOODMAN",
        moments.goodman,
        "Goodman, Annals of Mathematical Statistics 20, 1949",
        host_only=True,
    ),
    Estimator("HS", hybrid.haas_stokes, f"{_HAAS_STOKES}, equation 33"),
    _formula_only("HYBSKEW", hybrid.hybrid_shlosser, f"{_HAAS}, with d - 1 degrees of freedom"),
    _formula_only("HYBGEE", hybrid.hybrid_gee, f"{_CHARIKAR}, with d - 1 degrees of freedom"),
    _formula_only("HYBSKEW_COMPAT", partial(hybrid.hybrid_shlosser, compat=True), _HAAS),
    _formula_only("HYBGEE_COMPAT", partial(hybrid.hybrid_gee, compat=True), _CHARIKAR),
    _formula_only(
        "SGT",
        moments.smoothed_good_toulmin,
        "Orlitsky, Suresh, Wu, PNAS 113, 2016, arXiv:1511.07428",
        is_proven=moments.good_toulmin_is_proven,
    ),
)

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType({entry.name: entry for entry in _TABLE})
"""All estimators by name."""

DEVICE_ESTIMATORS = tuple(entry.name for entry in _TABLE if not entry.host_only)
"""Names of the estimators that run on the device."""


def estimate(profile: Profile, name: str | Estimator) -> Estimate:
    """Estimates the number of distinct values by one estimator.

    Args:
      profile: one profile or a batch; NumPy (float64) or JAX (float32, also under `jit` and
        `vmap`).
        A host profile should have passed `validate_profile`, as all builders see to.
      name: a name in `ESTIMATORS`, in capitals or not, or an estimator of one's own.

    Returns:
      Values, statuses and unclamped values, with the batch axes of the profile.

    Raises:
      ValueError: if there is no estimator of that name.
      TypeError: if the estimator runs on the host only and the profile has JAX arrays, or it is no
        profile.

    Example:
      >>> from jaxlab.ndv.profile import profile_from_frequencies
      >>> sample = profile_from_frequencies([1, 2, 3], [60, 20, 5], population=1150)
      >>> round(float(estimate(sample, "DUJ1").value), 2)
      160.25
    """
    estimator = name if isinstance(name, Estimator) else _find(name)
    return _estimate_all(profile, [estimator])[0]


def estimate_many(
    profile: Profile, names: Sequence[str] = DEVICE_ESTIMATORS
) -> dict[str, Estimate]:
    """Estimates by several estimators, by name; see `estimate`.

    Under one `jit` the sums that they share are computed once.
    """
    if isinstance(names, str) or names is None:
        raise TypeError(f"names={names!r} is a single name or None; wanted a list of names")
    estimators = [_find(name) for name in names]
    return dict(zip(names, _estimate_all(profile, estimators), strict=True))


def sample_coverage(profile: Profile) -> Numbers:
    """Good and Turing's coverage 1 - f1 / n: the share of rows whose value the sample has.

    0 for an empty sample.

    References:
      Good 1953, "The population frequencies of species and the estimation of population
      parameters", Biometrika 40.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    return xp.where(t.n > 0, t.repeated_rows / xp.where(t.n > 0, t.n, 1.0), 0.0)


def _find(name: str) -> Estimator:
    known = known_name(name, ESTIMATORS)
    if known is None:
        raise ValueError(f"no estimator is named {name!r}{list_names(name, ESTIMATORS)}")
    return ESTIMATORS[known]


def _estimate_all(profile: Profile, estimators: Sequence[Estimator]) -> list[Estimate]:
    check_profile(profile)
    with np.errstate(all="ignore"):
        special, fallback = _edge_cases(profile)
        safe = _replace_special(profile, special > 0)
        terms = summarize(safe)
        return [_finish(safe, terms, entry, special, fallback) for entry in estimators]


def _edge_cases(profile: Profile) -> tuple[Numbers, Numbers]:
    """Status codes of the columns that no formula sees (OK elsewhere), and their values."""
    xp = namespace(profile.f)
    valid = (profile.q > 0) & (profile.q <= 1) & (profile.n * (1 + 1e-5) >= profile.d)
    for leaf in profile[2:]:
        valid = valid & xp.isfinite(leaf) & (leaf >= 0)
    valid = valid & xp.all(xp.isfinite(profile.f) & (profile.f >= 0), axis=-1)
    full = (profile.n >= profile.N) | (profile.q >= 1)
    code = xp.where(full, float(Status.FULL_SCAN), float(Status.OK))
    code = xp.where(valid, code, float(Status.INVALID))
    code = xp.where(profile.n == 0, float(Status.EMPTY), code).astype(profile.f.dtype)
    finite = xp.isfinite(profile.d) & (profile.d > 0) & (profile.n != 0)
    return code, xp.where(finite, profile.d, 0.0)


def _replace_special(profile: Profile, special: Flags) -> Profile:
    """The profile with f1 = 5, f2 = 1, f3 = 1 of a hundred rows in place of special columns."""
    xp = namespace(profile.f)
    plain = (10.0, 7.0, 100.0, 0.1, 3.0, 1.0, 6.0)
    entry = xp.broadcast_to(xp.arange(profile.f.shape[-1]), profile.f.shape)
    rows = xp.asarray(special)[..., None]
    first, second = rows & (entry == 0), rows & (entry == 1)
    f = xp.where(first, 5.0, xp.where(second, 1.0, xp.where(rows, 0.0, profile.f)))
    i = xp.where(first, 1, xp.where(second, 2, profile.i))
    leaves = (
        xp.where(special, value, leaf) for value, leaf in zip(plain, profile[2:], strict=True)
    )
    return Profile(i, f, *leaves)


def _finish(
    profile: Profile, t: Terms, estimator: Estimator, special: Numbers, fallback: Numbers
) -> Estimate:
    """Applies the formula to a profile without special columns, clamps, and merges these in."""
    xp = namespace(profile.f)
    raw = estimator.formula(profile)
    high = xp.minimum(profile.N, profile.d + (profile.N - profile.n))
    finite = xp.isfinite(raw)
    value = xp.where(finite, xp.clip(raw, profile.d, high), high)
    slack = 8 * float(jnp.finfo(profile.f.dtype).eps) * high
    outside = (raw < profile.d - slack) | (raw > high + slack)
    code = xp.where(outside, float(Status.CLAMPED), float(Status.OK))
    if estimator.is_proven is not None:
        code = xp.where(estimator.is_proven(profile), code, float(Status.OUT_OF_RANGE))
    missing = Status.NO_ROOT if estimator.searches_root else Status.NON_FINITE
    code = xp.where(finite, code, float(missing))
    unclamped = xp.where(xp.isnan(raw), xp.inf, raw)
    if estimator.takes_repeats_as_complete:
        repeated = t.f1 == 0
        code = xp.where(repeated, float(Status.ALL_REPEATED), code)
        value = xp.where(repeated, profile.d, value)
        unclamped = xp.where(repeated, profile.d, unclamped)
    code = xp.where(t.repeated_rows == 0, float(Status.ALL_UNIQUE), code)
    is_special = special > 0
    code = xp.where(is_special, special, code).astype(np.int32)
    value = xp.where(is_special, fallback, value)
    return Estimate(value, code, xp.where(is_special, fallback, unclamped))
