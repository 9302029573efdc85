"""What one optimisation step of Chinese CLIP is, and how its two stages divide the variables.

Stage 1 locks the image tower with its projection (batch statistics too) and trains the text tower,
its projection and the temperature; stage 2 trains everything. A batch is a dict of

* `image`, in whatever form the `prepare` function of the loss takes, or, for a locked tower,
  `image_features`: features computed beforehand, so that the tower does not run at all;
* `ids`, token ids (batch, context length).

References:
  Yang et al. 2022, arXiv:2211.01335, section 3; `cn_clip/training/train.py` and `main.py` of
  Chinese-CLIP 1.6.0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from jaxlab.chinese_clip.chunked import Transport, chunked_contrastive_loss
from jaxlab.chinese_clip.losses import (
    clamp_log_scale,
    contrastive_loss,
    in_batch_accuracies,
    local_contrastive_loss,
    same_pair,
)
from jaxlab.chinese_clip.model import (
    ChineseClip,
    ChineseClipConfig,
    ClipFeatures,
    normalize,
)
from jaxlab.chinese_clip.weights import original_table
from jaxlab.parallel import path_name
from jaxlab.training.state import merge_params, split_params

LossKind = Literal["dense", "chunked", "local"]
Prepare = Callable[[Key[Array, ""], Any], Float[Array, "batch height width 3"]]

LOCKED = "^visual/"
"""Parameter paths of the image tower, its projection included."""

_UNDECAYED_IN_ORIGINAL = ("bn", "ln", "bias", "logit_scale")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The contrastive loss of a run.

    Attributes:
      kind: `dense` compares the global batch in one matrix, `chunked` does the same in memory
        linear in the batch, `local` compares the rows of a device only (the original's
        `skip_aggregate`).
      chunk_size: texts that `chunked` compares at a time.
      transport: how `chunked` moves texts between devices, `all_gather` or `ring`.
      equal_texts_match: pairs with the same text are positives of each other instead of negatives
        (not with `local`). Without dropout their logits are equal, and the loss is the same either
        way; the in-batch accuracies are not.
      tower_grad_scale: factor of the gradient that reaches the towers; 1 / number of devices is the
        original's default.
      max_scale: upper bound of the multiplier, kept after every step.
    """

    kind: LossKind = "dense"
    chunk_size: int = 1024
    transport: Transport = "all_gather"
    equal_texts_match: bool = False
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
        if self.kind == "local" and self.equal_texts_match:
            raise ValueError("LossConfig: equal_texts_match is not offered with kind='local'")


@dataclasses.dataclass(frozen=True)
class StageVariables:
    """The variables of one stage, as the training loop divides them.

    Attributes:
      params: parameters that are trained.
      frozen: parameters (and batch statistics) that stay as they are, `{}` if none.
      extra: batch statistics that the stage updates, `{}` if none.
    """

    params: dict[str, Any]
    frozen: dict[str, Any]
    extra: dict[str, Any]


def split_variables(variables: PyTree, *, image_locked: bool) -> StageVariables:
    """Divide the variables of a model for a stage; `join_variables` undoes it.

    Args:
      variables: `{"params": ...}`, with `batch_stats` for a ResNet.
      image_locked: whether the stage locks the image tower.

    Returns:
      What is trained, frozen and updated.
    """
    statistics = {k: v for k, v in variables.items() if k == "batch_stats"}
    if not image_locked:
        return StageVariables(dict(variables["params"]), {}, statistics)
    trained, frozen = split_params(variables["params"], LOCKED)
    return StageVariables(trained, {"params": frozen, **statistics}, {})


def join_variables(params: PyTree, frozen: PyTree, extra: PyTree) -> dict[str, Any]:
    """The variables of the model from the three parts of a stage.

    Args:
      params: trained parameters.
      frozen: see `StageVariables`.
      extra: see `StageVariables`.

    Returns:
      `{"params": ...}`, with `batch_stats` for a ResNet.
    """
    locked = {k: v for k, v in frozen.items() if k != "params"}
    return {"params": merge_params(params, frozen.get("params", {})), **locked, **extra}


class _StepKeys(NamedTuple):
    """One key for each random part of a step."""

    prepare: jax.Array
    dropout: jax.Array
    mask: jax.Array


