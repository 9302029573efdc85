"""The learned estimators by name, and the learned choice with its interval.

Classical estimators are formulas of `estimators.ESTIMATORS`; those here have weights, which come
with the library and are read when they are first used.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxlab.ndv.arguments import known_name, list_names
from jaxlab.ndv.estimators import ESTIMATORS, Estimator
from jaxlab.ndv.estndv import public_estndv
from jaxlab.ndv.fusion import (
    MEMBERS,
    NAME,
    SPREAD_LEVEL,
    FusionParams,
    fuse,
    make_inputs,
    shipped_fused,
    shipped_params,
)
from jaxlab.ndv.profile import Profile, stack_profiles, to_dense

LEARNED_ESTIMATORS: Mapping[str, Callable[[], Estimator]] = MappingProxyType(
    {NAME: shipped_fused, "ESTNDV": public_estndv}
)
"""Estimators with weights, by name; a call reads the weights."""
DENSE_LENGTH = 256
"""Frequencies that are kept apart for the networks."""
NUM_NOISE_DRAWS = 32
"""Redraws of a sketch, from which its noise is taken: its size is known to about an eighth."""


class FusedAnswer(NamedTuple):
    """The learned answer for one column.

    Attributes:
      value: estimated number of distinct values.
      low: lower end of the interval.
      high: upper end.
      weights: of `fusion.MEMBERS`, which add up to 1.
    """

    value: float
    low: float
    high: float
    weights: Float[np.ndarray, " members"]

    @property
    def reason(self) -> str:
        """The estimators that weigh most, for people."""
        heaviest = np.argsort(-self.weights, kind="stable")[:3]
        named = (f"{MEMBERS[place]} {self.weights[place]:.2f}" for place in heaviest)
        return f"learned weights: {', '.join(named)}"


def find_estimator(name: str) -> Estimator:
    """The estimator of a name, classical or learned, in capitals or not.

    Raises:
      ValueError: if there is none; all that exist are named.
    """
    names = (*ESTIMATORS, *LEARNED_ESTIMATORS)
    known = known_name(name, names)
    if known is None:
        raise ValueError(f"no estimator is named {name!r}{list_names(name, names)}")
    return LEARNED_ESTIMATORS[known]() if known in LEARNED_ESTIMATORS else ESTIMATORS[known]


def fused_answers(
    profiles: Sequence[Profile],
    sizes: Sequence[int | None],
    *,
    level: float | int = 0.95,
    seed: int = 0,
    params: FusionParams | None = None,
) -> list[FusedAnswer]:
    """Learned answers of columns that need an estimator, on the host.

    The networks give quantiles at 95 %; other levels stretch them as those of a normal
    distribution. Where the profile is from a sketch, its noise is found by redrawing what the
    sketch retained, and added in squares.

    Args:
      profiles: host profiles with 0 < f_1 < n < N.
      sizes: values that the sketch behind a profile retained; None if it is exact.
      level: probability of the intervals.
      seed: of the redraws.
      params: the networks; those that are shipped by default.
    """
    if not profiles:
        return []
    params = shipped_params() if params is None else params
    dense = [to_dense(profile, DENSE_LENGTH) for profile in profiles]
    fused = fuse(params, make_inputs(stack_profiles(dense)))
    middles, lows, highs, weights = (np.asarray(leaf) for leaf in fused)
    quantile = statistics.NormalDist().inv_cdf((1 + level) / 2)
    stretch = quantile / statistics.NormalDist().inv_cdf((1 + SPREAD_LEVEL) / 2)
    answers = []
    for place, (profile, size) in enumerate(zip(dense, sizes, strict=True)):
        middle = float(middles[place])
        noise = 0.0
        if size is not None and size < profile.d:
            noise = quantile * _sketch_deviation(params, profile, size, seed)
        below = math.hypot(stretch * (middle - float(lows[place])), noise)
        above = math.hypot(stretch * (float(highs[place]) - middle), noise)
        d, most = float(profile.d), float(profile.N)
        value, low, high = (d * math.exp(log) for log in (middle, middle - below, middle + above))
        # d of a sketch is itself uncertain; the exact one is the least there can be.
        least = d if size is None else min(float(size), value)
        answers.append(
            FusedAnswer(value, max(low, least), max(min(high, most), value), weights[place])
        )
    return answers


def _sketch_deviation(params: FusionParams, profile: Profile, size: int, seed: int) -> float:
    """Standard deviation of the logarithm of the answer over sketches of the same sample."""
    rng = np.random.default_rng([seed, 0x5E7C])
    cells = np.append(profile.f, profile.d_tail)
    draws = rng.multinomial(size, cells / cells.sum(), NUM_NOISE_DRAWS).astype(np.float64)
    scale = float(profile.d) / size * (1 + rng.standard_normal(NUM_NOISE_DRAWS) / math.sqrt(size))
    draws *= np.maximum(scale, 1e-6)[:, None]
    f, d_tail = draws[:, :-1], draws[:, -1]
    share = d_tail / max(float(profile.d_tail), 1e-300)
    n_tail, s2_tail = profile.n_tail * share, profile.s2_tail * share
    copies = Profile(
        i=np.broadcast_to(profile.i, f.shape),
        f=f,
        n=f @ profile.i + n_tail,
        d=f.sum(-1) + d_tail,
        N=np.full(len(f), profile.N),
        q=np.full(len(f), profile.q),
        n_tail=n_tail,
        d_tail=d_tail,
        s2_tail=s2_tail,
    )
    fused = fuse(params, make_inputs(copies))
    return float(np.std(np.log(copies.d) + fused.log_ratio))
