"""The settings of a distillation run; the files in `configs/distillation` give their values."""

import dataclasses
from typing import Literal

from experiments.common.stages import EpochConfig
from experiments.distillation.variants import parse_variant
from jaxlab.distillation import SIZES, HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.distillation.grammar import STEPPING
from jaxlab.layers.attention import AttentionImplementation
from jaxlab.training import OptimizerConfig

LABELS_ALONE = ObjectiveConfig(response=ResponseConfig("none"), hard=HardConfig(1.0))


@dataclasses.dataclass(frozen=True)
class TextsConfig:
    """The data of a run, and how texts become token ids.

    Attributes:
      name: a packaged data set (`r8`, `r52`, `20ng`, `trec`, `trec_fine`, `mr`, `sms`, `bbc` ...),
        a task of GLUE or CLUE, `squad`, `conll2003`, `corpus` for plain text, or `tables` for
        files of one's own.
      folder: where files lie that no package holds, of GLUE and CLUE that of all tasks or of this
        one; "" for packaged data.
      text: of `tables`, the column with the text, or with the first of a pair.
      pair: the column with the second; "" for single texts.
      label: the column with the label.
      regression: labels are numbers.
      max_length: tokens of a text, special ones included; longer texts are cut, and counted.
      buckets: lengths that texts are padded to, up to `max_length`, which is the last one; every
        length is a program of its own, so that few compile sooner and many pad less.
      fraction: share of the training examples that is used, the same ones for one `seed`.
      with_validation: learn the validation examples as well, for a last run after everything was
        chosen; nothing is measured on them then, and without labels of a test part nothing at all.
      seed: of that choice. Masks are drawn by the seed of the stage, in evaluation by 0.
      masking: share of the tokens of plain text that is masked, where words are to be predicted.
      masking_power: rare words are masked more often, by their count to the power of minus this.
      whole_words: mask all pieces of a word together.
      max_words: of plain text (`corpus`): longer lines are cut into texts of so many words; with 0
        lines stay as they are, and what is behind `max_length` is not learnt. A word has one token
        or more, so that about two thirds of `max_length` lose little. Texts and ids are held in
        the memory of every process, see `load_corpus`.
    """

    name: str = "trec"
    folder: str = ""
    text: str = "text"
    pair: str = ""
    label: str = "label"
    regression: bool = False
    max_length: int = 128
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256)
    fraction: float = 1.0
    with_validation: bool = False
    seed: int = 0
    masking: float = 0.15
    masking_power: float = 0.0
    whole_words: bool = False
    max_words: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
          ValueError: if a value is out of range.
        """
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"data.fraction={self.fraction} is not in (0, 1]")
        if self.name == "tables" and not self.folder:
            raise ValueError(
                "data.name='tables' are files of your own; give the folder with train.csv, .tsv or "
                ".jsonl as data.folder"
            )
        if not 0.0 < self.masking < 1.0:
            raise ValueError(f"data.masking={self.masking} is not in (0, 1)")
        if self.max_words < 0 or (self.max_words and self.name != "corpus"):
            raise ValueError(
                f"data.max_words={self.max_words} with data.name={self.name!r}: wanted 0, or of "
                "'corpus' the number of words at which lines are cut"
            )
        if self.max_length < 4:
            raise ValueError(
                f"data.max_length={self.max_length} leaves no room for a text; 4 or up"
            )


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Variants of the training texts, as TinyBERT makes them; they carry no labels.

    Attributes:
      num_copies: how often a text is varied; 0 leaves the texts as they are.
      candidates: what words are replaced by: words of a `model` with the head of its language
        model, `neighbours` by the word embeddings of a model, or by the `glove` vectors of a file;
        `delete` leaves words out, `swap` exchanges them, `mask` masks tokens.
      model: weights whose words are taken, as for the teacher; "" takes those of the teacher, as it
        is before it learns the task.
      glove: a file of vectors, for `glove`, and for words of several pieces beside a `model`.
      probability: of a word to be replaced, left out, moved or masked.
      num_candidates: per word.
      keep_labels: let variants carry the label of their text.
      seed: of the draws.
    """

    num_copies: int = 0
    candidates: Literal["model", "neighbours", "glove", "delete", "swap", "mask"] = "neighbours"
    model: str = ""
    glove: str = ""
    probability: float = 0.4
    num_candidates: int = 15
    keep_labels: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
          ValueError: listing all that is wrong.
        """
        problems = [
            f"{name}={getattr(self, name)} must be {least} or more"
            for name, least in (("num_copies", 0), ("num_candidates", 1), ("seed", 0))
            if getattr(self, name) < least
        ]
        if not 0.0 < self.probability < 1.0:
            problems.append(f"probability={self.probability} is not in (0, 1)")
        if self.candidates == "glove" and not self.glove:
            problems.append("candidates='glove' needs the file of the vectors in glove")
        if problems:
            raise ValueError("augmentation: " + "; ".join(problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(EpochConfig):
    """One stage of training, with an objective of its own.

    Attributes:
      objective: what is learnt.
      optimizer: optimizer and schedule.
      warmup_share: share of the stage in which the rate grows, in place of
        `optimizer.warmup_steps`.
      method: `distil`, or `theseus`: layers of the student take the place of blocks of the teacher,
        more and more of them, and learn from labels alone.
      replacing_start: of `theseus`, the probability of a block to be replaced at the beginning.
      head_factor: by which the rate of the head is multiplied: one that is drawn anew, above all on
        a mean of tokens, may learn too slowly at a rate that is right for the layers below it.
      projection_factor: likewise of the projections to the teacher's width.
      lower_factor: by which layers below the one whose turn it is learn, where matches have
        `schedule=progressive`; 1 lets all learn alike.
    """

    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, schedule="linear")
    warmup_share: float = 0.0
    method: Literal["distil", "theseus"] = "distil"
    replacing_start: float = 0.3
    head_factor: float = 1.0
    projection_factor: float = 1.0
    lower_factor: float = 1.0

    def _problems(self) -> list[str]:
        problems = super()._problems()
        for name in ("warmup_share", "replacing_start"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name}={getattr(self, name)} is not in [0, 1)")
        if not 0.0 <= self.lower_factor <= 1.0:
            problems.append(f"lower_factor={self.lower_factor} is not in [0, 1]")
        factors = ("head_factor", "projection_factor")
        problems += [
            f"{name}={getattr(self, name)} must be more than 0"
            for name in factors
            if not getattr(self, name) > 0.0
        ]
        problems += [
            f"{name}={getattr(self, name)} changes updates that optimizer.ema_decay="
            f"{self.optimizer.ema_decay} averages before; switch one of them off"
            for name in ("lower_factor", *factors)
            if getattr(self, name) != 1.0 and self.optimizer.ema_decay
        ]
        if self.method == "theseus" and self.compares:
            problems.append(
                "method='theseus' learns from labels alone; set objective.matches='' and "
                "objective.response.kind='none'"
            )
        return problems

    @property
    def compares(self) -> bool:
        """Whether anything is compared with a teacher."""
        return bool(self.objective.matches) or self.objective.response.is_used

    @property
    def resolved_optimizer(self) -> OptimizerConfig:
        """The optimizer with the warm-up in steps."""
        if not self.warmup_share:
            return self.optimizer
        steps = round(self.warmup_share * self.num_steps)
        return dataclasses.replace(self.optimizer, warmup_steps=steps)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The network that is learnt from.

    Attributes:
      weights: `minilm_l6`, `mpnet_base` or `minilm_l3` out of a package, or a folder in the form of
        Hugging Face or of Google's BERT, such as a run's `teacher_model/` or `model/` (a teacher
        assistant is the student of one run and the teacher of the next). Several of one vocabulary,
        with commas between them, are averaged.
      mixing: what of several is averaged: their `logits`, their `probabilities`, or the logits by
        the `confidence` of each in an example.
      pooling: what the head sees of a text: the `first` token, the `mean` of all, or `auto`: what
        the weights say, the mean for those of the packages.
      stage: how it learns the task first, labels alone; None for weights that know it already.
      fresh_head: draw its head anew for `stage` to teach, as for weights of other labels.
      fraction: share of the training examples that it learns from; None takes `data.fraction`.
    """

    weights: str = "minilm_l6"
    mixing: Literal["logits", "probabilities", "confidence"] = "logits"
    pooling: Literal["auto", "first", "mean"] = "auto"
    stage: StageConfig | None = None
    fresh_head: bool = False
    fraction: float | None = None

    def __post_init__(self) -> None:
        """Check the share, and that a new head is taught.

        Raises:
          ValueError: if not.
        """
        if self.fresh_head and self.stage is None:
            raise ValueError("teacher.fresh_head=True needs teacher.stage, which teaches the head")
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"teacher.fraction={self.fraction} is not in (0, 1]")

    @property
    def all_weights(self) -> tuple[str, ...]:
        """The weights of every teacher.

        Raises:
          ValueError: if there are none.
        """
        names = tuple(name.strip() for name in self.weights.split(",") if name.strip())
        if not names:
            raise ValueError(f"teacher.weights={self.weights!r} names no teacher")
        return names


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The network that learns: its sizes, and what it starts from.

    Attributes:
      weights: `teacher` for pieces of the (first) teacher, `random`, or weights as for the teacher;
        of these pieces are taken, too, where sizes are given.
      sizes: of a `random` one, those of a published network by name (`bert_small`, `tinybert4`,
        `mobilebert` ..., see `jaxlab.distillation.SIZES`); "" takes the teacher's.
      vocabulary: weights or a folder whose tokenizer is the student's; "" takes that of its
        weights, if they have one, or the teacher's.
      layers: which layers of the teacher it starts from: a strategy of matching (`first`, `last`,
        `gap`, `uniform_top`, `distilbert`), or their numbers from 0, such as `0,2,4`.
      untuned: take the pieces from the teacher as it was before it learnt the task.
      copy_head: take the teacher's head over, too.
      cut_heads: where attention heads differ in size, take the leading features of each.
      num_layers: layers; None takes half of the teacher's, or all of other weights or named sizes.
      width: of the hidden states; None takes the teacher's.
      num_heads: attention heads; None takes the teacher's.
      mlp_width: of the feed-forward layers; None takes four times the width.
    """

    weights: str = "teacher"
    sizes: str = ""
    vocabulary: str = ""
    layers: str = "uniform_top"
    untuned: bool = False
    copy_head: bool = False
    cut_heads: bool = False
    num_layers: int | None = None
    width: int | None = None
    num_heads: int | None = None
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        """Check the named sizes.

        Raises:
          ValueError: if there are none of this name, or the student is cut from other weights.
        """
        if self.sizes and self.sizes not in SIZES:
            raise ValueError(
                f"student.sizes={self.sizes!r} is unknown; use one of {', '.join(SIZES)}"
            )
        if self.sizes and self.weights != "random":
            raise ValueError(
                f"student.sizes={self.sizes!r} are of a new network, and student.weights="
                f"{self.weights!r} has sizes of its own; set student.weights='random', or give "
                "student.num_layers and student.width in place of student.sizes"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworksConfig:
    """Data and networks, and how they are computed: what all commands share.

    Attributes:
      data: texts, labels, tokens.
      augmentation: variants of the training texts for the student's stages.
      teacher: the network that is learnt from.
      student: the network that learns.
      cache_teacher: let the teacher run over the training texts once, and keep on disk what is
        compared of it.
      dtype: type of the computation, `float32` or `bfloat16`; parameters are float32.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the layers: faster to compile.
      attention: how attention is computed, see `jaxlab.layers.attention`.
      sharding: placement of parameters over the devices, `replicated` or `fsdp`.
    """

    data: TextsConfig = TextsConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    cache_teacher: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    scan: bool = False
    attention: AttentionImplementation = "auto"
    sharding: Literal["replicated", "fsdp"] = "replicated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(NetworksConfig):
    """One student, or a teacher alone.

    Attributes:
      stage_1: the first stage of the student, such as one of layers alone; None leaves it out.
      stage_2: the second stage; None leaves it out.
      hard_stage: how a second student of the same start learns from labels alone, to compare with;
        None leaves it out.
    """

    stage_1: StageConfig | None = None
    stage_2: StageConfig | None = None
    hard_stage: StageConfig | None = None

    def __post_init__(self) -> None:
        """Check that there is something to do.

        Raises:
          ValueError: if no stage is there, or a stage of labels alone compares with the teacher.
        """
        stages = (self.teacher.stage, self.stage_1, self.stage_2, self.hard_stage)
        if not any(stages):
            raise ValueError(
                "no stage is there: give stage_1 or stage_2 for the student, or teacher.stage"
            )
        for name, stage in (("teacher.stage", stages[0]), ("hard_stage", stages[3])):
            if problems := _of_labels_alone(name, stage):
                raise ValueError(problems[0])

    @property
    def temperature(self) -> float:
        """At which several teachers are averaged where they are compared with."""
        return self.stage_2.objective.response.temperature if self.stage_2 else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig(NetworksConfig):
    """Students of one shape that learn in different ways, beside one teacher.

    Attributes:
      stage: how long and how they train; of its objective all but matches, weights and temperature
        is of all students.
      variants: what each of them learns, a line each, see `experiments.distillation.variants`.
      baseline: name of the variant that the others are tested against.
      seeds: every variant trains once for each.
      at_once: students that are computed side by side; 0 is all of them, the fastest on an
        accelerator.
    """

    stage: StageConfig
    variants: tuple[str, ...] = ("hard = hard", "kd = response~4")
    baseline: str = "hard"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    at_once: int = 1

    def __post_init__(self) -> None:
        """Check that the students can be compared.

        Raises:
          ValueError: listing all that is wrong.
        """
        variants = [parse_variant(line) for line in self.variants]
        names = [variant.name for variant in variants]
        problems = [
            f"variant {variant.name!r}: {match.strategy}:{match.knowledge} takes layers from step "
            "to step, which students side by side do not have; match by one that stays, or alp"
            for variant in variants
            for match in variant.matches
            if match.strategy in STEPPING
        ]
        if len(set(names)) != len(names) or not names:
            problems.append(f"variants {names}: give one at least, and every name once")
        if self.baseline not in names:
            problems.append(
                f"baseline={self.baseline!r} is none of the variants {names}; set it to one of them"
            )
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            problems.append(f"seeds={self.seeds}: give one at least, and every one once")
        if self.at_once < 0:
            problems.append(f"at_once={self.at_once} must be 0 (all) or more")
        if len(self.teacher.all_weights) > 1:
            problems.append(f"teacher.weights={self.teacher.weights!r}: give one teacher")
        if self.cache_teacher:
            problems.append("cache_teacher: one pass of the teacher feeds all students; set it off")
        if self.data.with_validation:
            problems.append(
                "data.with_validation: variants are measured on these texts; set it off"
            )
        problems += _of_single_students(self.stage)
        problems += _of_labels_alone("teacher.stage", self.teacher.stage)
        if problems:
            raise ValueError("; ".join(problems))


def _of_single_students(stage: StageConfig) -> list[str]:
    """What a stage asks for that students side by side do not have."""
    objective = stage.objective
    asked = {
        "microbatch_size": stage.num_microbatches > 1,
        "best_metric": bool(stage.best_metric),
        "method": stage.method != "distil",
        "optimizer.ema_decay": bool(stage.optimizer.ema_decay),
        "objective.matches": bool(objective.matches),
        "objective.weighting": objective.weighting != "fixed",
        "objective.hard.r_drop": bool(objective.hard.r_drop),
    }
    return [
        f"stage.{name} is not for students side by side: leave it out here, or train one student "
        "after the other with experiments.distillation.train"
        for name in (name for name, is_asked in asked.items() if is_asked)
    ]


def _of_labels_alone(name: str, stage: StageConfig | None) -> list[str]:
    """What is wrong with a stage in which there is no teacher to compare with."""
    if stage is None or not stage.compares:
        return []
    return [
        f"{name} learns from labels alone; set {name}.objective.matches='' and "
        f"{name}.objective.response.kind='none'"
    ]
