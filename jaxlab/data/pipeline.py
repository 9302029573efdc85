"""Batches of a random-access source: endless and resumable for training, complete for evaluation.

The training pipeline is grain's `MapDataset`: indices, seed, shuffle, repeat, load and transform,
batch, the slice of this process. All random choices hang on the place in the one global stream, so
the global batch at step s holds the same examples, augmented alike, for any number of processes;
nothing is dropped, every epoch is a fresh permutation, and the position of the input is the step.
The slice comes after the repeat: before it, the length would have to be a multiple of the number of
processes, and the examples cut off would never be seen.

A source is anything with `len(source)` and `source[i]`, which gives a dict of NumPy arrays,
numbers, strings or bytes: a list, a grain or TFDS data source. Every batch holds `example_id`
(int64), the position in the source unless the example brings its own.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

logger = logging.getLogger(__name__)

Example = dict[str, Any]
Batch = dict[str, Any]
Transform = Callable[[Example], Example]
RandomTransform = Callable[[Example, np.random.Generator], Example]

CORRUPT_ERRORS = (ValueError, OSError)
"""What a source or transform raises for a corrupt record; anything else is a mistake in code."""


@runtime_checkable
class Source(Protocol):
    """A sequence of examples with random access."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """The example at a position in [0, len)."""
        ...


@dataclass(frozen=True)
class PipelineConfig:
    """How a source is read; none of it but `shuffle` and `remainder` changes the order of examples.

    Attributes:
      shuffle: a fresh permutation of the source every epoch; otherwise the order of the source.
      remainder: what happens to the examples at the end of an epoch that do not fill a batch.
        "carry" puts them into one batch with the first of the next epoch; "wrap" fills the batch
        with examples of the same epoch, seen twice (the original Chinese CLIP); "drop" leaves them
        out, others every epoch.
      num_threads: threads that load and transform; 0 loads in the calling thread.
      prefetch_batches: batches that are made ahead.
      corrupt: "error" stops at a corrupt record; "skip" logs and counts it and takes the next
        record of the source in its place.
      max_corrupt: with "skip", the number of different corrupt records at which to stop.
    """

    shuffle: bool = True
    remainder: str = "carry"
    num_threads: int = 2
    prefetch_batches: int = 4
    corrupt: str = "error"
    max_corrupt: int = 100

    def __post_init__(self):
        """Checks names and signs."""
        for name, allowed in (
            ("remainder", ("carry", "wrap", "drop")),
            ("corrupt", ("error", "skip")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"PipelineConfig.{name}={getattr(self, name)!r} is not one of "
                    f"{', '.join(map(repr, allowed))}"
                )
        for name in ("num_threads", "prefetch_batches", "max_corrupt"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"PipelineConfig.{name}={getattr(self, name)} is negative; 0 switches it off"
                )


class TrainBatches(Iterator[Batch]):
    """Endless batches of this process; `step` is the position, the index of the next batch."""

    def __init__(self, iterator: Any, loader: "_Loader", start_step: int):
        """Takes grain's iterator and moves it to `start_step`; made by `make_train_batches`."""
        self._iterator = iterator
        self._loader = loader
        self._step = 0
        self.seek(start_step)

    def __next__(self) -> Batch:
        """The batch of step `step`: dict of arrays with the rows of this process."""
        batch = next(self._iterator)
        self._step += 1
        return batch

    @property
    def step(self) -> int:
        """Index of the batch that comes next: all that a checkpoint has to hold."""
        return self._step

    def seek(self, step: int) -> None:
        """Goes to a step, in no time; batches already prefetched are thrown away.

        Raises:
          ValueError: if `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step={step} is negative; the first batch has step 0")
        self._iterator.set_state({"next_index": step})
        self._step = step

    @property
    def corrupt_ids(self) -> tuple[int, ...]:
        """Positions in the source of the corrupt records met so far, sorted; prefetching counts."""
        return self._loader.corrupt_ids


class EvalBatches:
    """Every example once, in the order of the source; may be iterated any number of times."""

    def __init__(self, dataset: Any, loader: "_Loader"):
        """Takes grain's data set of batches; made by `make_eval_batches`."""
        self._dataset = dataset
        self._loader = loader

    def __len__(self) -> int:
        """Number of batches, the padded last one included."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first on."""
        config = self._loader.config
        return iter(self._dataset.to_iter_dataset(_read_options(config)))

    @property
    def corrupt_ids(self) -> tuple[int, ...]:
        """Positions in the source of the corrupt records met so far, sorted."""
        return self._loader.corrupt_ids


