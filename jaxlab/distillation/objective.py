"""The objective of a distillation: settings that compile to one loss function.

What a student is to learn is settings (`ObjectiveConfig`): matches of layers, a loss between
logits, a loss against labels, and how they are weighed. With the sizes of the two networks they
become an `Objective`, a list of `Term`s: which features either network has to show, which
projections train along, and a function from features to named `Mean`s. Recipes differ in their
settings alone.

Terms keep sum and count apart, so that a loss does not depend on how a batch is padded, cut over
devices or cut into microbatches (`total` takes the counts of the whole batch).

References:
  Lu et al. 2022, arXiv:2206.14366; `distill` of OFA-Compress; `GeneralDistiller` of TextBrewer
  0.2.1.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxlab.distillation import hard_losses, responses, schedules
from jaxlab.distillation.attentions import Mask
from jaxlab.distillation.compared import (
    Batch,
    Stacks,
    Task,
    check_fields,
    distributions,
    join,
    mask_of,
    of_stack,
    take,
    top_features,
)
from jaxlab.distillation.grammar import MOVING, STACKS
from jaxlab.distillation.knowledge import Feature, Features
from jaxlab.distillation.means import Mean
from jaxlab.distillation.moving_matches import moving_loss, needed_matching
from jaxlab.distillation.objective_config import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.distillation.progressive import ProgressiveTransfer
from jaxlab.distillation.projections import Projection, init_projection, project
from jaxlab.distillation.terms import Shape, Term, features_of

RESPONSE, HARD = "response", "hard"


class Losses(NamedTuple):
    """What an objective gives for a batch.

    Attributes:
      means: of every term, by name.
      weights: its factor at this point of the run.
      pairs: distances of all pairs of layers, by the terms that move by them; `None` without such.
    """

    means: dict[str, Mean]
    weights: dict[str, Float[Array, ""]]
    pairs: dict[str, Mean] | None = None

    def total(self, counts: Mapping[str, Float[Array, ""]] | None = None) -> Float[Array, ""]:
        """The weighted sum of the terms.

        Args:
          counts: what the sums are divided by, term by term: those of a whole batch of which this
            is a part; `None` takes the own counts.
        """
        values = [
            self.weights[name]
            * mean.total
            / jnp.maximum(mean.count if counts is None else counts[name], 1.0)
            for name, mean in self.means.items()
        ]
        return jnp.asarray(sum(values), jnp.float32)

    @property
    def counts(self) -> dict[str, Float[Array, ""]]:
        """The number of entries that every term is a mean over."""
        return {name: mean.count for name, mean in self.means.items()}

    @property
    def values(self) -> dict[str, Float[Array, ""]]:
        """The terms without their weights."""
        return {name: mean.value for name, mean in self.means.items()}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A compiled objective, see `compilation.compile_objective`. Hashable; its methods are pure.

    Attributes:
      config: the settings.
      task: what the models put out.
      terms: matches of layers, in the order of the settings.
      teacher_taps: what the teacher has to show.
      student_taps: what the student has to show.
      projections: name of every trained projection -> its two widths.
      student: sizes of the student.
      teacher: sizes of the teacher; `None` without one.
    """

    config: ObjectiveConfig
    task: Task
    terms: tuple[Term, ...]
    teacher_taps: frozenset[Feature]
    student_taps: frozenset[Feature]
    projections: tuple[tuple[str, int, int], ...]
    student: Shape
    teacher: Shape | None

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything to learn from a teacher."""
        return bool(self.terms) or self.config.response.is_used

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms."""
        config = self.config
        ends = ((RESPONSE, config.response.is_used), (HARD, config.hard.weight > 0))
        return (*(term.name for term in self.terms), *(name for name, used in ends if used))

    @property
    def teacher_entries(self) -> tuple[tuple[Feature, int], ...]:
        """What is compared of the teacher beside its logits: name of a feature, and its entry."""
        found = {
            (feature, layer + (1 if feature == "hidden" else 0))
            for term in self.terms
            for feature in features_of(term.match)
            for layer in term.pair.teacher
            if feature != "pooled"
        }
        return tuple(sorted(found))

    def init(
        self, key: Key[Array, ""], fitted: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Projection]:
        """The first projections, the parameters of the objective itself; `{}` where it has none.

        Args:
          key: for the weights of new ones.
          fitted: those that the student was trained with before (`Pretrained.fit_dense`): one for
            all hidden states, or one for each, from the embeddings up. Linear projections of
            hidden states begin as that of their layer, if it is of their widths.
        """
        keys = jax.random.split(key, max(len(self.projections), 1))
        return {
            name: self._fitted(name, (narrow, wide), fitted)
            or init_projection(keys[i], narrow, wide, self.config.projection_init)
            for i, (name, narrow, wide) in enumerate(self.projections)
        }

    def _fitted(
        self, name: str, widths: tuple[int, int], fitted: Sequence[Mapping[str, Any]]
    ) -> Projection | None:
        """What a projection was in an earlier training; `None` if it was in none."""
        terms = [term for term in self.terms if term.projection == name]
        if any(t.match.projection != "linear" or t.match.kind.is_pooled for t in terms):
            return None
        layers = {layer + 1 for term in terms for layer in term.pair.student}
        entry = 0 if len(fitted) == 1 else min(layers)
        if (len(layers) > 1 and len(fitted) > 1) or entry >= len(fitted):
            return None
        own = fitted[entry]
        if np.shape(own["kernel"]) != widths:
            return None
        return {part: jnp.asarray(array, jnp.float32) for part, array in own.items()}

    def __call__(
        self,
        projections: Mapping[str, Projection],
        student: Features | Stacks,
        teacher: Features | Stacks | None,
        batch: Batch,
        progress: Float[Array, ""] | float = 0.0,
        *,
        temperature: Float[Array, ""] | None = None,
        matchings: Mapping[str, Array] | None = None,
    ) -> Losses:
        """The losses of a batch.

        Args:
          projections: from `init`; those of principal components beside them, by the term's name.
          student: what the student shows.
          teacher: what the teacher shows; no gradient goes to it.
          batch: `mask`, `label`, `has_label`; `decoder_mask` for the second stack of an
            encoder-decoder; `allowed` where not all classes of a token may be predicted, see
            `distributions`.
          progress: share of the run that is over, in [0, 1].
          temperature: in place of the settings', for sweeps over it.
          matchings: of the terms that move, see `moving_matches.current_matchings`.

        Raises:
          ValueError: if lengths, classes or heads do not fit, or there is no teacher.
        """
        progress = jnp.asarray(progress, jnp.float32)
        means, pairs, matchings = {}, {}, matchings or {}
        if self.needs_teacher and teacher is None:
            raise ValueError(
                f"the objective compares with a teacher ({', '.join(self.names[:3])} ...) and "
                "there is none: give the teacher's features, or an objective of a hard loss alone"
            )
        for term in self.terms:
            assert teacher is not None, "checked"
            means[term.name], moving = self._match(
                term, projections, student, teacher, batch, matchings.get(term.name)
            )
            pairs |= {} if moving is None else {term.name: moving}
        weights = self._match_weights(progress)
        logits = top_features(student).logits
        if self.config.response.is_used:
            assert teacher is not None, "checked"
            means[RESPONSE] = self._respond(
                logits, top_features(teacher).logits, batch, progress, temperature
            )
            factor = self._response_factor(means[RESPONSE], progress)
            weights[RESPONSE] = self.config.response.weight * factor
        if self.config.hard.weight > 0:
            means[HARD] = hard_loss(self.task, logits, batch, self.config.hard, progress)
            factor = self._factor(self.config.hard.schedule, progress, self.config.hard)
            weights[HARD] = self.config.hard.weight * factor
        return Losses(means, weights, pairs or None)

    def _match_weights(self, progress: Array) -> dict[str, Array]:
        """The weights of all matches at a point of the run."""
        in_turn = [term for term in self.terms if term.match.schedule == "progressive"]
        layers = [max(term.pair.student) for term in in_turn]
        turns = self._plan.match_weights(progress, layers) if in_turn else ()
        factors = {term.name: turn for term, turn in zip(in_turn, turns, strict=True)}
        return {
            term.name: term.match.weight * factors[term.name]
            if term.name in factors
            else term.match.weight * self._factor(term.match.schedule, progress)
            for term in self.terms
        }

    @property
    def _plan(self) -> ProgressiveTransfer:
        """When which layer of the student has its turn."""
        deepest = max(self.student.depth(stack) for stack in STACKS)
        return ProgressiveTransfer(deepest, self.config.transfer_share)

    def _response_factor(self, loss: Mean, progress: Array) -> Array:
        config = self.config.response
        if config.schedule != "continuation":
            return self._factor(config.schedule, progress, config)
        return schedules.continuation_kd(progress, loss.value, config.margin, config.annealing).soft

    def _factor(
        self, schedule: str, progress: Array, pieces: ResponseConfig | HardConfig | None = None
    ) -> Array:
        """The factor of a weight at a point of the run."""
        if pieces is not None and schedule == "piecewise":
            return schedules.piecewise(pieces.bounds, pieces.factors)(progress)
        factors = {
            "constant": jnp.ones_like,
            "growth": schedules.growth,
            "decay": schedules.decay,
            "continuation": schedules.continuation_factor,
            "after_transfer": self._plan.loss_weight,
        }
        return factors[schedule](progress)

    def _match(
        self,
        term: Term,
        projections: Mapping[str, Projection],
        student: Features | Stacks,
        teacher: Features | Stacks,
        batch: Batch,
        matching: Array | None,
    ) -> tuple[Mean, Mean | None]:
        """The loss of one pair of layers, and the distances of all pairs if it moves by them."""
        match, kind = term.match, term.match.kind
        assert self.teacher is not None, "there are no terms without one"
        depths = [shape.depth(match.stack) for shape in (self.student, self.teacher)]
        widths = self.student.width, self.teacher.width
        sides: list[Any] = [
            take(of_stack(shown, match.stack), term, side, depths[side], widths[side])
            for side, shown in enumerate((student, teacher))
        ]
        mask: Mask | None = mask_of(match, batch)
        if match.joined:
            moves = match.strategy in MOVING
            chosen = needed_matching(match.strategy, matching) if moves else None
            sides = [join(sides[0], None), join(sides[1], chosen)]
        if term.projection:
            side = 1 if match.projection == "pca" else 0
            activation = "linear" if match.projection == "pca" else match.projection
            own = _projection(term, projections)
            sides[side] = tuple(project(own, hidden, activation) for hidden in sides[side])
        if match.strategy in MOVING and not match.joined:
            assert mask is not None, "there are no conventions of moving matches"
            return moving_loss(match.strategy, kind.loss, sides[0], sides[1], mask, matching)
        if kind.num_layers == 1 and len(kind.features) == 1:
            sides = [side[0] for side in sides]
        loss = kind.loss
        if match.convention == "bertdistiller":
            loss = functools.partial(loss, average="texts")
        if kind.is_relation:
            return loss(*sides, mask, term.num_relation_heads), None
        if match.convention == "textbrewer_unmasked":
            mask = None
        if "convention" in inspect.signature(loss).parameters:
            convention = "exact" if match.convention == "exact" else "textbrewer"
            loss = functools.partial(loss, convention=convention)
        return loss(*sides, mask), None

    def _respond(
        self,
        student: Array | None,
        teacher: Array | None,
        batch: Batch,
        progress: Array,
        temperature: Array | None,
    ) -> Mean:
        """The loss between logits."""
        config = self.config.response
        if student is None or teacher is None:
            raise ValueError(
                "logits are to be compared and a model has no head; give both models the head of "
                "the task, or response.kind='none'"
            )
        student, teacher, rows, allowed = distributions(
            self.task, student, teacher, batch, config.tokens
        )
        if config.annealing:
            teacher = teacher * schedules.annealing_factor(progress, config.annealing)
        if config.shift_probability:
            check_fields(batch, ("label", "has_label"), "response.shift_probability")
            labels = batch["label"]
            known = batch["has_label"].reshape(-1, *(1,) * (labels.ndim - 1))
            labels = jnp.where(known, labels, -1)
            teacher = responses.shift_probability(teacher, labels, allowed)
        tau: Any = config.temperature if temperature is None else temperature
        counted = {"mask": rows, "allowed": allowed}
        if config.temperature_schedule == "flsw":
            tau = schedules.flsw_temperature(
                student, teacher, tau, config.beta, config.gamma, **counted
            )
        elif config.temperature_schedule == "cwsm":
            tau = schedules.cwsm_temperature(student, teacher, tau, config.beta, **counted)
        if config.kind == "mse":
            return responses.logits_mse(student, teacher, rows, temperature=tau, allowed=allowed)
        scaled = config.scale_by_temperature
        loss = responses.logits_kl if config.kind == "kl" else responses.logits_ce
        return loss(
            student,
            teacher,
            rows,
            temperature=tau,
            scale_by_temperature=config.kind == "kl" if scaled is None else scaled,
            reduction=config.reduction,
            allowed=allowed,
            # Longer padding must not divide the loss of an answer by more.
            num_classes=None if self.task == "span" else student.shape[-1],
        )


