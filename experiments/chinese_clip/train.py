"""Train Chinese CLIP in one or two stages and report how well it retrieves.

    python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py --workdir=DIR

Stage 1 locks the image tower (its features may be computed once), stage 2 trains both towers. DIR
gets a folder a stage (checkpoints, `metrics.jsonl`, TensorBoard), `model/` (safetensors and
config), `results.json` and, on the emoji set, `retrieval.png`. Run again, it goes on where it was;
with more steps for its last stage, that is trained on.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.chinese_clip.models import MODEL_FOLDER, open_weights
from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.chinese_clip.starts import (
    check_sources,
    check_stages,
    naming_setting,
    stage_start,
    whole_model,
)
from experiments.chinese_clip.tasks import Evaluation, Floors, Task, make_task
from experiments.common import print_results, run, start
from experiments.common.pictures import save_png
from experiments.common.stages import chosen_state
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip.api import CALIBRATION_FILE
from jaxlab.chinese_clip.train import Prepare
from jaxlab.training.resume import place_frozen
from jaxlab.training.step import TrainStep

logger = logging.getLogger(__name__)


def main(config: RunConfig, workdir: Path) -> None:
    """Train, evaluate, report."""
    started = time.monotonic()
    check_sources(config)
    mesh = start()
    task = make_task(config, mesh)
    check_stages(config, workdir, lambda stage: resolve_steps(stage, task))
    model = make_model(config)
    variables = initial_variables(config)
    for name in ("stage_1", "stage_2"):
        if (stage := getattr(config, name)) is not None:
            variables = run_stage(config, stage, workdir / name, task, model, variables, mesh)
    variables = clip.model_variables(variables)
    if parallel.is_main_process():
        set_calibration_aside(workdir / MODEL_FOLDER, variables)
        info = {"data": config.data, "language": config.emoji.language}
        clip.save_published(workdir / MODEL_FOLDER, variables, config.model, info=info)
    evaluation = task.evaluate(model, variables)
    if parallel.is_main_process():
        report(workdir, evaluation, task.floors(), time.monotonic() - started)


def set_calibration_aside(folder: Path, variables: PyTree) -> None:
    """Rename a calibration that was fitted to another model than the one to be written.

    Args:
      folder: where the run leaves its model.
      variables: those of the model, on the host.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return
    before, now = (flatten(v) for v in (clip.load_published(folder).variables, variables))
    if before.keys() == now.keys() and all(np.array_equal(before[k], now[k]) for k in now):
        return
    aside = path.with_name(f"{path.stem}.old{path.suffix}")
    path.replace(aside)
    logger.warning(
        "%s was fitted to the model that was there before and is now %s; fit it again, python -m "
        "experiments.chinese_clip.calibrate --workdir=%s",
        path, aside.name, folder.parent,
    )  # fmt: skip


def make_model(config: RunConfig) -> clip.ChineseClip:
    """The two towers as the settings of a run have them computed."""
    return clip.ChineseClip(
        config.model,
        remat=config.remat,
        scan=config.scan,
        implementation=config.attention,
        dtype=config.dtype,
    )


def initial_variables(config: RunConfig) -> PyTree:
    """What training starts from: a whole model, or random towers, a trained one in place of either.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if a trained tower is not there.
      ValueError: if it has other sizes than the model.
    """
    if config.weights:
        return whole_model(config.weights, config.model)
    first = config.stage_1 or config.stage_2
    assert first is not None, "checked by RunConfig"
    is_random, key = config.image_tower == "random", jax.random.key(first.seed)
    variables = jax.device_get(clip.initialize(config.model, key, image_tower=is_random))
    if config.image_tower == "english":
        with naming_setting("image_tower", config.image_tower):
            variables = clip.with_image_tower(variables, config.model, clip.load_english_tower())
    elif not is_random:
        with naming_setting("image_tower", config.image_tower):
            image_tower = clip.load_image_tower(
                config.image_tower, config.model.vision, resize_positions=True
            )
            variables = clip.with_image_tower(variables, config.model, image_tower)
    if config.text_tower != "random":
        with naming_setting("text_tower", config.text_tower):
            text_tower = clip.load_text_tower(config.text_tower, config.model.text)
            variables = clip.with_text_tower(variables, config.model, text_tower)
    return variables


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
    if stage.counts_epochs:
        stage, steps_per_epoch = resolve_steps(stage, task), task.steps_per_epoch(stage)
        logger.info("%d steps an epoch, %d in all", steps_per_epoch, stage.num_steps)
    rules = getattr(parallel.ShardingRules, config.sharding)()
    teacher = load_teacher(config)
    variables = with_objective(config, stage, variables, teacher)
    tx, step = make_step(config, stage, model, task.prepare, mesh, teacher)
    begin = stage_start(stage, config.model, workdir, variables, tx, mesh, rules)
    frozen = place_frozen(mesh, begin.frozen, rules)

    def make_batches(start_step: int) -> Any:
        features = None
        if stage.cached_views:
            began = time.monotonic()
            features = task.cache_features(model, variables, stage, workdir / "features")
            seconds = time.monotonic() - began
            logger.info(
                "features of %d views an image are cached, after %.1f s; the image tower does not "
                "run in %d steps of %d pairs",
                stage.cached_views, seconds, stage.num_steps, stage.global_batch_size,
            )  # fmt: skip
        return task.make_batches(stage, features)(start_step)

    def validate(state: training.TrainState) -> dict[str, float]:
        trained = training.evaluation_params(state, clip.make_clamp(config.loss))
        return task.validate(model, clip.join_variables(trained, frozen, state.extra))

    is_measured = stage.eval_every_steps > 0 or bool(stage.best_metric)
    result = training.train_loop(
        config=begin.config,
        workdir=workdir,
        init=begin.state,
        step=step,
        make_batches=make_batches,
        frozen=step_frozen(stage, frozen, teacher),
        evaluators=[training.Evaluator("validation", validate)] if is_measured else [],
        mesh=mesh,
        rules=rules,
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
    state = chosen_state(stage, workdir, result.state)
    trained = training.evaluation_params(state, clip.make_clamp(config.loss))
    params, extra = parallel.to_host((trained, state.extra))
    return clip.join_variables(params, begin.frozen, extra)


def step_frozen(stage: StageConfig, frozen: PyTree, teacher: clip.Weights | None) -> PyTree:
    """What the steps of a stage read and do not change.

    Args:
      stage: the stage.
      frozen: what it does not train; not needed where its features are cached.
      teacher: what the student learns from.
    """
    read = {} if stage.cached_views else frozen
    return read if teacher is None else {**read, "teacher": teacher.variables}


def resolve_steps(stage: StageConfig, task: Task) -> StageConfig:
    """The stage with epochs turned into steps; the data are counted only where that is needed.

    Args:
      stage: the stage.
      task: the data.
    """
    return stage.with_steps(task.steps_per_epoch(stage)) if stage.counts_epochs else stage


def load_teacher(config: RunConfig) -> clip.Weights | None:
    """The weights that the student learns from, if the settings name any.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if they cannot be read.
    """
    return open_weights(config.teacher) if config.teacher else None


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
