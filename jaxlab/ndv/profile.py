"""Profiles: the frequency of frequencies of a sample, which all estimators work on.

A sample of n rows with d distinct values has f_i values that occur exactly i times in it. This
profile, with the size N of the population and the sampling rate q, is a sufficient statistic for
every estimator of the number of distinct values here.

One type, two layouts. *Sparse*: `i` lists the frequencies that occur, the tail is empty; the host's
layout, exact. *Dense*: `i` is 1..L and classes that were seen more often than L times are summed up
in the tail; the layout of device kernels. Padding has f = 0 (and any i). Leaves may have leading
batch axes, one entry per column: estimators and `jax.vmap` take both forms.

A profile of NumPy arrays is computed in float64 on the host, one of JAX arrays in float32 on the
device. f is real, since sketches and expectations give fractions. N counts non-null rows.

References:
  Li, Wei, Ding, Dai, Lu, Zhou 2022, "Sampling-based estimation of the number of distinct values in
  distributed environment", KDD, arXiv:2206.05476.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32
from numpy.typing import ArrayLike

from jaxlab.ndv.arguments import (
    as_integers,
    as_reals,
    as_vector,
    check_instance,
    check_integer,
    check_number,
)

Real = float | int | np.number | np.ndarray
RTOL = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-5}
"""How far the sums of a profile may be from n and d, by type."""


class Profile(NamedTuple):
    """Frequencies of frequencies of a sample, and the size of what was sampled.

    Invariants: n = sum of i f + n_tail, d = sum of f + d_tail, 0 < q <= 1, n <= N.

    Attributes:
      i: frequencies, integers of at least 1 (0 only where f is 0).
      f: number of values that occur exactly i times in the sample.
      n: rows of the sample.
      d: distinct values of the sample.
      N: rows of the population, nulls left out.
      q: sampling rate in (0, 1].
      n_tail: rows of the classes that are not in `f`.
      d_tail: number of the classes that are not in `f`.
      s2_tail: sum of i (i - 1) over the classes that are not in `f`.
    """

    i: Int[Array | np.ndarray, "*batch entries"]
    f: Float[Array | np.ndarray, "*batch entries"]
    n: Float[Array | np.ndarray, "*batch"]
    d: Float[Array | np.ndarray, "*batch"]
    N: Float[Array | np.ndarray, "*batch"]
    q: Float[Array | np.ndarray, "*batch"]
    n_tail: Float[Array | np.ndarray, "*batch"]
    d_tail: Float[Array | np.ndarray, "*batch"]
    s2_tail: Float[Array | np.ndarray, "*batch"]


def profile_from_frequencies(
    i: Sequence[int] | Int[np.ndarray, " entries"],
    f: Sequence[float | int] | Float[np.ndarray, " entries"] | Int[np.ndarray, " entries"],
    *,
    population: Real,
    rate: Real | None = None,
) -> Profile:
    """Sparse host profile of known frequencies of frequencies.

    Args:
      i: distinct frequencies, at least 1, in any order.
      f: how many values occur i times; at least 0.
      population: N, rows of the population.
      rate: q, the sampling rate; n / N if None.

    Returns:
      A float64 profile without the entries where f is 0.

    Raises:
      ValueError: if an argument is out of range, NaN or of another length; it names the field.

    Example:
      >>> profile = profile_from_frequencies([1, 2], [30, 10], population=500)
      >>> float(profile.n), float(profile.d), float(profile.q)
      (50.0, 40.0, 0.1)
    """
    i, f = as_integers(i, "i"), as_reals(f, "f")
    check_number(population, "population", "N, the rows of the column that are not null")
    if rate is not None:
        check_number(rate, "rate", "a number in (0, 1], or None for n / N")
    if i.shape != f.shape:
        raise ValueError(
            f"i has shape {i.shape} and f has shape {f.shape}; wanted two vectors of one length"
        )
    if len(np.unique(i)) != len(i):
        raise ValueError(f"i lists a frequency twice: {i.tolist()}; add their f together")
    i, f = i[f != 0], f[f != 0]
    n, d, zero = np.sum(i * f), np.sum(f), np.zeros(())
    size = np.asarray(population, np.float64)
    if rate is None:
        rate = n / size if 0 < n <= size else 1.0
    profile = Profile(
        i, f, np.asarray(n), np.asarray(d), size, np.asarray(rate, np.float64), zero, zero, zero
    )
    validate_profile(profile)
    return profile


def dense_profile(
    f: Sequence[float | int] | Float[Array | np.ndarray, "*batch length"],
    *,
    n: Float[Array | np.ndarray, "*batch"] | float | int,
    d: Float[Array | np.ndarray, "*batch"] | float | int,
    population: Float[Array | np.ndarray, "*batch"] | float | int,
    rate: Float[Array | np.ndarray, "*batch"] | float | int,
    n_tail: Float[Array | np.ndarray, "*batch"] | float | int,
    d_tail: Float[Array | np.ndarray, "*batch"] | float | int,
    s2_tail: Float[Array | np.ndarray, "*batch"] | float | int,
) -> Profile:
    """Dense profile, host or device, of known parts, such as a sketch gives them; not validated.

    Where the parts are estimated, n must be the estimate sum of i f + n_tail, not the exact number
    of rows: numerator and denominator of f1 / n then err together.

    Args:
      f: number of values seen once, twice, ..., L times.
      n: sampled rows.
      d: sampled distinct values.
      population: N, rows of the population.
      rate: q, the sampling rate.
      n_tail: rows of the values seen more than L times.
      d_tail: number of these values.
      s2_tail: their sum of i (i - 1).
    """
    if not isinstance(f, (np.ndarray, jax.Array)):
        f = as_reals(f, "f")
    xp = np if isinstance(f, np.ndarray) else jnp
    i = xp.broadcast_to(xp.arange(1, f.shape[-1] + 1), f.shape)
    given = {"n": n, "d": d, "population": population, "rate": rate}
    given |= {"n_tail": n_tail, "d_tail": d_tail, "s2_tail": s2_tail}
    return Profile(i, f, *(_as_leaf(value, name, f) for name, value in given.items()))


def profile_from_counts(
    counts: Sequence[int] | Int[np.ndarray, " values"],
    *,
    population: Real,
    rate: Real | None = None,
) -> Profile:
    """Sparse host profile of how often each distinct value was sampled.

    Args:
      counts: one number per distinct value; zeros (values that were not sampled) are left out.
      population: N, rows of the population.
      rate: q, the sampling rate; n / N if None.

    Raises:
      ValueError: if a count is negative or another argument is out of range.

    Example:
      >>> profile_from_counts([1, 1, 2, 5], population=100).f.tolist()
      [2.0, 1.0, 1.0]
    """
    counts = as_integers(counts, "counts")
    if counts.size and counts.min() < 0:
        raise ValueError(f"counts has the negative entry {counts.min()}; wanted rows per value")
    i, f = np.unique(counts[counts > 0], return_counts=True)
    return profile_from_frequencies(i, f.astype(np.float64), population=population, rate=rate)


def profile_from_values(
    values: Sequence[Any] | np.ndarray, *, population: Real, rate: Real | None = None
) -> Profile:
    """Sparse host profile of the sampled values themselves, counted exactly.

    Args:
      values: list or array of one dimension, sortable, without nulls. All NaN are one value, as are
        0.0 and -0.0.
      population: N, rows of the population, nulls left out.
      rate: q, the sampling rate; n / N if None.

    Raises:
      TypeError: if the values are of types that have no order, or an argument is of another type.
      ValueError: if `values` is not one-dimensional or another argument is out of range.

    Example:
      >>> profile_from_values(["a", "b", "a"], population=30).f.tolist()
      [1.0, 1.0]
    """
    array = as_vector(values, "values")
    try:
        _, counts = np.unique(array, return_counts=True)
    except TypeError as error:
        raise TypeError(f"values has entries of several types: {error}; convert them") from error
    return profile_from_counts(counts, population=population, rate=rate)


def check_profile(profile: Any) -> None:
    """Refuse what is no profile.

    Raises:
      TypeError: telling how one is made.
    """
    hint = "profile_from_values or profile_from_counts makes one of a sample"
    check_instance(profile, Profile, "profile", hint)


def validate_profile(profile: Profile) -> None:
    """Checks the invariants of a host profile.

    Raises:
      TypeError: if it is no profile.
      ValueError: naming the first field that breaks one, with its value and what is allowed.
    """
    check_profile(profile)
    for name, value in zip(Profile._fields, profile, strict=True):
        bad = np.asarray(value)[~np.isfinite(value) | (np.asarray(value) < 0)]
        if bad.size:
            raise ValueError(f"{name} has the entry {bad[0]}; wanted finite numbers of at least 0")
    _require("q", profile.q, (profile.q > 0) & (profile.q <= 1), "a rate in (0, 1]")
    seen = (profile.f == 0) | (profile.i >= 1)
    _require("i", profile.i, seen, "frequencies of at least 1 where f is not 0")
    rtol = RTOL[np.dtype(profile.f.dtype)]
    slack = rtol * np.maximum(profile.n, 1)
    room = f"at least the n={profile.n} rows of the sample"
    _require("N", profile.N, profile.n <= profile.N + slack, room)
    rows = np.sum(profile.i * profile.f, axis=-1) + profile.n_tail
    _require("n", profile.n, np.abs(rows - profile.n) <= slack, f"the sum of i f, which is {rows}")
    values = np.sum(profile.f, axis=-1) + profile.d_tail
    same = np.abs(values - profile.d) <= slack
    _require("d", profile.d, same, f"the sum of f, which is {values}")


def to_dense(profile: Profile, length: int) -> Profile:
    """Host profile with i = 1..length; higher frequencies go to the tail.

    Estimators treat the tail as classes of equal frequency, which is exact for sums of rows,
    classes and squares. With `length` of at least 50 the difference is negligible at rates where (1
    - q)^length is small, and elsewhere the sparse layout is the exact one.

    Args:
      profile: one host profile, sparse or dense.
      length: number L of frequencies that are kept apart, at least 1.

    Raises:
      ValueError: if `length` is not positive or the profile has batch axes.
    """
    check_profile(profile)
    check_integer(length, "length")
    if length < 1 or profile.f.ndim != 1:
        raise ValueError(
            f"length={length}, f of shape {profile.f.shape}; wanted a positive length and one "
            f"profile (convert the columns one by one, then stack them)"
        )
    inside = profile.i <= length
    f = np.zeros(length + 1, profile.f.dtype)
    np.add.at(f, np.where(inside, profile.i, 0), np.where(inside, profile.f, 0))
    i, high = profile.i.astype(np.float64), np.where(inside, 0.0, profile.f)
    return profile._replace(
        i=np.arange(1, length + 1),
        f=f[1:],
        n_tail=np.asarray(profile.n_tail + np.sum(i * high)),
        d_tail=np.asarray(profile.d_tail + np.sum(high)),
        s2_tail=np.asarray(profile.s2_tail + np.sum(i * (i - 1) * high)),
    )


def stack_profiles(profiles: Sequence[Profile]) -> Profile:
    """One host profile with a leading batch axis; shorter ones are padded with f = 0.

    Raises:
      ValueError: if there is none.
    """
    if profiles is None or isinstance(profiles, Profile):
        raise TypeError("profiles is a single Profile or None; wanted a list of them")
    if not profiles:
        raise ValueError("profiles is empty; wanted at least one to stack")
    for profile in profiles:
        check_profile(profile)
    width = max(profile.f.shape[-1] for profile in profiles)

    def pad(profile: Profile) -> Profile:
        missing = (0, width - profile.f.shape[-1])
        return profile._replace(i=np.pad(profile.i, missing), f=np.pad(profile.f, missing))

    return Profile(*(np.stack(leaves) for leaves in zip(*map(pad, profiles), strict=True)))


def to_device(profile: Profile) -> Profile:
    """The same profile as JAX arrays, float32 and int32.

    Raises:
      ValueError: if a frequency does not fit int32; such classes belong in the tail.
    """
    check_profile(profile)
    if profile.i.size and int(np.max(profile.i)) > np.iinfo(np.int32).max:
        raise ValueError(
            f"i has the entry {np.max(profile.i)}, which does not fit int32; "
            f"move high frequencies to the tail with to_dense"
        )
    reals = (jnp.asarray(leaf, jnp.float32) for leaf in profile[1:])
    return Profile(jnp.asarray(profile.i, jnp.int32), *reals)


def device_profile_from_counts(
    counts: Sequence[int] | Int[Array | np.ndarray, " values"],
    *,
    length: int,
    population: Float[Array, ""] | float | int,
    rate: Float[Array, ""] | float | int,
) -> Profile:
    """Dense profile on the device of how often each distinct value was sampled.

    Args:
      counts: rows per distinct value; 0 is padding.
      length: number L of frequencies that are kept apart; static under `jit`.
      population: N.
      rate: q.

    Returns:
      A float32 profile. n and d are exact as long as n is below 2^24; sums of the tail are rounded.
    """
    if not isinstance(counts, jax.Array):
        counts = jnp.asarray(as_integers(counts, "counts"), jnp.int32)
    _check_sizes(population, rate)
    inside = counts <= length
    place = jnp.where(inside, counts, 0)
    f = jnp.zeros(length + 1, jnp.int32).at[place].add(1)[1:]
    high = jnp.where(inside, 0, counts)
    real = high.astype(jnp.float32)
    return Profile(
        i=jnp.arange(1, length + 1, dtype=jnp.int32),
        f=f.astype(jnp.float32),
        n=jnp.sum(counts).astype(jnp.float32),
        d=jnp.sum(counts > 0).astype(jnp.float32),
        N=jnp.asarray(population, jnp.float32),
        q=jnp.asarray(rate, jnp.float32),
        n_tail=jnp.sum(high).astype(jnp.float32),
        d_tail=jnp.sum(~inside).astype(jnp.float32),
        s2_tail=jnp.sum(real * (real - 1)),
    )


def device_profile_from_hashes(
    low: Sequence[int] | UInt32[Array | np.ndarray, " rows"],
    high: Sequence[int] | UInt32[Array | np.ndarray, " rows"],
    valid: Sequence[bool] | Bool[Array | np.ndarray, " rows"],
    *,
    length: int,
    population: Float[Array, ""] | float | int,
    rate: Float[Array, ""] | float | int,
) -> Profile:
    """Dense profile on the device of 64-bit hashes of the sampled values, by sorting them.

    Args:
      low: lower words of the hashes.
      high: upper words.
      valid: false for rows that do not count (nulls, padding).
      length: number L of frequencies that are kept apart; static under `jit`.
      population: N.
      rate: q.
    """
    low, high = (
        word if isinstance(word, jax.Array) else jnp.asarray(as_integers(word, name), jnp.uint32)
        for word, name in ((low, "low"), (high, "high"))
    )
    if not isinstance(valid, jax.Array):
        valid = jnp.asarray(as_vector(valid, "valid"), bool)
    dropped, low, high = jax.lax.sort((~valid, low, high), num_keys=3)
    changed = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    run = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), changed.astype(jnp.int32)]))
    counts = jnp.zeros(low.shape[0], jnp.int32).at[run].add((~dropped).astype(jnp.int32))
    return device_profile_from_counts(counts, length=length, population=population, rate=rate)


def _as_leaf(value: Any, name: str, like: Array | np.ndarray) -> Array | np.ndarray:
    """A number as an array of the type and on the side of another; arrays as they are."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value
    check_number(value, name)
    return (np if isinstance(like, np.ndarray) else jnp).asarray(value, like.dtype)


def _check_sizes(population: Any, rate: Any) -> None:
    check_number(population, "population", "N, the rows of the column that are not null")
    check_number(rate, "rate", "a number in (0, 1]")


def _require(name: str, value: ArrayLike, fine: ArrayLike, wanted: str) -> None:
    values, passed = np.broadcast_arrays(np.asarray(value), np.asarray(fine))
    if not np.all(passed):
        raise ValueError(f"{name}={values[~passed][0]} is out of range; wanted {wanted}")
