"""Batches of token rows: of few lengths, resumable by their step alone, nothing dropped.

The order of an epoch is a permutation; its rows are put into buckets of like lengths, every bucket
is cut into batches, and the batches are shuffled. All of it is a function of the seed and of the
epoch, so that a step names its batch on any number of processes. The last batch of a bucket is
filled with rows that do not count::

    rows = tokenize_texts(data.train, tokenizer, config.max_length)
    batches = make_train_batches(rows, config, seed=0)
    batch = next(batches)  # ids, mask, types, label, has_label, example_id
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxlab.data.pipeline import local_rows, this_process
from jaxlab.distillation.masking import MaskingConfig, MaskTable, mask_tokens
from jaxlab.distillation.rows import IGNORED, TokenRows

BUCKETS = (16, 32, 64, 128, 256, 512)

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Shapes of batches.

    Attributes:
      max_length: ids of a row at most, special tokens included.
      buckets: lengths of rows in batches, in rising order; a row goes into the first that holds it.
      global_batch_size: rows of a training batch over all processes.
      eval_batch_size: rows of an evaluation batch over all processes.
      shuffle: another order every epoch; else that of the data within each bucket.
    """

    max_length: int = 128
    buckets: tuple[int, ...] = BUCKETS
    global_batch_size: int = 32
    eval_batch_size: int = 128
    shuffle: bool = True

    def __post_init__(self):
        """Checks sizes."""
        problems = []
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            problems.append(f"buckets={self.buckets} do not rise; wanted such as {BUCKETS}")
        elif not 3 <= self.max_length <= self.buckets[-1]:
            problems.append(
                f"max_length={self.max_length} is not between 3 and the largest bucket "
                f"{self.buckets[-1]}"
            )
        for name in ("global_batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}; wanted 1 or more")
        if problems:
            raise ValueError("BatchConfig: " + "; ".join(problems))


