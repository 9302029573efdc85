"""Texts as rows of token ids: of classes, of numbers, of tags, and for a second vocabulary."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from jaxlab.data.texts import TaggedExample, TextExample
from jaxlab.distillation.vocabularies import map_vocabulary
from jaxlab.text import TextTokenizer

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that does not count."""


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Rows of ids of any lengths, one after the other.

    Attributes:
      ids: of all rows.
      types: of all rows.
      ends: where each row ends in `ids`.
      label: (rows,) int32 classes or float32 numbers, (rows, 2) int32 first and last token of an
        answer, (tokens,) int32 tags with `IGNORED` for tokens that do not count; 0 if unknown.
      has_label: which rows have a label.
      example_id: of each row.
      is_pair: which rows are of two texts.
      tokenizer: what made the ids.
      num_truncated: texts that were too long.
    """

    ids: Int32[np.ndarray, " tokens"]
    types: Int8[np.ndarray, " tokens"]
    ends: Int64[np.ndarray, " rows"]
    label: Int32[np.ndarray, "..."] | Float32[np.ndarray, " rows"]
    has_label: Bool[np.ndarray, " rows"]
    example_id: Int64[np.ndarray, " rows"]
    is_pair: Bool[np.ndarray, " rows"]
    tokenizer: TextTokenizer
    num_truncated: int = 0
    is_tagged: bool = False

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ends)

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """Ids of each row."""
        return np.diff(self.ends, prepend=0)

    def begin(self, row: int) -> int:
        """Where a row begins in `ids`.

        Args:
          row: its place.
        """
        return int(self.ends[row - 1]) if row else 0


def tokenize_texts(
    examples: Sequence[TextExample],
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    label_map: Sequence[int] | None = None,
    is_regression: bool = False,
) -> TokenRows:
    """Rows of texts and pairs.

    Args:
      examples: with or without labels; a negative class is none.
      tokenizer: of the model.
      max_length: ids of a row at most; longer texts are cut, counted and reported.
      label_map: the model's place of every label, see `map_labels`; None keeps the data's.
      is_regression: labels are numbers.

    Raises:
      ValueError: if there are no examples, or a label has no place in `label_map`.
    """
    if not examples:
        raise ValueError("there are no examples to tokenise; check the part and its filters")
    encoded = [tokenizer.encode(e.text, e.pair, max_length) for e in examples]
    known = [e.label is not None and (is_regression or e.label >= 0) for e in examples]
    labels = [e.label or 0 if is_known else 0 for e, is_known in zip(examples, known, strict=True)]
    if label_map is not None:
        wrong = [label for label in labels if not 0 <= label < len(label_map)]
        if wrong:
            raise ValueError(f"labels {wrong[:5]} have no place in label_map={list(label_map)}")
        labels = [label_map[int(label)] for label in labels]
    num_truncated = sum(row.truncated for row in encoded)
    _report(num_truncated, len(examples), max_length)
    return TokenRows(
        *_flat((row.ids, row.types) for row in encoded),
        label=np.array(labels, np.float32 if is_regression else np.int32),
        has_label=np.array(known, bool),
        example_id=np.array([e.id for e in examples], np.int64),
        is_pair=np.array([e.pair is not None for e in examples], bool),
        tokenizer=tokenizer,
        num_truncated=num_truncated,
    )


def tokenize_tagged(
    examples: Sequence[TaggedExample],
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    label_map: Sequence[int] | None = None,
) -> TokenRows:
    """Rows of tagged sentences: the tag of a word is that of its first piece, others do not count.

    Args:
      examples: with or without tags; a negative tag is none.
      tokenizer: of the model.
      max_length: ids of a row at most; words beyond it are left out, counted and reported.
      label_map: the model's place of every tag, see `map_labels`; None keeps the data's.

    Raises:
      ValueError: if there are no examples.
    """
    if not examples:
        raise ValueError("there are no examples to tokenise; check the part and its filters")
    room = max_length - tokenizer.num_special(False)
    rows, tags, num_truncated = [], [], 0
    for example in examples:
        pieces = tokenizer.words(example.words)
        num_truncated += len(pieces.ids) > room
        joined = tokenizer.join(pieces.ids[:room])
        rows.append((joined.ids, joined.types))
        words = np.array((-1, *pieces.words[:room], -1), np.int64)
        is_first = (words >= 0) & np.concatenate(([False], words[1:] != words[:-1]))
        known = np.array(example.tags if example.tags is not None else (), np.int32)
        if label_map is not None:
            known = np.where(known < 0, known, np.array(label_map, np.int32)[np.maximum(known, 0)])
        known = np.where(known < 0, IGNORED, known)
        row = np.full(len(words), IGNORED, np.int32)
        if known.size:
            row[is_first] = known[words[is_first]]
        tags.append(row)
    _report(num_truncated, len(examples), max_length)
    return TokenRows(
        *_flat(rows),
        label=np.concatenate(tags),
        has_label=np.array([e.tags is not None for e in examples], bool),
        example_id=np.array([e.id for e in examples], np.int64),
        is_pair=np.zeros(len(examples), bool),
        tokenizer=tokenizer,
        num_truncated=num_truncated,
        is_tagged=True,
    )


def map_rows(rows: TokenRows, target: TextTokenizer) -> TokenRows:
    """The same rows in the ids of another vocabulary with the same pieces, token by token.

    Args:
      rows: of the teacher.
      target: tokenizer of the student.

    Raises:
      ValueError: if the vocabularies differ in ordinary pieces, or rows of pairs have another
        number of separators in the target's form.
    """
    if rows.is_pair.any() and rows.tokenizer.form != target.form:
        raise ValueError(
            f"{int(rows.is_pair.sum())} rows are pairs, which have another number of separators in "
            f"the form {target.form!r} than in {rows.tokenizer.form!r}: tokens do not stand "
            "beside each other; tokenise the pairs for the student and match logits only"
        )
    types = rows.types if target.form == "bert" else np.zeros_like(rows.types)
    ids = map_vocabulary(rows.tokenizer, target)[rows.ids]
    return dataclasses.replace(rows, ids=ids, types=types, tokenizer=target)


def without_labels(rows: TokenRows) -> TokenRows:
    """The rows as if no label were known, to learn from the teacher alone.

    Args:
      rows: of any kind.
    """
    return dataclasses.replace(rows, has_label=np.zeros(len(rows), bool))


def _flat(
    rows: Iterable[tuple[Sequence[int], Sequence[int]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, types and ends of rows."""
    ids: list[int] = []
    types: list[int] = []
    ends: list[int] = []
    for row, kinds in rows:
        ids.extend(row)
        types.extend(kinds)
        ends.append(len(ids))
    return np.array(ids, np.int32), np.array(types, np.int8), np.array(ends, np.int64)


def _report(num_truncated: int, count: int, max_length: int) -> None:
    if num_truncated:
        logger.warning(
            "%d of %d texts (%.1f %%) have more than %d ids and were cut",
            num_truncated, count, 100 * num_truncated / count, max_length,
        )  # fmt: skip
