"""Features of many images and texts, and how they are compared.

Retrieval as published: every query ranks the whole gallery by the cosine, recall at k counts the
queries with any right item among the first k (`jaxlab.metrics.retrieval`). Zero-shot
classification: `jaxlab.chinese_clip.zero_shot`.

References:
  Yang et al. 2022, arXiv:2211.01335, sections 4.1 and 4.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxlab.chinese_clip.model import ChineseClip, normalize


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
