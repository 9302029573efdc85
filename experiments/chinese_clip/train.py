"""Train Chinese CLIP in one or two stages and report how well it retrieves.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py --workdir=DIR

Stage 1 locks the image tower (its features may be computed once), stage 2 trains both towers. DIR
gets a folder a stage (checkpoints, `metrics.jsonl`, TensorBoard), `model/` (safetensors and
config), `results.json` and, on the emoji set, `retrieval.png`. Run again, it goes on where it was.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.chinese_clip.models import MODEL_FOLDER, load_weights
from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.chinese_clip.tasks import Evaluation, Floors, Task, make_task
from experiments.common import print_results, run, start
from experiments.common.pictures import save_png
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.chinese_clip.train import Prepare
from jaxlab.training.step import TrainStep

logger = logging.getLogger(__name__)


def main(config: RunConfig, workdir: Path) -> None:
    """Train, evaluate, report."""
    started = time.monotonic()
    mesh = start()
    task = make_task(config)
    model = clip.ChineseClip(config.model, remat=config.remat, dtype=config.dtype)
    variables = initial_variables(config)
    for name in ("stage_1", "stage_2"):
        if (stage := getattr(config, name)) is not None:
            variables = run_stage(config, stage, workdir / name, task, model, variables, mesh)
    variables = clip.model_variables(variables)
    if parallel.is_main_process():
        info = {"data": config.data, "language": config.emoji.language}
        clip.save_published(workdir / MODEL_FOLDER, variables, config.model, info=info)
    evaluation = task.evaluate(model, variables)
    if parallel.is_main_process():
        report(workdir, evaluation, task.floors(), time.monotonic() - started)


def initial_variables(config: RunConfig) -> PyTree:
    """What training starts from: random towers, the image tower replaced by a trained one if asked.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if the trained tower is not there.
      ValueError: if it has other sizes than the model.
    """
    first = config.stage_1 or config.stage_2
    assert first is not None, "checked by RunConfig"
    is_random, key = config.image_tower == "random", jax.random.key(first.seed)
    variables = jax.device_get(clip.initialize(config.model, key, image_tower=is_random))
    if is_random:
        return variables
    if config.image_tower == "english":
        weights = clip.load_english_tower()
    else:
        weights = load_weights(config.image_tower)
    return clip.with_image_tower(variables, config.model, weights)


def run_stage(
    config: RunConfig,
    stage: StageConfig,
    workdir: Path,
    task: Task,
    model: clip.ChineseClip,
    variables: PyTree,
    mesh: Mesh,
) -> PyTree:
    """Train one stage, or read its result if it has ended before.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      workdir: folder of the stage.
      task: the data.
      model: the two towers.
      variables: what the stage starts from, on the host.
      mesh: the devices.

    Returns:
      The variables after the stage, on the host.
    """
    teacher = load_teacher(config)
    variables = with_objective(config, stage, variables, teacher)
    parts = clip.split_variables(variables, image_locked=stage.image_locked)
    tx, step = make_step(config, stage, model, task.prepare, mesh, teacher)
    frozen = {} if stage.cached_views else parts.frozen
    if teacher is not None:
        frozen = {**frozen, "teacher": teacher.variables}

    def make_batches(start_step: int) -> Any:
        features = None
        if stage.cached_views:
            began = time.monotonic()
            features = task.cache_features(model, variables, stage)
            seconds = time.monotonic() - began
            logger.info("cached the features of %d views in %.1f s", stage.cached_views, seconds)
        return task.make_batches(stage, features)(start_step)

    key = jax.random.key(stage.seed)
    result = training.train_loop(
        config=stage,
        workdir=workdir,
        init=training.TrainState.create(parts.params, tx, key, parts.extra),
        step=step,
        make_batches=make_batches,
        frozen=frozen,
        mesh=mesh,
        rules=getattr(parallel.ShardingRules, config.sharding)(),
        run_config=config,
        flops_per_example=clip.train_flops(
            config.model,
            image_locked=stage.image_locked,
            cached_features=stage.cached_views > 0,
            mask_ratio=stage.mask_ratio,
            teacher=None if teacher is None else teacher.config,
            teacher_text=config.distillation.similarity_weight > 0,
        ),
    )
    trained = training.evaluation_params(result.state, clip.make_clamp(config.loss))
    params, extra = parallel.to_host((trained, result.state.extra))
    return clip.join_variables(params, parts.frozen, extra)


def load_teacher(config: RunConfig) -> clip.Weights | None:
    """The weights that the student learns from, if the settings name any.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if they cannot be read.
    """
    return load_weights(config.teacher) if config.teacher else None


def with_objective(
    config: RunConfig, stage: StageConfig, variables: PyTree, teacher: clip.Weights | None
) -> PyTree:
    """The variables with the parameters of the loss itself, as an earlier stage left them or new.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      variables: of the run.
      teacher: what the student learns from.
    """
    fresh = clip.initial_objective(
        config.loss,
        jax.random.key(stage.seed),
        model=config.model,
        distillation=None if teacher is None else config.distillation,
        teacher=None if teacher is None else teacher.config,
    )
    return {**variables, "objective": {**fresh, **variables.get("objective", {})}}


def make_step(
    config: RunConfig,
    stage: StageConfig,
    model: clip.ChineseClip,
    prepare: Prepare | None,
    mesh: Mesh,
    teacher: clip.Weights | None = None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer of a stage, and its step.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      model: the two towers.
      prepare: what the device does to the images of a batch.
      mesh: the devices.
      teacher: what the student learns from, its variables among the frozen ones of the step.
    """
    sizes = clip.with_batch_norm(
        config.model, bn_sync=config.bn_sync, num_devices=mesh.shape[parallel.DATA_AXIS]
    )
    tutor = None
    if teacher is not None:
        tutor = clip.Teacher(
            clip.ChineseClip(teacher.config, dtype=config.dtype), config.distillation
        )
    mask = clip.make_original_decay_mask(config.model) if stage.decay_like_original else None
    tx = training.make_optimizer(stage.optimizer, stage.num_steps, mask)
    parts = clip.make_step_parts(
        model.clone(config=sizes),
        prepare,
        config.loss,
        image_locked=stage.image_locked,
        mask_ratio=stage.mask_ratio,
        mesh=mesh,
        teacher=tutor,
    )
    step = clip.make_pair_step(
        parts,
        tx,
        config.loss,
        num_microbatches=stage.num_microbatches,
        negatives=stage.negatives,
    )
    return tx, step


def report(workdir: Path, evaluation: Evaluation, floors: Floors, seconds: float) -> None:
    """Write `results.json` and the picture, and print the table.

    Args:
      workdir: folder of the run.
      evaluation: what was measured.
      floors: what is reached without a model.
      seconds: since the start of the run.
    """
    results = evaluation.metrics
    training.write_results(workdir, {**results, **floors.metrics, "seconds": seconds})
    print_results(results, title=f"{workdir}, {seconds:.0f} s", beside=besides(floors))
    if evaluation.draw is not None:
        print(f"Pictures: {save_png(workdir / 'retrieval.png', evaluation.draw())}")


def besides(floors: Floors) -> dict[str, dict[str, float]]:
    """The columns beside the results: the floors, where there are any."""
    return {"floor": floors.beside} if floors.beside else {}


if __name__ == "__main__":
    run(main)
