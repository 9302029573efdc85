"""The settings of a Chinese CLIP run; the files in `configs/chinese_clip` give their values."""

import dataclasses
from typing import Literal

from experiments.common.stages import EpochConfig
from jaxlab.chinese_clip import ChineseClipConfig, DistillationConfig, LossConfig
from jaxlab.chinese_clip.data import PairDataConfig
from jaxlab.chinese_clip.emoji import EmojiDataConfig
from jaxlab.layers.attention import AttentionImplementation
from jaxlab.training import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(EpochConfig):
    """One stage of training, as long as `num_steps` or `num_epochs` says.

    Attributes:
      reset_optimizer: with `continue_from`, take the parameters of the other run but not the state
        of its optimizer.
      reset_data_offset: with `continue_from`, begin at step 0 (of the data and of the schedule)
        instead of the step of the other run.
      image_locked: keep the image tower, its projection and its batch statistics as they are.
      cached_views: with a locked image tower, features of this many augmented views of every image
        are computed once and the tower does not run in the steps; 0 runs it in every step. Those of
        pairs lie on disk, see `jaxlab.chinese_clip.feature_cache`.
      cache_folder: where the features of pairs lie, for several runs to share; "" is `features` in
        the folder of the stage.
      cache_dtype: type of the features on disk, `float32`, or `float16` in half the space.
      mask_ratio: share of the patches that a vision transformer drops while training (FLIP).
      negatives: where a batch goes through the towers in parts (`microbatch_size`), what the pairs
        of a part are compared with: all pairs of the `batch`, whose features are kept (the towers
        run forward twice), or those of the `microbatch`.
      decay_like_original: weight decay for the parameters that the original's rule picks, instead
        of `optimizer.decay_rule`.
      optimizer: optimizer and schedule.
    """

    reset_optimizer: bool = False
    reset_data_offset: bool = False
    image_locked: bool = False
    cached_views: int = 0
    cache_folder: str = ""
    cache_dtype: Literal["float32", "float16"] = "float32"
    mask_ratio: float = 0.0
    negatives: Literal["batch", "microbatch"] = "batch"
    decay_like_original: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.cached_views < 0:
            problems.append(f"cached_views={self.cached_views} is negative; 0 switches it off")
        if self.cached_views and not self.image_locked:
            problems.append(
                f"cached_views={self.cached_views} needs image_locked=True: the features of a "
                "tower that trains change with every step"
            )
        if (self.reset_optimizer or self.reset_data_offset) and not self.continue_from:
            problems.append(
                "reset_optimizer and reset_data_offset say how to go on from another run; set "
                "continue_from, or leave them out"
            )
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run of one or two stages.

    Attributes:
      model: sizes of both towers.
      dtype: type of the computation, `float32` or `bfloat16`; parameters are float32.
      remat: recompute every transformer block in the backward pass.
      scan: compile one block a tower and scan over the others: faster to compile; give `remat` with
        it, or more activations are kept.
      attention: how attention is computed: `einsum`, `xla`, `cudnn` (flash attention; where
        attention dropout is on, `einsum` is used), or `auto`, which is the fastest for the device.
      weights: what both towers start from: a folder of published weights (`model/` of a run), or a
        `.pt` file of the original, of its trainer too; "" for towers of their own. The position
        table of a vision transformer is resized where the image size differs.
      image_tower: what the image tower starts from: `random`, `english` (the small tower that ships
        with jaxlab), a file of OpenAI's CLIP or OpenCLIP, or weights of a Chinese CLIP in any form.
        Its temperature comes with it, and the position table of a vision transformer is resized.
      text_tower: what the text tower starts from: `random`, a file or folder of a BERT such as
        RoBERTa-wwm-ext or RBT3, or weights of a Chinese CLIP in any form.
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
    scan: bool = False
    attention: AttentionImplementation = "auto"
    weights: str = ""
    image_tower: str = "random"
    text_tower: str = "random"
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
        """Check that there is a stage, and what else contradicts itself.

        Raises:
          ValueError: if something is missing or given twice.
        """
        problems = []
        if self.stage_1 is None and self.stage_2 is None:
            problems.append("stage_1 and stage_2 are both None; wanted settings for one of them")
        problems += [
            f"{name}.cached_views={stage.cached_views} leaves no images for the teacher "
            f"{self.teacher!r}; set --config.{name}.cached_views=0"
            for name, stage in (("stage_1", self.stage_1), ("stage_2", self.stage_2))
            if stage is not None and stage.cached_views and self.teacher
        ]
        if self.data == "pairs" and not self.pairs.folder:
            problems.append(
                "data='pairs' needs pairs.folder, the folder with {split}_imgs.tsv and "
                "{split}_texts.jsonl, or lmdb"
            )
        towers = (self.image_tower, self.text_tower)
        if self.weights and towers != ("random", "random"):
            problems.append(
                f"weights={self.weights!r} holds both towers, image_tower and text_tower name "
                f"{towers}; give weights alone (--config.image_tower=random "
                "--config.text_tower=random), or towers alone (--config.weights=)"
            )
        if problems:
            raise ValueError("; ".join(problems))
