"""Bytes that machines send, and what the answers from them are worth.

`communication` sketches a stream of sampled rows that is never held, partition by partition, and
compares the bytes of the messages with those of the partitions' dictionaries. `leave_one_out`
compares the messages of the sketches of Li et al. with smaller ones of the same error of f_1.
"""

import collections
import concurrent.futures
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import ndv
from jaxlab.ndv import bottom_k, hll, leave_one_out, registers
from jaxlab.ndv.column_records import PROFILE_LENGTH
from jaxlab.ndv.hashing import FAST, hash_words, join_words, split_words
from jaxlab.ndv.streams import block_of
from jaxlab.ndv.table import DEFAULT_BUDGET_BYTES

RATE = 0.01
KEYS = {"near-unique": 0.0, "Zipf 0.5": 0.5, "Zipf 1": 1.0}
"""Kinds of keys and the exponent z of their probabilities, proportional to about rank^-z."""
NUM_KEYS = 10**10
_EXACT_RANKS = 10**5
_BINS = 40_000
_BYTES_OF_COUNT, _SEPARATOR = 4, 1
_ENTRY_BYTES, _THETA_BYTES = 9, 8
MEANS = {0.77: 0.5, 0.31: 2.0, 0.034: 5.0}
"""Share of singletons f_1 / d of a sample of Poisson counts -> their mean."""


class Ranks(NamedTuple):
    """Ranks of keys of about one probability.

    Attributes:
      probability: of each.
      number: how many there are.
      digits: of their decimal text.
    """

    probability: np.ndarray
    number: np.ndarray
    digits: np.ndarray


