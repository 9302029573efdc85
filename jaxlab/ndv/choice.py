"""One answer per column: which estimator, why, and how far it may be off.

`choose` sends the cases that need no estimator their own way (all rows read, unique by the schema,
block samples, nothing seen once, everything seen once) and asks a rule for the others. A rule is a
function from a profile to a `Choice`; `start_rule` is the one that needs no training:

* f_2 = 0: the bias-corrected estimator of Chao, which does not divide by f_2;
* a rate of at most 2 %: the hybrid of Haas and Stokes (HS);
* above: their stabilised second-order jackknife (DUJ2A).

`learned_rule`, the default, takes the networks of `fusion`, which weigh many estimators.

Whatever a rule says, AE is not taken where f_2 = 0: its equation then runs away to N on columns of
few values (11 values in 1.4 million rows have been called 1.4 million).

Intervals of the learned choice are quantiles that its networks learned, bias included. Those of
single estimators are bootstrap percentiles: variance of the sample and of the sketch only, as their
reason says. Where nothing was seen once they are a point, where everything was they start at what
the birthday problem excludes. That of GEE_MIXED goes from the values seen to the upper bound of
GEE, each with the noise of the sketch. Rows of a block say nothing of those of the blocks that were
not read: there every row may hold a value of its own, or none that is new. So the interval of a
block sample goes from the values seen to these and one more for each row that was not read.

References:
  Haas and Stokes 1998, "Estimating the number of classes in a finite population", JASA 93;
  Charikar, Chaudhuri, Motwani, Narasayya 2000, "Towards estimation error guarantees for distinct
  values", PODS.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ndv.arguments import (
    check_instance,
    check_integer,
    check_number,
    known_name,
    list_names,
)
from jaxlab.ndv.estimators import DEVICE_ESTIMATORS, Status, estimate, sample_coverage
from jaxlab.ndv.fusion import NAME as FUSED
from jaxlab.ndv.intervals import bootstrap_interval
from jaxlab.ndv.learned import LEARNED_ESTIMATORS, find_estimator, fused_answers
from jaxlab.ndv.mixed_rates import MixedEstimate
from jaxlab.ndv.profile import Profile, profile_from_frequencies, stack_profiles, to_dense
from jaxlab.ndv.terms import summarize

PROFILE_LENGTH = 64
"""Frequencies that the bootstrap keeps apart; DUJ2A treats those above 50 as abundant."""
METHODS = (*DEVICE_ESTIMATORS, *LEARNED_ESTIMATORS)
"""Names of the estimators that may be asked for, or that a rule may choose."""
LOW_RATE = 0.02
"""Rate up to which `start_rule` takes HS, and above which DUJ2A."""

_MOST_RETAINED = 2.0**60
_NO_BIAS = "its interval leaves out its bias"

EMPTY, EXACT, SKETCH = "EMPTY", "EXACT", "SKETCH"
UNIQUE_KEY, ALL_UNIQUE, COMPLETE = "UNIQUE_KEY", "ALL_UNIQUE", "COMPLETE"
COLLAPSE, MIXED = "COLLAPSE+DUJ1", "GEE_MIXED"


class Choice(NamedTuple):
    """How a column is estimated.

    Attributes:
      method: a name in `METHODS`, or one of this module's constants.
      reason: why, in half a sentence for the user.
    """

    method: str
    reason: str


Rule = Callable[[Profile], Choice]
"""Chooses an estimator for one host profile with 0 < f_1 < n < N."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is known of one column.

    Attributes:
      profile: host profile of the sample, of the collapsed sample for blocks.
      num_retained: values that the sketch behind the profile retained; None if it is exact.
      is_unique_key: whether the schema says that no two rows are equal. Not believed where rows of
        a sample without replacement repeat a value.
      is_block_sample: whether whole blocks were read and collapsed.
      most: upper bound of the answer, such as the rows of the column that are not null; None for
        the profile's N. A block sample must have it: the N of its profile is the estimated number
        of collapsed rows, which bounds nothing.
      rows_read: rows of a block sample as they were read, nulls left out and before copies within a
        block are; None if that is not known. At least the collapsed rows, which stand for it then.
      mixed: GEE_MIXED and its upper bound, where partitions were sampled at different rates; no
        estimator of the profile is then right.
    """

    profile: Profile
    num_retained: int | None = None
    is_unique_key: bool = False
    is_block_sample: bool = False
    most: float | int | None = None
    rows_read: int | None = None
    mixed: MixedEstimate | None = None


@dataclasses.dataclass(frozen=True)
class NdvEstimate:
    """Estimated number of distinct values of one column.

    Attributes:
      estimate: the number.
      low: lower end of the interval.
      high: upper end of the interval.
      method: name of the estimator, or of the case that needs none.
      reason: why it was taken.
      coverage: estimated share of the population's rows whose value is in the sample, 1 - f_1 / n;
        of a block sample the share of the collapsed rows, if blocks are like one another.
      status: "ok", or what happened: "empty", "full_scan", "all_unique", "all_repeated", "no_root",
        "non_finite", "out_of_range", "clamped", "unique_key", "block".
    """

    estimate: float
    low: float
    high: float
    method: str
    reason: str
    coverage: float
    status: str


def start_rule(profile: Profile) -> Choice:
    """The choice that needs no training.

    Args:
      profile: one host profile.
    """
    if float(summarize(profile).f2) == 0:
        return Choice("CHAO_BC", "no value was seen twice: f2 = 0")
    if float(profile.q) <= LOW_RATE:
        return Choice("HS", f"rate {float(profile.q):.4g} is at most {LOW_RATE}")
    return Choice("DUJ2A", f"rate {float(profile.q):.4g} is above {LOW_RATE}")


def learned_rule(profile: Profile) -> Choice:
    """The learned choice; the answer's reason tells the estimators that weigh most.

    Args:
      profile: one host profile.
    """
    del profile
    return Choice(FUSED, "learned weights")


def choose(sample: Sample, rule: Rule = learned_rule) -> Choice:
    """The method of a column and its reason.

    Args:
      sample: what is known of it.
      rule: asked where an estimator is needed.

    Returns:
      AE never where f_2 = 0; the bias-corrected estimator of Chao in its place. A column that is
      declared unique and is not gets the choice of any other, and the reason says so.
    """
    if sample.is_unique_key and (found := repeats(sample)):
        choice = choose(dataclasses.replace(sample, is_unique_key=False), rule)
        return choice._replace(
            reason=f"declared unique, but {found}: remove it from the unique columns; "
            f"{choice.reason}"
        )
    return _choose(sample, rule)


def repeats(sample: Sample) -> str:
    """How many of the sampled rows repeat a value, for people; empty if none does.

    Copies within a block were collapsed: of a block sample only values of several blocks show.
    """
    t = summarize(sample.profile)
    number = float(t.repeats)
    if number <= 0:
        return ""
    about = "" if sample.num_retained is None else "about "
    rows = "collapsed rows of blocks" if sample.is_block_sample else "sampled rows"
    return f"{about}{number:,.0f} of {about}{float(t.n):,.0f} {rows} repeat a value"


def _choose(sample: Sample, rule: Rule) -> Choice:
    profile = sample.profile
    t = summarize(profile)
    if profile.n == 0:
        most = _most_of_none(sample)
        if most <= 0:
            return Choice(EMPTY, "no row with a value was read")
        return Choice(
            EMPTY,
            f"none of up to {most:,.0f} rows with a value was read: this says nothing, read more",
        )
    if sample.is_unique_key:
        return Choice(UNIQUE_KEY, "the schema says that the column is unique")
    # Of a block sample N is an estimate, and n too if it is from a sketch.
    if profile.q >= 1 or (profile.n >= profile.N and not sample.is_block_sample):
        if sample.num_retained is None:
            return Choice(EXACT, "all rows were read and counted exactly")
        return Choice(SKETCH, f"all rows were read, {sample.num_retained} values retained")
    if sample.is_block_sample and sample.mixed is None:
        return Choice(COLLAPSE, "whole blocks were read: one row per value and block, then DUJ1")
    if t.f1 == 0 and not sample.is_block_sample:
        return Choice(COMPLETE, "no value was seen only once")
    if sample.mixed is not None:
        return Choice(MIXED, "partitions were sampled at different rates")
    if t.repeated_rows == 0:
        if sample.num_retained is None:
            return Choice(ALL_UNIQUE, "every sampled value is unique")
        return Choice(ALL_UNIQUE, f"every one of {sample.num_retained} retained values is unique")
    choice = rule(profile)
    if choice.method == "AE" and t.f2 == 0:
        return Choice("CHAO_BC", "AE was chosen and f2 = 0, where it runs away")
    return choice


def estimate_ndv(
    sample: Sample,
    *,
    method: str = "auto",
    rule: Rule = learned_rule,
    level: float = 0.95,
    num_draws: int = 256,
    seed: int = 0,
) -> NdvEstimate:
    """Estimate of one column; see `estimate_columns`, which takes many at once.

    Example:
      >>> from jaxlab.ndv.profile import profile_from_frequencies
      >>> full = profile_from_frequencies([1, 2], [30, 10], population=50)
      >>> estimate_ndv(Sample(full)).estimate
      40.0
    """
    return estimate_columns(
        [sample], method=method, rule=rule, level=level, num_draws=num_draws, seed=seed
    )[0]


def estimate_columns(
    samples: Sequence[Sample],
    *,
    method: str = "auto",
    rule: Rule = learned_rule,
    level: float = 0.95,
    num_draws: int = 256,
    seed: int = 0,
) -> list[NdvEstimate]:
    """Estimates of many columns; the intervals of those with one estimator are one device call.

    Args:
      samples: what is known of the columns.
      method: "auto", or a name in `METHODS` for all columns that need an estimator, in capitals or
        not; the reason of the others says that it is not used.
      rule: chooses the estimator when method is "auto".
      level: probability of the intervals.
      num_draws: bootstrap draws for the intervals of single estimators; 0 for none: they are the
        estimate itself then. The learned choice has intervals without draws.
      seed: of the bootstrap.

    Returns:
      One estimate per sample; each estimate and its interval lie in [d, N].

    Raises:
      TypeError: if an argument is of another type.
      ValueError: if the method, the rule's answer or the level is none of these, or a block sample
        has no `most`.
    """
    check_number(level, "level", "a probability, such as 0.95")
    check_integer(num_draws, "num_draws")
    if isinstance(samples, (Sample, Profile)) or samples is None:
        raise TypeError("samples is a single column or None; wanted a list of Sample(profile)")
    for index, sample in enumerate(samples):
        hint = "Sample(profile) makes one of a Profile"
        check_instance(sample, Sample, f"samples[{index}]", hint)
        check_instance(sample.profile, Profile, f"the profile of samples[{index}]", "see profile")
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not in (0, 1); 0.95 is usual")
    is_auto = isinstance(method, str) and method.lower() == "auto"
    method = "auto" if is_auto else _named(method, "method")
    chosen = [
        choose(sample, rule) if method == "auto" else _choose_by_name(sample, method)
        for sample in samples
    ]
    results: list[NdvEstimate | None] = [None] * len(samples)
    groups: dict[str, list[int]] = {}
    for index, (sample, choice) in enumerate(zip(samples, chosen, strict=True)):
        special = _without_estimator(sample, choice, level)
        if special is None:
            name = _named(choice.method, "the rule's method")
            chosen[index] = choice._replace(method=name)
            groups.setdefault(name, []).append(index)
        results[index] = special
    for name, places in groups.items():
        group = [samples[place] for place in places]
        if name == FUSED:
            by_name = method != "auto"
            for place, found in zip(places, _fused(group, by_name, level, seed), strict=True):
                results[place] = found
            continue
        nothing = [(math.inf, -math.inf)] * len(group)  # widened to hold the estimate below
        intervals = _intervals(group, name, level, num_draws, seed) if num_draws else nothing
        for place, ends in zip(places, intervals, strict=True):
            choice = chosen[place]
            if num_draws:
                choice = choice._replace(reason=f"{choice.reason}; {_NO_BIAS}")
            results[place] = _with_estimator(samples[place], choice, ends)
    return [result for result in results if result is not None]


def _fused(group: Sequence[Sample], by_name: bool, level: float, seed: int) -> list[NdvEstimate]:
    """Learned answers with their own intervals."""
    profiles = [sample.profile for sample in group]
    sizes = [sample.num_retained for sample in group]
    answers = fused_answers(profiles, sizes, level=level, seed=seed)
    results = []
    for sample, answer in zip(group, answers, strict=True):
        value, most = min(answer.value, _most(sample)), _most(sample)
        low, high = min(answer.low, value), max(min(answer.high, most), value)
        reason = "asked for by name" if by_name else answer.reason
        results.append(
            NdvEstimate(value, low, high, FUSED, reason, _coverage(sample.profile), "ok")
        )
    return results


def _choose_by_name(sample: Sample, method: str) -> Choice:
    """The choice of a user who named a method; what is taken in its place says so."""
    choice = choose(sample, _fixed_rule(method))
    if choice.method == method:
        return choice
    return choice._replace(reason=f"{choice.reason}; {method}, asked for by name, is not used")


def _fixed_rule(method: str) -> Rule:
    return lambda _: Choice(method, "asked for by name")


def _named(name: str, what: str) -> str:
    """The name of an estimator as it is written in `METHODS`."""
    known = known_name(name, METHODS)
    if known is None:
        raise ValueError(f"{what} {name!r} is no estimator{list_names(name, METHODS)}")
    return known


def _without_estimator(sample: Sample, choice: Choice, level: float) -> NdvEstimate | None:
    """The answer of the cases that need no estimator of a row sample; None for the others."""
    profile, most = sample.profile, _most(sample)
    d, n, N = float(profile.d), float(profile.n), most
    kept = 1.0 if sample.num_retained is None else min(sample.num_retained / max(d, 1.0), 1.0)
    low_unique = max(_birthday_bound(n, N, level, kept), _sketch_ends(d, sample, level, most)[0])
    answers = {
        EMPTY: (0.0, 0.0, _most_of_none(sample), "empty"),
        UNIQUE_KEY: (N, N, N, "unique_key"),
        EXACT: (d, d, d, "full_scan"),
        SKETCH: (min(d, N), *_sketch_ends(d, sample, level, most), "full_scan"),
        COMPLETE: (min(d, N), *_sketch_ends(d, sample, level, most), "all_repeated"),
        ALL_UNIQUE: (N, min(low_unique, N), N, "all_unique"),
    }
    if choice.method == COLLAPSE:
        value = min(float(estimate(profile, "DUJ1").value), most)
        low, high = _block_ends(sample, level)
        answer = (value, min(low, value), max(high, value), "block")
    elif sample.mixed is not None and choice.method == MIXED:
        value = min(max(sample.mixed.value, d), max(most, d))
        if sample.is_block_sample:
            (low, high), status = _block_ends(sample, level), "block"
        else:
            high = sample.mixed.high + _quantile(level) * sample.mixed.deviation
            low, high = _sketch_ends(d, sample, level, most)[0], min(max(high, d), max(most, d))
            status = "ok"
        answer = (value, min(low, value), max(high, value), status)
    elif choice.method in answers:
        answer = answers[choice.method]
    else:
        return None
    value, low, high, status = answer
    return NdvEstimate(value, low, high, *choice, _coverage(profile), status)


def _block_ends(sample: Sample, level: float) -> tuple[float, float]:
    """The values seen, and these with one more for every row that was not read."""
    profile = sample.profile
    if sample.most is None:
        raise ValueError(
            f"a block sample of {float(profile.n):.0f} collapsed rows has no `most`: they do not "
            "tell it; give the rows of the whole column, nulls left out"
        )
    most, read = float(sample.most), sample.rows_read
    unread = max(most - float(profile.n if read is None else read), 0.0)
    low, high = _sketch_ends(float(profile.d), sample, level, most)
    return low, min(high + unread, most)


def _with_estimator(sample: Sample, choice: Choice, ends: tuple[float, float]) -> NdvEstimate:
    result = estimate(sample.profile, find_estimator(choice.method))
    value, most = min(float(result.value), _most(sample)), _most(sample)
    low, high = min(max(ends[0], 0.0), value), max(min(ends[1], most), value)
    status = Status(int(result.status)).name.lower()
    return NdvEstimate(value, low, high, *choice, _coverage(sample.profile), status)


def _most(sample: Sample) -> float:
    return float(sample.profile.N) if sample.most is None else float(sample.most)


def _coverage(profile: Profile) -> float:
    return float(sample_coverage(profile))


def _most_of_none(sample: Sample) -> float:
    """Upper end where no row with a value was read; 0 if there are only nulls."""
    if sample.is_block_sample and sample.most is not None:
        return max(float(sample.most) - (sample.rows_read or 0), 0.0)
    return float(sample.profile.N)


def _birthday_bound(n: float, population: float, level: float, kept: float) -> float:
    """Fewest values with which n rows show no repetition with a probability of at least 1 - level.

    Equal classes repeat least: their chance of no repetition is exp(-n^2 / 2 (1 / D - 1 / N)), or
    its power `kept` where only that share of the values is looked at.
    """
    if n < 2:
        return n
    return 1 / (1 / population + 2 * math.log(1 / (1 - level)) / (kept * n * n))


def _sketch_ends(d: float, sample: Sample, level: float, most: float) -> tuple[float, float]:
    """d, give or take what a choice of `num_retained` values leaves open: d / sqrt(K) is one sd."""
    if sample.num_retained is None:
        return d, d
    spread = _quantile(level) * d / math.sqrt(max(sample.num_retained, 1))
    return max(min(d - spread, most), float(sample.num_retained)), min(d + spread, most)


def _quantile(level: float) -> float:
    """Standard deviations between the middle of a normal distribution and the ends of its level."""
    return statistics.NormalDist().inv_cdf((1 + level) / 2)


def _intervals(
    group: Sequence[Sample], name: str, level: float, num_draws: int, seed: int
) -> list[tuple[float, float]]:
    """Bootstrap ends of columns with one estimator; padded to a power of two, to compile seldom."""
    padding = 2 ** (len(group) - 1).bit_length() - len(group)
    filler = profile_from_frequencies([1], [1], population=1)
    profiles = [*(sample.profile for sample in group), *[filler] * padding]
    profiles = stack_profiles([to_dense(profile, PROFILE_LENGTH) for profile in profiles])
    # A size above every d stands for exact profiles, and infinity would make differences NaN.
    sizes = [sample.num_retained or _MOST_RETAINED for sample in group] + [0] * padding
    exact = all(sample.num_retained is None for sample in group)
    sizes = None if exact else jnp.asarray(sizes, jnp.float32)
    found = bootstrap_interval(
        jax.random.key(seed), profiles, find_estimator(name), level=level, num_draws=num_draws,
        sketch_size=sizes,
    )  # fmt: skip
    low, high = (np.asarray(end, np.float64)[: len(group)].tolist() for end in found[:2])
    return list(zip(low, high, strict=True))
