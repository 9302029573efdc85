"""What one step of a distillation is: a student that follows a compiled objective.

The teacher runs in evaluation mode beside the student, or does not run at all where a batch brings
what it showed (see `teacher_cache`). A batch may go through in
microbatches: every sum is divided by the count of the whole batch, so that the step is that of the
whole batch, whatever the lengths of its texts are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.distillation import hard_losses
from jaxlab.distillation.cached_features import cached_features, check_cacheable
from jaxlab.distillation.compared import Batch, Stacks, distributions, top_features
from jaxlab.distillation.grammar import STACKS
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.moving_matches import current_matchings, init_matchings, next_matchings
from jaxlab.distillation.objective import (
    HARD,
    RESPONSE,
    Losses,
    Objective,
)
from jaxlab.distillation.weighting import Weighting
from jaxlab.training.state import TrainState
from jaxlab.training.step import TrainStep, apply_gradients, split_microbatches

Forward = Callable[..., Features | Stacks]
"""`forward(params, batch, taps=, train=, key=)`: what a network shows of a batch."""

STUDENT, PROJECTIONS, TEACHER, PRINCIPAL = "student", "projections", "teacher", "principal"
LOG_VARIANCES, WEIGHTING, MATCHINGS = "log_variances", "weighting", "matchings"
R_DROP = "r_drop"

OF_TEXTS = ("pkd", "pooled_mse", "pooled_cos")
"""Knowledge of a text as a whole, which needs no common tokens."""


class Parts(NamedTuple):
    """What a step is made of.

    Attributes:
      objective: what is learnt.
      student: how the student runs.
      teacher: how the teacher runs; `None` where batches bring its features, or none are needed.
      num_classes: of a teacher of which batches bring the largest logits only.
      is_aligned: where batches have `student_ids`, every token of them stands in the place of the
        teacher's, so that tokens may be compared.
    """

    objective: Objective
    student: Forward
    teacher: Forward | None = None
    num_classes: int | None = None
    is_aligned: bool = False


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


def make_seq2seq_forward(model: Any) -> Forward:
    """How a `layers.seq2seq.Seq2Seq` runs on a batch: what `encoder`, `decoder` and `cross` show.

    A batch has `ids` and `mask` of the encoder, `decoder_ids` (already shifted) and `decoder_mask`.
    Every stack shows all that any match asks for; the compiler leaves out what none reads.

    Args:
      model: the module.
    """

    def forward(
        params: PyTree,
        batch: Batch,
        *,
        taps: frozenset[str] = frozenset(),
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Stacks:
        wanted = ("ids", "mask", "decoder_ids", "decoder_mask")
        if missing := [name for name in wanted if name not in batch]:
            raise ValueError(
                f"the batch has {', '.join(sorted(batch))}; an encoder-decoder also needs "
                f"{', '.join(missing)}"
            )
        shown = model.apply(
            {"params": params},
            batch["ids"],
            batch["decoder_ids"],
            mask=batch["mask"],
            decoder_mask=batch["decoder_mask"],
            train=train,
            encoder_taps=taps,
            decoder_taps=taps,
            cross_taps=taps - {"hidden"},
            rngs={} if key is None else {"dropout": key},
        )
        stacks = {name: Features(**getattr(shown, name)._asdict()) for name in STACKS}
        return {**stacks, "decoder": stacks["decoder"]._replace(logits=shown.logits)}

    return forward


def distillation_params(
    objective: Objective, student: PyTree, key: jax.Array, fitted: Sequence[Mapping[str, Any]] = ()
) -> dict[str, PyTree]:
    """What a distillation trains: the student, projections, and learned weights of the terms.

    Args:
      objective: what is learnt.
      student: parameters of the student.
      key: for the projections.
      fitted: projections of an earlier training, see `Objective.init`.
    """
    learned = weighting_of(objective).init_params()
    own = {LOG_VARIANCES: learned} if learned else {}
    return {STUDENT: student, PROJECTIONS: objective.init(key, fitted), **own}


def distillation_extra(objective: Objective) -> dict[str, PyTree]:
    """What goes from step to step without a gradient, `extra` of a state; often nothing.

    Args:
      objective: what is learnt.
    """
    found = {
        WEIGHTING: weighting_of(objective).init_state(),
        MATCHINGS: init_matchings(objective.terms) or None,
    }
    return {name: state for name, state in found.items() if state is not None}


def weighting_of(objective: Objective) -> Weighting:
    """The rule by which the terms of an objective are weighed.

    Args:
      objective: what is learnt.
    """
    config = objective.config
    names = (*objective.names, *((R_DROP,) if config.hard.r_drop else ()))
    return Weighting(config.weighting, names, config.weighting_every)


def teach(parts: Parts, frozen: Mapping[str, PyTree], batch: Batch) -> Features | Stacks | None:
    """What the teacher shows of a batch: running beside, or out of the batch.

    Args:
      parts: of the step.
      frozen: with the parameters of a `teacher` that runs.
      batch: with its outputs, if it does not.

    Returns:
      Its features without a gradient; `None` where the objective needs none.

    Raises:
      ValueError: if it is to run and has no parameters, or does not and the batch has no outputs,
        or not all that the objective counts (see `check_cacheable`), or the student has tokens of
        its own and tokens are compared.
    """
    objective = parts.objective
    if not objective.needs_teacher:
        return None
    _check_tokens(parts, batch)
    if parts.teacher is None:
        check_cacheable(objective.terms)
        assert objective.teacher is not None, "it is needed"
        return cached_features(batch, objective.teacher.num_layers, parts.num_classes)
    if TEACHER not in frozen:
        raise ValueError(
            f"frozen has {sorted(frozen)}; it is to hold the parameters of the teacher as "
            f"{TEACHER!r}"
        )
    shown = parts.teacher(frozen[TEACHER], batch, taps=objective.teacher_taps)
    return jax.lax.stop_gradient(shown)


def _check_tokens(parts: Parts, batch: Batch) -> None:
    """Refuse to compare the tokens of two vocabularies one by one."""
    if parts.is_aligned or "student_ids" not in batch:
        return
    objective = parts.objective
    compared = [t.name for t in objective.terms if t.match.knowledge not in OF_TEXTS]
    if objective.task in ("tagging", "span", "mlm"):
        compared += [name for name in objective.names if name in (RESPONSE, HARD)]
    if compared:
        raise ValueError(
            f"{', '.join(compared)} are of tokens, and the batch has student_ids: the student cuts "
            f"the texts in its own way; match {', '.join(OF_TEXTS)} or logits of texts, or give "
            "Parts(is_aligned=True) if every token stands in the place of the teacher's"
        )


def losses_of(
    parts: Parts,
    params: Mapping[str, PyTree],
    frozen: Mapping[str, PyTree],
    batch: Batch,
    progress: Float[Array, ""],
    key: jax.Array | None,
    matchings: Mapping[str, Array] | None = None,
) -> tuple[Losses, Features | Stacks]:
    """All losses of a batch, and what the student shows.

    Args:
      parts: of the step.
      params: `student` and `projections`.
      frozen: `teacher`, and `principal` projections, where there are.
      batch: see `jaxlab.distillation.data`.
      progress: share of the run that is over.
      key: for dropout; `None` runs the student in evaluation mode.
      matchings: of the terms that move, see `moving_matches`.

    Raises:
      ValueError: if the objective needs a teacher and there is none, R-Drop is asked of a student
        without a head, or params or batch lack what every objective needs.
    """
    if STUDENT not in params or "mask" not in batch:
        raise ValueError(
            f"params have {sorted(params)}, the batch {sorted(batch)}; wanted params made by "
            "distillation_params, and the mask of real tokens in the batch"
        )
    objective = parts.objective
    teacher = teach(parts, frozen, batch)
    first, second = (None, None) if key is None else jax.random.split(key)
    r_drop = objective.config.hard.r_drop
    run = {"taps": objective.student_taps, "train": key is not None}
    student = parts.student(params[STUDENT], batch, key=first, **run)
    projections = {**params[PROJECTIONS], **frozen.get(PRINCIPAL, {})}
    losses = objective(projections, student, teacher, batch, progress, matchings=matchings)
    if r_drop and key is not None:
        again = parts.student(params[STUDENT], batch, key=second, taps=frozenset(), train=True)
        passes = [top_features(shown).logits for shown in (student, again)]
        if passes[0] is None or passes[1] is None:
            raise ValueError(
                f"hard.r_drop={r_drop} compares logits and the student has no head; give it the "
                "head of the task, or set hard.r_drop=0"
            )
        compared = distributions(objective.task, passes[0], passes[1], batch)
        difference = hard_losses.r_drop(*compared)
        losses = losses._replace(
            means={**losses.means, R_DROP: difference},
            weights={**losses.weights, R_DROP: jnp.float32(r_drop)},
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

    `state.params` are those of `distillation_params`, `state.extra` of `distillation_extra`,
    `frozen` holds the `teacher`. Metrics: `loss`, every term without its weight as `loss/<term>`,
    its weight as `weight/<term>` unless the settings fix it, and `tokens`, how many are real. A
    label outside the classes makes the loss NaN (gradients need not be), as no error can come from
    inside a jitted step: see `check_labels`; `training.train_loop` stops at the first loss that is
    not finite.

    Args:
      parts: objective and networks.
      tx: the optimizer over student and projections together: they are clipped as one.
      num_steps: updates of the whole run, for schedules.
      num_microbatches: parts that a batch goes through in; must divide its rows.
      post_update: from the updated parameters to those of the next step.

    Raises:
      ValueError: if the number of microbatches is not positive, or there are several and a term
        needs the batch as a whole; when traced, if it does not divide.
    """
    if num_microbatches < 1:
        raise ValueError(f"num_microbatches={num_microbatches} must be at least 1")
    terms, weighting = parts.objective.terms, weighting_of(parts.objective)
    weighting.check_microbatches(num_microbatches)
    if num_microbatches > 1 and (whole := _of_whole_batches(parts.objective)):
        raise ValueError(
            f"{'; '.join(whole)}: these need a whole batch, and it goes through in "
            f"{num_microbatches} microbatches; use one"
        )

    def loss_fn(
        params: PyTree, run: _Run, batch: Batch, counts: Any, key: jax.Array
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        losses, _ = losses_of(parts, params, run.frozen, batch, run.progress, key, run.matchings)
        counts = losses.counts if counts is None else counts
        metrics = {
            f"loss/{name}": mean.total / jnp.maximum(counts[name], 1.0)
            for name, mean in losses.means.items()
        }
        share = 1.0 / num_microbatches
        found = weighting.weigh(losses, counts, params.get(LOG_VARIANCES, {}), run.weighting, share)
        if weighting.kind != "fixed":
            metrics |= {f"weight/{name}": share * w for name, w in found.weights.items()}
        costs = {
            name: pair.total / jnp.maximum(counts[name], 1.0)
            for name, pair in (losses.pairs or {}).items()
        }
        return found.loss, (metrics, {WEIGHTING: found.state, MATCHINGS: costs})

    def step(
        state: TrainState, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        states = state.extra.get(MATCHINGS, {})
        run = _Run(
            frozen,
            progress_at(state.step, num_steps),
            current_matchings(terms, states, state.key, state.step),
            state.extra.get(WEIGHTING),
        )

        def terms_of(student: PyTree) -> Any:
            params, own = {**state.params, STUDENT: student}, jax.random.fold_in(key, 0)
            losses, _ = losses_of(parts, params, frozen, batch, run.progress, own, run.matchings)
            return losses.means

        measured = weighting.measure(run.weighting, terms_of, state.params[STUDENT], state.step)
        run = run._replace(weighting=measured)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if num_microbatches == 1:
            (loss, (metrics, moved)), grads = grad_fn(state.params, run, batch, None, key)
        else:
            counts = _counts(parts, state.params, run, batch, key)
            loss, (metrics, moved), grads = _accumulate(
                grad_fn, num_microbatches, state.params, run, batch, counts, key
            )
        new = {
            WEIGHTING: moved[WEIGHTING],
            MATCHINGS: next_matchings(terms, states, moved[MATCHINGS], state.step),
        }
        extra = {name: new[name] for name in state.extra}
        metrics = {**metrics, "loss": loss, "tokens": batch["mask"].sum(dtype=jnp.float32)}
        return apply_gradients(state, grads, extra, metrics, tx, post_update)

    return step


class _Run(NamedTuple):
    """What the parts of a batch have in common."""

    frozen: PyTree
    progress: Array
    matchings: dict[str, Array]
    weighting: Any


def progress_at(step: Int[Array, ""], num_steps: int) -> Float[Array, ""]:
    """Share of a run that is over: 0 at its first step, 1 at its last.

    Args:
      step: updates done.
      num_steps: updates of the run.
    """
    return jnp.clip(step.astype(jnp.float32) / max(num_steps - 1, 1), 0.0, 1.0)


def _of_whole_batches(objective: Objective) -> list[str]:
    """What of an objective is another loss where a batch goes through in parts, and why."""
    response, hard = objective.config.response, objective.config.hard
    varied, dropped = response.temperature_schedule, hard.drop_worst
    found = [
        (
            response.is_used and response.schedule == "continuation",
            "response.schedule='continuation' compares the loss of the batch with its margin",
        ),
        (
            response.is_used and varied != "constant",
            f"response.temperature_schedule={varied!r} varies around the mean over the batch",
        ),
        (
            hard.weight > 0 and dropped > 0,
            f"hard.drop_worst={dropped} leaves out the worst rows of the batch",
        ),
        (
            any(term.match.knowledge == "example_relation" for term in objective.terms),
            "example_relation relates every example with all others",
        ),
    ]
    return [text for applies, text in found if applies]


def _counts(
    parts: Parts, params: PyTree, run: _Run, batch: Batch, key: jax.Array
) -> dict[str, Array]:
    """What every term of a whole batch is a mean over.

    Counts depend on masks and labels alone, so that the compiler leaves the networks out.
    """
    losses, _ = losses_of(parts, params, run.frozen, batch, run.progress, key, run.matchings)
    return losses.counts


def _accumulate(
    grad_fn: Callable[..., Any],
    num_microbatches: int,
    params: PyTree,
    run: _Run,
    batch: Batch,
    counts: dict[str, Array],
    key: jax.Array,
) -> tuple[Array, Any, PyTree]:
    """Sums over the parts of a batch, each of them its share of the whole batch's mean."""
    split = split_microbatches(batch, num_microbatches)

    def one(index: Array, part: Batch) -> Any:
        own_key = jax.random.fold_in(key, index)
        (loss, aux), grads = grad_fn(params, run, part, counts, own_key)
        return loss, aux, grads

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
