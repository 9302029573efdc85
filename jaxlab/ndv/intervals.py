"""How far an estimate may be off: bootstrap intervals, a guaranteed interval, the worst case.

The bootstrap redraws the profile as a sample of the estimated population would vary, and estimates
again. It measures variance, not bias: an estimator that misses the unseen values of a skewed column
misses them in every draw. The guaranteed interval is wide, and holds for every column of which rows
were sampled; of samples of whole blocks neither is true.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxlab.ndv.arguments import check_integer, check_number, known_name
from jaxlab.ndv.estimators import ESTIMATORS, Estimator, Status, estimate, sample_coverage
from jaxlab.ndv.profile import Profile, check_profile, to_device
from jaxlab.ndv.special import Numbers, namespace
from jaxlab.ndv.terms import summarize

_NORMAL_ABOVE = 400.0
"""Binomial variance above which a rounded normal draw is as good."""
_MOST_TRIALS = 2.0**16
"""Trials of an exact draw; more become so many of the same mean, the variance within 2 %."""
_CHUNK = 32
"""Draws that are computed at a time, if it divides their number."""


class Interval(NamedTuple):
    """Bounds of the number of distinct values.

    Attributes:
      low: lower bound, at least d.
      high: upper bound, at most N.
      coverage: estimated share of the population's rows whose value is in the sample, 1 - f1 / n.
    """

    low: Float[Array | np.ndarray, "*batch"] | np.floating
    high: Float[Array | np.ndarray, "*batch"] | np.floating
    coverage: Float[Array | np.ndarray, "*batch"] | np.floating


def bootstrap_interval(
    key: Key[Array, ""],
    profile: Profile,
    name: str | Estimator,
    *,
    level: float | int = 0.95,
    num_draws: int = 256,
    sketch_size: Float[Array, "*batch"] | float | int | None = None,
) -> Interval:
    """Percentile interval of an estimator over multinomial redraws of the profile.

    Each draw distributes the estimated number D' of values over (unseen, seen once, seen twice,
    ...) with probabilities ((D' - d) / D', f_1 / D', f_2 / D', ...) and estimates from what is
    seen. With `sketch_size` K, a second draw keeps K of the seen values and rescales, as a sketch
    of K hashed values does; d then also varies by 1 / sqrt(K).

    The interval is cut to [d, N] and widened to hold the estimate itself.

    Args:
      key: key of all draws.
      profile: one profile or a batch; moved to the device if it is of NumPy arrays.
      name: a device estimator in `ESTIMATORS`, or an estimator of one's own.
      level: probability between the two percentiles.
      num_draws: number of redraws, at least 2.
      sketch_size: values that the sketch behind the profile retained; None for an exact profile, as
        is any size of at least d.

    Returns:
      float32 bounds; low = high where there is nothing to estimate (empty or full scan).

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if the estimator is unknown or runs on the host only, or `level` or `num_draws` is
        out of range.

    References:
      Chao 1987, "Estimating the population size for capture-recapture data with unequal
      catchability", Biometrics 43; Efron and Tibshirani 1993, "An introduction to the bootstrap".
    """
    known = known_name(name, ESTIMATORS)
    estimator = name if known is None else ESTIMATORS[known]
    if not isinstance(estimator, Estimator) or estimator.host_only:
        raise ValueError(f"name={name!r} is no device estimator; see DEVICE_ESTIMATORS")
    if not hasattr(key, "dtype"):
        raise TypeError(f"key={key!r} is no key; wanted one, such as jax.random.key(0)")
    check_profile(profile)
    check_number(level, "level", "a probability, such as 0.95")
    check_integer(num_draws, "num_draws")
    if not 0 < level < 1 or num_draws < 2:
        raise ValueError(
            f"level={level}, num_draws={num_draws}; wanted a level in (0, 1), at least two draws"
        )
    if namespace(profile.f) is np:
        profile = to_device(profile)
    if sketch_size is not None:
        sketch_size = jnp.broadcast_to(jnp.asarray(sketch_size, jnp.float32), profile.n.shape)
    return _bootstrap(key, profile, sketch_size, jnp.float32(level), estimator, num_draws)


def guaranteed_interval(profile: Profile) -> Interval:
    """[d, d - f1 + (N / n) f1], cut to N: holds the truth with high probability, for every column.

    Of samples of rows and exact profiles: rows of whole blocks are no such sample, collapsed or
    not, and the noise of a sketch comes on top.

    GEE is the geometric mean of the two ends' weights of f1.

    References:
      Charikar et al. 2000, PODS, section 4.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    scale = t.N / xp.where(t.n > 0, t.n, 1.0)
    high = xp.clip(t.repeated_values + scale * t.f1, t.d, xp.maximum(t.N, t.d))
    return Interval(t.d, high, sample_coverage(profile))


def worst_case_ratio(
    num_sampled: float | int, population: float | int, probability: float = 0.5
) -> float:
    """Ratio error that no estimator can promise to stay below.

    For every estimator there is a column on which max(D' / D, D / D') is at least
    sqrt((N - n) / (2 n) ln(1 / probability)) with this probability.

    Args:
      num_sampled: n, rows read.
      population: N, rows of the column.
      probability: in (exp(-n), 1).

    Returns:
      The bound, at least 1.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(worst_case_ratio(1e4, 1e6), 2)
      5.86

    References:
      Charikar et al. 2000, PODS, theorem 1.
    """
    check_number(num_sampled, "num_sampled", "n, the rows that are read")
    check_number(population, "population", "N, the rows of the column")
    check_number(probability, "probability")
    if not 0 < num_sampled <= population:
        raise ValueError(
            f"num_sampled={num_sampled} is not in (0, population={population}]; wanted rows read"
        )
    if not math.exp(-num_sampled) < probability < 1:
        raise ValueError(f"probability={probability} is not in (exp(-num_sampled), 1)")
    excess = (population - num_sampled) / (2 * num_sampled)
    return max(1.0, math.sqrt(excess * math.log(1 / probability)))


@functools.partial(jax.jit, static_argnames=("estimator", "num_draws"))
def _bootstrap(
    key: Key[Array, ""],
    profile: Profile,
    sketch_size: Float[Array, "*batch"] | None,
    level: Float[Array, ""],
    estimator: Estimator,
    num_draws: int,
) -> Interval:
    point = estimate(profile, estimator)

    chunk = math.gcd(num_draws, _CHUNK)
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chunk, *leaf.shape)), profile)
    distinct = jnp.broadcast_to(jnp.asarray(point.value), copies.n.shape)

    def draw(chunk_key: Key[Array, ""]) -> Numbers:
        sample_key, sketch_key = jax.random.split(chunk_key)
        f = _redraw_sample(sample_key, copies, distinct)
        if sketch_size is not None:
            f = _redraw_sketch(sketch_key, f, jnp.broadcast_to(sketch_size, copies.n.shape))
        return estimate(_with_frequencies(copies, f), estimator).value

    values = jax.lax.map(draw, jax.random.split(key, num_draws // chunk))
    values = jnp.asarray(values).reshape(num_draws, *profile.n.shape)
    quantiles = jnp.stack([(1 - level) / 2, (1 + level) / 2])
    low, high = jnp.quantile(values, quantiles, axis=0)
    low = jnp.minimum(jnp.maximum(low, profile.d), point.value)
    high = jnp.maximum(jnp.minimum(high, profile.N), point.value)
    fixed = (point.status >= Status.EMPTY.value) & (point.status <= Status.FULL_SCAN.value)
    low, high = (jnp.where(fixed, point.value, end) for end in (low, high))
    return Interval(low, high, sample_coverage(profile))


def _redraw_sample(
    key: Key[Array, ""], profile: Profile, distinct: Float[Array, "*batch"]
) -> Float[Array, "*batch cells"]:
    """Values seen once, twice, ... (the tail last) in a sample of `distinct` values."""
    seen = jnp.concatenate([profile.f, profile.d_tail[..., None]], axis=-1)
    unseen = jnp.maximum(distinct - profile.d, 0.0)[..., None]
    weights = jnp.concatenate([unseen, seen], axis=-1)
    return _multinomial(key, jnp.round(distinct), weights)[..., 1:]


def _redraw_sketch(
    key: Key[Array, ""], f: Float[Array, "*batch cells"], sketch_size: Float[Array, "*batch"]
) -> Float[Array, "*batch cells"]:
    """What a sketch that retains `sketch_size` of the values says of `f`."""
    cells_key, scale_key = jax.random.split(key)
    d = jnp.sum(f, axis=-1)
    retained = jnp.maximum(sketch_size, 1.0)
    noise = jax.random.normal(scale_key, d.shape) / jnp.sqrt(retained)
    scale = d / retained * jnp.maximum(1 + noise, 0.0)
    cells = _multinomial(cells_key, jnp.round(retained), f) * scale[..., None]
    return jnp.where((sketch_size >= d)[..., None], f, cells)


def _with_frequencies(profile: Profile, f: Float[Array, "*batch cells"]) -> Profile:
    """The profile with other counts of values; the tail keeps its means."""
    tail = f[..., -1]
    per_class = tail / jnp.where(profile.d_tail > 0, profile.d_tail, 1.0)
    n_tail, s2_tail = profile.n_tail * per_class, profile.s2_tail * per_class
    rows = jnp.sum(profile.i.astype(f.dtype) * f[..., :-1], axis=-1)
    return profile._replace(
        f=f[..., :-1],
        n=rows + n_tail,
        d=jnp.sum(f, axis=-1),
        n_tail=n_tail,
        d_tail=tail,
        s2_tail=s2_tail,
    )


def _multinomial(
    key: Key[Array, ""], trials: Float[Array, "*batch"], weights: Float[Array, "*batch cells"]
) -> Float[Array, "*batch cells"]:
    """Counts of `trials` draws among cells of these weights, by conditional binomials.

    Cells are drawn from the lightest to the heaviest, which takes the rest: no share is above a
    half, and counts of rare cells are not lost in the rounding of what is left of many trials.
    """
    order = jnp.argsort(weights, axis=-1)
    cells = jnp.moveaxis(jnp.take_along_axis(weights, order, axis=-1), -1, 0)
    later = jnp.cumsum(cells[::-1], axis=0)[::-1]
    shares = cells / jnp.where(later > 0, later, 1.0)

    def draw(left: Array, cell: tuple[Array, Array]) -> tuple[Array, Array]:
        count = _binomial(cell[1], left, jnp.minimum(cell[0], 0.5))
        return left - count, count

    keys = jax.random.split(key, cells.shape[0] - 1)
    left, counts = jax.lax.scan(draw, trials, (shares[:-1], keys))
    counts = jnp.concatenate([counts, jnp.where(cells[-1] > 0, left, 0.0)[None]])
    return jnp.take_along_axis(jnp.moveaxis(counts, 0, -1), jnp.argsort(order, axis=-1), axis=-1)


def _binomial(
    key: Key[Array, ""], trials: Float[Array, "*batch"], share: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Binomial counts for shares up to a half, as float32: normal where the variance is large."""
    normal_key, exact_key = jax.random.split(key)
    mean = trials * share
    variance = mean * (1 - share)
    wide = variance > _NORMAL_ABOVE
    normal = jnp.round(mean + jnp.sqrt(variance) * jax.random.normal(normal_key, mean.shape))
    # More trials than _MOST_TRIALS would lose the draw's float32 digits.
    drawn = (mean > 0) & ~wide
    few = jnp.where(drawn, jnp.minimum(trials, _MOST_TRIALS), 1.0)
    exact = jax.random.binomial(exact_key, few, jnp.where(drawn, mean / few, 0.5))
    return jnp.clip(jnp.where(wide, normal, jnp.where(drawn, exact, 0.0)), 0.0, trials)
