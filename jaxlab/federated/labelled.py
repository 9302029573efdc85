"""Tasks with labels: one class of several, several labels at once, and numbers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from jaxlab.federated.rankings import rank_classes, rank_columns
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Batch, Task, field_of, supervised

SCORES, RANKED = ("correct", "f1"), ("roc_auc", "average_precision")
"""Scores of examples, and of all examples of a client."""


def _check_labels(examples: Mapping[str, Any], form: jax.ShapeDtypeStruct) -> None:
    """Looks whether `y` holds classes that the logits have."""
    y = np.asarray(field_of(examples, "y"))
    if not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(
            f"y is {y.dtype}; classification wants integers of classes, 0, 1, ...: take "
            "y.astype(np.int32), with load_csv and load_table classes=True, or for real numbers "
            "the task regression"
        )
    if y.ndim != 1:
        raise ConfigError(f"y has the shape {y.shape}; wanted (examples,), a class for every one")
    num_classes = form.shape[-1] if form.shape else 0
    wrong = (y < 0) | (y >= num_classes)
    if wrong.any():
        raise ConfigError(
            f"y goes from {y.min()} to {y.max()} and the module has {num_classes} logits, for the "
            f"classes 0 to {num_classes - 1}: {int(wrong.sum())} of {y.size} labels have none. "
            "Give the module as many outputs as there are classes, and count classes from 0"
        )


def classification(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    prepare: Callable[[Array], Array] = lambda x: x,
    *,
    masked: bool = False,
    scores: Sequence[str] = ("correct",),
) -> Task:
    """Softmax classification of `x` into `y`.

    A mixture of models is that of their probabilities.

    Args:
      module: called with `(x, train=...)`, gives logits; see `supervised`.
      example: shape and type of one `x`, as `prepare` gives it, without the batch axis.
      prepare: from `x` of the batch to the input of the module, on the device.
      masked: the module is also called with `mask=`, True for rows that are examples.
      scores: `correct`, 1 where the largest logit is the class; `hits@n`, 1 where fewer than n
        others are larger; `f1`, as scores of the classes, see `metric_values`; `roc_auc` and
        `average_precision`, of all examples of a client, see `rankings.rank_classes`.

    Raises:
      ConfigError: (a ValueError) if there is no such score, or the module cannot be called so; when
        a course is made, if `y` holds no integers of classes that the logits have.
    """
    _check_scores(scores, is_also=lambda name: name[:5] == "hits@" and name[5:].isdecimal())

    def score(logits: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        logits, labels = logits.astype(jnp.float32), batch["y"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, _score_classes(logits, labels, scores)

    def combine(logits: Array, shares: Float[Array, " models"]) -> Array:
        weighted = jax.nn.log_softmax(logits.astype(jnp.float32)) + jnp.log(shares)[:, None, None]
        return jax.nn.logsumexp(weighted, axis=0)

    ranked = tuple(name for name in scores if name in RANKED)
    return supervised(
        module, example, score, prepare=prepare, masked=masked, combine=combine,
        score_all=functools.partial(rank_classes, names=ranked) if ranked else None,
        check=_check_labels,
    )  # fmt: skip


def multi_label(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    prepare: Callable[[Array], Array] = lambda x: x,
    *,
    masked: bool = False,
    scores: Sequence[str] = ("correct",),
) -> Task:
    """Several questions of yes or no about `x`; `y` (questions,) is 1, 0, or NaN if not known.

    The loss of an example is the mean cross entropy of its questions whose answer is known. Scores
    are means over the questions, each over the examples whose answer to it is known. A mixture of
    models is that of their probabilities.

    Args:
      module: called with `(x, train=...)`, gives a logit a question; see `supervised`.
      example: shape and type of one `x`, as `prepare` gives it, without the batch axis.
      prepare: from `x` of the batch to the input of the module, on the device.
      masked: the module is also called with `mask=`, True for rows that are examples.
      scores: of `correct`, `f1` (of the answer yes), `roc_auc` and `average_precision`.

    Raises:
      ConfigError: (a ValueError) if there is no such score.
    """
    _check_scores(scores)
    ranked = tuple(name for name in scores if name in RANKED)

    def score(logits: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        logits, labels = logits.astype(jnp.float32), batch["y"].astype(jnp.float32)
        known, is_so, is_said = ~jnp.isnan(labels), labels == 1, logits > 0
        losses = jnp.where(known, optax.sigmoid_binary_cross_entropy(logits, is_so * 1.0), 0.0)
        found = {}
        for number in range(logits.shape[-1]):
            said, so, told = is_said[:, number], is_so[:, number], known[:, number]
            if "correct" in scores:
                found[f"correct@{number}"] = jnp.stack([told & (said == so), told], axis=-1) * 1.0
            if "f1" in scores:
                pair = jnp.stack([2 * (said & so), said * 1 + so], axis=-1)
                found[f"f1@{number}"] = jnp.where(told[:, None], pair * 1.0, 0.0)
        return losses.sum(axis=-1) / jnp.maximum(known.sum(axis=-1), 1), found

    def combine(logits: Array, shares: Float[Array, " models"]) -> Array:
        logits, weights = logits.astype(jnp.float32), jnp.log(shares)[:, None, None]
        yes = jax.nn.logsumexp(jax.nn.log_sigmoid(logits) + weights, axis=0)
        return yes - jax.nn.logsumexp(jax.nn.log_sigmoid(-logits) + weights, axis=0)

    return supervised(
        module, example, score, prepare=prepare, masked=masked, combine=combine,
        score_all=functools.partial(rank_columns, names=ranked) if ranked else None,
    )  # fmt: skip


def regression(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    *,
    masked: bool = False,
    squared: bool = False,
) -> Task:
    """Least squares: the loss of an example is the mean of its squared errors.

    A mixture of models is that of their predictions.

    Args:
      module: called with `(x, train=...)`, gives predictions of as many numbers as `y`; see
        `supervised`.
      example: shape and type of one `x`, without the batch axis.
      masked: the module is also called with `mask=`, True for rows that are examples.
      squared: have the loss as the score `mse`, too, beside which reports have its root, `rmse`.
    """

    def score(predicted: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        target = jnp.reshape(batch["y"], predicted.shape).astype(jnp.float32)
        errors = jnp.square(predicted.astype(jnp.float32) - target)
        losses = errors.mean(axis=tuple(range(1, errors.ndim)))
        return losses, {"mse": losses} if squared else {}

    def combine(predicted: Array, shares: Float[Array, " models"]) -> Array:
        return jnp.tensordot(shares, predicted.astype(jnp.float32), 1)

    return supervised(module, example, score, masked=masked, combine=combine)


def _check_scores(names: Sequence[str], is_also: Callable[[str], bool] | None = None) -> None:
    wrong = [n for n in names if n not in SCORES + RANKED and not (is_also and is_also(n))]
    if wrong:
        others = ", hits@1, hits@2 ..." if is_also else ""
        raise ConfigError(
            f"the score {wrong[0]!r} is not one of {', '.join(SCORES + RANKED)}{others}"
        )


def _score_classes(
    logits: Float[Array, "batch classes"], labels: Array, names: Sequence[str]
) -> dict[str, Array]:
    predicted, found = jnp.argmax(logits, axis=-1), {}
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (logits > own).sum(axis=-1)
    for name in names:
        if name == "correct":
            found[name] = (predicted == labels).astype(jnp.float32)
        elif name == "f1":
            # 2 TP / (2 TP + FP + FN) of a class: both add up over examples.
            for number in range(logits.shape[-1]):
                is_said, is_so = predicted == number, labels == number
                pair = jnp.stack([2 * (is_said & is_so), is_said * 1 + is_so], axis=-1)
                found[f"f1@{number}"] = pair.astype(jnp.float32)
        elif name not in RANKED:
            found[name] = (rank < int(name.partition("@")[2])).astype(jnp.float32)
    return found
