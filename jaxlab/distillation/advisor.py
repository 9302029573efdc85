"""Which layers of a teacher and a student resemble each other: advice on a matching.

From the features of a few batches: the linear CKA of hidden states of all pairs of layers, the
distance of their attention maps, and the best assignment in which layers keep their order. It is
looked at before a run, with the student as it starts, or afterwards. NumPy on the host, float64.

References:
  Kornblith et al. 2019, arXiv:1905.00414 (CKA).
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float64

from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.matching import STRATEGIES, Pairs, match_layers
from jaxlab.metrics import linear_cka

logger = logging.getLogger(__name__)

Table = Float64[np.ndarray, "teacher_layers student_layers"]


class Compared(NamedTuple):
    """A batch as both networks see it.

    Attributes:
      teacher: with `hidden`, and `probabilities` if attention is to be compared.
      student: likewise, of the same tokens.
      mask: True for real tokens.
    """

    teacher: Features
    student: Features
    mask: Bool[np.ndarray, "batch time"] | Bool[Array, "batch time"]


class Ranked(NamedTuple):
    """A pair of layers.

    Attributes:
      teacher: layer of the teacher.
      student: layer of the student.
      cka: of their hidden states, 0 to 1.
      attention_distance: of their maps, 0 to 1; NaN if they were not compared.
    """

    teacher: int
    student: int
    cka: float
    attention_distance: float


class Advice(NamedTuple):
    """How alike layers are, and which to match.

    Attributes:
      cka: of hidden states, by teacher layer and student layer.
      embeddings_cka: of the embeddings.
      attention_distance: of attention maps, or `None`.
      pairs: the assignment with the largest sum of CKA.
      attention_pairs: that with the smallest sum of distances, or `None`.
      num_tokens: that the CKA is of.
    """

    cka: Table
    embeddings_cka: float
    attention_distance: Table | None
    pairs: Pairs
    attention_pairs: Pairs | None
    num_tokens: int = 0

    def ranking(self) -> list[Ranked]:
        """All pairs, the most alike first."""
        num_teacher, num_student = self.cka.shape
        found = [
            Ranked(t, s, float(self.cka[t, s]), self._distance(t, s))
            for t in range(num_teacher)
            for s in range(num_student)
        ]
        return sorted(found, key=lambda pair: (-pair.cka, pair.student, pair.teacher))

    def table(self) -> str:
        """The advice as text: a row for every student layer, then the known strategies."""
        lines = [
            "student | match | CKA   | attention | most alike alone",
            "------- | ----- | ----- | --------- | ----------------",
        ]
        for teacher, student in self.pairs:
            best = int(self.cka[:, student].argmax())
            distance = self._distance(teacher, student)
            shown = "        -" if np.isnan(distance) else f"{distance:9.3f}"
            lines.append(
                f"{student:7d} | {teacher:5d} | {self.cka[teacher, student]:5.3f} | {shown} | "
                f"{best} ({self.cka[best, student]:.3f})"
            )
        lines.append(f"mean CKA {_mean(self.cka, self.pairs):.3f}; of known strategies:")
        lines += [f"  {name}: {mean:.3f}" for name, mean in self.strategies()]
        if self.attention_pairs is not None:
            chosen = ", ".join(f"{t}-{s}" for t, s in self.attention_pairs)
            lines.append(f"by attention alone: {chosen}")
        lines.append(f"embeddings: CKA {self.embeddings_cka:.3f}; {self.num_tokens} tokens")
        return "\n".join(lines)

    def strategies(self) -> list[tuple[str, float]]:
        """(name, mean CKA of its pairs) of strategies that match every layer, the best first."""
        found = [
            (name, _mean(self.cka, pairs))
            for name in STRATEGIES
            if len(pairs := match_layers(name, *self.cka.shape)) == self.cka.shape[1]
        ]
        return sorted(found, key=lambda each: -each[1])

    def _distance(self, teacher: int, student: int) -> float:
        if self.attention_distance is None:
            return float("nan")
        return float(self.attention_distance[teacher, student])


def advise(batches: Iterable[Compared], *, max_tokens: int = 4096) -> Advice:
    """Advice from the features of a few batches.

    Args:
      batches: a few hundred texts do.
      max_tokens: real tokens that the CKA is of; the first ones. As many as ten times the width,
        or it is too large for all pairs alike.

    Raises:
      TypeError: if a batch is none of `Compared`.
      ValueError: if there is no token, a network shows no hidden states or such as are not finite,
        the student has more layers than the teacher, or the two have other tokens.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be 1 or more")
    hidden: tuple[list[list[np.ndarray]], ...] = ([], [])
    distances, num_tokens, num_queries = None, 0, 0
    for batch in batches:
        mask = _checked_mask(batch)
        kept = mask & (mask.ravel().cumsum().reshape(mask.shape) <= max_tokens - num_tokens)
        num_tokens += int(kept.sum())
        for states, features in zip(hidden, (batch.teacher, batch.student), strict=True):
            states.append([np.asarray(h, np.float64)[kept] for h in features.hidden])
        if batch.teacher.probabilities and batch.student.probabilities:
            found = attention_distances(batch.teacher, batch.student, mask) * mask.sum()
            distances = found if distances is None else distances + found
            num_queries += int(mask.sum())
        if num_tokens >= max_tokens:
            break
    if not num_tokens:
        raise ValueError("there is no real token in the batches; give a few with texts")
    teacher, student = ([np.concatenate(h) for h in zip(*each, strict=True)] for each in hidden)
    for whose, states in (("teacher", teacher), ("student", student)):
        if broken := [i for i, h in enumerate(states) if not np.isfinite(h).all()]:
            raise ValueError(
                f"hidden states {broken} of the {whose} hold NaN or infinity; check its weights, "
                "or compute in float32"
            )
    if num_tokens < (wanted := 10 * max(teacher[0].shape[1], student[0].shape[1])):
        logger.warning(
            "CKA of %d tokens is too large for all pairs of layers alike: give %d or more, ten "
            "times the width", num_tokens, wanted,
        )  # fmt: skip
    cka = np.array([[linear_cka(t, s) for s in student[1:]] for t in teacher[1:]])
    attention = None if distances is None else distances / num_queries
    return Advice(
        cka,
        linear_cka(teacher[0], student[0]),
        attention,
        best_monotone(cka),
        None if attention is None else best_monotone(-attention),
        num_tokens,
    )


