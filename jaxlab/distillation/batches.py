"""Rows of token ids as batches of few shapes, and in an order that is a function of the step.

Rows are sorted into buckets by length; a batch holds rows of one bucket, padded to its length. An
epoch is a fresh permutation of the rows, cut into batches bucket by bucket, in shuffled order; what
does not fill a batch is padded with rows that are no text (`mask` false, no label), never dropped.
So the batch of a step depends on the seed and the step alone, and the global batch is the same for
any number of processes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

BUCKETS = (16, 32, 64, 128, 256, 512)
IGNORED = -100
"""Label of a token that has none."""

Batch = dict[str, Any]


class Row(NamedTuple):
    """A tokenised example.

    Attributes:
      example_id: of the example.
      ids: token ids, special ones included.
      types: part of the text of each token.
      label: class, number, one class a token, or (start, end) of an answer; None if unknown.
    """

    example_id: int
    ids: tuple[int, ...]
    types: tuple[int, ...]
    label: int | float | tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """How rows become batches.

    Attributes:
      batch_size: rows of a batch over all processes.
      buckets: lengths that rows are padded to, increasing; the last one holds the longest.
      pad_id: id of padding.
      label: what labels are: `class`, `number`, `tokens` (one a token), `span`.
    """

    batch_size: int
    buckets: tuple[int, ...] = BUCKETS
    pad_id: int = 0
    label: str = "class"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: listing all that is wrong.
        """
        problems = []
        if self.batch_size < 1:
            problems.append(f"batch_size={self.batch_size} must be at least 1")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            problems.append(f"buckets={self.buckets} must increase")
        if self.label not in ("class", "number", "tokens", "span"):
            problems.append(f"label={self.label!r} is not one of class, number, tokens, span")
        if problems:
            raise ValueError("BatchConfig: " + "; ".join(problems))


class Plan(NamedTuple):
    """The batches of an epoch.

    Attributes:
      rows: for every batch the places of its rows.
      lengths: for every batch the length that they are padded to.
    """

    rows: tuple[Int64[np.ndarray, " rows"], ...]
    lengths: tuple[int, ...]


class TokenBatches:
    """Batches of tokenised rows, for training and evaluation.

    Attributes:
      rows: the examples.
      config: how they become batches.
      steps_per_epoch: batches of one pass over the rows.
    """

    def __init__(self, rows: Sequence[Row], config: BatchConfig):
        """Sorts the rows into buckets.

        Args:
          rows: the examples, at least one.
          config: how they become batches.

        Raises:
          ValueError: if there is no row, or one is longer than the last bucket.
        """
        if not rows:
            raise ValueError("there are no texts to make batches of; the set is empty")
        self.rows, self.config = tuple(rows), config
        lengths = np.array([len(row.ids) for row in rows])
        if lengths.max() > config.buckets[-1]:
            raise ValueError(
                f"a text has {lengths.max()} tokens and the longest bucket {config.buckets[-1]}; "
                "cut texts to max_length, or add a bucket"
            )
        self._buckets = np.searchsorted(np.array(config.buckets), lengths)
        counts = np.bincount(self._buckets, minlength=len(config.buckets))
        self.steps_per_epoch = int(sum(-(-n // config.batch_size) for n in counts))

    def plan(self, epoch: int | None, seed: int = 0) -> Plan:
        """The batches of an epoch.

        Args:
          epoch: from 0; None keeps the order of the rows, the shortest bucket first.
          seed: of the permutations.
        """
        order = np.arange(len(self.rows))
        rng = np.random.default_rng((seed, 0 if epoch is None else epoch))
        if epoch is not None:
            rng.shuffle(order)
        rows, lengths = [], []
        for bucket, length in enumerate(self.config.buckets):
            own = order[self._buckets[order] == bucket]
            for start in range(0, len(own), self.config.batch_size):
                rows.append(own[start : start + self.config.batch_size])
                lengths.append(length)
        places = np.arange(len(rows))
        if epoch is not None:
            rng.shuffle(places)
        return Plan(tuple(rows[i] for i in places), tuple(lengths[i] for i in places))

    def training(
        self, start_step: int, seed: int, process: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Endless batches from a step on.

        Args:
          start_step: updates done.
          seed: of the order.
          process: this one and their number; None asks JAX.

        Raises:
          ValueError: if the batch does not divide over the processes.
        """
        epoch, first = divmod(start_step, self.steps_per_epoch)
        while True:
            plan = self.plan(epoch, seed)
            for rows, length in list(zip(*plan, strict=True))[first:]:
                yield self.collate(rows, length, process)
            epoch, first = epoch + 1, 0

    def evaluation(self, process: tuple[int, int] | None = None) -> Iterator[Batch]:
        """Every row once.

        Args:
          process: this one and their number; None asks JAX.
        """
        for rows, length in zip(*self.plan(None), strict=True):
            yield self.collate(rows, length, process)

    def collate(
        self,
        places: Int64[np.ndarray, " rows"],
        length: int,
        process: tuple[int, int] | None = None,
    ) -> Batch:
        """This process's part of a batch.

        Args:
          places: of the rows.
          length: that they are padded to.
          process: this one and their number; None asks JAX.

        Raises:
          ValueError: if the batch does not divide over the processes.
        """
        size, (index, count) = self.config.batch_size, process or _this_process()
        if size % count:
            raise ValueError(
                f"a batch of {size} rows does not divide over {count} processes; use a multiple"
            )
        own = size // count
        chosen = [self.rows[i] for i in places[index * own : (index + 1) * own]]
        batch = {
            "ids": np.full((own, length), self.config.pad_id, np.int32),
            "mask": np.zeros((own, length), bool),
            "types": np.zeros((own, length), np.int32),
            "label": self._no_labels(own, length),
            "has_label": np.zeros(own, bool),
            "example_id": np.full(own, -1, np.int64),
        }
        for i, row in enumerate(chosen):
            number = len(row.ids)
            batch["ids"][i, :number] = row.ids
            batch["mask"][i, :number] = True
            batch["types"][i, :number] = row.types
            batch["example_id"][i] = row.example_id
            if row.label is not None:
                batch["has_label"][i] = True
                place = (i, slice(number)) if self.config.label == "tokens" else i
                batch["label"][place] = row.label
        return batch

    def _no_labels(self, rows: int, length: int) -> np.ndarray:
        kind = self.config.label
        if kind == "tokens":
            return np.full((rows, length), IGNORED, np.int32)
        if kind == "span":
            return np.full((rows, 2), -1, np.int32)
        return np.full(
            rows, 0.0 if kind == "number" else -1, np.float32 if kind == "number" else np.int32
        )


def _this_process() -> tuple[int, int]:
    import jax

    return jax.process_index(), jax.process_count()