class TrainBatches(Iterator[Batch]):
    """Endless batches of this process; `step` is the position, the index of the next batch."""

    def __init__(self, plan: "_Plan", start_step: int):
        """Made by `make_train_batches`."""
        self._plan = plan
        self.seek(start_step)

    def __next__(self) -> Batch:
        """The batch of step `step`: this process's rows."""
        batch = self._plan.batch(self._step)
        self._step += 1
        return batch

    @property
    def step(self) -> int:
        """Index of the batch that comes next: all that a checkpoint has to hold."""
        return self._step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every row occurs once."""
        return self._plan.steps_per_epoch

    def seek(self, step: int) -> None:
        """Goes to a step, in no time.

        Args:
          step: index of the next batch.

        Raises:
          ValueError: if it is negative.
        """
        if step < 0:
            raise ValueError(f"step={step} is negative; the first batch has step 0")
        self._step = step


class EvalBatches:
    """Every row once, in batches of like lengths; may be iterated any number of times."""

    def __init__(self, plan: "_Plan"):
        """Made by `make_eval_batches`."""
        self._plan = plan

    def __len__(self) -> int:
        """Number of batches."""
        return self._plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first on: this process's rows."""
        return (self._plan.batch(step) for step in range(len(self)))

    def in_order(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Outputs of all batches in the order of the rows.

        Args:
          outputs: of each batch in turn, all processes' rows on the first axis.

        Returns:
          (rows, ...); outputs of other lengths than the others' are filled with zeros at their end.

        Raises:
          ValueError: if there are not as many outputs as batches.
        """
        places = self._plan.places(0)
        if len(outputs) != len(places):
            raise ValueError(f"{len(outputs)} outputs of {len(places)} batches; give all of them")
        kept = [
            np.asarray(output)[: len(rows)]
            for (_, rows), output in zip(places, outputs, strict=True)
        ]
        shape = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in kept), strict=True))
        whole = np.zeros((self._plan.num_rows, *shape), kept[0].dtype)
        for (_, rows), part in zip(places, kept, strict=True):
            whole[(rows, *(slice(size) for size in part.shape[1:]))] = part
        return whole


def make_train_batches(
    rows: TokenRows,
    config: BatchConfig,
    *,
    seed: int,
    start_step: int = 0,
    student_rows: TokenRows | None = None,
    masking: MaskingConfig | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> TrainBatches:
    """Endless batches to train on.

    Args:
      rows: in the teacher's ids, or the only ones.
      config: shapes.
      seed: of the order and of the masking, the same on every process.
      start_step: index of the first batch, to go on after a checkpoint.
      student_rows: the same examples in the student's ids.
      masking: hide tokens and make them the labels.
      process_index: this process; None asks JAX.
      process_count: number of processes; None asks JAX.

    Returns:
      An iterator of dicts: `ids`, `types` int32 and `mask` bool (batch, length), `label`,
      `has_label`, `example_id` (-1 for rows that fill up). With `student_rows` also `student_ids`,
      `student_mask`, `student_types`; labels of tokens stay those of `rows`, and `Parts.is_aligned`
      says whether tokens may be compared.

    Raises:
      ValueError: if rows are too long for the buckets, the two kinds of rows are of other examples,
        or the batch is not a multiple of the number of processes.
    """
    plan = _Plan(
        rows, student_rows, config, config.global_batch_size, config.shuffle, seed, masking,
        *this_process(process_index, process_count),
    )  # fmt: skip
    return TrainBatches(plan, start_step)


def make_eval_batches(
    rows: TokenRows,
    config: BatchConfig,
    *,
    seed: int = 0,
    student_rows: TokenRows | None = None,
    masking: MaskingConfig | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> EvalBatches:
    """Every row once, in batches as those of `make_train_batches`.

    Args:
      rows: in the teacher's ids, or the only ones.
      config: shapes.
      seed: of the masking.
      student_rows: the same examples in the student's ids.
      masking: hide tokens, the same ones at every iteration.
      process_index: this process; None asks JAX.
      process_count: number of processes; None asks JAX.

    Raises:
      ValueError: as `make_train_batches`.
    """
    return EvalBatches(
        _Plan(
            rows, student_rows, config, config.eval_batch_size, False, seed, masking,
            *this_process(process_index, process_count),
        )
    )  # fmt: skip


def steps_per_epoch(
    rows: TokenRows, config: BatchConfig, student_rows: TokenRows | None = None
) -> int:
    """Batches in which every row occurs once.

    Args:
      rows: see `make_train_batches`.
      config: see `make_train_batches`.
      student_rows: see `make_train_batches`.
    """
    _, counts = np.unique(_buckets(rows, student_rows, config), return_counts=True)
    return int((-(-counts // config.global_batch_size)).sum())


class _Plan:
    """Which rows are in which batch, and how a batch is made of them."""

    def __init__(
        self,
        rows: TokenRows,
        student_rows: TokenRows | None,
        config: BatchConfig,
        batch_size: int,
        shuffle: bool,
        seed: int,
        masking: MaskingConfig | None,
        process_index: int,
        process_count: int,
    ):
        self._share = local_rows(batch_size, process_count, "the batch size")
        self._begin = process_index * self._share
        if student_rows is not None and masking is not None:
            raise ValueError("masking hides tokens of one vocabulary; leave student_rows out")
        if student_rows is not None and not np.array_equal(
            student_rows.example_id, rows.example_id
        ):
            raise ValueError(
                f"{len(student_rows)} student rows are of other examples than {len(rows)} teacher "
                "rows; tokenise the same examples in the same order"
            )
        self.num_rows = len(rows)
        self._rows, self._student_rows = rows, student_rows
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._bucket_of_row = _buckets(rows, student_rows, config)
        self._mask_table = (
            None if masking is None else MaskTable.of(rows.tokenizer, rows.ids, masking)
        )
        self.places = functools.lru_cache(2)(self._places)
        self.steps_per_epoch = len(self.places(0))

    def _places(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """Length and rows of every batch of an epoch."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(self.num_rows) if self._shuffle else np.arange(self.num_rows)
        of_row = self._bucket_of_row[order]
        batches: list[tuple[int, np.ndarray]] = []
        for length in np.unique(of_row):
            members = order[of_row == length]
            starts = range(0, len(members), self._batch_size)
            batches += [(int(length), members[i : i + self._batch_size]) for i in starts]
        if self._shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        length, places = self.places(epoch)[index]
        whole = fill_batch(self._rows, places, self._batch_size, length)
        if self._mask_table is not None:
            rng = np.random.default_rng((self._seed, step, 1))
            ids, label = mask_tokens(whole["ids"], whole["mask"], self._mask_table, rng)
            whole |= {"ids": ids, "label": label, "has_label": whole["mask"].any(1)}
        if self._student_rows is not None:
            other = fill_batch(self._student_rows, places, self._batch_size, length)
            whole |= {f"student_{name}": other[name] for name in ("ids", "mask", "types")}
        return {name: v[self._begin : self._begin + self._share] for name, v in whole.items()}


def fill_batch(rows: TokenRows, places: np.ndarray, batch_size: int, length: int) -> Batch:
    """A batch of some rows, filled up with rows that do not count.

    Args:
      rows: all of them.
      places: of those of the batch, at most `batch_size`.
      batch_size: rows of the batch.
      length: of its rows.
    """
    count = len(places)
    ids = np.full((batch_size, length), rows.tokenizer.pad_id, np.int32)
    types, mask = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), bool)
    label = _no_labels(rows, batch_size, length)
    for place, row in enumerate(places):
        begin, end = rows.begin(int(row)), int(rows.ends[row])
        ids[place, : end - begin] = rows.ids[begin:end]
        types[place, : end - begin] = rows.types[begin:end]
        mask[place, : end - begin] = True
        if rows.is_tagged:
            label[place, : end - begin] = rows.label[begin:end]
    if not rows.is_tagged:
        label[:count] = rows.label[places]
    has_label, example_id = np.zeros(batch_size, bool), np.full(batch_size, -1, np.int64)
    has_label[:count] = rows.has_label[places]
    example_id[:count] = rows.example_id[places]
    return {
        "ids": ids, "mask": mask, "types": types, "label": label, "has_label": has_label,
        "example_id": example_id,
    }  # fmt: skip


def _no_labels(rows: TokenRows, batch_size: int, length: int) -> np.ndarray:
    if rows.is_tagged:
        return np.full((batch_size, length), IGNORED, np.int32)
    return np.zeros((batch_size, *rows.label.shape[1:]), rows.label.dtype)


def _buckets(rows: TokenRows, student_rows: TokenRows | None, config: BatchConfig) -> np.ndarray:
    """Length of the batch that every row goes into."""
    lengths = rows.lengths
    if student_rows is not None:
        lengths = np.maximum(lengths, student_rows.lengths)
    buckets = np.array(config.buckets)
    if lengths.max(initial=0) > buckets[-1]:
        raise ValueError(
            f"a row has {lengths.max()} ids, more than the largest bucket {buckets[-1]}; tokenise "
            f"with max_length={config.max_length}"
        )
    return buckets[np.searchsorted(buckets, lengths)]
