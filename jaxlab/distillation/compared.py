"""What a loss takes of two models and a batch: layers of their features, masks, distributions."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxlab.distillation.attentions import Attended, Mask
from jaxlab.distillation.grammar import Match
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.terms import Term, features_of

Stacks = Mapping[str, Features]
"""Features of an encoder-decoder by stack: `encoder`, `decoder`, `cross`."""

Batch = Mapping[str, Any]
Task = Literal["none", "classification", "regression", "tagging", "span", "mlm"]


def check_fields(batch: Batch, wanted: Sequence[str], whose: str) -> None:
    """Refuse a batch that lacks fields.

    Args:
      batch: the fields of examples.
      wanted: names of those that are needed.
      whose: what needs them.

    Raises:
      ValueError: naming what is missing, and what there is.
    """
    missing = [name for name in wanted if name not in batch]
    if missing:
        raise ValueError(
            f"{whose} needs {', '.join(wanted)} of every example, and the batch lacks "
            f"{', '.join(missing)}; it has {', '.join(sorted(batch))}"
        )


def of_stack(features: Features | Stacks, stack: str) -> Features:
    """The features of a stack; a network that is one stack has only that of an encoder.

    Args:
      features: of a network.
      stack: `encoder`, `decoder` or `cross`.

    Raises:
      ValueError: if the network has no such stack.
    """
    if isinstance(features, Features):
        if stack != "encoder":
            raise ValueError(f"a match is of the {stack}, and the model is an encoder alone")
        return features
    if stack not in features:
        raise ValueError(f"a match is of the {stack}; the model shows {', '.join(features)}")
    return features[stack]


def mask_of(match: Match, batch: Batch) -> Mask:
    """What counts of a stack: real tokens, or queries and the keys that they see.

    In the decoder tokens see those before them and themselves, relations between its tokens as its
    attention. Of the attention to the encoder the queries are the decoder's, keys and values the
    encoder's.

    Args:
      match: of features of a stack.
      batch: with `mask`, and of an encoder-decoder `decoder_mask`.

    Raises:
      ValueError: if there is no mask of a decoder.
    """
    if match.stack == "encoder":
        return batch["mask"]
    if "decoder_mask" not in batch:
        raise ValueError(
            f"a match is of {match.stack}, and the batch has {', '.join(sorted(batch))}; give "
            "decoder_mask, True for the decoder's real tokens"
        )
    queries = batch["decoder_mask"]
    keys = queries if match.stack == "decoder" else batch["mask"]
    features = features_of(match)
    if features == ("hidden",):
        return queries
    sides = features if match.kind.is_relation else ("queries", "keys")
    asking, seen = (queries if feature == "queries" else keys for feature in sides)
    if match.knowledge == "example_relation":
        return asking
    shown = seen[:, None, :]
    if match.stack == "decoder":
        shown = shown & jnp.tril(jnp.ones((seen.shape[1],) * 2, bool))[None]
    return Attended(asking, shown)


def top_features(features: Features | Stacks) -> Features:
    """The features that hold the logits: of an encoder-decoder those of the decoder.

    Args:
      features: what a network shows.
    """
    return features if isinstance(features, Features) else features["decoder"]


def take(
    features: Features, term: Term, side: int, num_layers: int, width: int
) -> tuple[Array, ...]:
    """What a loss compares, of one side: a feature of one or two layers, or two of one layer.

    Args:
      features: of the stack that the term is of.
      term: names features and layers.
      side: 0 is the student, 1 the teacher.
      num_layers: of this side's stack, by the shape that the objective was compiled for.
      width: of its hidden states, likewise.

    Raises:
      ValueError: if the model shows other layers or widths, or nothing of the kind.
    """
    if term.match.kind.is_pooled:
        return (_pooled(features, term, side)[:, None],)
    layers = term.pair.student if side == 0 else term.pair.teacher
    taken = []
    for feature in features_of(term.match):
        values = getattr(features, feature)
        lower = 1 if feature == "hidden" else 0
        # A deeper stack than the one compiled for has its last layer elsewhere.
        if not max(layers) + lower < len(values) <= num_layers + lower:
            raise ValueError(
                f"{term.name} compares {feature} of layer {max(layers)} of the "
                f"{('student', 'teacher')[side]}, which shows {len(values) - lower} layers of it, "
                f"and was to have {num_layers}; compile the objective for the shapes of these "
                "models and let them show what `student_taps` and `teacher_taps` name"
            )
        chosen = [values[layer + lower] for layer in layers]
        found = chosen[0].shape[-1]
        if feature == "hidden" and found != width:
            raise ValueError(
                f"{term.name} compares hidden states of the {('student', 'teacher')[side]}, which "
                f"are {found} wide and were to be {width}; compile the objective for the shapes of "
                "these models"
            )
        taken += chosen
    return tuple(taken)


def join(layers: tuple[Array, ...], chosen: Array | None) -> tuple[Array]:
    """Hidden states of layers as one hidden state, whose width is the sum of theirs.

    Args:
      layers: hidden states, of one width.
      chosen: which of them; `None` takes all.
    """
    if chosen is None:
        return (jnp.concatenate(layers, axis=-1),)
    kept = jnp.moveaxis(jnp.stack(layers)[chosen], 0, 2)
    return (kept.reshape(*kept.shape[:2], -1),)


def _pooled(features: Features, term: Term, side: int) -> Array:
    if features.pooled is None:
        raise ValueError(
            f"{term.name} compares the pooled output, and the {('student', 'teacher')[side]} shows "
            "none; give both models a task of whole texts (classification, regression, or none) "
            "and let the teacher run, as on disk it has none"
        )
    return features.pooled


def distributions(
    task: Task, student: Array, teacher: Array, batch: Batch, tokens: str = "real"
) -> tuple[Array, Array, Array, Array | None]:
    """Logits with their classes last, the rows that count, and the classes that may be chosen.

    Where logits are of tokens, a batch may have `allowed`, the classes that may be predicted: bool
    (batch, tokens, classes), (batch, 1, classes), or (classes,) if it goes through as a whole. The
    others have no part in the distributions (a loss against labels does not look at it), and tokens
    without any that is allowed do not count.

    Args:
      task: what the logits are.
      student: logits.
      teacher: logits to compare them with.
      batch: with `mask`; `decoder_mask` in its place for an encoder-decoder.
      tokens: `real` ones count, or those with a `label` only.

    Raises:
      ValueError: if `allowed` has another shape, or logits are not of tokens.
    """
    mask = batch["decoder_mask"] if "decoder_mask" in batch else batch["mask"]
    if "allowed" in batch and (task == "span" or student.ndim == 2):
        raise ValueError(
            f"the batch has allowed classes of tokens, and logits {student.shape} are of a {task}; "
            "leave `allowed` out"
        )
    if task == "span":
        student, teacher = (jnp.swapaxes(logits, 1, 2) for logits in (student, teacher))
        # Padding is no place of an answer, and a row without any token none for a question.
        rows = jnp.broadcast_to(mask.any(axis=-1)[:, None], student.shape[:-1])
        return student, teacher, rows, (mask | ~mask.any(axis=-1, keepdims=True))[:, None, :]
    if student.ndim == 2:
        return student, teacher, mask.any(axis=-1), None
    rows = mask & (batch["label"] >= 0) if tokens == "label" else mask
    if "allowed" not in batch:
        return student, teacher, rows, None
    allowed = batch["allowed"]
    allowed = allowed[None, None] if allowed.ndim == 1 else allowed
    wanted = [(size,) if i == 2 else (1, size) for i, size in enumerate(student.shape)]
    if allowed.ndim != 3 or any(n not in of for n, of in zip(allowed.shape, wanted, strict=True)):
        raise ValueError(
            f"allowed has shape {batch['allowed'].shape} and logits {student.shape}; give one of "
            f"{student.shape} or {student.shape[-1:]}"
        )
    possible = allowed.any(axis=-1)
    return student, teacher, rows & possible, allowed | ~possible[..., None]
