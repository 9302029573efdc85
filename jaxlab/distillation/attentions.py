"""Losses between attention maps of a layer each.

All take scores before the softmax, without the additive mask of padding: what is padded is named by
`mask`, and where queries and keys are of two texts, or see some tokens only, by an `Attended` in
its place. Maps of another number of heads are compared after a mean over heads (`_mean`).

With `convention="textbrewer"` the numbers are that library's: its softmax runs over padded keys
too, and without a mask it takes all entries up to -0.001 for padding.

References:
  `textbrewer/losses.py` of TextBrewer 0.2.1; Jiao et al. 2020, arXiv:1909.10351 (TinyBERT); Wang et
  al. 2020, arXiv:2002.10957 (MiniLM).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.distillation.hidden import Convention
from jaxlab.distillation.means import Mean, masked_mean, plain_mean

Scores = Float[Array, "batch heads queries keys"]
TeacherScores = Float[Array, "batch teacher_heads teacher_queries teacher_keys"]


class Attended(NamedTuple):
    """Which queries of an attention count, and which keys each of them sees.

    Attributes:
      queries: True for real tokens that ask.
      keys: True for those that a query sees, whether it is real or not; one row where all queries
        see the same.
    """

    queries: Bool[Array, "batch queries"]
    keys: Bool[Array, "batch #queries keys"]


Mask = Bool[Array, "batch time"] | Attended

PADDED_SCORE = -1e-3
"""Without a mask TextBrewer takes this and everything below for padding."""


def attention_mse(
    student: Scores, teacher: TeacherScores, mask: Mask | None, *, convention: Convention = "exact"
) -> Mean:
    """Mean squared difference of scores over heads and pairs of tokens.

    Args:
      student: scores, of as many heads as the teacher's.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens; `None` needs the convention of TextBrewer.
      convention: see the module.

    Raises:
      ValueError: if heads or lengths differ, or there is no mask.
    """
    _check_heads(student, teacher, "attention_mse_mean")
    return _squares(student, teacher, mask, convention)


def attention_mse_sum(
    student: Scores, teacher: TeacherScores, mask: Mask | None, *, convention: Convention = "exact"
) -> Mean:
    """Mean squared difference of sums over heads; numbers of heads may differ.

    Where they do, sums of probabilities cannot agree (their rows add up to the number of heads),
    and those of scores are of different sizes: `attention_mse_mean` has neither problem.

    Args:
      student: scores.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens; `None` needs the convention of TextBrewer.
      convention: see the module.

    Raises:
      ValueError: if lengths differ, or there is no mask.
    """
    return _squares(*_each(jnp.sum, student, teacher), mask, convention)


def attention_mse_mean(student: Scores, teacher: TeacherScores, mask: Mask) -> Mean:
    """Mean squared difference of means over heads; numbers of heads may differ.

    Args:
      student: scores.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens.

    Raises:
      ValueError: if lengths differ, or there is no mask.
    """
    return _squares(*_each(jnp.mean, student, teacher), mask, "exact")


def attention_ce(
    student: Scores, teacher: TeacherScores, mask: Mask | None, *, convention: Convention = "exact"
) -> Mean:
    """Cross entropy of the student's distribution over keys under the teacher's.

    Args:
      student: scores, of as many heads as the teacher's.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens; `None` needs the convention of TextBrewer.
      convention: see the module.

    Returns:
      The mean over heads and queries, in nats.

    Raises:
      ValueError: if heads or lengths differ, or there is no mask.
    """
    _check_heads(student, teacher, "attention_ce_mean")
    return _cross_entropy(student, teacher, mask, convention)


def attention_ce_mean(
    student: Scores, teacher: TeacherScores, mask: Mask | None, *, convention: Convention = "exact"
) -> Mean:
    """Cross entropy of the distributions of mean scores over heads; numbers of heads may differ.

    Args:
      student: scores.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens; `None` needs the convention of TextBrewer.
      convention: see the module.

    Raises:
      ValueError: if lengths differ, or there is no mask.
    """
    return _cross_entropy(*_each(jnp.mean, student, teacher), mask, convention)


def attention_kl(student: Scores, teacher: TeacherScores, mask: Mask) -> Mean:
    """`KL(p_T || p_S)` over real keys, mean over heads and real queries (MiniLM).

    Args:
      student: scores, of as many heads as the teacher's.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens.

    Raises:
      ValueError: if heads or lengths differ.
    """
    _check_heads(student, teacher, "attention_ce_mean")
    return divergence(student, teacher, mask)


def attention_tinybert(student: Scores, teacher: TeacherScores, mask: Mask) -> Mean:
    """Mean squared difference of scores as TinyBERT's code takes it.

    Padded keys are 0 on both sides, padded queries count, and the mean is over all entries.

    Args:
      student: scores, of as many heads as the teacher's.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens.

    Raises:
      ValueError: if heads or lengths differ.
    """
    _check_heads(student, teacher, "attention_mse_mean")
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher.astype(jnp.float32))
    return plain_mean(jnp.where(attended(mask).keys[:, None], difference, 0.0) ** 2)


def attended(mask: Mask) -> Attended:
    """Queries and keys of a mask; queries that see nothing do not count.

    Args:
      mask: True for real tokens, all of which see each other; or queries and keys as they are.
    """
    if not isinstance(mask, Attended):
        return Attended(mask, mask[:, None, :])
    return Attended(mask.queries & mask.keys.any(axis=-1), mask.keys)


def divergence(student: Scores, teacher: TeacherScores, mask: Mask) -> Mean:
    """`KL(softmax(teacher) || softmax(student))` over real keys, mean over real queries.

    Args:
      student: scores.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens.
    """
    losses = divergences(student, teacher, mask)
    queries = attended(mask).queries[:, None, :]
    return masked_mean(losses, jnp.broadcast_to(queries, losses.shape))


def divergences(
    student: Scores, teacher: TeacherScores, mask: Mask
) -> Float[Array, "batch heads queries"]:
    """`KL(softmax(teacher) || softmax(student))` over real keys, of every query.

    Args:
      student: scores.
      teacher: scores; no gradient goes to them.
      mask: True for real tokens; what padded queries have is finite, and means nothing.
    """
    log_student = _log_softmax(student, mask)
    log_teacher = jax.lax.stop_gradient(_log_softmax(teacher, mask))
    return (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(axis=-1)


def _log_softmax(scores: Array, mask: Mask) -> Array:
    """Log of the softmax over real keys; padded ones are very unlikely, and finite."""
    keys = _over_heads(attended(mask).keys, scores.ndim)
    scores = jnp.where(keys, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min / 2)
    return jax.nn.log_softmax(scores, axis=-1)


def _over_heads(mask: Array, ndim: int) -> Array:
    """A mask of texts with axes of size 1 after the first, for scores of so many axes."""
    return mask.reshape(mask.shape[0], *(1,) * (ndim - mask.ndim), *mask.shape[1:])


def _squares(student: Array, teacher: Array, mask: Mask | None, convention: Convention) -> Mean:
    _check_lengths(student, teacher)
    student = student.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    if mask is None:
        _check_convention(convention)
        kept = (jnp.where(scores <= PADDED_SCORE, 0.0, scores) for scores in (student, teacher))
        return plain_mean((next(kept) - next(kept)) ** 2)
    queries, keys = attended(mask)
    pairs = _over_heads(queries[:, :, None] & keys, student.ndim)
    return masked_mean((student - teacher) ** 2, jnp.broadcast_to(pairs, student.shape))


def _cross_entropy(
    student: Array, teacher: Array, mask: Mask | None, convention: Convention
) -> Mean:
    _check_lengths(student, teacher)
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    if convention == "exact":
        if mask is None:
            _check_convention(convention)
        assert mask is not None, "checked"
        log_student, log_teacher = _log_softmax(student, mask), _log_softmax(teacher, mask)
        losses = -(jnp.exp(log_teacher) * log_student).sum(axis=-1)
    else:
        log_student = jax.nn.log_softmax(student.astype(jnp.float32), axis=-1)
        weights = jax.nn.softmax(teacher, axis=-1)
        if mask is None:
            weights = jnp.where(teacher <= PADDED_SCORE, 0.0, weights)
            return plain_mean(-(weights * log_student).sum(axis=-1))
        keys = _over_heads(attended(mask).keys, student.ndim)
        losses = -jnp.where(keys, weights * log_student, 0.0).sum(axis=-1)
    queries = _over_heads(attended(mask).queries, losses.ndim)
    return masked_mean(losses, jnp.broadcast_to(queries, losses.shape))


def _each(
    reduce: Callable[..., Array], student: Scores, teacher: TeacherScores
) -> tuple[Array, Array]:
    """Sums or means over heads."""
    return reduce(student.astype(jnp.float32), axis=1), reduce(teacher.astype(jnp.float32), axis=1)


def _check_heads(student: Array, teacher: Array, instead: str) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {student.shape[1]} attention heads and the teacher "
            f"{teacher.shape[1]}; maps are compared head by head: use {instead}, or relations"
        )
    _check_lengths(student, teacher)


def _check_lengths(student: Array, teacher: Array) -> None:
    if student.shape[-2:] != teacher.shape[-2:]:
        axis = -1 if student.shape[-1] != teacher.shape[-1] else -2
        raise ValueError(
            f"the student's attention is over {student.shape[axis]} tokens and the teacher's over "
            f"{teacher.shape[axis]}; use one vocabulary, or compare logits only"
        )


def _check_convention(convention: Convention) -> None:
    if convention != "textbrewer":
        raise ValueError(
            "attention losses need a mask of the real tokens; all texts of one length have a mask "
            'of ones. Without one there is only convention="textbrewer"'
        )