def _projection(term: Term, projections: Mapping[str, Projection]) -> Projection:
    if term.projection not in projections:
        made = "frozen['principal'] by fit_principal, before the first step"
        if term.match.projection != "pca":
            made = "params['projections'] by distillation_params"
        raise ValueError(
            f"{term.name} needs the projection {term.projection!r}, and there are "
            f"{sorted(projections)}; make it in {made}"
        )
    return projections[term.projection]


def hard_loss(
    task: Task, logits: Array | None, batch: Batch, config: HardConfig, progress: Array
) -> Mean:
    """The loss against the labels of a batch.

    Args:
      task: what the logits are.
      logits: of the student.
      batch: with `label`, `has_label` and `mask`.
      config: settings of the loss.
      progress: share of the run that is over.

    Raises:
      ValueError: if the model has no head, the task no labels, or the batch lacks some of them.
    """
    if logits is None or task == "none":
        raise ValueError(
            "a loss against labels needs a model with the head of a task; set hard.weight=0, or "
            "give the model a head"
        )
    check_fields(batch, ("label", "has_label"), "a loss against labels")
    labels, rows = batch["label"], batch["has_label"]
    if task == "regression":
        return hard_losses.label_mse(logits, labels, rows)
    if task == "span":
        return hard_losses.span_ce(logits, labels, batch["mask"], rows)
    if task in ("tagging", "mlm"):
        return hard_losses.token_ce(logits, labels, rows, smoothing=config.label_smoothing)
    dropped = config.drop_worst
    return hard_losses.label_ce(
        logits,
        labels,
        rows,
        smoothing=config.label_smoothing,
        kept=hard_losses.kept_share(progress, dropped, config.drop_after) if dropped else 1.0,
    )