def attention_distances(
    teacher: Features, student: Features, mask: Bool[np.ndarray, "batch time"]
) -> Table:
    """Total variation between attention maps, of their means over heads: 0 equal, 1 disjoint.

    Args:
      teacher: with `probabilities`.
      student: with `probabilities`, of any number of heads.
      mask: True for real tokens; the mean is over real queries.
    """
    keys = mask[:, None, :]

    def means(features: Features) -> list[np.ndarray]:
        maps = (np.asarray(p, np.float64).mean(axis=1) * keys for p in features.probabilities)
        return [p / np.maximum(p.sum(axis=-1, keepdims=True), 1e-30) for p in maps]

    own = means(student)
    return np.array(
        [
            [0.5 * np.abs(t - s).sum(axis=-1)[mask].mean() if mask.any() else 0.0 for s in own]
            for t in means(teacher)
        ]
    )


def best_monotone(similarity: Table) -> Pairs:
    """The assignment of teacher layers to student layers, in order, with the largest sum.

    Every student layer gets one, a higher one than the layer below it: by dynamic programming, in
    teacher layers times student layers.

    Args:
      similarity: of every pair.

    Raises:
      ValueError: if the student has more layers, or a number is not finite.

    Example:
      >>> best_monotone(np.array([[0.9, 0.8], [0.1, 0.7], [0.2, 0.3]]))
      ((0, 0), (1, 1))
    """
    num_teacher, num_student = similarity.shape
    if num_student > num_teacher or not np.isfinite(similarity).all():
        raise ValueError(
            f"similarities of {num_teacher} teacher and {num_student} student layers, of which "
            f"{(~np.isfinite(similarity)).sum()} are not finite; give as many teacher layers or "
            "more, and finite numbers"
        )
    # best[t, s]: the largest sum of the lowest s student layers with the lowest t teacher layers.
    best = np.full((num_teacher + 1, num_student + 1), -np.inf)
    best[:, 0] = 0.0
    for t in range(1, num_teacher + 1):
        for s in range(1, min(t, num_student) + 1):
            best[t, s] = max(best[t - 1, s], best[t - 1, s - 1] + similarity[t - 1, s - 1])
    pairs, t, s = [], num_teacher, num_student
    while s:
        if best[t, s] == best[t - 1, s]:
            t -= 1
        else:
            t, s = t - 1, s - 1
            pairs.append((t, s))
    return tuple(reversed(pairs))


def _mean(cka: Table, pairs: Pairs) -> float:
    return float(np.mean([cka[pair] for pair in pairs]))


def _checked_mask(batch: Any) -> Bool[np.ndarray, "batch time"]:
    """The mask of a batch in which two networks can be compared."""
    if not isinstance(batch, Compared):
        raise TypeError(
            "advise takes batches as Compared(teacher, student, mask), several of them; got a "
            f"{type(batch).__name__}"
        )
    mask = np.asarray(batch.mask, bool)
    depths = [len(features.hidden) - 1 for features in (batch.teacher, batch.student)]
    silent = [name for name, n in zip(("teacher", "student"), depths, strict=True) if n < 1]
    if silent:
        raise ValueError(
            f"no hidden states of layers of the {' and the '.join(silent)}; ask for them (taps)"
        )
    if depths[1] > depths[0]:
        raise ValueError(
            f"hidden states of {depths[0]} teacher and {depths[1]} student layers; give a student "
            "of as many layers as the teacher or fewer"
        )
    shapes = {x.shape[:2] for x in jax.tree.leaves((batch.teacher.hidden, batch.student.hidden))}
    if shapes != {mask.shape}:
        raise ValueError(
            f"hidden states of {sorted(shapes)} tokens for a mask of {mask.shape}; both networks "
            "must see the same tokens"
        )
    return mask
