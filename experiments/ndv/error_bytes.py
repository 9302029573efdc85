"""Error against bytes: what is left of f1 and of the answer after a sample has been sent.

Samples of known data sets are spread over machines and sent in several ways, each at several sizes:

* `exact dictionary`: every machine's values and counts, as the paper counts its bytes; no error;
* `two HLL a machine`: the paper's scheme, from which d and f1 are known and answered by CHAO3;
* `registers`, `bottom-k`: sketches of the whole profile, of which every machine sends all slots;
* `our message`: what `jaxlab.ndv.table` sends: all values while they fit, then a bottom-k;
* `HLL of all rows`: no sample at all, every machine reads all its rows: D, and nothing about f1.

The first four read the share of the rows that the rate says and are answered by the automatic
choice where the whole profile is known. Errors are root mean squares over trials of
(estimate / truth - 1); the truth of f1 is that of the sample, the truth of the answer is D.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments.common.plots import Axis, Plot, Series
from experiments.ndv.machines import (
    BYTES_PER_ENTRY,
    as_column,
    finish_messages,
    paper_message_bytes,
    sampled_chunks,
    singletons_of,
    spread_rows,
    text_lengths,
    two_numbers,
)
from experiments.ndv.published import make_population
from experiments.ndv.real_columns import Column, draw_sample
from experiments.ndv.settings import BytesConfig
from jaxlab.ndv import bottom_k, column_records, column_sketch, hll, registers
from jaxlab.ndv.bottom_k import BottomK
from jaxlab.ndv.choice import Sample, estimate_columns
from jaxlab.ndv.column_sketch import settings_for_budget
from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.hashing import FAST, Hasher, hash_words, join_words, split_words
from jaxlab.ndv.leave_one_out import singletons
from jaxlab.ndv.profile import Profile, dense_profile
from jaxlab.ndv.sketch import EMPTY_HASH, SketchProfile
from jaxlab.ndv.streams import block_of

DICTIONARY, PAPER, REGISTERS = "exact dictionary", "two HLL a machine (paper)", "registers"
BOTTOM_K, MESSAGE, ALL_ROWS = "bottom-k", "our message", "HLL of all rows"
SCHEMES = (MESSAGE, REGISTERS, BOTTOM_K, PAPER, ALL_ROWS, DICTIONARY)

_LENGTH = 256  # frequencies that sketches keep apart
_REGISTER_BYTES, _SLOT_BYTES = 6, 12
_PART = 2**20  # values hashed at a time


class Sent(NamedTuple):
    """One sample after it has been sent.

    Attributes:
      scheme: in which way.
      size: its parameter, such as the log2 of the registers; 0 where there is none.
      num_bytes: of all machines together.
      f1_ratio: singletons found by those of the sample; NaN where the scheme does not know them.
      answer: estimate of D where the scheme gives it by itself; else what to estimate from.
    """

    scheme: str
    size: int
    num_bytes: int
    f1_ratio: float
    answer: float | Sample


@dataclasses.dataclass(frozen=True)
class Point:
    """One scheme at one size, over all trials.

    Attributes:
      scheme: in which way the sample was sent.
      size: its parameter.
      num_bytes: of all machines together, on average.
      f1_error: rms of the relative error of f1; NaN where the scheme does not know it.
      error: rms of the relative error of the answer.
    """

    scheme: str
    size: int
    num_bytes: float
    f1_error: float
    error: float


def measure(name: str, config: BytesConfig) -> list[Point]:
    """All schemes at all sizes on one data set.

    Args:
      name: of the data set.
      config: everything else.
    """
    column = as_column(name, make_population(name, config.block_rows, 1))
    sent: list[Sent] = []
    for trial in range(config.trials):
        sent += _one_trial(column, config, trial)
    open_ones = [item.answer for item in sent if isinstance(item.answer, Sample)]
    closed = iter(estimate_columns(open_ones, num_draws=0))
    answers = [
        next(closed).estimate if isinstance(item.answer, Sample) else item.answer for item in sent
    ]
    groups: dict[tuple[str, int], list[tuple[Sent, float]]] = {}
    for item, answer in zip(sent, answers, strict=True):
        groups.setdefault((item.scheme, item.size), []).append((item, answer))
    return [
        Point(
            scheme,
            size,
            sum(item.num_bytes for item, _ in group) / len(group),
            _rms([item.f1_ratio - 1 for item, _ in group]),
            _rms([answer / column.num_distinct - 1 for _, answer in group]),
        )
        for (scheme, size), group in groups.items()
    ]


def make_plots(found: Mapping[str, list[Point]]) -> list[Plot]:
    """Two plots a data set: the error of f1, and that of the answer.

    Args:
      found: name of the data set -> its points.
    """
    plots = []
    for name, points in found.items():
        for field, label in (
            ("f1_error", "error of f1 of the sample"),
            ("error", "error of the number of values"),
        ):
            series = [_series(scheme, points, field) for scheme in SCHEMES]
            kept = [one for one in series if one is not None]
            plots.append(
                Plot(
                    kept,
                    Axis("bytes of all machines", "log", "bytes"),
                    Axis(f"rms {label}", "log", "percent"),
                    title=f"{name}: {label}",
                )
            )
    return plots


def _series(scheme: str, points: list[Point], field: str) -> Series | None:
    """The curve of a scheme; None where it has nothing to show, such as no error at all."""
    own = sorted((p for p in points if p.scheme == scheme), key=lambda point: point.num_bytes)
    values = [getattr(point, field) for point in own]
    if not any(math.isfinite(value) and value > 0 for value in values):
        return None
    line = len(own) > 1
    return Series(scheme, [point.num_bytes for point in own], values, line=line)


def _one_trial(column: Column, config: BytesConfig, trial: int) -> Iterator[Sent]:
    """One sample, sent in every way; the hash is another one in every trial."""
    rng = np.random.default_rng([config.seed, trial, *column.name.encode()])
    profile = draw_sample(column, config.rate, rng)
    hasher = Hasher(FAST.hash_id, int(rng.integers(2**32)))
    parts = list(sampled_chunks(profile, 2**62))
    ids = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    rows = spread_rows(counts, config.machines, rng)
    yield from _exact(profile, ids, rows)
    words = _hash(ids, hasher)
    yield from _paper(profile, words, rows, config, hasher)
    order = np.argsort(words)
    yield from _sketches(profile, words[order], counts[order], rows, config, hasher)
    yield from _messages(profile, words, rows, config, hasher)
    yield from _all_rows(column, config, hasher)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # machine, position of the value, rows there


def _exact(profile: Profile, ids: np.ndarray, rows: Rows) -> Iterator[Sent]:
    size = int((np.asarray(text_lengths(ids))[rows[1]] + BYTES_PER_ENTRY).sum())
    yield Sent(DICTIONARY, 0, size, 1.0, Sample(profile))


def _paper(
    profile: Profile, words: np.ndarray, rows: Rows, config: BytesConfig, hasher: Hasher
) -> Iterator[Sent]:
    machine, value, local = rows
    single = local == 1
    for precision in config.hll_precisions:
        # The paper's estimate jumps where it changes its formula, at 2.5 values a register: f1, a
        # sum of differences, is then 10 % off. Ertl's is smooth, and the same elsewhere.
        size_of = functools.partial(hll.ertl_estimate, max_rank=hll.max_rank(precision, hasher))
        place = hll.positions(split_words(words), precision)
        rank = np.asarray(place.rank).astype(np.uint8)[value]
        register = np.asarray(place.register)[value]
        distinct, once = np.zeros((2, config.machines, 2**precision), np.uint8)
        flat = machine * 2**precision + register
        np.maximum.at(distinct.reshape(-1), flat, rank)
        np.maximum.at(once.reshape(-1), flat[single], rank[single])
        d = float(size_of(distinct.max(axis=0)))
        f1 = min(float(singletons(distinct, once, size_of)), d)
        known = two_numbers(d, f1, profile)
        size = config.machines * paper_message_bytes(precision)
        answer = float(estimate(known, "CHAO3").value)
        yield Sent(PAPER, precision, size, _f1_ratio(f1, profile), answer)


def _sketches(
    profile: Profile,
    words: np.ndarray,
    counts: np.ndarray,
    rows: Rows,
    config: BytesConfig,
    hasher: Hasher,
) -> Iterator[Sent]:
    """Merged registers and bottom-k: what merging the machines' sketches gives, bit for bit."""
    for precision in config.register_precisions:
        sketch = registers.from_counts(words, counts, precision, hasher=hasher)
        found, retained = registers.profile(sketch, _LENGTH), int((sketch.count > 0).sum())
        size = config.machines * 2**precision * _REGISTER_BYTES
        f1 = _f1_ratio(float(found.f[0]), profile)
        yield Sent(REGISTERS, precision, size, f1, _as_sample(found, profile, retained))
    held = np.bincount(rows[0], minlength=config.machines)
    for capacity in config.bottom_k_sizes:
        found = bottom_k.profile(_smallest(words, counts, capacity, hasher), _LENGTH)
        size = int(np.minimum(held, capacity + 1).sum()) * _SLOT_BYTES
        f1 = _f1_ratio(float(found.f[0]), profile)
        yield Sent(BOTTOM_K, capacity, size, f1, _as_sample(found, profile, capacity))


