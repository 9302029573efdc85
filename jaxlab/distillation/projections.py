"""Projections of the student's hidden states to the width of the teacher's.

They train with the student, are clipped and saved with it, and are no part of what is exported.

References:
  `textbrewer/projections.py` of TextBrewer 0.2.1 (weights from N(0, 0.02), no bias at the start);
  `fit_dense` of TinyBERT, one for all layers.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Initializer = Literal["normal", "orthogonal", "identity"]
Projection = dict[str, jax.Array]
"""`kernel` (student width, teacher width) and `bias` (teacher width)."""

INITIALIZERS = ("normal", "orthogonal", "identity")

_STD = 0.02


def init_projection(
    key: Key[Array, ""], student_width: int, teacher_width: int, initializer: str = "normal"
) -> Projection:
    """A new projection.

    Args:
      key: for `normal` and `orthogonal`.
      student_width: width of its input.
      teacher_width: width of its output.
      initializer: `normal` (deviation 0.02), `orthogonal`, or `identity`: the first features of
        either side are taken for the same, the others begin at 0.

    Raises:
      ValueError: if there is no such initializer.
    """
    shape = (student_width, teacher_width)
    if initializer == "normal":
        kernel = _STD * jax.random.normal(key, shape)
    elif initializer == "orthogonal":
        kernel = jax.nn.initializers.orthogonal()(key, shape)
    elif initializer == "identity":
        kernel = jnp.eye(*shape)
    else:
        raise ValueError(f"initializer={initializer!r} is not one of {', '.join(INITIALIZERS)}")
    return {"kernel": kernel.astype(jnp.float32), "bias": jnp.zeros(teacher_width, jnp.float32)}


def project(
    projection: Projection, hidden: Float[Array, "batch time width"], activation: str = "linear"
) -> Float[Array, "batch time teacher_width"]:
    """Hidden states in the teacher's width, float32.

    Args:
      projection: from `init_projection`.
      hidden: of the student.
      activation: `linear`, `relu` or `tanh` after it.

    Raises:
      ValueError: if there is no such activation.
    """
    activations = {"linear": lambda x: x, "relu": jax.nn.relu, "tanh": jnp.tanh}
    if activation not in activations:
        raise ValueError(f"activation={activation!r} is not one of {', '.join(activations)}")
    kernel = projection["kernel"]
    projected = jnp.einsum(
        "btf,fg->btg", hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32
    )
    return activations[activation](projected + projection["bias"][None, None])


def principal_projection(hidden: Float[Array, "tokens width"], student_width: int) -> Projection:
    """The teacher's own first principal components, as a fixed projection of its hidden states.

    With it the teacher comes down to the student's width, instead of the student going up.

    Args:
      hidden: hidden states of the teacher's real tokens.
      student_width: number of components.

    Returns:
      `kernel` (teacher width, student width) with orthonormal columns, in each of which the largest
      entry is positive, and the `bias` that centres.

    Raises:
      ValueError: if there are fewer features or tokens than components.
    """
    tokens, width = hidden.shape
    if student_width > min(tokens, width):
        raise ValueError(
            f"{student_width} components need as many tokens and features; got {tokens} tokens of "
            f"{width} features"
        )
    mean = hidden.astype(jnp.float32).mean(axis=0)
    centred = (hidden - mean[None]) / math.sqrt(tokens)
    _, _, components = jnp.linalg.svd(centred, full_matrices=False)
    kernel = components[:student_width].T
    largest = jnp.take_along_axis(kernel, jnp.abs(kernel).argmax(axis=0)[None], axis=0)
    kernel = kernel * jnp.sign(largest)
    return {"kernel": kernel, "bias": -mean @ kernel}
