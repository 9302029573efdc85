"""The loss of a run on features of the global batch: which one, its positives, its extra weights.

The objective may have parameters of its own (the bias of the sigmoid loss, a map to a teacher's
features). They train with the model under the name `objective`, lie beside `params` in the
variables of a run, and are no part of a published model.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

from jaxlab.chinese_clip.chunked import LossAndAccuracies, chunked_loss_and_accuracies
from jaxlab.chinese_clip.distillation import (
    DistillationConfig,
    Taught,
    image_distillation_loss,
    similarity_distillation_loss,
)
from jaxlab.chinese_clip.losses import (
    contrastive_loss,
    in_batch_accuracies,
    local_contrastive_loss,
    same_pair,
)
from jaxlab.chinese_clip.model import ChineseClipConfig, ClipFeatures
from jaxlab.chinese_clip.sigmoid import INITIAL_BIAS, sigmoid_loss
from jaxlab.chinese_clip.sweep import Transport
from jaxlab.parallel import DATA_AXIS

logger = logging.getLogger(__name__)

LossKind = Literal["dense", "chunked", "local", "sigmoid"]

OBJECTIVE = "objective"
"""Name of the objective's own parameters."""
TEACHER = "teacher"
"""Name of the teacher's variables among the frozen ones."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss of a run over the pairs of a batch.

    Attributes:
      kind: `dense` compares the global batch in one matrix, `chunked` does the same in memory
        linear in the batch, `local` compares the rows of a device only (the original's
        `skip_aggregate`), `sigmoid` asks of every pair whether it belongs together (SigLIP), in
        linear memory too.
      chunk_size: texts that `chunked` and `sigmoid` compare at a time.
      transport: how these two move texts between devices, `all_gather` or `ring`.
      equal_texts_match: pairs with the same text are positives of each other instead of negatives
        (not with `local`). Without dropout their logits are equal, and the contrastive loss is the
        same either way; the in-batch accuracies are not.
      equal_images_match: the same for pairs with the same image (not with `local`); batches then
        hold `image_id`, see `make_objective`.
      label_smoothing: share of the contrastive target that is spread over the batch (not with
        `sigmoid`).
      tower_grad_scale: factor of the gradient that reaches the towers from this loss; 1 / number of
        devices is the original's default.
      max_scale: upper bound of the multiplier, kept after every step.
    """

    kind: LossKind = "dense"
    chunk_size: int = 1024
    transport: Transport = "all_gather"
    equal_texts_match: bool = False
    equal_images_match: bool = False
    label_smoothing: float = 0.0
    tower_grad_scale: float = 1.0
    max_scale: float = 100.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: if a field is out of range or the combination is not offered.
        """
        for name, allowed in (("kind", LossKind), ("transport", Transport)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"LossConfig.{name}={getattr(self, name)!r} is not one of {get_args(allowed)}"
                )
        if self.chunk_size < 1 or self.max_scale < 1:
            raise ValueError(
                f"LossConfig: chunk_size={self.chunk_size} and max_scale={self.max_scale} must be "
                "at least 1"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(
                f"LossConfig.label_smoothing={self.label_smoothing} is a share; use one in [0, 1)"
            )
        refused = {
            "local": ("equal_texts_match", "equal_images_match"),
            "sigmoid": ("label_smoothing",),
        }
        for name in refused.get(self.kind, ()):
            if getattr(self, name):
                raise ValueError(f"LossConfig: {name} is not offered with kind={self.kind!r}")


class PairFeatures(NamedTuple):
    """What the towers give for the pairs of a batch.

    Attributes:
      image: L2-normalised image features, float32.
      text: L2-normalised text features, float32.
    """

    image: Float[Array, "batch dim"]
    text: Float[Array, "batch dim"]


class _Ids(NamedTuple):
    """Which rows share an image or a text; `None` where it is not asked."""

    image: Array | None
    text: Array | None


Objective = Callable[[PyTree, PyTree, Any, Any, PyTree], tuple[Array, dict[str, Array]]]


def make_objective(
    config: LossConfig, mesh: Mesh | None = None, distillation: DistillationConfig | None = None
) -> Objective:
    """The loss of a run on features.

    Args:
      config: the loss over pairs.
      mesh: needed by all kinds but `dense` on several devices.
      distillation: what a teacher adds.

    Returns:
      `objective(params, frozen, features, taught, batch) -> (loss, metrics)`: `features` a
      `PairFeatures`, `taught` a `Taught` if there is a teacher, both of the whole batch. Of the
      batch it reads `ids`, and `image_id` if equal images match: one 32-bit integer a row, or the
      two words of a 64-bit one (`split_ids`). Metrics are the multiplier `scale`, both in-batch
      accuracies (with `local`, within a device), the `bias` of the sigmoid loss, and with a teacher
      the parts of the loss.
    """

    def objective(
        params: PyTree, frozen: PyTree, features: PairFeatures, taught: Any, batch: PyTree
    ) -> tuple[Array, dict[str, Array]]:
        found = _compare(features, params, config, _positive_ids(config, batch), mesh)
        loss = found.loss
        metrics = {
            "image_to_text_accuracy": found.image_to_text,
            "text_to_image_accuracy": found.text_to_image,
            "scale": jnp.exp(params["logit_scale"]),
        }
        if config.kind == "sigmoid":
            metrics["bias"] = params[OBJECTIVE]["bias"]
        if distillation is not None:
            parts = _distil(features, taught, params, frozen, distillation, config, mesh)
            metrics |= {"pair_loss": loss, **parts}
            for name, weight in _weights(distillation).items():
                loss = loss + weight * parts[name]
        return loss, metrics

    return objective


def _positive_ids(config: LossConfig, batch: PyTree) -> _Ids:
    image = text = None
    if config.equal_images_match:
        if "image_id" not in batch:
            raise ValueError(
                f"equal_images_match needs batches with image_id; this one has {sorted(batch)}"
            )
        image = batch["image_id"]
    if config.equal_texts_match:
        text = text_fingerprints(batch["ids"])
    return _Ids(image, text)


def _compare(
    features: PairFeatures, params: PyTree, config: LossConfig, ids: _Ids, mesh: Mesh | None
) -> LossAndAccuracies:
    """The loss over pairs that the config names."""
    image, text, log_scale = *features, params["logit_scale"]
    shards = 1 if mesh is None or config.kind != "local" else int(mesh.shape[DATA_AXIS])
    if image.shape[0] == shards:
        logger.warning(
            "a pair has nothing to be compared with in a batch of %d over %d devices: the "
            "contrastive loss is 0 and trains nothing; use a larger global_batch_size",
            image.shape[0], shards,
        )  # fmt: skip
    options: dict[str, Any] = {"tower_grad_scale": config.tower_grad_scale}
    smoothing = {"label_smoothing": config.label_smoothing}
    if config.kind in ("chunked", "sigmoid"):
        options |= {"chunk_size": config.chunk_size, "mesh": mesh, "transport": config.transport}
        options |= {"image_ids": ids.image, "text_ids": ids.text}
        if config.kind == "sigmoid":
            return sigmoid_loss(image, text, log_scale, params[OBJECTIVE]["bias"], **options)
        return chunked_loss_and_accuracies(image, text, log_scale, **smoothing, **options)
    if config.kind == "local":
        loss = local_contrastive_loss(image, text, log_scale, shards, **smoothing, **options)
        parts = (x.reshape(shards, -1, x.shape[1]) for x in features)
        accuracies = jax.tree.map(jnp.mean, jax.vmap(in_batch_accuracies)(*parts))
    else:
        positives = same_pair(*ids) if any(x is not None for x in ids) else None
        loss = contrastive_loss(image, text, log_scale, positives, **smoothing, **options)
        accuracies = in_batch_accuracies(image, text, positives)
    return LossAndAccuracies(
        loss, accuracies["image_to_text_accuracy"], accuracies["text_to_image_accuracy"]
    )


def _weights(distillation: DistillationConfig) -> dict[str, float]:
    """Weight of every part that is not left out."""
    weights = {
        "image_distillation_loss": distillation.image_weight,
        "similarity_distillation_loss": distillation.similarity_weight,
    }
    return {name: weight for name, weight in weights.items() if weight}


def _distil(
    features: PairFeatures,
    taught: Taught,
    params: PyTree,
    frozen: PyTree,
    distillation: DistillationConfig,
    config: LossConfig,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """The parts of the loss that a teacher adds, by name."""
    parts = {}
    if distillation.image_weight:
        kernel = params[OBJECTIVE]["image_map"] if distillation.image_map == "linear" else None
        parts["image_distillation_loss"] = image_distillation_loss(
            features.image, taught.image, kernel
        )
    if distillation.similarity_weight:
        rows = features.image.shape[0] if config.kind == "dense" else config.chunk_size
        parts["similarity_distillation_loss"] = similarity_distillation_loss(
            ClipFeatures(*features, params["logit_scale"]),
            ClipFeatures(
                taught.image, cast(Array, taught.text), frozen[TEACHER]["params"]["logit_scale"]
            ),
            chunk_size=rows,
            mesh=None if config.kind == "dense" else mesh,
        )
    return parts


def initial_objective(
    config: LossConfig,
    key: Key[Array, ""],
    *,
    model: ChineseClipConfig,
    distillation: DistillationConfig | None = None,
    teacher: ChineseClipConfig | None = None,
) -> dict[str, Array]:
    """Start of the objective's own parameters.

    Args:
      config: the loss over pairs.
      key: key of the draws.
      model: sizes of the student.
      distillation: what a teacher adds.
      teacher: sizes of the teacher, needed by a linear map.

    Returns:
      `bias` (the sigmoid loss; -10), `image_map` (a linear map to a teacher's image features;
      normal, variance 1 / student's width), or nothing.
    """
    params = {}
    if config.kind == "sigmoid":
        params["bias"] = jnp.float32(INITIAL_BIAS)
    if distillation is not None and distillation.image_map == "linear" and teacher is not None:
        shape = (model.embed_dim, teacher.embed_dim)
        params["image_map"] = jax.random.normal(key, shape) * model.embed_dim**-0.5
    return params


def text_fingerprints(ids: Int[Array, "batch time"]) -> UInt32[Array, "batch 2"]:
    """Two hashes of every text, equal for equal texts.

    Polynomials of the ids modulo 2^32: two different texts share one of them with a probability of
    about 2^-32, both of them practically never.

    Args:
      ids: token ids.

    Returns:
      uint32.
    """
    powers = [
        [pow(base, i, 2**32) for base in (0x9E3779B1, 0x85EBCA77)] for i in range(ids.shape[1])
    ]
    mixed = ids.astype(jnp.uint32)[:, :, None] * jnp.asarray(powers, jnp.uint32)[None]
    return mixed.sum(axis=1, dtype=jnp.uint32)


def split_ids(ids: Int[np.ndarray, "*shape"]) -> UInt32[np.ndarray, "*shape 2"]:
    """64-bit ids as two words that a device holds, equal where the ids are; on the host.

    Args:
      ids: such as the ids of images, int64.

    Returns:
      uint32, the low and the high word.

    Example:
      >>> split_ids(np.array([7, 2**32 + 7])).tolist()
      [[7, 0], [7, 1]]
    """
    wide = np.asarray(ids, np.int64).view(np.uint64)
    words = np.stack([wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)], axis=-1)
    return words.astype(np.uint32)