def draw_keys(exponent: float, num_keys: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Independent keys from 1 to num_keys, smaller ones more often; int64.

    The whole part of a power-law variable on [1, num_keys + 1): key r has the probability of the
    interval [r, r + 1), near r^-exponent up to a constant.

    Args:
      exponent: 0 for equal probabilities.
      num_keys: number of different keys.
      rows: how many to draw.
      rng: source of randomness.
    """
    if exponent == 0:
        return rng.integers(1, num_keys + 1, rows)
    uniform = rng.random(rows)
    if exponent == 1:
        values = np.exp(uniform * math.log(num_keys + 1))
    else:
        power = 1 - exponent
        values = (1 + uniform * ((num_keys + 1) ** power - 1)) ** (1 / power)
    return np.minimum(values.astype(np.int64), num_keys)


def ranks_of(exponent: float, num_keys: int) -> Ranks:
    """All keys: the first by themselves, the others in bins too narrow to matter.

    Args:
      exponent: of `draw_keys`.
      num_keys: number of different keys.
    """
    exact = np.arange(1, min(num_keys, _EXACT_RANKS) + 2, dtype=np.float64)
    grid = np.geomspace(exact[-1], num_keys + 1, _BINS)
    tens = 10.0 ** np.arange(18)
    edges = np.unique(np.round(np.concatenate([exact, grid, tens])))
    edges = edges[edges <= num_keys + 1]
    number = np.diff(edges)
    mass = np.diff(_cumulative(exponent, num_keys, edges))
    digits = np.floor(np.log10(edges[:-1]) + 1e-12) + 1
    return Ranks(mass / number, number, digits)


def expected_dictionary_bytes(ranks: Ranks, rows: int) -> float:
    """Expected bytes of the dictionary of a partition: text, a separator and a count a value.

    Args:
      ranks: the keys.
      rows: of the partition.
    """
    held = ranks.number * -np.expm1(rows * np.log1p(-ranks.probability))
    return float((held * (ranks.digits + _SEPARATOR + _BYTES_OF_COUNT)).sum())


def expected_profile(ranks: Ranks, rows: int, population: int) -> ndv.Profile:
    """Expected profile of a sample, with Poisson counts.

    Args:
      ranks: the keys.
      rows: of the sample.
      population: rows of the whole.
    """
    i = np.arange(1, PROFILE_LENGTH + 1)
    mean = rows * ranks.probability
    log_factorial = np.cumsum(np.log(i))
    f, s2 = np.zeros(len(i)), rows * float((ranks.number * ranks.probability * mean).sum())
    for part in np.array_split(np.arange(len(mean)), max(1, len(mean) // 4096)):
        terms = i * np.log(mean[part])[:, None] - mean[part][:, None] - log_factorial
        f += ranks.number[part] @ np.exp(terms)
    d = float((ranks.number * -np.expm1(-mean)).sum())
    return ndv.dense_profile(
        f, n=np.asarray(float(rows)), d=np.asarray(d), population=np.asarray(float(population)),
        rate=np.asarray(rows / population), n_tail=np.asarray(max(rows - float(f @ i), 0.0)),
        d_tail=np.asarray(max(d - float(f.sum()), 0.0)),
        s2_tail=np.asarray(max(s2 - float(f @ (i * (i - 1.0))), 0.0)),
    )  # fmt: skip


def communication(
    rows: int,
    partitions: int,
    num_keys: int,
    on_partition: Callable[[int], object],
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> dict[str, dict[str, float]]:
    """Bytes of messages and of dictionaries, and q-errors of the answers, for every kind of keys.

    The bytes of the messages are counted, those of the dictionaries expected; the truth and the
    profile of all rows, which no machine could hold, are expected, too.

    Args:
      rows: sampled rows of all partitions together; the population has 1 / `RATE` times as many.
      partitions: number of machines.
      num_keys: number of different keys.
      on_partition: called with the number of rows of every finished partition.
      budget_bytes: most bytes of a message.
    """
    each = rows // partitions
    population = round(each * partitions / RATE)
    found = {}
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        for name, exponent in KEYS.items():
            jobs = [
                pool.submit(sketch_partition, exponent, num_keys, each, index, budget_bytes)
                for index in range(partitions)
            ]
            sizes: list[int] = []
            merged = ndv.merge_all(_arriving(jobs, sizes, lambda: on_partition(each)))
            num_bytes = sum(sizes)
            answer = ndv.estimate_table(merged, partitions=range(partitions))[0].result
            ranks = ranks_of(exponent, num_keys)
            truth = float((ranks.number * -np.expm1(-population * ranks.probability)).sum())
            exact = expected_profile(ranks, each * partitions, population)
            method = answer.method if answer.method in ndv.DEVICE_ESTIMATORS else "auto"
            beside = ndv.estimate_ndv(ndv.Sample(exact), method=method).estimate
            dictionary = expected_dictionary_bytes(ranks, each) * partitions
            found[name] = {
                "messages MB": num_bytes / 1e6,
                "dictionaries MB": dictionary / 1e6,
                "ratio": dictionary / num_bytes,
                "q-error, sketch": max(answer.estimate / truth, truth / answer.estimate),
                "q-error, exact profile": max(beside / truth, truth / beside),
            }
    return found


def _arriving(
    jobs: Sequence[concurrent.futures.Future[bytes]], sizes: list[int], on_job: Callable[[], object]
) -> Iterator[ndv.TableSketch]:
    """The tables of messages as they come; their bytes are added to `sizes`."""
    for job in concurrent.futures.as_completed(jobs):
        sizes.append(len(job.result()))
        on_job()
        yield ndv.table_from_bytes(job.result())


def sketch_partition(
    exponent: float, num_keys: int, rows: int, partition: int, budget_bytes: int
) -> bytes:
    """The message of one partition, whose rows are drawn as they are read.

    Args:
      exponent: of `draw_keys`.
      num_keys: number of different keys.
      rows: sampled rows.
      partition: its number, the seed of its rows.
      budget_bytes: most bytes of the message.
    """
    import pyarrow as pa

    rng = np.random.default_rng(partition)
    step = 2**18

    def batches() -> Any:
        for start in range(0, rows, step):
            keys = draw_keys(exponent, num_keys, min(step, rows - start), rng)
            yield pa.table({"key": keys})

    sketch = ndv.table.sketch(
        batches(), rate=RATE, is_sampled=True, partition=partition, budget_bytes=budget_bytes
    )
    return ndv.table_to_bytes(sketch)


class Machines(NamedTuple):
    """Distinct hashes of every machine's sample, their local counts, and f_1 of all."""

    words: list[np.ndarray]
    counts: list[np.ndarray]
    f1: int


def draw_machines(mean: float, values: int, machines: int, rng: np.random.Generator) -> Machines:
    """A sample of Poisson counts whose rows lie on random machines.

    Args:
      mean: rows of a value, on average.
      values: number of values, those that no row has included.
      machines: number of machines.
      rng: source of randomness.
    """
    total = rng.poisson(mean, values)
    keys = rng.integers(0, 2**63, values).astype(np.uint64)
    hashes = join_words(hash_words(split_words(keys), FAST))
    rows = np.repeat(hashes, total)
    owner = rng.integers(0, machines, len(rows))
    order = np.lexsort((rows, owner))
    ends = np.searchsorted(owner[order], np.arange(machines + 1))
    parts = [
        np.unique(rows[order[a:b]], return_counts=True)
        for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]
    words, counts = zip(*parts, strict=True)
    return Machines(list(words), list(counts), int((total == 1).sum()))


def leave_one_out_f1(machines: Machines, precision: int) -> float:
    """f_1 by the sketches of Li et al., of 2 (1 + 2^precision) bytes a machine."""
    made = [
        leave_one_out.sketch_machine(words, counts, precision, hasher=FAST)
        for words, counts in zip(machines.words, machines.counts, strict=True)
    ]
    distinct = np.stack([sketch.distinct for sketch in made])
    once = np.stack([sketch.by_count[0] for sketch in made])
    return float(leave_one_out.singletons(distinct, once, hll.raw_estimate))


def registers_f1(machines: Machines, precision: int) -> float:
    """f_1 by registers with counts, of 5 bytes a register and machine."""
    minimum = np.full(2**precision, 2**32 - 1, np.uint32)
    merged = registers.Registers(minimum, np.zeros(2**precision, np.uint16), FAST)
    for words, counts in zip(machines.words, machines.counts, strict=True):
        merged = registers.update_on_host(merged, block_of(np.repeat(words, counts)))
    return float(registers.profile(merged, 2).f[0])


def union_f1(machines: Machines, capacity: int) -> tuple[float, int]:
    """f_1 by bottom-k messages of a small capacity, and their bytes in all.

    The coordinator keeps what lies below the smallest theta. An entry takes 8 bytes of hash and 1
    of count, and a message 8 bytes of theta.
    """
    sketches = [
        bottom_k.from_counts(words, counts, capacity)
        for words, counts in zip(machines.words, machines.counts, strict=True)
    ]
    entries = sum(int((np.asarray(sketch.count[:-1]) > 0).sum()) for sketch in sketches)
    f1 = float(bottom_k.union_profile(sketches, 2).f[0])
    return f1, entries * _ENTRY_BYTES + len(sketches) * _THETA_BYTES


def leave_one_out_bytes(
    machines: int,
    precision: int,
    values: int,
    seeds: int,
    on_seed: Callable[[], object],
) -> dict[str, dict[str, float]]:
    """Bytes of all machines' messages for an error of f_1 no larger than leave-one-out's.

    Args:
      machines: number of machines.
      precision: log2 of the registers of the leave-one-out sketches.
      values: of the population of every draw.
      seeds: draws, over which the error is the root of the mean square.
      on_seed: called after every draw.
    """
    found = {}
    for share, mean in MEANS.items():
        errors, num_bytes = collections.defaultdict(list), collections.defaultdict(float)
        for seed in range(seeds):
            drawn = draw_machines(mean, values, machines, np.random.default_rng(seed))
            for key, f1, total in _all_f1(drawn, precision):
                errors[key].append(f1 / drawn.f1 - 1)
                num_bytes[key] = max(total, num_bytes[key])
            on_seed()
        rms = {key: float(np.sqrt(np.mean(np.square(e)))) for key, e in errors.items()}
        base = ("leave-one-out", precision)
        row = {"leave-one-out rms %": 100 * rms[base], "leave-one-out kB": num_bytes[base] / 1e3}
        for kind in ("registers", "bottom-k"):
            fine = [k for k in rms if k[0] == kind and rms[k] <= rms[base]]
            if fine:
                best = min(fine, key=lambda key: num_bytes[key])
                row |= {
                    f"{kind} size": best[1],
                    f"{kind} rms %": 100 * rms[best],
                    f"{kind} kB": num_bytes[best] / 1e3,
                    f"{kind} times fewer": num_bytes[base] / num_bytes[best],
                }
        found[f"f1/d = {share}"] = row
    return found


def _all_f1(drawn: Machines, precision: int) -> Iterator[tuple[tuple[str, int], float, float]]:
    """Kind and size of sketches, their f_1 and the bytes of all messages."""
    machines = len(drawn.words)
    f1 = leave_one_out_f1(drawn, precision)
    yield ("leave-one-out", precision), f1, machines * 2 * (1 + 2**precision)
    for size in range(4, 15):
        yield ("registers", size), registers_f1(drawn, size), machines * 5 * 2**size
    for step in range(2, 28):
        size = round(2 ** (step / 2))
        yield ("bottom-k", size), *union_f1(drawn, size)


def _cumulative(exponent: float, num_keys: int, edges: np.ndarray) -> np.ndarray:
    """Probability of a key below each edge."""
    if exponent == 0:
        return (edges - 1) / num_keys
    if exponent == 1:
        return np.log(edges) / math.log(num_keys + 1)
    power = 1 - exponent
    return (edges**power - 1) / ((num_keys + 1) ** power - 1)
