"""The paper's experiment: a sample spread over machines, and what their sketches make of it.

The sample of a data set is drawn value by value from the sizes of its classes, so that only sampled
rows exist: chunks of values with how often each was sampled, every copy sent to a random machine.
Every machine sums up its rows twice: in the paper's two sketches of HyperLogLog, with its hash of
the text of the value, and in the message of `jaxlab.ndv.table`. Nothing grows with the sample but
the time: with 512 machines 1e7 sampled rows take 24 s of a core, 1e9 therefore 40 minutes, and 1.5
GB of memory.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt64

from experiments.ndv.published import make_population
from experiments.ndv.real_columns import Column, draw_sample
from experiments.ndv.settings import MachinesConfig
from jaxlab.ndv import column_records, column_sketch, compact, count_sketch, hll
from jaxlab.ndv.choice import Sample, estimate_columns
from jaxlab.ndv.column_sketch import ColumnState, Settings, settings_for_budget
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.formats import Record
from jaxlab.ndv.hashing import AUTHORS, FAST, Lanes, hash_words, join_words, split_words
from jaxlab.ndv.leave_one_out import singletons, subsample_counts, subsampled_shlosser
from jaxlab.ndv.populations import Population
from jaxlab.ndv.profile import Profile, dense_profile
from jaxlab.ndv.streams import block_of

BYTES_PER_ENTRY = 5  # of the paper's dictionary, beside the text: its end, and a count of 4 bytes
EXACT_ESTIMATORS = ("GEE", "CHAO", "SHL", "CL1", "CL1_AUTHORS_CPP")
PAPER_ESTIMATORS = ("GEE", "CHAO3", "CL1", "CL1_AUTHORS_NB")  # SHL comes from a sub-sample
_SKETCH_DEPTH, _SKETCH_WIDTH = 4, 10_000  # of the paper's second moment


def as_column(name: str, population: Population) -> Column:
    """A data set as a column, to be sampled like one."""
    numbers = population.num_values.astype(np.int64)
    return Column(name, "generated", int(population.sizes @ numbers), population.sizes, numbers)


def sampled_chunks(
    profile: Profile, chunk_rows: int
) -> Iterator[tuple[Int[np.ndarray, " values"], Int[np.ndarray, " values"]]]:
    """The sampled values and how often each was sampled, so many rows at a time.

    Values are numbered as they come: a hash does not see what was drawn.

    Args:
      profile: sparse host profile of the sample.
      chunk_rows: rows of a chunk at most, but at least one value.

    Yields:
      Consecutive numbers of values, and their rows, at least 1.
    """
    first = 0
    for i, f in zip(profile.i.tolist(), profile.f.tolist(), strict=True):
        most, left = max(chunk_rows // i, 1), int(f)
        while left:
            number = min(most, left)
            yield np.arange(first, first + number), np.full(number, i)
            first, left = first + number, left - number


def spread_rows(
    counts: Int[np.ndarray, " values"], machines: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Sends every row to a random machine and counts each machine's rows of each value.

    Args:
      counts: rows per value.
      machines: number of machines.
      rng: source of randomness.

    Returns:
      For every pair of a machine and a value that it holds: the machine, ascending, the position of
      the value, ascending within it, and its rows there.
    """
    value = np.repeat(np.arange(len(counts)), counts)
    machine = rng.integers(0, machines, len(value))
    key, local = np.unique(machine * len(counts) + value, return_counts=True)
    return key // len(counts), key % len(counts), local


def text_lengths(ids: Int[np.ndarray, " values"]) -> Int[np.ndarray, " values"]:
    """Bytes of non-negative numbers written in digits."""
    return np.searchsorted(10 ** np.arange(1, 19), ids, side="right") + 1


