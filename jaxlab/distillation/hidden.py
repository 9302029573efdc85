"""Losses between hidden states: of a layer each, or of a pair of layers each.

A student of another width is projected first (`projection`), except for `token_similarity`, which
compares the tokens of a text with each other and knows no width.

With `convention="textbrewer"` every loss has that library's normalisation, which differs where
texts are padded; each docstring says how. Its mask may be `None`, which is another branch of that
code.

References:
  `textbrewer/losses.py` of TextBrewer 0.2.1 (Yang et al. 2020, arXiv:2002.12620); Sun et al. 2019,
  arXiv:1908.09355 (PKD); Sanh et al. 2019, arXiv:1910.01108 (cosine); Huang and Wang 2017,
  arXiv:1707.01219 (NST, here over tokens); Yim et al. 2017 (FSP); Haidar et al. 2022,
  arXiv:2109.10164 (RAIL-KD).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.distillation.means import (
    Mean,
    masked_mean,
    mean_of_tokens,
    pairs_of_tokens,
    plain_mean,
)

Convention = Literal["exact", "textbrewer"]
"""`exact` leaves padding out everywhere; `textbrewer` has that library's numbers."""

Hidden = Float[Array, "batch time width"]
TeacherHidden = Float[Array, "batch teacher_time teacher_width"]
Mask = Bool[Array, "batch time"]

_SMALL = 1e-12


def hidden_mse(student: Hidden, teacher: TeacherHidden, mask: Mask | None) -> Mean:
    """Mean squared difference over tokens and features.

    Args:
      student: hidden states, in the teacher's width.
      teacher: hidden states; no gradient goes to them.
      mask: True for real tokens; `None` counts all.

    Raises:
      ValueError: if widths or lengths differ.
    """
    teacher = _check(student, teacher)
    squares = jnp.mean((student.astype(jnp.float32) - teacher) ** 2, axis=-1)
    return masked_mean(squares, _or_all(mask, squares))


def hidden_cosine(student: Hidden, teacher: TeacherHidden, mask: Mask | None) -> Mean:
    """`1 - cos(h_S, h_T)`, mean over tokens (DistilBERT).

    Args:
      student: hidden states, in the teacher's width.
      teacher: hidden states; no gradient goes to them.
      mask: True for real tokens; `None` counts all.

    Raises:
      ValueError: if widths or lengths differ.
    """
    teacher = _check(student, teacher)
    cosines = (_normalize(student) * _normalize(teacher)).sum(axis=-1)
    return masked_mean(1.0 - cosines, _or_all(mask, cosines))


def hidden_pkd(
    student: Hidden, teacher: TeacherHidden, mask: Mask | None, *, convention: Convention = "exact"
) -> Mean:
    """`||h_S / |h_S| - h_T / |h_T|||^2` of the first token, a sum over features (PKD).

    GLMKD's code takes a mean over features, smaller by the width.

    Args:
      student: hidden states, in the teacher's width.
      teacher: hidden states; no gradient goes to them.
      mask: True for real tokens; a text without any does not count (`textbrewer`: it does).
      convention: see `Convention`.

    Raises:
      ValueError: if widths or lengths differ.
    """
    teacher = _check(student, teacher)
    difference = _normalize(student[:, 0]) - _normalize(teacher[:, 0])
    return _over_texts((difference**2).sum(axis=-1), mask, convention)


def mean_pkd(student: Hidden, teacher: TeacherHidden, mask: Mask) -> Mean:
    """`hidden_pkd` of the mean over the tokens of a text in place of its first one (RAIL-KD).

    Args:
      student: hidden states, in the teacher's width.
      teacher: hidden states; no gradient goes to them.
      mask: True for real tokens; a text without any does not count.

    Raises:
      ValueError: if widths or lengths differ.
    """
    teacher = _check(student, teacher)
    means = [_normalize(mean_of_tokens(hidden, mask)) for hidden in (student, teacher)]
    return _over_texts(((means[0] - means[1]) ** 2).sum(axis=-1), mask, "exact")