def _messages(
    profile: Profile, words: np.ndarray, rows: Rows, config: BytesConfig, hasher: Hasher
) -> Iterator[Sent]:
    """The messages themselves, built, merged and read by the library."""
    machine, value, local = rows
    ends = np.searchsorted(machine, np.arange(config.machines + 1))
    for budget in config.budgets:
        settings = settings_for_budget(budget, hasher=hasher)
        states = []
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            part = np.repeat(words[value[start:end]], local[start:end])
            empty = column_sketch.empty_column()
            states.append(column_sketch.add_rows(empty, block_of(part), settings))
        merged, size = finish_messages(states, settings, float(profile.q))
        read = column_records.read_profile(merged, float(profile.N))
        f1 = _f1_ratio(singletons_of(read.profile), profile)
        yield Sent(MESSAGE, budget, size, f1, Sample(read.profile, read.num_retained))


def _all_rows(column: Column, config: BytesConfig, hasher: Hasher) -> Iterator[Sent]:
    """HyperLogLog of every row of the column: the value is what counts, not how often it comes."""
    sketches = [np.zeros(2**precision, np.uint8) for precision in config.hll_precisions]
    for start in range(0, column.num_distinct, _PART):
        ids = np.arange(start, min(start + _PART, column.num_distinct))
        lanes = split_words(_hash(ids, hasher))
        for precision, sketch in zip(config.hll_precisions, sketches, strict=True):
            place = hll.positions(lanes, precision)
            np.maximum.at(sketch, np.asarray(place.register), np.asarray(place.rank, np.uint8))
    for precision, sketch in zip(config.hll_precisions, sketches, strict=True):
        answer = float(hll.ertl_estimate(sketch, hll.max_rank(precision, hasher)))
        size = config.machines * paper_message_bytes(precision) // 2
        yield Sent(ALL_ROWS, precision, size, math.nan, answer)


