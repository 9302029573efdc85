"""Training of the learned choice: examples from samples of columns, the loss, first weights.

An example is what `fusion.make_inputs` says of a sample, and the truth. The loss is the absolute
error of the logarithm of the answer, which is how a ratio error grows, weighted, and the pinball
losses of the two quantiles, which see the answer as given and all examples alike: an interval has
to hold for columns that are seldom, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.ndv.fusion import (
    MEMBERS,
    NUM_FEATURES,
    NUM_OUTPUTS,
    SPREAD_LEVEL,
    Networks,
    Scaling,
    make_inputs,
    network_outputs,
    quantiles,
)
from jaxlab.ndv.profile import stack_profiles
from jaxlab.ndv.special import Numbers
from jaxlab.ndv.synthetic import Draw, Rng, draw_sample, random_column
from jaxlab.training.step import LossFn

Range = tuple[float | int, float | int]

_CHUNK = 512
_LEAST_SCALE = 1e-3
_LAST_LAYER = 0.1
"""Share of the usual deviation with which the last layer starts: all members weigh alike."""


class Examples(NamedTuple):
    """Samples of columns as the networks see them, float32.

    Attributes:
      features: as in `fusion.Inputs`.
      logs: as in `fusion.Inputs`.
      target: ln(D / d).
      weight: of the example's error in the loss.
    """

    features: Float[np.ndarray, "examples features"]
    logs: Float[np.ndarray, "examples members"]
    target: Float[np.ndarray, " examples"]
    weight: Float[np.ndarray, " examples"]


def random_draws(
    rng: Rng,
    number: int,
    *,
    length: int,
    log10_rows: Range = (4.0, 9.0),
    log10_rate: Range = (-3.7, -0.5),
    least_rows: int = 5,
    samples_per_column: int = 4,
) -> list[Draw]:
    """Samples of random columns.

    Half of the columns have up to 1e6 rows, so that small samples are not rare.

    Args:
      rng: generator.
      number: how many samples.
      length: frequencies that profiles keep apart.
      log10_rows: range of the logarithm of the number of rows.
      log10_rate: range of the logarithm of the rate.
      least_rows: samples with fewer rows are left out.
      samples_per_column: at different rates.
    """
    draws: list[Draw] = []
    while len(draws) < number:
        low, high = log10_rows
        middle = min(max(6.0, low), high)
        column = random_column(rng, 10 ** rng.uniform(low, middle if rng.random() < 0.5 else high))
        for _ in range(samples_per_column):
            draw = draw_sample(rng, column, 10 ** rng.uniform(*log10_rate), length)
            if draw.profile.n >= least_rows:
                draws.append(draw)
    return draws[:number]


def make_examples(draws: Sequence[Draw], *, tilt: float | int = 0.0) -> Examples:
    """Examples of the samples that need an estimator, on the host; the others are left out.

    Args:
      draws: samples with their truths, of one length.
      tilt: weights are (D / N)^-tilt: positive ones favour columns of few values.

    Raises:
      ValueError: if no sample needs an estimator.
    """
    kept = [draw for draw in draws if 0 < draw.profile.f[0] < draw.profile.n < draw.profile.N]
    if not kept:
        raise ValueError(f"none of {len(draws)} samples needs an estimator; draw more")
    parts = [
        make_inputs(stack_profiles([draw.profile for draw in kept[start : start + _CHUNK]]))
        for start in range(0, len(kept), _CHUNK)
    ]
    d, truth, rows = (
        np.array(values, np.float64)
        for values in zip(*((x.profile.d, x.num_distinct, x.profile.N) for x in kept), strict=True)
    )
    leaves = (
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.logs for part in parts]),
        np.log(truth / d),
        (truth / rows) ** -float(tilt),
    )
    return Examples(*(leaf.astype(np.float32) for leaf in leaves))


def join_examples(parts: Sequence[Examples], weight: float | int = 1.0) -> Examples:
    """All examples, their weights scaled to a mean.

    Args:
      parts: at least one.
      weight: the mean weight.
    """
    joined = Examples(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    scale = np.float32(weight / max(float(joined.weight.mean(dtype=np.float64)), 1e-30))
    return joined._replace(weight=joined.weight * scale)


def fit_scaling(examples: Examples) -> Scaling:
    """Means and standard deviations of the features."""
    features = examples.features.astype(np.float64)
    scale = features.std(axis=0) + _LEAST_SCALE
    return Scaling(features.mean(axis=0).astype(np.float32), scale.astype(np.float32))


def init_networks(
    key: Key[Array, ""], num_networks: int, widths: Sequence[int] = (128, 128)
) -> Networks:
    """Random networks, each of its own.

    Args:
      key: of the weights.
      num_networks: how many.
      widths: of the hidden layers.
    """
    sizes = (NUM_FEATURES, *widths, NUM_OUTPUTS)
    kernels, biases = [], []
    for layer, one in enumerate(jax.random.split(key, len(sizes) - 1)):
        shape = (num_networks, sizes[layer], sizes[layer + 1])
        deviation = (2 / sizes[layer]) ** 0.5
        deviation *= _LAST_LAYER if layer == len(sizes) - 2 else 1.0
        kernels.append(deviation * jax.random.normal(one, shape))
        biases.append(jnp.zeros((num_networks, sizes[layer + 1])))
    return Networks(tuple(kernels), tuple(biases))


def make_loss_fn() -> LossFn:
    """`loss_fn(networks, scaling, extra, batch, key)`: mean over networks and examples.

    The batch holds the fields of `Examples`. Metrics: `error`, the mean absolute error of the
    logarithm, and `outside`, the share of truths outside the two quantiles.
    """

    def loss_fn(
        networks: Networks, scaling: Scaling, extra: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
        del key
        weights, spread = network_outputs(networks, scaling, batch["features"])
        answer = jnp.sum(weights * batch["logs"][None], axis=-1)
        target = batch["target"][None]
        error = jnp.abs(answer - target)
        room = batch["logs"][None, :, MEMBERS.index("bound")]
        low, high = quantiles(jax.lax.stop_gradient(answer), spread, room)
        tail = (1 - SPREAD_LEVEL) / 2
        outer = pinball(tail, low, target) + pinball(1 - tail, high, target)
        weight = batch["weight"][None] / jnp.maximum(jnp.mean(batch["weight"]), 1e-6)
        outside = (target < low - 1e-6) | (target > high + 1e-6)
        metrics = {"error": jnp.mean(error), "outside": jnp.mean(outside)}
        return jnp.mean(weight * error + outer), (extra, metrics)

    return loss_fn


def pinball(level: float | int, quantile: Numbers, target: Numbers) -> Numbers:
    """Loss whose mean is least where `quantile` is the quantile of `target` at that level.

    References:
      Koenker and Bassett 1978, "Regression quantiles", Econometrica 46.
    """
    below = target - quantile
    return jnp.maximum(level * below, (level - 1) * below)