class _Machines:
    """What all machines have seen so far."""

    def __init__(self, config: MachinesConfig):
        self.config, self.settings = config, settings_for_budget(config.budget_bytes)
        shape = (config.machines, 2**config.precision)
        self.distinct, self.once = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.moments = count_sketch.empty(_SKETCH_DEPTH, _SKETCH_WIDTH, hasher=AUTHORS)
        self.update = jax.jit(count_sketch.update)
        self.states = [column_sketch.empty_column() for _ in range(config.machines)]
        self.dictionary_bytes, self.sub_d, self.sub_f1 = 0, 0, 0

    def add(self, ids: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
        """Take a chunk of values in, every row on a random machine."""
        machine, value, local = spread_rows(counts, self.config.machines, rng)
        texts = np.asarray(text_lengths(ids))
        self.dictionary_bytes += int((texts[value] + BYTES_PER_ENTRY).sum())
        self._add_to_paper(ids, counts, machine, value, local)
        found = subsample_counts(counts, self.config.rate, rng)
        self.sub_d, self.sub_f1 = self.sub_d + found[0], self.sub_f1 + found[1]
        self._add_to_ours(hash_ids(ids), machine, value, local)

    def _add_to_paper(
        self,
        ids: np.ndarray,
        counts: np.ndarray,
        machine: np.ndarray,
        value: np.ndarray,
        local: np.ndarray,
    ) -> None:
        import pyarrow as pa

        lanes = hash_column(pa.array(ids), AUTHORS).lanes
        place = hll.positions(lanes, self.config.precision)
        rank = np.asarray(place.rank)[value].astype(np.uint8)
        flat = machine * self.distinct.shape[1] + np.asarray(place.register)[value]
        np.maximum.at(self.distinct.reshape(-1), flat, rank)
        single = local == 1
        np.maximum.at(self.once.reshape(-1), flat[single], rank[single])
        # Tables add: that of all rows is the sum of the machines'. Padded, to compile once.
        room = max(self.config.chunk_rows - len(ids), 0)
        padded = Lanes(*(np.pad(half, (0, room)) for half in lanes))
        self.moments = self.update(self.moments, padded, np.pad(counts, (0, room)))

    def _add_to_ours(
        self, words: np.ndarray, machine: np.ndarray, value: np.ndarray, local: np.ndarray
    ) -> None:
        rows = np.repeat(words[value], local)
        ends = np.searchsorted(np.repeat(machine, local), np.arange(len(self.states) + 1))
        for j, state in enumerate(self.states):
            part = rows[ends[j] : ends[j + 1]]
            self.states[j] = column_sketch.add_rows(state, block_of(part), self.settings)


def hash_ids(ids: Int[np.ndarray, " values"]) -> UInt64[np.ndarray, " values"]:
    """The library's fast hash of numbers."""
    return join_words(hash_words(split_words(ids.astype(np.int64).view(np.uint64)), FAST))


def finish_messages(
    states: list[ColumnState], settings: Settings, rate: float
) -> tuple[Record, int]:
    """The merge of all machines' messages, and the bytes of them all.

    Args:
      states: of the machines' columns.
      settings: what they were built with.
      rate: sampling rate.
    """
    merged, sent = None, 0
    for j, state in enumerate(states):
        record = column_sketch.finish_column(state, settings)
        record = dataclasses.replace(record, rate=rate, partitions=np.array([j], np.uint64))
        population = record.num_rows / rate
        shared = compact.shared_of(record, round(population), record.num_rows)
        sent += len(compact.column_to_bytes(compact.Column(record, population), shared))
        merged = record if merged is None else column_records.merge_columns(merged, record)
    assert merged is not None, "there is at least one machine"
    return merged, sent


def run_machines(
    name: str, repeats: int, config: MachinesConfig, on_rows: Callable[[int], object] | None = None
) -> dict[str, float]:
    """Sample a data set, spread it over machines, and sum it up in both ways.

    Args:
      name: of the data set.
      repeats: its blocks.
      config: everything else.
      on_rows: told the number of sampled rows of every chunk, for a progress bar.

    Returns:
      `rows` and `values`, N and D; `n`, `d`, `f1` of the sample; `paper_d`, `paper_f1`, `our_d` and
      `our_f1`, what the two kinds of messages say of it; `paper_bytes`, `our_bytes` and
      `dictionary_bytes` of all machines; `exact/NAME`, `paper/NAME` and `ours/NAME`, estimates of D
      from the exact profile, the paper's sketches and our messages.
    """
    column = as_column(name, make_population(name, config.block_rows, repeats))
    rng = np.random.default_rng([config.seed, repeats, *name.encode()])
    exact = draw_sample(column, config.rate, rng)
    machines = _Machines(config)
    for ids, counts in sampled_chunks(exact, config.chunk_rows):
        machines.add(ids, counts, rng)
        if on_rows is not None:
            on_rows(int(counts.sum()))
    return _read(column, exact, machines)


def _read(column: Column, exact: Profile, machines: _Machines) -> dict[str, float]:
    config = machines.config
    d = float(hll.raw_estimate(machines.distinct.max(axis=0)))
    f1 = min(float(singletons(machines.distinct, machines.once, hll.raw_estimate)), d)
    s2 = float(count_sketch.excess_moment(machines.moments, float(exact.n)))
    paper = two_numbers(d, f1, exact, s2)
    merged, sent = finish_messages(machines.states, machines.settings, config.rate)
    ours = column_records.read_profile(merged, column.num_rows)
    numbers = {
        "rows": float(column.num_rows),
        "values": float(column.num_distinct),
        "n": float(exact.n),
        "d": float(exact.d),
        "f1": singletons_of(exact),
        "paper_d": d,
        "paper_f1": f1,
        "our_d": float(ours.profile.d),
        "our_f1": singletons_of(ours.profile),
        "paper_bytes": float(config.machines * paper_message_bytes(config.precision)),
        "our_bytes": float(sent),
        "dictionary_bytes": float(machines.dictionary_bytes),
    }
    numbers |= {f"exact/{name}": _value(exact, name) for name in EXACT_ESTIMATORS}
    numbers["exact/auto"] = _automatic(Sample(exact))
    numbers |= {f"paper/{name}": _value(paper, name) for name in PAPER_ESTIMATORS}
    numbers["paper/SHL"] = subsampled_shlosser(
        max(d, float(machines.sub_d)), f1, float(machines.sub_d), float(machines.sub_f1)
    )
    numbers["ours/GEE"] = _value(ours.profile, "GEE")
    numbers["ours/auto"] = _automatic(Sample(ours.profile, ours.num_retained))
    return numbers


def singletons_of(profile: Profile) -> float:
    """f1 of a host profile."""
    return float(profile.f[profile.i == 1].sum())


def paper_message_bytes(precision: int) -> int:
    """Bytes of the two sketches of a machine, each of registers of a byte and its precision."""
    return 2 * (1 + 2**precision)


def two_numbers(d: float, f1: float, sample: Profile, s2: float = 0.0) -> Profile:
    """The profile of which only d, f1 and perhaps the second moment are known, as the paper's is.

    Args:
      d: distinct values.
      f1: singletons.
      sample: the sample itself, for its rows, its rate and the size of the population.
      s2: sum of i (i - 1) f_i.
    """
    return dense_profile(
        np.array([f1]),
        n=sample.n,
        d=np.asarray(d),
        population=sample.N,
        rate=sample.q,
        n_tail=np.asarray(float(sample.n) - f1),
        d_tail=np.asarray(d - f1),
        s2_tail=np.asarray(s2),
    )


def _value(profile: Profile, name: str) -> float:
    return float(estimate(profile, name).value)


def _automatic(sample: Sample) -> float:
    return estimate_columns([sample], num_draws=0)[0].estimate
