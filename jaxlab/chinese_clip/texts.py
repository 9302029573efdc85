"""Encoding texts without computing on their padding.

Padding is masked with -10000, whose exponential is 0 in float32: a text's feature does not depend
on how much padding follows it. Most texts are far shorter than the context (MUGE's searches have 7
characters on average, the context 52 tokens), so that sorting them by length and cutting each batch
after its longest text saves most of the work and changes nothing but rounding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

PAD_ID = 0


def text_lengths(ids: Int[np.ndarray, "batch time"]) -> Int[np.ndarray, "batch"]:  # noqa: UP037
    """Tokens of every text up to its last one.

    A row without any token counts as full: it attends to all its padding equally, so that none of
    it may be cut.

    Args:
      ids: token ids, zero-padded.
    """
    is_token = ids != PAD_ID
    lengths = ids.shape[1] - np.argmax(is_token[:, ::-1], axis=1)
    return np.where(is_token.any(axis=1), lengths, ids.shape[1])


def trim_padding(
    ids: Int[np.ndarray, "batch time"], multiple: int = 8
) -> Int[np.ndarray, "batch trimmed"]:
    """Cut the columns of a batch that hold nothing but padding.

    Args:
      ids: token ids, zero-padded.
      multiple: the new length is a multiple of it (or the old length), so that few shapes compile.

    Returns:
      A view of the first columns.

    Raises:
      ValueError: if `multiple` is not positive or there are no rows.

    Example:
      >>> trim_padding(np.array([[101, 7, 102, 0, 0, 0], [101, 102, 0, 0, 0, 0]]), 2).shape
      (2, 4)
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    if not len(ids):
        raise ValueError("got no texts to trim; wanted at least one row")
    longest = int(text_lengths(ids).max())
    return ids[:, : -(-longest // multiple) * multiple]


def encode_texts(
    encode: Callable[[Any], Float[Array, "batch dim"]],
    ids: Int[np.ndarray, "rows time"],
    batch_size: int = 256,
    *,
    multiple: int = 8,
) -> Float[np.ndarray, "rows dim"]:
    """Features of all texts, sorted by length, each batch cut after its longest text.

    The features are those of `encode_all` but for the rounding of sums of other lengths. One shape
    compiles for each length that occurs, of at most `time / multiple` rounded up.

    Args:
      encode: from a batch of exactly `batch_size` rows of ids to their features.
      ids: token ids, zero-padded, any number of rows.
      batch_size: rows of a batch; the last one is filled up.
      multiple: lengths are multiples of it.

    Returns:
      float32, one row for each text, in the order given.

    Raises:
      ValueError: if there are no rows, or a size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if not len(ids):
        raise ValueError("got no texts to encode; wanted at least one row")
    order = np.argsort(text_lengths(ids), kind="stable")
    features: np.ndarray | None = None
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        filled = np.resize(rows, batch_size)
        batch = np.asarray(encode(trim_padding(ids[filled], multiple)))[: len(rows)]
        if features is None:
            features = np.empty((len(ids), batch.shape[1]), np.float32)
        features[rows] = batch
    assert features is not None, "there is a row"
    return features
