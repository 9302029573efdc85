"""The settings of a Chinese CLIP run; the files in `configs/chinese_clip` give their values."""

import dataclasses
from typing import Literal

from jaxlab.chinese_clip import ChineseClipConfig, DistillationConfig, LossConfig
from jaxlab.chinese_clip.data import PairDataConfig
from jaxlab.chinese_clip.emoji import EmojiDataConfig
from jaxlab.training import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(TrainConfig):
    """One stage of training.

    Attributes:
      image_locked: keep the image tower, its projection and its batch statistics as they are.
      cached_views: with a locked image tower, features of this many augmented views of every image
        are computed once and the tower does not run in the steps; 0 runs it in every step.
      mask_ratio: share of the patches that a vision transformer drops while training (FLIP).
      negatives: where a batch goes through the towers in parts (`microbatch_size`), what the pairs
        of a part are compared with: all pairs of the `batch`, whose features are kept (the towers
        run forward twice), or those of the `microbatch`.
      decay_like_original: weight decay for the parameters that the original's rule picks, instead
        of `optimizer.decay_rule`.
      optimizer: optimizer and schedule.
    """

    image_locked: bool = False
    cached_views: int = 0
    mask_ratio: float = 0.0
    negatives: Literal["batch", "microbatch"] = "batch"
    decay_like_original: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: if a field is out of range, or features of a tower that trains are to be
            cached.
        """
        super().__post_init__()
        if self.cached_views < 0:
            raise ValueError(f"cached_views={self.cached_views} is negative; 0 caches nothing")
        if self.cached_views and not self.image_locked:
            raise ValueError(
                f"cached_views={self.cached_views} needs image_locked=True: the features of a "
                "tower that trains change with every step"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run of one or two stages.

    Attributes:
      model: sizes of both towers.
      dtype: type of the computation, `float32` or `bfloat16`; parameters are float32.
      remat: recompute every transformer block in the backward pass.
      image_tower: what the image tower starts from: `random`, `english` (the small tower that ships
        with jaxlab), a folder of published weights, or a `.pt` file of the original.
      data: `emoji`, or `pairs` for image-text pairs of one's own in the original's formats.
      emoji: how emoji examples are drawn.
      pairs: where pairs lie and how they are read.
      loss: the loss over the pairs of a batch.
      bn_sync: a ResNet takes its batch statistics over all devices; False takes those of each
        device, as the original does without `use-bn-sync`.
      teacher: weights that the student learns from, a folder of published weights or a `.pt` file
        of the original; "" for no teacher.
      distillation: what is learnt from the teacher.
      sharding: placement of parameters over the devices, `replicated` or `fsdp`.
      stage_1: the first stage; None leaves it out.
      stage_2: the second stage; None leaves it out.
    """

    model: ChineseClipConfig
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    image_tower: str = "random"
    data: Literal["emoji", "pairs"] = "emoji"
    emoji: EmojiDataConfig = EmojiDataConfig()
    pairs: PairDataConfig = PairDataConfig()
    loss: LossConfig = LossConfig()
    bn_sync: bool = True
    teacher: str = ""
    distillation: DistillationConfig = DistillationConfig()
    sharding: Literal["replicated", "fsdp"] = "replicated"
    stage_1: StageConfig | None = None
    stage_2: StageConfig | None = None

    def __post_init__(self) -> None:
        """Check that there is a stage, and what pairs need if they are trained on.

        Raises:
          ValueError: if something is missing, or features of pairs are to be cached.
        """
        if self.stage_1 is None and self.stage_2 is None:
            raise ValueError("stage_1 and stage_2 are both None; wanted settings for one of them")
        problems = [
            f"{name}.cached_views={stage.cached_views} leaves no images for the teacher "
            f"{self.teacher!r}; set {name}.cached_views=0"
            for name, stage in (("stage_1", self.stage_1), ("stage_2", self.stage_2))
            if stage is not None and stage.cached_views and self.teacher
        ]
        if problems:
            raise ValueError("; ".join(problems))
        if self.data != "pairs":
            return
        problems = []
        if not self.pairs.folder:
            problems.append(
                "data='pairs' needs pairs.folder, the folder with {split}_imgs.tsv and "
                "{split}_texts.jsonl, or lmdb"
            )
        for name in ("stage_1", "stage_2"):
            stage = getattr(self, name)
            if stage is not None and stage.cached_views:
                problems.append(
                    f"{name}.cached_views={stage.cached_views} is offered for data='emoji' only; "
                    f"set {name}.cached_views=0, and the locked tower runs in every step"
                )
        if problems:
            raise ValueError("; ".join(problems))
