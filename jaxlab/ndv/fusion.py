"""The learned choice: weigh the estimates of many estimators, and fuse them.

Every estimator of the literature is right for some columns. A small network looks at the profile
and at what `BASES` say of it, gives each of them a weight, and answers the weighted mean of their
logarithms. d itself and the upper bound N - n + d are among them, so that every number between the
two can be reached and none beyond. The same network tells how far the answer may be off in either
direction, bias included: the 2.5 % and 97.5 % quantiles of the logarithm of the truth.

Features do not change when a sample and its column grow by a common factor, once there are many
rows; what does depend on the size, the noise of small counts, is cut off at `MOST`. NumPy profiles
are computed in float64 on the host, without compilation; JAX ones in float32, also under `jit` and
`vmap`.

AE runs away to N where f_2 = 0; there the bias-corrected estimator of Chao stands in for it.

References:
  Xu et al. 2025, "AdaNDV: Adaptive number of distinct value estimation via learning to select and
  fuse estimators", arXiv:2502.16190. There two networks rank the estimators to select four of them,
  which a third weighs; here one network weighs all of them.
"""

import functools
import io
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxlab.ndv.estimators import Estimator, estimate_many
from jaxlab.ndv.profile import Profile
from jaxlab.ndv.special import Numbers, namespace
from jaxlab.ndv.terms import Terms, summarize

BASES = (
    "EB", "GEE", "CHAO", "SHL", "CL1", "AE", "JK1", "MM0", "BOOT", "HT", "MM1", "MM2", "SJ",
    "DUJ2A", "SH2", "HS",
)  # fmt: skip
"""Estimators that are fused. The published list, without Goodman's, which explodes, and Sichel's,
whose root appears and vanishes with rounding; with AE, DUJ2A, SH2 and HS."""
MEMBERS = (*BASES, "d", "bound")
"""Names of the weights."""
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 160,
         192, 257)  # fmt: skip
"""Where the cells of frequencies begin that the network sees; the last has no end."""
MOST = 1e6
"""Counts above are as good as infinite."""
LEAST_SHARE = 1e-7
LEAST_RATE = 1e-4
SPREAD_LEVEL = 0.95
"""Probability between the two quantiles that the network gives."""
NUM_FEATURES = 2 * len(STEPS) + 8 + 2 * len(BASES)
NUM_OUTPUTS = len(MEMBERS) + 2

NAME = "FUSED"
SOURCE = "trained here on random columns; after Xu et al. 2025, arXiv:2502.16190"

_LARGEST = 6.0
_GELU_SCALE = math.sqrt(2 / math.pi)
_ASSET = Path(__file__).parent / "assets" / "fusion.npz"

Logs = Float[Array, "*batch members"] | Float[np.ndarray, "*batch members"]
Features = Float[Array, "*batch features"] | Float[np.ndarray, "*batch features"]
Ends = Float[Array, "... 2"] | Float[np.ndarray, "... 2"]
NetworkLogs = Float[Array, "networks *batch members"] | Float[np.ndarray, "networks *batch members"]
NetworkSpread = Float[Array, "networks *batch 2"] | Float[np.ndarray, "networks *batch 2"]
AnyShape = Float[Array, "..."] | Float[np.ndarray, "..."] | np.floating


class Networks(NamedTuple):
    """Weights of several networks, float32.

    Attributes:
      kernels: of each layer, shape (networks, inputs, outputs).
      biases: of each layer, shape (networks, outputs).
    """

    kernels: tuple[Float[Array | np.ndarray, "networks inputs outputs"], ...]
    biases: tuple[Float[Array | np.ndarray, "networks outputs"], ...]


class Scaling(NamedTuple):
    """How features are standardised.

    Attributes:
      mean: of the features.
      scale: their standard deviations.
    """

    mean: Float[Array | np.ndarray, " features"]
    scale: Float[Array | np.ndarray, " features"]


class FusionParams(NamedTuple):
    """All that the learned choice has learned.

    Attributes:
      networks: whose answers are averaged.
      scaling: of their features.
    """

    networks: Networks
    scaling: Scaling


class Inputs(NamedTuple):
    """What the network is given of a profile.

    Attributes:
      features: not yet standardised, shape (..., NUM_FEATURES).
      logs: ln(estimate / d) of the members, within [0, ln(bound / d)].
    """

    features: Features
    logs: Logs


