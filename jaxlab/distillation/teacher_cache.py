"""Outputs of a teacher on disk, by example: a student then trains without running it.

A folder holds a record for every example (`jaxlab.data.record_log`), `identity.json`, which says
what the outputs were made from, and `layout.json`, what a record holds. A record has the logits, or
the k largest of them with the mass of the rest, and what was chosen of the features, of the real
tokens only. A batch joins its outputs by `example_id` (`TeacherCache.attach`), in any order, and
`cached_features` makes of it what the teacher would have put out::

    kept = Kept(features=(("hidden", 12),))
    identity = teacher_identity(tokenizer="vocab.txt: 5f3e...", params=params, max_len=128)
    cache = fill_cache(folder, identity, kept, batches, teacher)
    batch = cache.attach(batch)  # on the host, before it goes to a device
    features = cached_features(batch, num_layers=12)  # in the loss

A text is known by a checksum of its tokens: if an example has another text or was cut to another
length since, `attach` says so. Losses that count padding are not those of the teacher itself, and
refused (`cached_features.check_cacheable`).
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxlab.checkpoints.fingerprints import tree_sha256
from jaxlab.data.identity import check_identity, read_json, write_json
from jaxlab.data.record_log import RecordReader, RecordWriter
from jaxlab.distillation.cached_features import (
    LAYERED,
    LOG_REST,
    PREFIX,
    TOP_IDS,
    TOP_VALUES,
)
from jaxlab.distillation.compared import check_fields
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.top_logits import top_logits

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Precision = Literal["float32", "float16"]

IDENTITY, LAYOUT = "identity.json", "layout.json"
_TOKENS = -1
_DIGEST_BYTES = 8
_HEAD_BYTES = _DIGEST_BYTES + 4
_MAX_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of a teacher's outputs.

    Attributes:
      logits: their type, or `none`.
      top_k: how many of the largest logits are kept; 0 keeps all.
      features: (name, entry) of what else, such as ("hidden", 12), ("values", 11): entries of the
        tuples of `Features`.
      precision: type of these.
    """

    logits: Literal["float32", "float16", "none"] = "float32"
    top_k: int = 0
    features: tuple[tuple[str, int], ...] = ()
    precision: Precision = "float16"

    def __post_init__(self) -> None:
        """Refuse what cannot be kept.

        Raises:
          ValueError: listing all of it.
        """
        wrong = [f"{name!r}" for name, _ in self.features if name not in LAYERED]
        problems = [f"features {', '.join(wrong)} are none of {LAYERED}"] if wrong else []
        if self.top_k < 0 or (self.top_k and self.logits == "none"):
            problems.append(f"top_k={self.top_k} of logits={self.logits!r}: give 0, or keep some")
        if self.logits == "none" and not self.features:
            problems.append("nothing is kept: name logits or features")
        if problems:
            raise ValueError("; ".join(problems))


def teacher_identity(
    *, tokenizer: str, params: PyTree, max_len: int, compute: str = "float32"
) -> dict[str, Any]:
    """What the outputs of a teacher depend on.

    Args:
      tokenizer: what tells one tokenizer from another, such as a checksum of its files.
      params: parameters of the teacher.
      max_len: tokens at which texts are cut.
      compute: type of the teacher's computation.
    """
    return {
        "tokenizer": tokenizer,
        "teacher": tree_sha256(params),
        "max_len": max_len,
        "compute": compute,
    }


