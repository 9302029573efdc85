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

from experiments.chinese_clip.models import MODEL_FOLDER
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
    if parallel.is_main_process():
        info = {"data": config.data, "language": config.emoji.language}
        clip.save_published(workdir / MODEL_FOLDER, variables, config.model, info=info)
    evaluation = task.evaluate(model, variables)
    if parallel.is_main_process():
        report(workdir, evaluation, task.floors(), time.monotonic() - started)


def initial_variables(config: RunConfig) -> PyTree:
    """What training starts from: random towers, replaced by trained ones if asked.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if a trained tower is not there.
      ValueError: if it has other sizes than the model.
    """
    first = config.stage_1 or config.stage_2
    assert first is not None, "checked by RunConfig"
    is_random, key = config.image_tower == "random", jax.random.key(first.seed)
    variables = jax.device_get(clip.initialize(config.model, key, image_tower=is_random))
    if config.image_tower == "english":
        variables = clip.with_image_tower(variables, config.model, clip.load_english_tower())
    elif not is_random:
        image_tower = clip.load_image_tower(
            config.image_tower, config.model.vision, resize_positions=True
        )
        variables = clip.with_image_tower(variables, config.model, image_tower)
    if config.text_tower != "random":
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
    parts = clip.split_variables(variables, image_locked=stage.image_locked)
    tx, step = make_step(config, stage, model, task.prepare, mesh)

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
        frozen={} if stage.cached_views else parts.frozen,
        mesh=mesh,
        rules=getattr(parallel.ShardingRules, config.sharding)(),
        run_config=config,
    )
    params, extra = parallel.to_host((result.state.params, result.state.extra))
    return clip.join_variables(params, parts.frozen, extra)


def make_step(
    config: RunConfig,
    stage: StageConfig,
    model: clip.ChineseClip,
    prepare: Prepare | None,
    mesh: Mesh,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer of a stage, and its step.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      model: the two towers.
      prepare: what the device does to the images of a batch.
      mesh: the devices.
    """
    mask = clip.make_original_decay_mask(config.model) if stage.decay_like_original else None
    tx = training.make_optimizer(stage.optimizer, stage.num_steps, mask)
    loss_fn = clip.make_loss_fn(
        model,
        prepare,
        config.loss,
        image_locked=stage.image_locked,
        mask_ratio=stage.mask_ratio,
        mesh=mesh,
    )
    step = training.make_train_step(
        loss_fn,
        tx,
        num_microbatches=stage.num_microbatches,
        post_update=clip.make_clamp(config.loss),
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