def make_loss_fn(
    model: ChineseClip,
    prepare: Prepare | None,
    config: LossConfig,
    *,
    image_locked: bool,
    mask_ratio: float = 0.0,
    mesh: Mesh | None = None,
) -> Callable[[PyTree, PyTree, PyTree, PyTree, Key[Array, ""]], tuple[Array, tuple[PyTree, Any]]]:
    """The loss function of a stage, for `jaxlab.training.make_train_step`.

    Args:
      model: the two towers.
      prepare: `(key, image) -> NHWC float32`, from the `image` of a batch to the normalised input
        of the tower (augmentation on the device included); None if `image` is that already.
      config: the loss.
      image_locked: run the image tower as in evaluation, without gradient. Batches may then hold
        `image_features` instead of `image`.
      mask_ratio: share of the patches that a vision transformer drops (FLIP).
      mesh: needed by `chunked` and `local` on several devices.

    Returns:
      `loss_fn(params, frozen, extra, batch, key) -> (loss, (extra, metrics))`, the metrics being
      the multiplier `scale` and both in-batch accuracies (not with `chunked`, which never has all
      cosines at once).
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, extra: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        keys = _StepKeys(*jax.random.split(key, 3))
        if "image_features" in batch:
            features = _text_features(model, params, batch, keys)
        else:
            features, extra = _pair_features(
                model, join_variables(params, frozen, extra), extra, batch, keys, prepare,
                image_locked=image_locked, mask_ratio=mask_ratio,
            )  # fmt: skip
        same = text_fingerprints(batch["ids"]) if config.equal_texts_match else None
        loss = _contrast(features, config, same, mesh)
        positives = None if same is None or config.kind == "chunked" else _matching(same)
        metrics = {} if config.kind == "chunked" else in_batch_accuracies(*features[:2], positives)
        return loss, (extra, {**metrics, "scale": jnp.exp(features.log_scale)})

    return loss_fn


def _text_features(
    model: ChineseClip, params: PyTree, batch: PyTree, keys: _StepKeys
) -> ClipFeatures:
    """Features of a batch whose image features are given."""
    text = cast(
        Array,
        model.apply(
            {"params": params},
            batch["ids"],
            train=True,
            method="encode_text",
            rngs={"dropout": keys.dropout},
        ),
    )
    return ClipFeatures(normalize(batch["image_features"]), normalize(text), params["logit_scale"])


def _pair_features(
    model: ChineseClip,
    variables: PyTree,
    extra: PyTree,
    batch: PyTree,
    keys: _StepKeys,
    prepare: Prepare | None,
    *,
    image_locked: bool,
    mask_ratio: float,
) -> tuple[ClipFeatures, PyTree]:
    """Features of a batch through both towers, and the updated statistics."""
    images = batch["image"] if prepare is None else prepare(keys.prepare, batch["image"])
    features, updated = model.apply(
        variables,
        images,
        batch["ids"],
        train=True,
        mask_ratio=mask_ratio,
        image_locked=image_locked,
        rngs={"dropout": keys.dropout, "mask": keys.mask},
        mutable=list(extra),
    )
    return features, {**extra, **updated}


def _contrast(
    features: ClipFeatures,
    config: LossConfig,
    same: UInt32[Array, "batch 2"] | None,
    mesh: Mesh | None,
) -> Array:
    """The loss that the config names."""
    if config.kind == "local":
        return local_contrastive_loss(*features, 1 if mesh is None else mesh.shape["data"])
    if config.kind == "chunked":
        return chunked_contrastive_loss(
            *features,
            chunk_size=config.chunk_size,
            mesh=mesh,
            transport=config.transport,
            text_ids=None if same is None else same[:, 0],
            tower_grad_scale=config.tower_grad_scale,
        )
    positives = None if same is None else _matching(same)
    return contrastive_loss(*features, positives, tower_grad_scale=config.tower_grad_scale)


def _matching(same: UInt32[Array, "batch 2"]) -> Bool[Array, "batch batch"]:
    return same_pair(None, same[:, 0]) & same_pair(None, same[:, 1])


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


def make_clamp(config: LossConfig) -> Callable[[PyTree], PyTree]:
    """What is done to the parameters after every update: the multiplier stays within its bounds.

    Args:
      config: the loss.

    Returns:
      From parameters to parameters; those without a `logit_scale` pass unchanged.
    """
    maximum = math.log(config.max_scale)

    def clamp(params: PyTree) -> PyTree:
        if "logit_scale" not in params:
            return params
        return {**params, "logit_scale": clamp_log_scale(params["logit_scale"], maximum)}

    return clamp


def make_original_decay_mask(config: ChineseClipConfig) -> Callable[[PyTree], PyTree]:
    """Which parameters the original's weight decay applies to.

    The original spares a parameter whose name in its checkpoints contains `bn`, `ln`, `bias` or
    `logit_scale`. By that rule the scales of BERT's layer norms (`LayerNorm.weight`), those of a
    ResNet's shortcut norms (`downsample.1.weight`), the class embedding and all position tables
    are decayed. `OptimizerConfig(decay_rule="standard")` spares all one-dimensional ones instead.

    Args:
      config: sizes of the model, which decide the names.

    Returns:
      From parameters (of the model or of a stage) to a tree like them of booleans, True where
      weights decay.
    """
    table = original_table(config)

    def decide(path: tuple[Any, ...], leaf: Any) -> bool:
        names = table.foreign_names_of("params/" + path_name(path))
        return not any(part in name for part in _UNDECAYED_IN_ORIGINAL for name in names)

    return lambda params: jax.tree.map_with_path(decide, params)