def make_train_batches(
    source: Source,
    *,
    seed: int,
    global_batch_size: int,
    start_step: int = 0,
    transform: Transform | None = None,
    random_transform: RandomTransform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    num_threads: int | None = None,
    config: PipelineConfig = PipelineConfig(),
) -> TrainBatches:
    """Endless shuffled batches; this process gets its share of every global batch.

    Process i gets the i-th part of the rows of every global batch, so that the global array that
    the processes make of it has the same order for any number of them.

    Args:
      source: examples with random access.
      seed: of the order and of the random transform; the same on every process.
      global_batch_size: rows of a batch over all processes.
      start_step: index of the first batch to give, to go on after a checkpoint.
      transform: example to example.
      random_transform: example and generator to example, after `transform`. The generator depends
        on the seed and the place in the stream only.
      process_index: this process; None asks JAX.
      process_count: number of processes; None asks JAX.
      num_threads: in place of `config.num_threads`.
      config: how the source is read.

    Returns:
      An iterator of dicts of arrays, rows of this process on the first axis, with `example_id`.

    Raises:
      ValueError: if the source is empty, the global batch is not a positive multiple of the number
        of processes, or "drop" would leave no batch.
    """
    process_index, process_count = this_process(process_index, process_count)
    rows = local_rows(global_batch_size, process_count, "global_batch_size")
    length = _checked_length(source)
    if num_threads is not None:
        config = replace(config, num_threads=num_threads)
    _check_fits(length, global_batch_size, config)
    loader = _Loader(source, transform, random_transform, config)

    import grain

    dataset = grain.MapDataset.range(_epoch_length(length, global_batch_size, config)).seed(seed)
    if config.shuffle:
        dataset = dataset.shuffle()
    if config.remainder == "drop":
        dataset = dataset[: length // global_batch_size * global_batch_size]
    # Batches of this process's size, of which it takes every n-th: its rows are consecutive.
    batches = dataset.repeat().random_map(loader).batch(rows, drop_remainder=True)
    batches = batches[process_index::process_count].to_iter_dataset(_read_options(config))
    return TrainBatches(iter(batches), loader, start_step)


def make_eval_batches(
    source: Source,
    batch_size: int,
    *,
    transform: Transform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    config: PipelineConfig = PipelineConfig(),
) -> EvalBatches:
    """Every example once, in order, with a bool `mask`: True for examples, False for padding.

    The last batch is padded with the last example. Process i gets the i-th part of the rows of
    every batch, so that global arrays have the order of the source, and every process gets the same
    number of batches. With `config.corrupt="skip"` a corrupt record is masked, never dropped.

    Args:
      source: examples with random access.
      batch_size: rows of a batch over all processes.
      transform: example to example.
      process_index: this process; None asks JAX.
      process_count: number of processes; None asks JAX.
      config: threads and the policy for corrupt records; the rest does not matter here.

    Returns:
      An iterable, with a length, of dicts of arrays with `example_id` and `mask`.

    Raises:
      ValueError: if the source is empty or the batch is not a positive multiple of the number of
        processes.
    """
    process_index, process_count = this_process(process_index, process_count)
    rows = local_rows(batch_size, process_count, "batch_size")
    length = _checked_length(source)
    loader = _Loader(source, transform, None, config)
    num_batches = -(-length // batch_size)

    def load(index: int) -> Example:
        batch, row = divmod(index, rows)
        position = batch * batch_size + process_index * rows + row
        example, intact = loader.load(min(position, length - 1), None)
        return {**example, "mask": np.bool_(intact and position < length)}

    import grain

    dataset = grain.MapDataset.range(num_batches * rows).map(load).batch(rows)
    return EvalBatches(dataset, loader)


class _Loader:
    """Reads and transforms one example; replaces and remembers corrupt records where asked.

    Shared by the threads of the pipeline. What it gives for an index does not depend on what it
    remembers, only when it stops does.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | None,
        random_transform: RandomTransform | None,
        config: PipelineConfig,
    ):
        self.config = config
        self._source = source
        self._length = len(source)
        self._transform = transform
        self._random_transform = random_transform
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        return self.load(index % self._length, rng)[0]

    def load(self, index: int, rng: np.random.Generator | None) -> tuple[Example, bool]:
        """The example at an index and True, or the next intact one and False."""
        for offset in range(self._length):
            position = (index + offset) % self._length
            try:
                return self._read(position, rng), offset == 0
            except CORRUPT_ERRORS as error:
                self._note_corrupt(position, error)
        raise ValueError(
            f"all {self._length} records of the source are corrupt; look at the first error above"
        )

    @property
    def corrupt_ids(self) -> tuple[int, ...]:
        with self._lock:
            return tuple(sorted(self._corrupt))

    def _read(self, position: int, rng: np.random.Generator | None) -> Example:
        example = dict(self._source[position])
        example_id = np.int64(example.setdefault("example_id", position))
        if self._transform is not None:
            example = self._transform(example)
        if self._random_transform is not None and rng is not None:
            example = self._random_transform(example, rng)
        return {**example, "example_id": example_id}

    def _note_corrupt(self, position: int, error: Exception) -> None:
        if self.config.corrupt == "error":
            raise ValueError(
                f"record {position} of the source is corrupt: {error}. Repair or remove it, or set "
                'PipelineConfig(corrupt="skip") to skip and count such records'
            ) from error
        with self._lock:
            is_new = position not in self._corrupt
            self._corrupt.add(position)
            count = len(self._corrupt)
        if is_new:
            logger.warning("record %d is corrupt, skipped (%d so far): %s", position, count, error)
        if count > self.config.max_corrupt:
            raise RuntimeError(
                f"{count} records of the source are corrupt, the last one {position} ({error}); "
                f"PipelineConfig.max_corrupt={self.config.max_corrupt} are tolerated: repair the "
                "data or raise it"
            ) from error


def _read_options(config: PipelineConfig) -> Any:
    import grain

    # Options without threads must not ask for a buffer.
    threads = config.num_threads if config.prefetch_batches else 0
    return grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=config.prefetch_batches if threads else 0
    )


def this_process(index: int | None, count: int | None) -> tuple[int, int]:
    """Index of this process and number of processes; JAX is asked for what is None.

    Args:
      index: of this process, or None.
      count: of processes, or None.

    Raises:
      ValueError: if the index is not one of them.
    """
    if index is None or count is None:
        import jax

        index = jax.process_index() if index is None else index
        count = jax.process_count() if count is None else count
    if not 0 <= index < count:
        raise ValueError(
            f"process_index={index} is not one of {count} processes; wanted 0 to {count - 1}"
        )
    return index, count


def local_rows(batch_size: int, process_count: int, name: str) -> int:
    """Rows that every process has of a batch.

    Args:
      batch_size: rows over all processes.
      process_count: number of processes.
      name: of the batch size in the message.

    Raises:
      ValueError: if the batch is not a positive multiple of the number of processes.
    """
    if batch_size < 1 or batch_size % process_count:
        nearest = max(1, round(batch_size / process_count)) * process_count
        raise ValueError(
            f"{name}={batch_size} is not a positive multiple of {process_count} processes; "
            f"the nearest is {nearest}"
        )
    return batch_size // process_count


def _checked_length(source: Source) -> int:
    length = len(source)
    if length == 0:
        raise ValueError(
            "the source has no examples: the split is empty; check its name, its filters and the "
            "file it is read from"
        )
    return length


def _check_fits(length: int, global_batch_size: int, config: PipelineConfig) -> None:
    if length >= global_batch_size:
        return
    if config.remainder == "drop":
        raise ValueError(
            f"the source has {length} examples, less than global_batch_size={global_batch_size}, "
            'and remainder="drop" leaves no batch; use a smaller batch or remainder="carry"'
        )
    warnings.warn(
        f"the source has {length} examples, less than global_batch_size={global_batch_size}: "
        "examples repeat within a batch, and count as negatives of themselves in a contrastive "
        "loss; use a smaller batch",
        stacklevel=3,
    )


def _epoch_length(length: int, global_batch_size: int, config: PipelineConfig) -> int:
    if config.remainder == "wrap":
        return -(-length // global_batch_size) * global_batch_size
    return length
