"""Features of many images and texts in memory, and how they are compared.

Features of whole files: `jaxlab.chinese_clip.features`. Retrieval as published: every query ranks
the whole gallery by the cosine, recall at k counts the queries with any right item among the first
k (`jaxlab.metrics.retrieval`). Zero-shot classification: `jaxlab.chinese_clip.zero_shot`.

References:
  Yang et al. 2022, arXiv:2211.01335, sections 4.1 and 4.2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxlab.chinese_clip.model import ChineseClip, normalize
from jaxlab.data.pairs import (
    TextRecord,
    read_image_truth,
    read_predictions,
    read_text_truth,
    texts_of_images,
)
from jaxlab.data.pairs.features import Kind
from jaxlab.data.pairs.jsonl import numbered_lines, parse_object
from jaxlab.data.pairs.records import require_file
from jaxlab.metrics import score_predictions


class Encoders(NamedTuple):
    """Both towers as compiled functions of the variables and a batch.

    Attributes:
      image: `(variables, images) -> normalised features`.
      text: `(variables, ids) -> normalised features`.
    """

    image: Callable[[PyTree, Any], Float[Array, "batch dim"]]
    text: Callable[[PyTree, Any], Float[Array, "batch dim"]]


def make_encoders(
    model: ChineseClip, prepare: Callable[[Any], Float[Array, "..."]] | None = None
) -> Encoders:
    """Compiled encoders in evaluation mode: no dropout, no masking, stored batch statistics.

    Args:
      model: the two towers.
      prepare: from the images of a batch to normalised NHWC float32, on the device; None if they
        are that already.

    Returns:
      The encoders. Each compiles once a batch shape.
    """

    def encode_image(variables: PyTree, images: Any) -> Float[Array, "batch dim"]:
        inputs = images if prepare is None else prepare(images)
        return encode(model, variables, inputs, "encode_image")

    def encode_text(variables: PyTree, ids: Any) -> Float[Array, "batch dim"]:
        return encode(model, variables, ids, "encode_text")

    return Encoders(jax.jit(encode_image), jax.jit(encode_text))


def encode(model: ChineseClip, variables: PyTree, inputs: Any, method: str) -> Array:
    """Normalised features of one tower in evaluation mode.

    Args:
      model: the two towers.
      variables: their variables.
      inputs: normalised images, or token ids.
      method: `encode_image` or `encode_text`.
    """
    features = cast(Array, model.apply(variables, inputs, method=method))
    return normalize(features)


def encode_all(
    encode: Callable[[Any], Float[Array, "batch dim"]],
    inputs: np.ndarray,
    batch_size: int = 256,
) -> Float[np.ndarray, "rows dim"]:
    """Features of all rows, a batch at a time; the last one is padded, so that one shape compiles.

    Args:
      encode: from a batch of exactly `batch_size` rows to their features.
      inputs: images or token ids, any number of rows.
      batch_size: rows of a batch.

    Returns:
      float32, one row for each input row.

    Raises:
      ValueError: if there are no rows.
    """
    if not len(inputs):
        raise ValueError("got no rows to encode; wanted at least one image or text")
    features = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        rows = len(batch)
        if rows < batch_size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - rows, axis=0)])
        features.append(np.asarray(encode(batch))[:rows])
    return np.concatenate(features)


def score_files(
    truth: str | Path, predictions: str | Path, *, missing: str = "miss"
) -> dict[str, Any]:
    """Recalls of a file of predictions, in the form of the original's evaluation scripts.

    Args:
      truth: `{split}_texts.jsonl`, or `{split}_texts.tr.jsonl` for predictions of images.
      predictions: lines `{"text_id": ..., "image_ids": [...]}`, or `{"image_id": ..., "text_ids":
        [...]}`; the first line decides which.
      missing: "miss" counts a query without truth as not found, as the original; "skip" leaves it
        out.

    Returns:
      `success`, `score` (the mean recall) and `scoreJson` (`score`, `mean_recall`, `r1`, `r5`,
      `r10`), in percent. For broken predictions `success` is False, `score` 0, `scoreJson` empty,
      and `errorMsg` and `errorDetail` say what is wrong: the first line of it, and all of it.
      Galleries of fewer than 10 items are accepted, with the whole gallery predicted.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the truth is broken, or no query is left to count.

    References:
      `cn_clip/eval/evaluation.py` and `evaluation_tr.py` of Chinese-CLIP 1.6.0.
    """
    require_file(predictions, "predictions, as written by write_predictions")
    try:
        kind = prediction_kind(predictions)
        found = read_predictions(predictions, kind)
    except ValueError as error:
        return _failure(error)
    true = read_truth(truth, kind)
    items = {item for ids in (*found.values(), *true.values()) for item in ids}
    try:
        scores = score_predictions(
            found, true, num_items=len(items), missing=missing, exact_length=True
        )
    except ValueError as error:
        return _failure(error)
    mean = scores.pop("mean_recall")
    return {
        "success": True,
        "score": mean,
        "scoreJson": {"score": mean, "mean_recall": mean, **scores},
    }


def prediction_kind(path: str | Path) -> Kind:
    """What the queries of a file of predictions are, by its first line: "text" or "image".

    Raises:
      ValueError: if the file is empty, or its first line has neither id.
    """
    _, line = next(numbered_lines(Path(path)), (0, None))
    if line is None:
        raise ValueError(f"{path} is empty; expected one line a query")
    fields = parse_object(line, ())
    for kind in ("text", "image"):
        if f"{kind}_id" in fields:
            return kind
    raise ValueError(
        f"{path}: fields {sorted(fields)} of the first line have neither 'text_id' nor 'image_id'; "
        'expected {"text_id": int, "image_ids": [int]} or {"image_id": int, "text_ids": [int]}'
    )


def read_truth(path: str | Path, kind: Kind) -> dict[int, tuple[int, ...]]:
    """The right items of every query.

    Args:
      path: `{split}_texts.jsonl`, or `{split}_texts.tr.jsonl` for images.
      kind: what the queries are: "text" or "image".

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines.
    """
    if kind == "text":
        return read_text_truth(path)
    _, line = next(numbered_lines(require_file(path, "the truth of the images")), (0, b"{}"))
    if b'"image_id"' in line:
        return read_image_truth(path)
    return texts_of_images(
        TextRecord(text_id, "", image_ids) for text_id, image_ids in read_text_truth(path).items()
    )


def _failure(error: ValueError) -> dict[str, Any]:
    """The original's result for predictions that cannot be scored."""
    detail = str(error)
    return {
        "success": False,
        "score": 0,
        "errorMsg": detail.splitlines()[0],
        "errorDetail": detail,
        "scoreJson": {},
    }