class TeacherCacheWriter:
    """Writes outputs of a teacher; those that are there already are left as they are.

    Args:
      folder: where they lie; made if it does not exist.
      identity: what they are made from (`teacher_identity`).
      kept: what is kept.

    Raises:
      ValueError: if the folder holds outputs of something else, naming every difference.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], kept: Kept) -> None:
        self._folder, self._kept = Path(folder), kept
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = _whole_identity(identity, kept)
        found = read_json(self._folder / IDENTITY, None)
        if found is None:
            write_json(self._folder / IDENTITY, wanted)
        else:
            check_identity(found, wanted, folder, "teacher outputs")
        self._records = RecordWriter(folder)
        if self._records.num_cut:
            logger.warning("%s: gave up a tail of %d records", folder, self._records.num_cut)

    def __enter__(self) -> "TeacherCacheWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def has(self, batch: Batch) -> bool:
        """Whether the outputs of all examples of a batch are there.

        Args:
          batch: with `example_id` and `mask`.
        """
        return all(i in self._records for i, n in _examples(batch) if n)

    def write(self, batch: Batch, features: Features) -> int:
        """Writes the outputs of a batch.

        Args:
          batch: with `example_id`, `ids`, `mask` and `types`; rows without a token are padding.
          features: what the teacher put out for it.

        Returns:
          How many examples were new.

        Raises:
          ValueError: if outputs are not finite (naming the examples) or lack what is to be kept,
            the real tokens of a text do not come first, or texts share a number.
        """
        arrays = _kept_arrays(features, self._kept)
        self._check_layout(arrays)
        new: dict[int, bytes] = {}
        broken = []
        examples = _examples(batch, "ids", "types")
        heads = [_head(batch, row, num_tokens) for row, (_, num_tokens) in enumerate(examples)]
        _check_ids(examples, heads)
        for row, (example_id, num_tokens) in enumerate(examples):
            if num_tokens and example_id not in self._records and example_id not in new:
                pieces = _pieces(arrays, row, num_tokens)
                if not all(np.isfinite(x).all() for name, x in pieces.items() if name != LOG_REST):
                    broken.append(example_id)
                new[example_id] = _encode(heads[row], pieces)
        if broken:
            raise ValueError(
                f"the teacher's outputs of {_listed(broken)} are not finite, or do not fit "
                f"{self._kept.logits} logits and {self._kept.precision} features; look at these "
                "examples, or keep float32"
            )
        self._records.append(list(new), list(new.values()))
        return len(new)

    def _check_layout(self, arrays: Mapping[str, "_Kept"]) -> None:
        layout = {name: each.layout() for name, each in arrays.items()}
        found = read_json(self._folder / LAYOUT, None)
        if found is None:
            write_json(self._folder / LAYOUT, layout)
        else:
            check_identity(found, layout, self._folder, "outputs of other shapes, and so")

    def close(self) -> None:
        """Closes the files."""
        self._records.close()


class TeacherCache:
    """Outputs of a teacher, mapped into memory.

    Args:
      folder: where they lie.
      identity: what they must have been made from (`teacher_identity`).
      kept: what must have been kept.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it holds outputs of something else (naming every difference), or was cut short.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], kept: Kept) -> None:
        self._folder, self._kept = Path(folder), kept
        found = read_json(self._folder / IDENTITY, None)
        layout = read_json(self._folder / LAYOUT, None)
        if found is None or layout is None:
            raise FileNotFoundError(
                f"{folder} has no outputs of a teacher ({IDENTITY} and {LAYOUT}); write them with "
                "fill_cache"
            )
        check_identity(found, _whole_identity(identity, kept), folder, "teacher outputs")
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            name: (tuple(each["shape"]), np.dtype(each["dtype"])) for name, each in layout.items()
        }
        self._records = RecordReader(folder)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, example_id: int) -> bool:
        return example_id in self._records

    def attach(self, batch: Batch) -> dict[str, Any]:
        """The batch with the outputs of its examples, arrays `teacher/...`; zeros where padded.

        Args:
          batch: with `example_id`, `ids`, `mask` and `types`.

        Raises:
          KeyError: listing examples that have no outputs.
          ValueError: listing examples whose tokens are others than those the teacher saw.
        """
        examples = _examples(batch, "ids", "types")
        missing = [i for i, n in examples if n and i not in self._records]
        if missing:
            raise KeyError(
                f"{self._folder} has no outputs of {_listed(missing)}; run fill_cache over these "
                "examples, it goes on where it stopped"
            )
        length = np.asarray(batch["ids"]).shape[1]
        joined = {
            PREFIX + name: np.zeros(
                (len(examples), *(length if size == _TOKENS else size for size in shape)), dtype
            )
            for name, (shape, dtype) in self._layout.items()
        }
        changed = []
        for row, (example_id, num_tokens) in enumerate(examples):
            if num_tokens and not self._fill(joined, batch, row, example_id, num_tokens):
                changed.append(example_id)
        if changed:
            raise ValueError(
                f"the tokens of {_listed(changed)} are not those that the teacher saw: the texts, "
                "their ids or the length at which they are cut have changed. Write the outputs "
                "again, in another folder"
            )
        return {**batch, **joined}

    def verify(self, batch: Batch, features: Features) -> int:
        """Compares stored outputs with those of the live teacher, bit by bit.

        A teacher gives the same bits on the same machine for the same batch: give one as it was
        when it was written.

        Args:
          batch: of examples that have outputs.
          features: what the teacher puts out for it now.

        Returns:
          How many examples were compared.

        Raises:
          ValueError: saying which differ, and by how much.
        """
        stored, wrong, largest = self.attach(batch), [], 0.0
        arrays = _kept_arrays(features, self._kept)
        examples = [(row, i, n) for row, (i, n) in enumerate(_examples(batch)) if n]
        for row, example_id, num_tokens in examples:
            live = _pieces(arrays, row, num_tokens)
            cached = {
                name: _valid(stored[PREFIX + name][row, ...], shape, num_tokens)
                for name, (shape, _) in self._layout.items()
            }
            if any(live[name].tobytes() != cached[name].tobytes() for name in live):
                wrong.append(example_id)
                differences = (
                    np.abs(live[name].astype(np.float64) - cached[name]).max(initial=0.0)
                    for name in live
                    if name != LOG_REST
                )
                largest = max(largest, *differences)
        if wrong:
            raise ValueError(
                f"{self._folder}: the live teacher differs from its stored outputs in "
                f"{len(wrong)} of {len(examples)} examples, by up to {largest:.3g}: "
                f"{_listed(wrong)}. Was it another machine, precision, batch or dropout? Write "
                "them again if the difference matters"
            )
        return len(examples)

    def _fill(
        self, joined: dict[str, np.ndarray], batch: Batch, row: int, example_id: int, tokens: int
    ) -> bool:
        """Puts the outputs of one example into their places, if its tokens are the same."""
        record = self._records.read(example_id)
        if record[:_HEAD_BYTES].tobytes() != _head(batch, row, tokens):
            return False
        start = _HEAD_BYTES
        for name, (shape, dtype) in self._layout.items():
            own = tuple(tokens if size == _TOKENS else size for size in shape)
            stop = start + dtype.itemsize * int(np.prod(own))
            values = np.frombuffer(record[start:stop].tobytes(), dtype).reshape(own)
            _valid(joined[PREFIX + name][row, ...], shape, tokens)[...] = values
            start = stop
        return True


