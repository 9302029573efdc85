"""Temperatures that depend on the example, and weights that depend on the progress of a run.

References:
  Wen et al. 2019, arXiv:1911.07471, for the temperatures, as `textbrewer/presets.py` of TextBrewer
  0.2.1 has them; Jafari et al. 2021, arXiv:2104.07163 (annealing); Jafari et al. 2022,
  arXiv:2212.05998 (continuation).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.distillation.means import masked_mean
from jaxlab.distillation.responses import Temperature

Schedule = Callable[[Float[Array, ""]], Float[Array, ""]]
"""Progress in [0, 1] -> factor of a weight."""

Logits = Float[Array, "*rows classes"]
Rows = Bool[Array, "*rows"]
Allowed = Bool[Array, "*#rows classes"]

MIN_SHARE = 0.1
"""Temperatures of examples are this share of their mean at least.

The originals have no such bound: with many classes, or a tau near 1, theirs can be 0 or negative,
which turns the order of the classes round.
"""


class SoftAndHard(NamedTuple):
    """What a run that goes from the teacher to the labels asks for at one point.

    Attributes:
      scale: what the teacher's logits are multiplied by.
      soft: weight of the loss against the teacher.
      hard: weight of the loss against labels.
    """

    scale: Float[Array, ""]
    soft: Float[Array, ""]
    hard: Float[Array, ""]


def flsw_temperature(
    student: Logits,
    teacher: Logits,
    temperature: float | Float[Array, ""],
    beta: float = 1.0,
    gamma: float = 1.0,
    *,
    mask: Rows | None = None,
    allowed: Allowed | None = None,
) -> Temperature:
    """Smaller temperatures where the two point in different directions.

    `tau + beta (mean(u) - u_i)` with `u = (1 - cos(z_S, z_T)) ** gamma`.

    Args:
      student: logits.
      teacher: logits.
      temperature: tau, the mean over the batch.
      beta: how much it varies.
      gamma: exponent.
      mask: rows (examples, or tokens) that the mean is over; `None` takes all.
      allowed: classes that have a part in the cosine; `None` is all.

    Returns:
      A temperature a row, without a gradient, `MIN_SHARE` tau at least.
    """
    if allowed is not None:
        student, teacher = (jnp.where(allowed, logits, 0.0) for logits in (student, teacher))
    product = (student * teacher).sum(axis=-1)
    norms = [jnp.linalg.norm(logits, axis=-1) + 1e-4 for logits in (student, teacher)]
    # Rounding must not make the base of the power negative.
    distance = jnp.maximum(1.0 - product / (norms[0] * norms[1]), 0.0)
    return _around_mean(temperature, beta, distance**gamma, mask)


def cwsm_temperature(
    student: Logits,
    teacher: Logits,
    temperature: float | Float[Array, ""],
    beta: float = 1.0,
    *,
    mask: Rows | None = None,
    allowed: Allowed | None = None,
) -> Temperature:
    """Smaller temperatures where the student is unsure.

    `tau + beta (mean(u) - u_i)` with `u = 1 / (max softmax(z_S) + 0.001)`.

    Args:
      student: logits.
      teacher: not used; the signature is that of all of these.
      temperature: tau, the mean over the batch.
      beta: how much it varies.
      mask: rows (examples, or tokens) that the mean is over; `None` takes all.
      allowed: classes that have a probability; `None` is all.

    Returns:
      A temperature a row, without a gradient, `MIN_SHARE` tau at least.
    """
    del teacher
    student = student.astype(jnp.float32)
    if allowed is not None:
        student = jnp.where(allowed, student, jnp.finfo(jnp.float32).min / 2)
    confidence = jax.nn.softmax(student, axis=-1).max(axis=-1)
    return _around_mean(temperature, beta, 1.0 / (confidence + 1e-3), mask)


def _around_mean(
    temperature: float | Array, beta: float, values: Float[Array, "*rows"], mask: Rows | None
) -> Temperature:
    mean = values.mean() if mask is None else masked_mean(values, mask).value
    varied = jnp.maximum(temperature + beta * (mean - values), MIN_SHARE * temperature)
    return jax.lax.stop_gradient(varied)


def constant(value: float = 1.0) -> Schedule:
    """The same factor from beginning to end.

    Args:
      value: the factor.
    """
    return lambda progress: jnp.full_like(progress, value)


def growth(progress: Float[Array, ""]) -> Float[Array, ""]:
    """From 0 to 1.

    Args:
      progress: in [0, 1].
    """
    return progress


def decay(progress: Float[Array, ""]) -> Float[Array, ""]:
    """From 1 to 0.

    Args:
      progress: in [0, 1].
    """
    return 1.0 - progress


def piecewise(bounds: tuple[float, ...], factors: tuple[float, ...]) -> Schedule:
    """Constant between bounds.

    Args:
      bounds: where the factor changes, increasing, in (0, 1).
      factors: one more than bounds.

    Raises:
      ValueError: if there are not as many factors, or the bounds are not in order.
    """
    check_pieces(bounds, factors)
    values = jnp.asarray(factors, jnp.float32)
    places = jnp.asarray(bounds, jnp.float32)
    return lambda progress: values[jnp.searchsorted(places, progress, side="right")]


def check_pieces(bounds: tuple[float, ...], factors: tuple[float, ...]) -> None:
    """Refuse what `piecewise` cannot be made of.

    Args:
      bounds: where the factor changes.
      factors: one more than bounds.

    Raises:
      ValueError: as `piecewise`.
    """
    if len(factors) != len(bounds) + 1:
        raise ValueError(
            f"{len(bounds)} bounds cut the run into {len(bounds) + 1} pieces, and there are "
            f"{len(factors)} factors; give one a piece"
        )
    if list(bounds) != sorted(set(bounds)) or not all(0 < bound < 1 for bound in bounds):
        raise ValueError(f"bounds={bounds} must increase, between 0 and 1")


def annealing_factor(progress: Float[Array, ""], max_temperature: int = 7) -> Float[Array, ""]:
    """What teacher logits are multiplied by in Annealing-KD: `1 - (max(1, T_t) - 1) / T_max`.

    `T_t = ceil((1 - x) T_max)` falls from `T_max` to 0 with the progress x; the student's logits
    follow the scaled ones by their squared difference, and hard labels come in a second stage.

    Args:
      progress: x, in [0, 1].
      max_temperature: T_max.
    """
    level = jnp.ceil((1.0 - progress) * max_temperature)
    return 1.0 - (jnp.maximum(level, 1.0) - 1.0) / max_temperature


def continuation_factor(progress: Float[Array, ""]) -> Float[Array, ""]:
    """Weight of hard labels in Continuation-KD, `x / 1.333` up to two thirds of the run, then 1.

    Args:
      progress: x, in [0, 1].
    """
    return jnp.where(progress > 0.666, 1.0, progress / 1.333)


def annealing_kd(
    progress: Float[Array, ""], soft_share: float = 0.5, max_temperature: int = 7
) -> SoftAndHard:
    """Both stages of Annealing-KD: scaled logits of the teacher first, then labels alone.

    Args:
      progress: x of the whole run, in [0, 1].
      soft_share: share of the run that the first stage takes; the second one begins there.
      max_temperature: T_max of `annealing_factor`, which runs over the first stage.

    Raises:
      ValueError: if a stage has no part of the run.
    """
    if not 0.0 < soft_share < 1.0:
        raise ValueError(
            f"soft_share={soft_share} leaves one of two stages no step; use a share in (0, 1)"
        )
    scale = annealing_factor(jnp.minimum(progress / soft_share, 1.0), max_temperature)
    hard = (progress >= soft_share).astype(jnp.float32)
    return SoftAndHard(scale, 1.0 - hard, hard)


def continuation_kd(
    progress: Float[Array, ""],
    soft_loss: Float[Array, ""],
    margin: float = 1.0,
    max_temperature: int = 10,
) -> SoftAndHard:
    """Continuation-KD: `psi hard + (1 - psi) soft [soft > margin phi]`.

    The teacher is followed only while the student is further from it than a margin that grows with
    phi, the `annealing_factor`, by which the teacher's logits are scaled.

    Args:
      progress: x, in [0, 1].
      soft_loss: the loss against the teacher's scaled logits; no gradient goes through the test.
      margin: of that loss at the end of the run.
      max_temperature: T_max of phi.

    Raises:
      ValueError: for a negative margin.
    """
    if margin < 0:
        raise ValueError(f"margin={margin} of a loss must be 0 (no margin) or more")
    scale, hard = annealing_factor(progress, max_temperature), continuation_factor(progress)
    is_far = (jax.lax.stop_gradient(soft_loss) > margin * scale).astype(jnp.float32)
    return SoftAndHard(scale, (1.0 - hard) * is_far, jnp.asarray(hard, jnp.float32))