class Fused(NamedTuple):
    """The network's answer, in logarithms of the ratio to d.

    Attributes:
      log_ratio: ln(D / d).
      low: its lower quantile.
      high: its upper quantile.
      weights: of the members, which add up to 1.
    """

    log_ratio: Numbers
    low: Numbers
    high: Numbers
    weights: Logs


def make_inputs(profile: Profile) -> Inputs:
    """Features of a profile and the logarithms of its estimates.

    Args:
      profile: one profile or a batch, of columns that need an estimator (0 < f_1 < n < N); others
        give finite numbers without meaning.
    """
    t = summarize(profile)
    xp = namespace(t.f)
    d = xp.maximum(t.d, 1.0)
    room = xp.log(xp.maximum(t.N - t.n + d, d) / d)[..., None]
    found = estimate_many(profile, (*BASES, "CHAO_BC"))
    steady = xp.where(t.f2 > 0, found["AE"].value, found["CHAO_BC"].value)
    values = [steady if name == "AE" else found[name].value for name in BASES]
    logs = xp.log(xp.maximum(xp.stack(values, axis=-1) / d[..., None], 1.0))
    logs = xp.minimum(logs, room)
    shares = logs / xp.maximum(room, 1e-6)
    features = xp.concatenate([*_counts(t), logs, shares], axis=-1)
    return Inputs(features, xp.concatenate([logs, xp.zeros_like(room), room], axis=-1))


def _counts(t: Terms) -> list[Features]:
    """Features of the counts themselves."""
    xp = namespace(t.f)
    frequency = t.i[..., None]
    begins = np.asarray(STEPS, np.float64).reshape((1,) * t.i.ndim + (-1,))
    ends = np.append(begins[..., 1:], np.full_like(begins[..., :1], np.inf), axis=-1)
    # Rounded, since the tail stands in `t` as classes of its mean frequency.
    inside = (frequency >= begins - 0.5) & (frequency < ends - 0.5)
    values = xp.sum(xp.where(inside, t.f[..., None], 0.0), axis=-2)
    rows = xp.sum(xp.where(inside, (t.i * t.f)[..., None], 0.0), axis=-2)
    n, d = xp.maximum(t.n, 1.0), xp.maximum(t.d, 1.0)
    sizes = [
        xp.log(xp.clip(t.q, LEAST_RATE, 1.0)),
        xp.log(xp.minimum(n, MOST)),
        xp.log(n / d),
        xp.log(xp.maximum((t.repeated_rows + 0.5) / (n + 1), LEAST_SHARE)),
        xp.log(xp.minimum(t.f1 + 0.5, MOST)),
        xp.log(xp.minimum(t.f2 + 0.5, MOST)),
        xp.log(xp.minimum(t.repeated_values + 0.5, MOST)),
        xp.log(xp.maximum(t.N - t.n + d, d) / d),
    ]
    return [
        xp.log(xp.maximum((values + 0.5) / (d + 1)[..., None], LEAST_SHARE)),
        xp.log(xp.maximum((rows + 0.5) / (n + 1)[..., None], LEAST_SHARE)),
        xp.stack(sizes, axis=-1),
    ]


def fuse(params: FusionParams, inputs: Inputs) -> Fused:
    """The mean answer of the networks.

    Args:
      params: the networks.
      inputs: of one profile or a batch.
    """
    weights, spread = network_outputs(params.networks, params.scaling, inputs.features)
    xp = namespace(weights)
    weights, spread = xp.mean(weights, axis=0), xp.mean(spread, axis=0)
    log_ratio = xp.sum(weights * inputs.logs, axis=-1)
    low, high = quantiles(log_ratio, spread, inputs.logs[..., -1])
    return Fused(log_ratio, low, high, weights)


def quantiles(log_ratio: AnyShape, spread: Ends, room: AnyShape) -> tuple[AnyShape, AnyShape]:
    """The two quantiles of ln(D / d), within [0, room].

    Args:
      log_ratio: the answer.
      spread: distances below and above it, shape (..., 2).
      room: ln(bound / d).
    """
    xp = namespace(spread)
    low = xp.maximum(log_ratio - spread[..., 0], 0.0)
    high = xp.maximum(xp.minimum(log_ratio + spread[..., 1], room), log_ratio)
    return low, high