def fill_cache(
    folder: str | Path,
    identity: Mapping[str, Any],
    kept: Kept,
    batches: Iterable[Batch],
    teacher: Callable[[Batch], Features],
) -> TeacherCache:
    """The outputs of a teacher for all batches; only what is missing is computed.

    The first batch is always computed, and what is stored of it compared bit by bit: a teacher that
    has changed, or a machine that counts otherwise, is noticed before anything is mixed.

    Args:
      folder: where they lie.
      identity: what they are made from.
      kept: what is kept.
      batches: in the same order and of the same rows, if a killed run is to be continued.
      teacher: from a batch to what it puts out, in evaluation mode.

    Raises:
      ValueError: as `TeacherCacheWriter`, and if stored outputs of the first batch differ.
    """
    num_new, is_first = 0, True
    with TeacherCacheWriter(folder, identity, kept) as writer:
        for batch in batches:
            if is_first or not writer.has(batch):
                features = teacher(batch)
                num_new += writer.write(batch, features)
                if is_first:
                    TeacherCache(folder, identity, kept).verify(batch, features)
            is_first = False
    if is_first:
        raise ValueError(f"{folder}: there is no batch to compute outputs of; give at least one")
    cache = TeacherCache(folder, identity, kept)
    logger.info("%s: outputs of %d examples, %d of them new", folder, len(cache), num_new)
    return cache


