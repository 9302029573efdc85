"""What one optimisation step of Chinese CLIP is, and how its two stages divide the variables.

Stage 1 locks the image tower with its projection (batch statistics too) and trains the text tower,
its projection and the temperature; stage 2 trains everything. A batch is a dict of

* `image`, in whatever form the `prepare` function of the loss takes, or, for a locked tower,
  `image_features`: features computed beforehand, so that the tower does not run at all;
* `ids`, token ids (batch, context length);
* where the settings ask for them, `image_id` (which rows hold the same image, see `split_ids`) and
  `teacher_image` (a teacher's own images).

References:
  Yang et al. 2022, arXiv:2211.01335, section 3; `cn_clip/training/train.py` and `main.py` of
  Chinese-CLIP 1.6.0.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.chinese_clip.accumulation import StepParts, compose_loss, make_cached_step
from jaxlab.chinese_clip.distillation import DistillationConfig, teach
from jaxlab.chinese_clip.losses import clamp_log_scale
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, normalize
from jaxlab.chinese_clip.objective import (
    OBJECTIVE,
    TEACHER,
    LossConfig,
    PairFeatures,
    make_objective,
)
from jaxlab.chinese_clip.weights import original_table
from jaxlab.data.images import normalize as normalize_pixels
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.parallel import path_name
from jaxlab.training import make_train_step
from jaxlab.training.state import merge_params, split_params
from jaxlab.training.step import LossFn, TrainStep

logger = logging.getLogger(__name__)

Negatives = Literal["batch", "microbatch"]
Prepare = Callable[[Key[Array, ""], Any], Float[Array, "batch height width 3"]]

LOCKED = "^visual/"
"""Parameter paths of the image tower, its projection included."""

_UNDECAYED_IN_ORIGINAL = ("bn", "ln", "bias", "logit_scale")


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
    """Divide the variables of a run for a stage; `join_variables` undoes it.

    Args:
      variables: `{"params": ...}`, with `batch_stats` for a ResNet, and `objective` where the loss
        has parameters of its own (`initial_objective`); these are trained in any stage.
      image_locked: whether the stage locks the image tower.

    Returns:
      What is trained, frozen and updated.
    """
    statistics = {k: v for k, v in variables.items() if k == "batch_stats"}
    own = {k: v for k, v in variables.items() if k == OBJECTIVE and v}
    if not image_locked:
        return StageVariables({**variables["params"], **own}, {}, statistics)
    trained, frozen = split_params(variables["params"], LOCKED)
    return StageVariables({**trained, **own}, {"params": frozen, **statistics}, {})


def join_variables(params: PyTree, frozen: PyTree, extra: PyTree) -> dict[str, Any]:
    """The variables of a run from the three parts of a stage; a teacher is left out.

    Args:
      params: trained parameters.
      frozen: see `StageVariables`; may hold a `teacher`.
      extra: see `StageVariables`.

    Returns:
      `{"params": ...}`, with `batch_stats` for a ResNet, and `objective` where the loss has
      parameters of its own.
    """
    trained = {k: v for k, v in params.items() if k != OBJECTIVE}
    own = {k: v for k, v in params.items() if k == OBJECTIVE}
    locked = {k: v for k, v in frozen.items() if k not in ("params", TEACHER)}
    merged = merge_params(trained, frozen.get("params", {}))
    return {"params": merged, **locked, **extra, **own}


def model_variables(variables: PyTree) -> dict[str, Any]:
    """The variables of the model alone: what is published, without the objective's parameters.

    Args:
      variables: of a run, see `join_variables`.

    Returns:
      `{"params": ...}`, with `batch_stats` for a ResNet.
    """
    return {k: v for k, v in variables.items() if k != OBJECTIVE}


def with_batch_norm(
    config: ChineseClipConfig, *, bn_sync: bool, num_devices: int
) -> ChineseClipConfig:
    """The config whose ResNet takes batch statistics over the global batch, or over one device's.

    Args:
      config: sizes of the model; those without batch norm pass unchanged.
      bn_sync: True takes the statistics over the rows of all devices (of a part of the batch, where
        it goes through in parts); False over those of one device, as the original does without
        `use-bn-sync`. The running statistics are then the mean over the devices (the original
        keeps those of its first).
      num_devices: devices that the batch is split over.

    Returns:
      The config. Evaluation and published weights are the same for both.
    """
    if not isinstance(config.vision, ModifiedResNetConfig) or config.vision.norm != "batch":
        return config
    groups = 1 if bn_sync else num_devices
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, norm_groups=groups)
    )


class _StepKeys(NamedTuple):
    """One key for each random part of a step."""

    prepare: jax.Array
    dropout: jax.Array
    mask: jax.Array


class Teacher(NamedTuple):
    """A frozen model that the student learns from; its variables are `frozen["teacher"]`.

    Attributes:
      model: its towers.
      config: what is learnt from it.
    """

    model: ChineseClip
    config: DistillationConfig = DistillationConfig()


def make_step_parts(
    model: ChineseClip,
    prepare: Prepare | None,
    config: LossConfig,
    *,
    image_locked: bool,
    mask_ratio: float = 0.0,
    mesh: Mesh | None = None,
    teacher: Teacher | None = None,
) -> StepParts:
    """The loss of a stage, taken apart into towers, teacher and objective.

    Args:
      model: the two towers.
      prepare: `(key, image) -> NHWC float32`, from the `image` of a batch to the normalised input
        of the tower (augmentation on the device included); None if `image` is that already.
      config: the loss.
      image_locked: run the image tower as in evaluation, without gradient. Batches may then hold
        `image_features` instead of `image`.
      mask_ratio: share of the patches that a vision transformer drops (FLIP); the teacher sees
        whole images.
      mesh: needed by all kinds of loss but `dense` on several devices.
      teacher: what the student learns from. It sees the prepared images, resized to its size on the
        device; or the batch holds `teacher_image`, of its size, uint8 or normalised float32.

    Returns:
      The parts.
    """
    if teacher is not None and image_locked and teacher.config.image_weight:
        logger.warning(
            "the image tower is locked: image_weight=%s of the distillation reaches no tower; set "
            "it to 0, or train the image tower",
            teacher.config.image_weight,
        )

    def encode(
        params: PyTree, frozen: PyTree, extra: PyTree, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[PairFeatures, PyTree]:
        keys = _StepKeys(*jax.random.split(key, 3))
        if "image_features" in batch:
            return _text_features(model, params, batch, keys), extra
        return _pair_features(
            model, join_variables(params, frozen, extra), extra, batch, keys, prepare,
            image_locked=image_locked, mask_ratio=mask_ratio,
        )  # fmt: skip

    def ask(frozen: PyTree, batch: PyTree, key: Key[Array, ""]) -> Any:
        if teacher is None:
            return ()
        images = _teacher_images(batch, prepare, _StepKeys(*jax.random.split(key, 3)))
        ids = batch["ids"] if teacher.config.similarity_weight else None
        return teach(teacher.model, frozen[TEACHER], images, ids)

    distillation = None if teacher is None else teacher.config
    return StepParts(encode, ask, make_objective(config, mesh, distillation))


def make_loss_fn(
    model: ChineseClip,
    prepare: Prepare | None,
    config: LossConfig,
    *,
    image_locked: bool,
    mask_ratio: float = 0.0,
    mesh: Mesh | None = None,
    teacher: Teacher | None = None,
) -> LossFn:
    """The loss function of a stage, for `jaxlab.training.make_train_step`.

    Args:
      model: see `make_step_parts`, as everything here.
      prepare: see there.
      config: see there.
      image_locked: see there.
      mask_ratio: see there.
      mesh: see there.
      teacher: see there.

    Returns:
      `loss_fn(params, frozen, extra, batch, key) -> (loss, (extra, metrics))`; for the metrics see
      `make_objective`.
    """
    return compose_loss(
        make_step_parts(
            model, prepare, config, image_locked=image_locked, mask_ratio=mask_ratio, mesh=mesh,
            teacher=teacher,
        )
    )  # fmt: skip


def make_pair_step(
    parts: StepParts,
    tx: optax.GradientTransformation,
    config: LossConfig,
    *,
    num_microbatches: int = 1,
    negatives: Negatives = "batch",
) -> TrainStep:
    """The step of a stage: the loss, the optimizer, and the clamp of the multiplier.

    Args:
      parts: the loss, taken apart.
      tx: the optimizer over the trained parameters.
      config: the loss, for the bounds of the multiplier.
      num_microbatches: parts that a batch goes through the towers in, one after the other.
      negatives: what the pairs of a part are compared with: `batch` is all pairs of the batch (the
        towers run forward once more, see `make_cached_step`), `microbatch` those of the part.

    Returns:
      `step(state, frozen, batch, key) -> (state, metrics)` for `jaxlab.training.train_loop`.

    Raises:
      ValueError: if an argument is out of range.
    """
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives={negatives!r} is not one of {get_args(Negatives)}")
    clamp = make_clamp(config)
    if num_microbatches > 1 and negatives == "batch":
        return make_cached_step(parts, tx, num_microbatches=num_microbatches, post_update=clamp)
    return make_train_step(
        compose_loss(parts), tx, num_microbatches=num_microbatches, post_update=clamp
    )


def _text_features(
    model: ChineseClip, params: PyTree, batch: PyTree, keys: _StepKeys
) -> PairFeatures:
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
    return PairFeatures(normalize(batch["image_features"]), normalize(text))


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
) -> tuple[PairFeatures, PyTree]:
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
    return PairFeatures(features.image, features.text), {**extra, **updated}


def _teacher_images(batch: PyTree, prepare: Prepare | None, keys: _StepKeys) -> Array:
    """The teacher's input: its own images, or what the student sees before patches are dropped."""
    if "teacher_image" in batch:
        images = batch["teacher_image"]
        is_integer = jnp.issubdtype(images.dtype, jnp.integer)
        return normalize_pixels(images) if is_integer else images
    if "image" not in batch:
        raise ValueError(
            f"a teacher needs batches with image or teacher_image; this one has {sorted(batch)}"
        )
    return batch["image"] if prepare is None else prepare(keys.prepare, batch["image"])


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
      weights decay. The objective's own parameters follow the rule by their own names.
    """
    table = original_table(config)

    def decide(path: tuple[Any, ...], leaf: Any) -> bool:
        name = path_name(path)
        own = name.split("/")[0] == OBJECTIVE  # has no name in the original
        names = (name,) if own else table.foreign_names_of("params/" + name)
        return not any(part in name for part in _UNDECAYED_IN_ORIGINAL for name in names)

    return lambda params: jax.tree.map_with_path(decide, params)
