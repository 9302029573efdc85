"""What one step of a distillation is: a student that follows a compiled objective.

The teacher runs in evaluation mode beside the student, or does not run at all where a batch brings
what it showed (see `teacher_cache`). A batch may go through in
microbatches: every sum is divided by the count of the whole batch, so that the step is that of the
whole batch, whatever the lengths of its texts are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.distillation import hard_losses
from jaxlab.distillation.cached_features import cached_features
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.objective import Losses, Objective, Stacks
from jaxlab.training.state import TrainState
from jaxlab.training.step import TrainStep, apply_gradients, split_microbatches

Batch = Mapping[str, Any]
Forward = Callable[..., Features | Stacks]
"""`forward(params, batch, taps=, train=, key=)`: what a network shows of a batch."""

STUDENT, PROJECTIONS, TEACHER, PRINCIPAL = "student", "projections", "teacher", "principal"
R_DROP = "r_drop"


class Parts(NamedTuple):
    """What a step is made of.

    Attributes:
      objective: what is learnt.
      student: how the student runs.
      teacher: how the teacher runs; `None` where batches bring its features, or none are needed.
      num_classes: of a teacher of which batches bring the largest logits only.
    """

    objective: Objective
    student: Forward
    teacher: Forward | None = None
    num_classes: int | None = None


def make_forward(model: Any, *, prefix: str = "") -> Forward:
    """How a `TextModel` runs on a batch.

    Args:
      model: the module.
      prefix: `student_` for a student with a vocabulary of its own: it takes the batch's
        `student_ids`, `student_mask` and `student_types` where those are there.
    """

    def forward(
        params: PyTree,
        batch: Batch,
        *,
        taps: frozenset[str] = frozenset(),
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Features:
        ids, mask, types = (
            batch.get(f"{prefix}{name}", batch.get(name)) for name in ("ids", "mask", "types")
        )
        return cast(
            Features,
            model.apply(
                {"params": params},
                ids,
                mask=mask,
                types=types,
                train=train,
                taps=taps,
                rngs={} if key is None else {"dropout": key},
            ),
        )

    return forward


def distillation_params(objective: Objective, student: PyTree, key: jax.Array) -> dict[str, PyTree]:
    """What a distillation trains: the student, and the projections of the objective.

    Args:
      objective: what is learnt.
      student: parameters of the student.
      key: for the projections.
    """
    return {STUDENT: student, PROJECTIONS: objective.init(key)}


def teach(parts: Parts, frozen: Mapping[str, PyTree], batch: Batch) -> Features | Stacks | None:
    """What the teacher shows of a batch: running beside, or out of the batch.

    Args:
      parts: of the step.
      frozen: with the parameters of a `teacher` that runs.
      batch: with its outputs, if it does not.

    Returns:
      Its features without a gradient; `None` where the objective needs none.

    Raises:
      ValueError: if it does not run and the batch has no outputs.
    """
    objective = parts.objective
    if not objective.needs_teacher:
        return None
    if parts.teacher is None:
        return cached_features(batch, objective.teacher_layers, parts.num_classes)
    shown = parts.teacher(frozen[TEACHER], batch, taps=objective.teacher_taps)
    return jax.lax.stop_gradient(shown)


def losses_of(
    parts: Parts,
    params: Mapping[str, PyTree],
    frozen: Mapping[str, PyTree],
    batch: Batch,
    progress: Float[Array, ""],
    key: jax.Array | None,
) -> tuple[Losses, Features | Stacks]:
    """All losses of a batch, and what the student shows.

    Args:
      parts: of the step.
      params: `student` and `projections`.
      frozen: `teacher`, and `principal` projections, where there are.
      batch: see `jaxlab.distillation.data`.
      progress: share of the run that is over.
      key: for dropout; `None` runs the student in evaluation mode.

    Raises:
      ValueError: if the objective needs a teacher and there is none.
    """
    objective = parts.objective
    teacher = teach(parts, frozen, batch)
    first, second = (None, None) if key is None else jax.random.split(key)
    r_drop = objective.config.hard.r_drop
    run = {"taps": objective.student_taps, "train": key is not None}
    student = parts.student(params[STUDENT], batch, key=first, **run)
    projections = {**params[PROJECTIONS], **frozen.get(PRINCIPAL, {})}
    losses = objective(projections, student, teacher, batch, progress)
    if r_drop and key is not None:
        again = parts.student(params[STUDENT], batch, key=second, taps=frozenset(), train=True)
        assert isinstance(student, Features) and isinstance(again, Features)
        assert student.logits is not None and again.logits is not None
        mask = batch["mask"] if student.logits.ndim == 3 else batch["mask"].any(axis=1)
        difference = hard_losses.r_drop(student.logits, again.logits, mask)
        losses = Losses(
            {**losses.means, R_DROP: difference}, {**losses.weights, R_DROP: jnp.float32(r_drop)}
        )
    return losses, student


def make_distillation_step(
    parts: Parts,
    tx: optax.GradientTransformation,
    num_steps: int,
    *,
    num_microbatches: int = 1,
    post_update: Callable[[PyTree], PyTree] | None = None,
) -> TrainStep:
    """`step(state, frozen, batch, key) -> (state, metrics)` of a distillation.

    `state.params` are those of `distillation_params`, `frozen` holds the `teacher`. Metrics:
    `loss`, every term without its weight as `loss/<term>`, and `tokens`, how many are real.

    Args:
      parts: objective and networks.
      tx: the optimizer over student and projections together: they are clipped as one.
      num_steps: updates of the whole run, for schedules.
      num_microbatches: parts that a batch goes through in; must divide its rows.
      post_update: from the updated parameters to those of the next step.

    Raises:
      ValueError: if the number of microbatches is not positive; when traced, if it does not divide.
    """
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches={num_microbatches} must be at least 1")

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, progress: Array, counts: Any, key: jax.Array
    ) -> tuple[Array, dict[str, Array]]:
        losses, _ = losses_of(parts, params, frozen, batch, progress, key)
        counts = losses.counts if counts is None else counts
        shares = {
            f"loss/{name}": mean.total / jnp.maximum(counts[name], 1.0)
            for name, mean in losses.means.items()
        }
        return losses.total(counts), shares

    def step(
        state: TrainState, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        progress = progress_at(state.step, num_steps)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if num_microbatches == 1:
            (loss, shares), grads = grad_fn(state.params, frozen, batch, progress, None, key)
        else:
            counts = _counts(parts, state.params, frozen, batch, progress, key)
            loss, shares, grads = _accumulate(
                grad_fn, num_microbatches, state.params, frozen, batch, progress, counts, key
            )
        metrics = {**shares, "loss": loss, "tokens": batch["mask"].sum(dtype=jnp.float32)}
        return apply_gradients(state, grads, state.extra, metrics, tx, post_update)

    return step


def progress_at(step: Int[Array, ""], num_steps: int) -> Float[Array, ""]:
    """Share of a run that is over: 0 at its first step, 1 at its last.

    Args:
      step: updates done.
      num_steps: updates of the run.
    """
    return jnp.clip(step.astype(jnp.float32) / max(num_steps - 1, 1), 0.0, 1.0)


def _counts(
    parts: Parts, params: PyTree, frozen: PyTree, batch: Batch, progress: Array, key: jax.Array
) -> dict[str, Array]:
    """What every term of a whole batch is a mean over.

    Counts depend on masks and labels alone, so that the compiler leaves the networks out.
    """
    losses, _ = losses_of(parts, params, frozen, batch, progress, key)
    return losses.counts


def _accumulate(
    grad_fn: Callable[..., Any],
    num_microbatches: int,
    params: PyTree,
    frozen: PyTree,
    batch: Batch,
    progress: Array,
    counts: dict[str, Array],
    key: jax.Array,
) -> tuple[Array, dict[str, Array], PyTree]:
    """Sums over the parts of a batch, each of them its share of the whole batch's mean."""
    split = split_microbatches(batch, num_microbatches)

    def one(index: Array, part: Batch) -> Any:
        own_key = jax.random.fold_in(key, index)
        (loss, shares), grads = grad_fn(params, frozen, part, progress, counts, own_key)
        return loss, shares, grads

    first = jax.tree.map(lambda leaf: leaf[0], split)
    shapes = jax.eval_shape(one, jnp.zeros((), jnp.int32), first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, one(*part)), None

    indices = jnp.arange(num_microbatches, dtype=jnp.int32)
    return jax.lax.scan(body, zeros, (indices, split))[0]


def exported_params(params: Mapping[str, PyTree]) -> PyTree:
    """The student alone: what is evaluated and exported.

    Args:
      params: those of `distillation_params`.
    """
    return params[STUDENT]
