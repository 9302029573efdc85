"""Losses between the logits of a student and of its teacher.

The temperature is a number, or one number an example or row. The gradient of a cross entropy or KL
divergence at temperature tau is 1 / tau^2 of what it is at 1: Hinton et al. multiply by tau^2 to
keep the balance with hard labels, TextBrewer does not. `logits_kl` does, `logits_ce` and
`logits_mse` do not, as in those systems; `scale_by_temperature` changes it.

References:
  Hinton et al. 2015, arXiv:1503.02531; `textbrewer/losses.py` of TextBrewer 0.2.1;
  `task_distill.py` of TinyBERT; `kd_loss` of OFA-Compress for lists of tokens.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.distillation.means import Mean, masked_mean

Temperature = float | Float[Array, ""] | Float[Array, " batch"] | Float[Array, "*rows"]
Reduction = Literal["rows", "numel"]


def logits_ce(
    student: Float[Array, "*rows classes"],
    teacher: Float[Array, "*rows teacher_classes"],
    mask: Bool[Array, "*rows"] | None = None,
    *,
    temperature: Temperature = 1.0,
    scale_by_temperature: bool = False,
    reduction: Reduction = "rows",
    allowed: Bool[Array, "*#rows classes"] | None = None,
    num_classes: int | None = None,
) -> Mean:
    """Cross entropy of the student under the teacher, `-sum_c softmax(z_T / tau)_c log p_S,c`.

    Args:
      student: logits.
      teacher: logits of the same classes; no gradient goes to them.
      mask: rows (examples, or tokens) that count; `None` counts all.
      temperature: tau, positive.
      scale_by_temperature: multiply by tau^2.
      reduction: mean over `rows`, or over rows times classes (`numel`), as TinyBERT's and OFA's
        code takes it, whose loss is smaller by the number of classes.
      allowed: classes that may be predicted; the others have no part in either distribution.
      num_classes: what `numel` divides by; `None` takes the number of those that are allowed, OFA's
        code that of all.

    Returns:
      The mean, in nats.

    Raises:
      ValueError: if the numbers of classes differ, or the temperature is not positive.
    """
    tau, log_student, log_teacher = _log_probabilities(student, teacher, temperature, allowed)
    losses = -_expected(log_teacher, log_student)
    if scale_by_temperature:
        losses = losses * tau[..., 0] ** 2
    if reduction == "numel":
        losses = losses / (num_classes or _num_classes(student, allowed))
    return _reduce(losses, mask)


def logits_kl(
    student: Float[Array, "*rows classes"],
    teacher: Float[Array, "*rows teacher_classes"],
    mask: Bool[Array, "*rows"] | None = None,
    *,
    temperature: Temperature = 1.0,
    scale_by_temperature: bool = True,
    reduction: Reduction = "rows",
    allowed: Bool[Array, "*#rows classes"] | None = None,
    num_classes: int | None = None,
) -> Mean:
    """`tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))`: 0 where the two agree.

    Its gradient is that of `logits_ce`.

    Args:
      student: logits.
      teacher: logits of the same classes; no gradient goes to them.
      mask: rows that count; `None` counts all.
      temperature: tau, positive.
      scale_by_temperature: multiply by tau^2.
      reduction: see `logits_ce`.
      allowed: see `logits_ce`.
      num_classes: see `logits_ce`.

    Returns:
      The mean, in nats.

    Raises:
      ValueError: if the numbers of classes differ, or the temperature is not positive.
    """
    tau, log_student, log_teacher = _log_probabilities(student, teacher, temperature, allowed)
    losses = _expected(log_teacher, log_teacher - log_student)
    if scale_by_temperature:
        losses = losses * tau[..., 0] ** 2
    if reduction == "numel":
        losses = losses / (num_classes or _num_classes(student, allowed))
    return _reduce(losses, mask)


def logits_mse(
    student: Float[Array, "*rows classes"],
    teacher: Float[Array, "*rows teacher_classes"],
    mask: Bool[Array, "*rows"] | None = None,
    *,
    temperature: Temperature = 1.0,
    allowed: Bool[Array, "*#rows classes"] | None = None,
) -> Mean:
    """`((z_S - z_T) / tau)^2`, mean over rows and classes.

    Args:
      student: logits, or the numbers of a regression.
      teacher: the same of the teacher; no gradient goes to them.
      mask: rows that count; `None` counts all.
      temperature: tau, positive.
      allowed: classes that count; `None` counts all.

    Raises:
      ValueError: if the numbers of classes differ, or the temperature is not positive.
    """
    _check_classes(student, teacher)
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    difference = student.astype(jnp.float32) - teacher
    if allowed is not None:
        difference = jnp.where(allowed, difference, 0.0)
    scaled = difference / _per_row(temperature, student)
    return _reduce((scaled**2).sum(axis=-1) / _num_classes(student, allowed), mask)


def shift_probability(
    teacher: Float[Array, "*rows classes"],
    labels: Int[Array, "*rows"],
    allowed: Bool[Array, "*#rows classes"] | None = None,
) -> Float[Array, "*rows classes"]:
    """Teacher logits in which the value of the right class and the largest value change places.

    Rows without a label (-1) stay as they are.

    Args:
      teacher: logits.
      labels: right classes.
      allowed: classes that may be predicted: the largest value is of these, and rows whose label is
        none of them stay as they are; `None` is all.

    References:
      Wen et al. 2019, arXiv:1911.07471.
    """
    classes = jnp.broadcast_to(jnp.arange(teacher.shape[-1]), teacher.shape)
    possible = teacher if allowed is None else jnp.where(allowed, teacher, -jnp.inf)
    largest = possible.argmax(axis=-1, keepdims=True)
    if allowed is not None:
        right_one = allowed & (classes == labels[..., None])
        labels = jnp.where(right_one.any(axis=-1), labels, -1)
    right = jnp.where(labels[..., None] < 0, largest, labels[..., None])
    at_largest = jnp.take_along_axis(teacher, largest, axis=-1)
    at_right = jnp.take_along_axis(teacher, right, axis=-1)
    shifted = jnp.where(classes == largest, at_right, teacher)
    return jnp.where(classes == right, at_largest, shifted)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Args:
      temperature: tau.

    Raises:
      ValueError: naming it.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f"temperature={temperature} divides logits; it must be positive, such as 1 to 8"
        )


def _log_probabilities(
    student: Array, teacher: Array, temperature: Temperature, allowed: Array | None
) -> tuple[Array, Array, Array]:
    _check_classes(student, teacher)
    tau = _per_row(temperature, student)

    def log_softmax(logits: Array) -> Array:
        scaled = logits.astype(jnp.float32) / tau
        if allowed is not None:
            scaled = jnp.where(allowed, scaled, -jnp.inf)
        return jax.nn.log_softmax(scaled, axis=-1)

    return tau, log_softmax(student), log_softmax(jax.lax.stop_gradient(teacher))


def _expected(log_probabilities: Array, values: Array) -> Array:
    """`sum_c p_c v_c`; a class without probability adds nothing, whatever its value is."""
    probabilities = jnp.exp(log_probabilities)
    safe = jnp.where(probabilities > 0, values, 0.0)
    return (probabilities * safe).sum(axis=-1)


def _per_row(temperature: Temperature, logits: Array) -> Array:
    """The temperature with the axes of the logits: one number, or one an example or row."""
    if isinstance(temperature, int | float):
        check_temperature(temperature)
    tau = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
    return tau.reshape(*tau.shape, *(1,) * (logits.ndim - tau.ndim))


def _num_classes(logits: Array, allowed: Array | None) -> Array | int:
    """The classes that count, of all rows or of each."""
    return logits.shape[-1] if allowed is None else jnp.maximum(allowed.sum(axis=-1), 1)


def _reduce(losses: Array, mask: Array | None) -> Mean:
    return masked_mean(losses, jnp.ones(losses.shape, bool) if mask is None else mask)


def _check_classes(student: Array, teacher: Array) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student has {student.shape[-1]} classes and the teacher {teacher.shape[-1]}; "
            "logits are compared class by class: map the teacher's to the student's by their names"
        )