def token_similarity(
    student: tuple[Hidden, Hidden],
    teacher: tuple[TeacherHidden, TeacherHidden],
    mask: Mask | None,
    *,
    convention: Convention = "exact",
) -> Mean:
    """Mean squared difference of `h_a h_b^T / width` over pairs of tokens (mmd, NST).

    Widths may differ: each side is divided by its own.

    Args:
      student: hidden states of two layers (the same one twice is common).
      teacher: hidden states of two layers; no gradient goes to them.
      mask: True for real tokens; `None` counts all.
      convention: `textbrewer` gives the published package's numbers, which divides by the length of
        the batch, not by the width, where there is a mask.

    Raises:
      ValueError: if lengths differ.
    """
    by_length = convention == "textbrewer" and mask is not None
    grams = [
        jnp.einsum("bif,bjf->bij", a, b, preferred_element_type=jnp.float32)
        / (a.shape[1] if by_length else a.shape[2])
        for a, b in (student, teacher)
    ]
    _check_lengths(grams[0], grams[1])
    squares = (grams[0] - jax.lax.stop_gradient(grams[1])) ** 2
    if mask is None:
        return plain_mean(squares)
    return masked_mean(squares, pairs_of_tokens(mask))


def feature_gram(
    student: tuple[Hidden, Hidden],
    teacher: tuple[TeacherHidden, TeacherHidden],
    mask: Mask | None,
    *,
    convention: Convention = "exact",
) -> Mean:
    """Mean squared difference of `h_a^T h_b / tokens` over pairs of features (gram, FSP).

    Args:
      student: hidden states of two layers, in the teacher's width.
      teacher: hidden states of two layers; no gradient goes to them.
      mask: True for real tokens; a text without any does not count (`textbrewer`: it gives NaN).
      convention: see `Convention`.

    Raises:
      ValueError: if widths or lengths differ.
    """
    for one, other in zip(student, teacher, strict=True):
        _check(one, other)
    grams = [_gram(*pair, mask) for pair in (student, teacher)]
    squares = (grams[0] - jax.lax.stop_gradient(grams[1])) ** 2
    return _over_texts(squares.mean(axis=(1, 2)), mask, convention)


def _gram(first: Hidden, second: Hidden, mask: Mask | None) -> Float[Array, "batch width width2"]:
    tokens: Array | int = first.shape[1]
    if mask is not None:
        first = jnp.where(mask[..., None], first, 0.0)
        second = jnp.where(mask[..., None], second, 0.0)
        tokens = jnp.maximum(mask.sum(axis=1), 1)[:, None, None]
    product = jnp.einsum("bif,big->bfg", first, second, preferred_element_type=jnp.float32)
    return product / tokens


def _over_texts(values: Float[Array, " batch"], mask: Mask | None, convention: Convention) -> Mean:
    if mask is None or convention == "textbrewer":
        return plain_mean(values)
    return masked_mean(values, mask.any(axis=1))


def _normalize(hidden: Array) -> Array:
    """Rows of length 1; a row of zeros stays one, with a finite gradient."""
    hidden = hidden.astype(jnp.float32)
    squares = (hidden**2).sum(axis=-1, keepdims=True)
    return hidden / jnp.sqrt(jnp.maximum(squares, _SMALL))


def _or_all(mask: Mask | None, values: Array) -> Array:
    return jnp.ones(values.shape, bool) if mask is None else mask


def _check(student: Array, teacher: Array) -> Array:
    """The teacher without a gradient, float32."""
    _check_lengths(student, teacher)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student's hidden states have width {student.shape[-1]} and the teacher's "
            f"{teacher.shape[-1]}; project the student's (->linear), or use a knowledge that knows "
            "no width: token_similarity or relations"
        )
    return jax.lax.stop_gradient(teacher.astype(jnp.float32))


def _check_lengths(student: Array, teacher: Array) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student's texts have {student.shape[1]} tokens and the teacher's "
            f"{teacher.shape[1]}; knowledge of tokens needs one tokenisation: use one vocabulary, "
            "or compare logits only"
        )
