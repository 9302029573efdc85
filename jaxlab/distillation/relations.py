"""Relations between the tokens of a text: what a student of any width can have like its teacher.

The queries (keys, values) of all heads are cut anew into `num_relation_heads` pieces, and every
piece gives a distribution over tokens, `softmax(X Y^T / sqrt(width of a piece))`. Widths and heads
of student and teacher may differ; the pieces are as many on either side.

References:
  Wang et al. 2020, arXiv:2002.10957 (MiniLM: values, as many pieces as heads); Wang et al. 2021,
  arXiv:2012.15828 (MiniLMv2: queries, keys and values, 48 or 64 pieces); `bertdistiller` for pairs
  of different ones and for the mean over texts; PP-MiniLM of PaddleNLP for relations of examples.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.distillation.attentions import Mask, attended, divergences
from jaxlab.distillation.means import Mean, masked_mean

Projected = Float[Array, "batch _ width"]
"""Queries, keys or values of all heads, one after the other."""

TeacherProjected = Float[Array, "batch _ teacher_width"]

Average = Literal["tokens", "texts"]

SCORES_AT_ONCE = 2**24
"""Relations of more pieces than one have so many scores at a time at most; 64 MiB of float32."""


def relation(
    student: tuple[Projected, Projected],
    teacher: tuple[TeacherProjected, TeacherProjected],
    mask: Mask,
    num_relation_heads: int,
    *,
    average: Average = "tokens",
) -> Mean:
    """KL from the teacher's relations to the student's, mean over pieces and tokens.

    Goes through the pieces a few at a time, and computes their scores anew for the gradient: the
    memory is that of one piece, (batch, time, time), however many there are.

    Args:
      student: what relates to what: queries to queries, queries to keys ...
      teacher: the same of the teacher; no gradient goes to them.
      mask: True for real tokens; neither padded queries nor padded keys count. Where the first and
        the second are of two texts, or some tokens relate to some only, an `Attended`.
      num_relation_heads: pieces; must divide both widths.
      average: over all `tokens` of the batch, or over `texts` of their means, as bertdistiller.

    Raises:
      ValueError: if the pieces do not divide a width, or lengths differ.
    """
    check_relation_heads(num_relation_heads, student[0].shape[-1], teacher[0].shape[-1])
    _check_lengths(student, teacher)
    totals = _totals(student, teacher, mask, num_relation_heads)
    queries = attended(mask).queries
    tokens = num_relation_heads * queries.sum(axis=1, dtype=jnp.float32)
    if average == "tokens":
        return Mean(totals.sum(), tokens.sum())
    return masked_mean(totals / jnp.maximum(tokens, 1.0), queries.any(axis=1))


def _totals(
    student: tuple[Projected, Projected],
    teacher: tuple[TeacherProjected, TeacherProjected],
    mask: Mask,
    num_relation_heads: int,
) -> Float[Array, " batch"]:
    """Sums over the pieces and tokens of every text."""
    queries = attended(mask).queries
    scores = queries.size * student[1].shape[1]
    fitting = [n for n in range(2, num_relation_heads + 1) if n * scores <= SCORES_AT_ONCE]
    at_once = max((n for n in fitting if num_relation_heads % n == 0), default=1)
    num_rounds = num_relation_heads // at_once

    def totals_of(pieces: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Array:
        ours, theirs = (relation_scores(*pair, at_once) for pair in pieces)
        losses = divergences(ours, theirs, mask)
        return jnp.where(queries[:, None, :], losses, 0.0).sum(axis=(1, 2))

    if num_rounds == 1:
        return totals_of((student, teacher))

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], num_rounds, -1), 2, 0)

    # Without the checkpoint the scan would keep the scores of all pieces for the gradient.
    one_round = jax.checkpoint(totals_of, prevent_cse=False)
    return jax.lax.scan(
        lambda total, pieces: (total + one_round(pieces), None),
        jnp.zeros(queries.shape[0], jnp.float32),
        jax.tree.map(cut, (student, teacher)),
    )[0]


def example_relation(
    student: tuple[Projected, Projected],
    teacher: tuple[TeacherProjected, TeacherProjected],
    mask: Bool[Array, "batch time"],
    num_relation_heads: int,
) -> Mean:
    """KL of the relations between the examples of a batch at the same position (PP-MiniLM).

    Args:
      student: what relates to what.
      teacher: the same of the teacher; no gradient goes to them.
      mask: True for real tokens; only examples that have a token at a position relate there.
      num_relation_heads: pieces; must divide both widths.

    Raises:
      ValueError: if the pieces do not divide a width, or lengths differ.
    """
    _check_lengths(student, teacher)
    return relation(_turn(student), _turn(teacher), mask.T, num_relation_heads)


def _check_lengths(student: tuple[Array, Array], teacher: tuple[Array, Array]) -> None:
    for one, other in zip(student, teacher, strict=True):
        if one.shape[1] != other.shape[1]:
            raise ValueError(
                f"the student's texts have {one.shape[1]} tokens and the teacher's "
                f"{other.shape[1]}; relations need one tokenisation: use one vocabulary, or "
                "compare logits only"
            )


def _turn(pair: tuple[Array, Array]) -> tuple[Array, Array]:
    """Positions as the first axis, examples as the second."""
    return jnp.swapaxes(pair[0], 0, 1), jnp.swapaxes(pair[1], 0, 1)


def relation_scores(
    first: Projected, second: Projected, num_relation_heads: int
) -> Float[Array, "batch heads queries keys"]:
    """`X Y^T / sqrt(width of a piece)` of every piece, float32.

    Args:
      first: X.
      second: Y, of the same width.
      num_relation_heads: pieces of the width.
    """
    width = first.shape[-1] // num_relation_heads
    pieces = (x.reshape(*x.shape[:2], num_relation_heads, width) for x in (first, second))
    scores = jnp.einsum("birf,bjrf->brij", *pieces, preferred_element_type=jnp.float32)
    return scores / math.sqrt(width)


def check_relation_heads(num_relation_heads: int, student_width: int, teacher_width: int) -> None:
    """Refuse a number of pieces that does not divide both widths.

    Args:
      num_relation_heads: pieces.
      student_width: width of the student's projections.
      teacher_width: width of the teacher's.

    Raises:
      ValueError: listing the numbers that would do.
    """
    common = math.gcd(student_width, teacher_width)
    if num_relation_heads < 1 or common % num_relation_heads:
        divisors = [n for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            f"num_relation_heads={num_relation_heads} must divide the widths of the student "
            f"({student_width}) and of the teacher ({teacher_width}); these do: "
            f"{', '.join(map(str, divisors))}"
        )