class _Kept(NamedTuple):
    """Outputs of a batch in the type that is kept, and the shape of an example's."""

    values: np.ndarray
    shape: tuple[int, ...]

    def layout(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": self.values.dtype.newbyteorder("<").str}


def _kept_arrays(features: Features, kept: Kept) -> dict[str, _Kept]:
    """What is kept of a batch, by name, in the order of a record."""
    if not isinstance(features, Features):
        raise TypeError(
            f"the teacher gives a {type(features).__name__}; wanted Features(logits=..., ...)"
        )
    absent = [
        f"{name} {entry}"
        for name, entry in kept.features
        if not 0 <= entry < len(getattr(features, name))
    ]
    if kept.logits != "none" and features.logits is None:
        absent.append("logits")
    if absent:
        raise ValueError(
            f"the teacher put out no {', '.join(absent)}; ask it for them (taps), or keep less"
        )
    arrays: dict[str, _Kept] = {}
    if kept.logits != "none":
        assert features.logits is not None, "checked"
        tokens = (_TOKENS,) * (features.logits.ndim - 2)
        if kept.top_k:
            top = top_logits(jnp.asarray(features.logits), kept.top_k)
            size = (kept.top_k,)
            arrays[TOP_VALUES] = _Kept(np.asarray(top.values, kept.logits), tokens + size)
            arrays[TOP_IDS] = _Kept(np.asarray(top.ids, np.int32), tokens + size)
            arrays[LOG_REST] = _Kept(np.asarray(top.log_rest, np.float32), tokens)
        else:
            size = features.logits.shape[-1:]
            arrays["logits"] = _Kept(_narrow(features.logits, kept.logits), tokens + size)
    for name, entry in kept.features:
        values = _narrow(getattr(features, name)[entry], kept.precision)
        is_map = values.ndim == 4
        shape = (values.shape[1], _TOKENS, _TOKENS) if is_map else (_TOKENS, values.shape[-1])
        arrays[f"{name}/{entry}"] = _Kept(values, shape)
    return arrays


def _narrow(values: Array, precision: str) -> np.ndarray:
    """On the host, by way of float32: half types of devices are not NumPy's."""
    with np.errstate(over="ignore"):
        return np.asarray(np.asarray(values.astype(jnp.float32)), precision)


def _pieces(arrays: Mapping[str, _Kept], row: int, num_tokens: int) -> dict[str, np.ndarray]:
    """What is kept of one example, of its real tokens."""
    return {
        name: np.asarray(_valid(each.values[row, ...], each.shape, num_tokens))
        for name, each in arrays.items()
    }


def _valid(values: np.ndarray, shape: tuple[int, ...], num_tokens: int) -> np.ndarray:
    """The part of real tokens, a view."""
    return values[(..., *(slice(num_tokens if size == _TOKENS else None) for size in shape))]


def _encode(head: bytes, pieces: Mapping[str, np.ndarray]) -> bytes:
    return head + b"".join(x.tobytes() for x in pieces.values())


def _head(batch: Batch, row: int, num_tokens: int) -> bytes:
    """Checksum of the tokens of an example, and their number."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in ("ids", "types"):
        digest.update(np.asarray(batch[name])[row, :num_tokens].astype("<i4").tobytes())
    return digest.digest() + np.int32(num_tokens).astype("<i4").tobytes()


def _check_ids(examples: Sequence[tuple[int, int]], heads: Sequence[bytes]) -> None:
    """Refuse several texts of one number, of which only one would be kept."""
    first: dict[int, bytes] = {}
    shared = [
        example_id
        for (example_id, num_tokens), head in zip(examples, heads, strict=True)
        if num_tokens and first.setdefault(example_id, head) != head
    ]
    if shared:
        raise ValueError(
            f"{_listed(shared)} stands for several texts of a batch; give every text a number of "
            "its own"
        )


def _examples(batch: Batch, *others: str) -> list[tuple[int, int]]:
    """Id and number of real tokens of every row, of a batch that has the other fields as well."""
    check_fields(batch, ("example_id", "mask", *others), "a teacher on disk")
    if isinstance(batch["mask"], jax.core.Tracer):
        raise ValueError(
            "outputs of a teacher are read from disk on the host: attach them to the batch before "
            "the jitted step, not in it"
        )
    mask, ids = np.asarray(batch["mask"]), np.asarray(batch["example_id"])
    counts = mask.sum(axis=1)
    gaps = [int(i) for i, row, n in zip(ids, mask, counts, strict=True) if not row[:n].all()]
    if gaps:
        raise ValueError(
            f"the real tokens of {_listed(gaps)} do not come first; pad texts at their end"
        )
    return list(zip(ids.tolist(), counts.tolist(), strict=True))


def _listed(example_ids: list[int]) -> str:
    more = len(example_ids) - _MAX_LISTED
    listing = ", ".join(str(i) for i in example_ids[:_MAX_LISTED])
    return f"example_id {listing}" + (f" and {more} more" if more > 0 else "")


def _whole_identity(identity: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    return {
        **identity,
        "logits": kept.logits,
        "top_k": kept.top_k,
        "features": [f"{name}/{entry}" for name, entry in kept.features],
        "precision": kept.precision,
    }