def network_outputs(
    networks: Networks, scaling: Scaling, features: Features
) -> tuple[NetworkLogs, NetworkSpread]:
    """What each network says: dense layers with tanh-form GELU between them.

    Args:
      networks: the weights.
      scaling: of the features.
      features: of one profile or a batch.

    Returns:
      Weights of the members, shape (networks, ..., members), which add up to 1, and the distances
      of the two quantiles, shape (networks, ..., 2), not negative.
    """
    xp = namespace(features)

    def row(vector: AnyShape) -> AnyShape:
        return xp.reshape(vector, (1,) * (features.ndim - 1) + vector.shape[-1:])

    x = xp.clip((features - row(scaling.mean)) / row(scaling.scale), -_LARGEST, _LARGEST)
    x = xp.broadcast_to(x, (len(networks.kernels[0]), *x.shape))
    last = len(networks.kernels) - 1
    for layer, (kernel, bias) in enumerate(zip(*networks, strict=True)):
        x = xp.einsum("m...i,mio->m...o", x, kernel)
        x = x + xp.reshape(bias, (len(bias), *(1,) * (x.ndim - 2), bias.shape[-1]))
        if layer < last:
            x = 0.5 * x * (1 + xp.tanh(_GELU_SCALE * (x + 0.044715 * x**3)))
    scores = x[..., : len(MEMBERS)]
    scores = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = scores / xp.sum(scores, axis=-1, keepdims=True)
    return weights, xp.logaddexp(x[..., len(MEMBERS) :], 0.0)


def make_fused(params: FusionParams) -> Estimator:
    """The learned choice as an estimator, with the edge cases and the clamp of all of them.

    Args:
      params: the networks.
    """

    def formula(profile: Profile) -> Numbers:
        fused = fuse(params, make_inputs(profile))
        return profile.d * namespace(profile.f).exp(fused.log_ratio)

    return Estimator(NAME, formula, SOURCE)


@functools.cache
def shipped_params() -> FusionParams:
    """The networks that come with this library; `experiments.ndv.train` trained them."""
    return load_fusion(_ASSET)


@functools.cache
def shipped_fused() -> Estimator:
    """The learned choice with the shipped networks, as an estimator."""
    return make_fused(shipped_params())


def load_fusion(path: str | Path) -> FusionParams:
    """Networks from a file of `save_fusion`.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is none of these files, or made for other members or features.
    """
    data = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        members = tuple(arrays["members"].tolist())
        depth = sum(name.startswith("kernel_") for name in arrays)
        kernels = tuple(arrays[f"kernel_{layer}"].astype(np.float32) for layer in range(depth))
        biases = tuple(arrays[f"bias_{layer}"].astype(np.float32) for layer in range(depth))
        scaling = Scaling(arrays["mean"].astype(np.float32), arrays["scale"].astype(np.float32))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no learned choice: {error}; wanted a file of experiments.ndv.train"
        ) from error
    ends = (kernels[0].shape[1], kernels[-1].shape[2]) if kernels else (0, 0)
    wanted = (NUM_FEATURES, NUM_OUTPUTS)
    if members != MEMBERS or ends != wanted or scaling.mean.shape != (NUM_FEATURES,):
        raise ValueError(
            f"{path} was trained for {len(members)} members and layers of {ends}; this release has "
            f"{len(MEMBERS)} and {wanted}: train it again"
        )
    return FusionParams(Networks(kernels, biases), scaling)


def save_fusion(path: str | Path, params: FusionParams) -> None:
    """Writes networks as an `npz`, in half precision, which `load_fusion` reads.

    Args:
      path: the file, ending in `.npz`.
      params: the networks.
    """
    arrays: dict[str, np.ndarray] = {"members": np.array(MEMBERS)}
    arrays |= {name: np.asarray(leaf) for name, leaf in params.scaling._asdict().items()}
    for layer, (kernel, bias) in enumerate(zip(*params.networks, strict=True)):
        arrays[f"kernel_{layer}"] = np.asarray(kernel, np.float16)
        arrays[f"bias_{layer}"] = np.asarray(bias, np.float16)
    np.savez_compressed(path, allow_pickle=False, **arrays)
