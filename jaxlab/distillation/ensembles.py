"""Several teachers of one student, and several tasks of one student.

References:
  `MultiTeacherDistiller` of TextBrewer 0.2.1 averages logits; Clark et al. 2019, arXiv:1907.04829
  (BAM), and Stickland and Murray 2019, arXiv:1902.02671, draw tasks by a power of their sizes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, PyTree

from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.responses import check_temperature
from jaxlab.distillation.train import Forward

MIXINGS = ("logits", "probabilities", "confidence")
NOWHERE = -1e9
"""Logit of a padded token as the place of an answer."""

Weights = Float[Array, "weights_teachers *weights_rows"]


def mean_logits(
    logits: Float[Array, "teachers *rows classes"], weights: Weights | None = None
) -> Float[Array, "*rows classes"]:
    """The mean of the teachers' logits: the (normalised) geometric mean of their distributions.

    Args:
      logits: of every teacher, the same classes in the same order.
      weights: of every teacher for every row, adding up to 1 over teachers; `None` is equal ones.

    Returns:
      Logits, float32.

    Raises:
      ValueError: if the weights have another shape.
    """
    return (_or_equal(weights, logits)[..., None] * logits.astype(jnp.float32)).sum(axis=0)


def mean_probabilities(
    logits: Float[Array, "teachers *rows classes"],
    weights: Weights | None = None,
    *,
    temperature: float = 1.0,
) -> Float[Array, "*rows classes"]:
    """Logits of the mean of the teachers' distributions (their mixture).

    A class that one teacher thinks likely stays likely here, while a mean of logits needs all of
    them.

    Args:
      logits: of every teacher, the same classes in the same order.
      weights: as in `mean_logits`.
      temperature: tau at which distributions are averaged, and at which the student is to be
        compared: `softmax(found / tau)` is the mixture.

    Returns:
      Logits, float32.

    Raises:
      ValueError: if the weights have another shape, or the temperature is not positive.
    """
    check_temperature(temperature)
    logs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    shares = jnp.broadcast_to(_or_equal(weights, logits)[..., None], logs.shape)
    return temperature * jax.nn.logsumexp(logs, axis=0, b=shares)


def confidence_weights(
    logits: Float[Array, "teachers *rows classes"],
    labels: Int[Array, "*rows"] | None = None,
    has_label: Bool[Array, "*rows"] | None = None,
    *,
    sharpness: float = 1.0,
) -> Float[Array, "teachers *rows"]:
    """Weights of the teachers by example: `softmax_t(-sharpness u_t)`.

    `u_t` is the teacher's cross entropy with the label where there is one, else its entropy: what a
    teacher is unsure of, or wrong about, is left to the others.

    Args:
      logits: of every teacher.
      labels: right classes, negative where there is none; `None` if there are none at all.
      has_label: rows that have one; `None` is all of them, if labels are given.
      sharpness: 0 gives equal weights, a large one the most confident teacher alone.

    Returns:
      Weights that add up to 1 over teachers, without a gradient.

    Raises:
      ValueError: for a negative sharpness.
    """
    if not (sharpness >= 0 and math.isfinite(sharpness)):
        raise ValueError(f"sharpness={sharpness} must be 0 (equal weights) or more, and finite")
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    unsure = -(jnp.exp(logs) * logs).sum(axis=-1)
    if labels is not None:
        known = labels >= 0 if has_label is None else has_label & (labels >= 0)
        places = jnp.broadcast_to(jnp.where(known, labels, 0)[None, ..., None], (*unsure.shape, 1))
        wrong = -jnp.take_along_axis(logs, places, axis=-1)[..., 0]
        unsure = jnp.where(jnp.broadcast_to(known[None], unsure.shape), wrong, unsure)
    return jax.lax.stop_gradient(jax.nn.softmax(-sharpness * unsure, axis=0))


def make_ensemble_forward(
    forwards: Sequence[Forward],
    mixing: str = "logits",
    *,
    temperature: float = 1.0,
    task: str = "classification",
) -> Forward:
    """How several teachers run as one: every one on the batch, and the mean of their logits.

    Args:
      forwards: of the teachers, whose parameters come in the same order.
      mixing: what is averaged: `logits`, `probabilities`, or logits by the `confidence` of every
        teacher (of texts with the label of a class: by how right it is).
      temperature: of the probabilities.
      task: what the logits are; those of a `span` are distributions over the tokens of a text.

    Raises:
      ValueError: for an unknown mixing, or one of distributions for a regression; when traced, if
        features of layers are asked for.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"mixing={mixing!r} is not one of {', '.join(MIXINGS)}")
    check_mixing(mixing, task)

    def forward(
        params: Sequence[PyTree],
        batch: Mapping[str, Any],
        *,
        taps: frozenset[str] = frozenset(),
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Features:
        del train, key  # teachers are evaluated
        if taps:
            raise ValueError(
                f"{len(forwards)} teachers are averaged in their logits; {', '.join(sorted(taps))} "
                "of layers need a single one"
            )
        shown = [run(own, batch) for run, own in zip(forwards, params, strict=True)]
        logits = jnp.stack([cast(Array, cast(Features, each).logits) for each in shown])
        if mixing == "logits":
            return Features(logits=mean_logits(logits))
        if task == "span":
            logits = jnp.swapaxes(jnp.where(batch["mask"][..., None], logits, NOWHERE), -1, -2)
        if mixing == "probabilities":
            mixed = mean_probabilities(logits, temperature=temperature)
        else:
            knows = logits.ndim == 3 and "label" in batch  # an evaluation does not tell labels
            labels = (batch["label"], batch["has_label"]) if knows else (None, None)
            mixed = mean_logits(logits, confidence_weights(logits, *labels))
        return Features(logits=jnp.swapaxes(mixed, -1, -2) if task == "span" else mixed)

    return forward


def check_mixing(mixing: str, task: str) -> None:
    """Refuse a mixing of distributions where the outputs are numbers.

    Args:
      mixing: see `make_ensemble_forward`.
      task: what the outputs are.

    Raises:
      ValueError: naming both.
    """
    if task == "regression" and mixing != "logits":
        raise ValueError(
            f"mixing={mixing!r} is of distributions over classes, and the task is a regression; "
            "use mixing='logits', the mean of the numbers"
        )


def task_probabilities(sizes: Sequence[int], power: float = 0.5) -> Float64[np.ndarray, " tasks"]:
    """How often every task is drawn: in proportion to `size ** power`.

    Args:
      sizes: examples of every task.
      power: 1 draws by size, 0 all tasks equally often.

    Raises:
      ValueError: if there is no task, one is empty, or the power is outside [0, 1].
    """
    empty = [task for task, size in enumerate(sizes) if size < 1]
    if empty or not sizes:
        raise ValueError(f"sizes={list(sizes)}: tasks {empty} are empty; leave them out")
    if not 0.0 <= power <= 1.0:
        raise ValueError(f"power={power} must be in [0, 1]: 0 is equally often, 1 by size")
    scaled = np.asarray(sizes, np.float64) ** power
    return scaled / scaled.sum()


def task_of_step(step: int, sizes: Sequence[int], *, seed: int, power: float = 0.5) -> int:
    """The task that a step trains: the same for every process, and after a resume.

    Args:
      step: number of updates done.
      sizes: examples of every task.
      seed: of the draws.
      power: see `task_probabilities`.

    Returns:
      Position of the task.

    Raises:
      ValueError: as `task_probabilities`.
    """
    probabilities = task_probabilities(sizes, power)
    drawn = np.random.default_rng((seed, step)).random()
    # Rounding may leave the last sum below 1.
    found = np.searchsorted(np.cumsum(probabilities), drawn, side="right")
    return min(int(found), len(sizes) - 1)


def _or_equal(weights: Weights | None, logits: Array) -> Array:
    if weights is None:
        return jnp.full(logits.shape[:-1], 1.0 / logits.shape[0], jnp.float32)
    if weights.shape != logits.shape[:-1]:
        raise ValueError(
            f"weights of shape {weights.shape} for logits {logits.shape}; give one for every "
            f"teacher and row: {logits.shape[:-1]}"
        )
    return weights