def _hash(ids: np.ndarray, hasher: Hasher) -> np.ndarray:
    words = split_words(ids.astype(np.int64).view(np.uint64))
    return join_words(hash_words(words, hasher))


def _smallest(words: np.ndarray, counts: np.ndarray, capacity: int, hasher: Hasher) -> BottomK:
    """Bottom-k of ascending hashes with counts."""
    kept = min(len(words), capacity + 1)
    lanes = np.full((2, capacity + 1), EMPTY_HASH, np.uint32)
    lanes[:, :kept] = split_words(words[:kept])
    count = np.zeros(capacity + 1, np.uint32)
    count[:kept] = counts[:kept]
    return BottomK(lanes[0], lanes[1], count, hasher)


def _as_sample(found: SketchProfile, profile: Profile, retained: int) -> Sample:
    known = dense_profile(
        np.asarray(found.f),
        n=np.asarray(found.n),
        d=np.asarray(found.d),
        population=profile.N,
        rate=profile.q,
        n_tail=np.asarray(found.n_tail),
        d_tail=np.asarray(found.d_tail),
        s2_tail=np.asarray(found.s2_tail),
    )
    return Sample(known, retained)


def _f1_ratio(f1: float, profile: Profile) -> float:
    return f1 / singletons_of(profile)


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
