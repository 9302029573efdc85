"""What a stage starts from: given variables, another run's checkpoint, a file of the original."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.chinese_clip.models import open_weights
from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.checkpoints.foreign.torch_zip import read_torch_zip
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.chinese_clip.detection import model_name
from jaxlab.chinese_clip.downloads import find_checkpoint
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.training.resume import CHECKPOINTS
from jaxlab.training.workdir import warn_of_other_settings

logger = logging.getLogger(__name__)

_TRAINING_ONLY = (
    *("kernel_init", "norm_decay", "norm_groups"),
    *("hidden_dropout", "attention_dropout", "init_std", "embedding_init_std"),
)
"""Fields of a tower that say how it is trained, not what it computes."""

_NOT_CONTINUED = ("opt_state", "key")

_STAGES = ("stage_1", "stage_2")
_NO_WHOLE_MODEL = ("image_tower", "text_tower", "clip", "bert", "unknown")


class StageStart(NamedTuple):
    """What the loop of a stage is given.

    Attributes:
      state: the state before its first update.
      frozen: what the stage does not train, see `split_variables`.
      config: the stage, without `continue_from` where the state holds what it named.
    """

    state: training.TrainState
    frozen: dict[str, Any]
    config: StageConfig


def check_sources(config: RunConfig) -> None:
    """Look whether all weights that the settings name are there, before anything is computed.

    The name of a released model is fetched here, if it is not on this machine.

    Args:
      config: the settings of the run.

    Raises:
      FileNotFoundError: if some are not, with the setting that names them.
      ValueError: if the teacher or the whole model is something else than a Chinese CLIP.
      ConnectionError: if a released model cannot be fetched.
    """
    towers = {"image_tower": ("random", "english"), "text_tower": ("random",)}
    for name in ("weights", "teacher", *towers):
        path = getattr(config, name)
        if not path or path in towers.get(name, ()):
            continue
        with naming_setting(name, path):
            if name in towers:
                clip.find_weights(path)
            elif (found := clip.find_weights(find_checkpoint(path))).kind in _NO_WHOLE_MODEL:
                raise ValueError(f"{path} is {found.description}, and no whole Chinese CLIP")


@contextlib.contextmanager
def naming_setting(name: str, value: str) -> Iterator[None]:
    """Put the setting that names a file before the errors about that file.

    Args:
      name: of the setting.
      value: what it names.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config.{name}={value}: {error}") from error
    except ValueError as error:
        raise ValueError(f"--config.{name}={value}: {error}") from error


def check_stages(
    config: RunConfig, workdir: Path, resolve: Callable[[StageConfig], StageConfig]
) -> None:
    """Compare what a workdir holds with the settings, before anything is trained.

    A second stage rests on the first one as that ended: the first is not trained further below it.
    A stage that has ended with other settings is named in a warning, its result is taken as it is.

    Args:
      config: the settings of the run.
      workdir: its folder.
      resolve: from a stage to the same with its steps known.

    Raises:
      ValueError: if the second stage was trained, and the first is not at its end.
    """
    stages = {name: getattr(config, name) for name in _STAGES}
    if all(stages.values()) and _has_checkpoint(workdir / "stage_2"):
        _check_first_stage(resolve(stages["stage_1"]), workdir)
    for name, stage in stages.items():
        if stage is not None and _has_checkpoint(workdir / name):
            others = tuple(other for other in _STAGES if other != name)
            if _has_ended(resolve(stage), workdir / name):
                warn_of_other_settings(workdir / name, config, ignored=others)


def _check_first_stage(stage: StageConfig, workdir: Path) -> None:
    """Refuse to train the first stage below a second one that has begun."""
    step, second = _newest_step(workdir / "stage_1"), workdir / "stage_2"
    if _has_ended(stage, workdir / "stage_1"):
        return
    found, remedy = "has no checkpoint", "--config.stage_1=None to go on with stage_2 alone"
    if step is not None:
        found = f"is at step {step}, and would now end at step {stage.num_steps}"
        remedy = f"--config.stage_1.num_steps={step} to leave it as it is"
    raise ValueError(
        f"stage_2 in {workdir} was trained to step {_newest_step(second)} on the result of "
        f"stage_1, which {found}: the two would not belong together. Give {remedy}, another "
        f"--workdir, or remove {second}, and stage_2 is trained anew after stage_1"
    )


def _has_ended(stage: StageConfig, workdir: Path) -> bool:
    """Whether the loop would find nothing to train."""
    step, results = _newest_step(workdir), training.read_results(workdir)
    stopped = bool(stage.patience and results.get("stopped_early"))
    return step is not None and results.get("step") == step and (step == stage.num_steps or stopped)


def whole_model(path: str, config: clip.ChineseClipConfig) -> PyTree:
    """The variables of a model to start from, fitted to the sizes of the run.

    Args:
      path: a folder of published weights, a file of the original or the name of a released model.
      config: sizes of the run; only the image size (of a vision transformer), the context length
        and what concerns training may differ from those of the weights.

    Returns:
      All variables of the model.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if a tower is missing or of other sizes; every differing size is named.
    """
    weights = open_weights(path)
    missing = {"visual", "bert", "text_projection", "logit_scale"} - set(
        weights.variables["params"]
    )
    if missing:
        raise ValueError(
            f"weights={path!r} lacks {sorted(missing)}; wanted a whole model. A tower alone is "
            "named by image_tower"
        )
    listed = [
        f"{tower}.{name}: {ours} in the config, {theirs} in the weights"
        for tower in ("vision", "text")
        for name, ours, theirs in _differences(
            getattr(config, tower), getattr(weights.config, tower)
        )
    ]
    if listed:
        wanted, given = (model_name(c) or "of its own sizes" for c in (config, weights.config))
        raise ValueError(
            f"--config.weights={path} is a model {given}, and the config's is {wanted}: "
            f"{'; '.join(listed)}. Give the config for that size (muge.py:vit_b_16 and others in "
            "configs/chinese_clip), or weights of the size of the config"
        )
    return clip.with_image_size(weights, config.vision.image_size).variables


def _differences(ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """(field, ours, theirs) where two towers differ in what they compute."""
    if type(ours) is not type(theirs):
        return [("kind", type(ours).__name__, type(theirs).__name__)]
    resizable = ("image_size",) if isinstance(ours, VisionTransformerConfig) else ()
    return [
        (field.name, getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(ours)
        if field.name not in _TRAINING_ONLY + resizable
        and getattr(ours, field.name) != getattr(theirs, field.name)
    ]


def stage_start(
    config: StageConfig,
    model: clip.ChineseClipConfig,
    workdir: Path,
    variables: PyTree,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: parallel.ShardingRules,
) -> StageStart:
    """The state that a stage starts from in an empty workdir.

    `continue_from` names the workdir of another stage, or a file of the original's trainer such as
    `epoch_latest.pt`. Of the file the weights and the step are read, not the optimizer.

    Args:
      config: the stage.
      model: sizes of the model.
      workdir: folder of the stage; where it has a checkpoint, the loop goes on from that.
      variables: what the stage starts from without `continue_from`.
      tx: its optimizer.
      mesh: the devices.
      rules: how parameters lie on them.

    Raises:
      FileNotFoundError: if `continue_from` names nothing.
      ValueError: if it does not fit, is of a step after the end, or a file is to give the state of
        its optimizer.
    """
    source = Path(config.continue_from).expanduser() if config.continue_from else None
    if source is None or _has_checkpoint(workdir):
        return _fresh(config, variables, tx)
    if source.is_file():
        return _from_original(config, model, source, variables, tx)
    if not (config.reset_optimizer or config.reset_data_offset):
        return _fresh(config, variables, tx)  # the loop reads the other run
    start = _fresh(config, variables, tx)
    return start._replace(
        state=_from_run(config, source, start.state, tx, mesh, rules),
        config=_without_source(config),
    )


def _fresh(config: StageConfig, variables: PyTree, tx: optax.GradientTransformation) -> StageStart:
    parts = clip.split_variables(variables, image_locked=config.image_locked)
    key = jax.random.key(config.seed)
    state = training.TrainState.create(parts.params, tx, key, parts.extra)
    return StageStart(state, parts.frozen, config)


def _from_original(
    config: StageConfig,
    model: clip.ChineseClipConfig,
    path: Path,
    variables: PyTree,
    tx: optax.GradientTransformation,
) -> StageStart:
    if not config.reset_optimizer:
        raise ValueError(
            f"continue_from={str(path)!r} is a file of the original, whose optimizer state is not "
            "read; set reset_optimizer=True to go on with its weights and its step"
        )
    step = 0 if config.reset_data_offset else _step_of(path)
    _check_step(config, step, path)
    # What the loss itself learns is not in the file: it stays what it is.
    others = {name: value for name, value in variables.items() if name == "objective"}
    start = _fresh(config, {**whole_model(str(path), model), **others}, tx)
    logger.info("starting from the weights in %s, step %d", path, step)
    return start._replace(state=_at(start.state, step), config=_without_source(config))


def _step_of(path: Path) -> int:
    """The step that a file of the original's trainer was written at."""
    tree = read_torch_zip(path) if path.suffix != ".safetensors" else {}
    step = tree.get("step") if isinstance(tree, dict) else None
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(
            f"{path} holds no step, so it cannot be continued where it was; set "
            "reset_data_offset=True to begin at step 0"
        )
    return step


def _from_run(
    config: StageConfig,
    source: Path,
    fresh: training.TrainState,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: parallel.ShardingRules,
) -> training.TrainState:
    """The newest state of another run, without its optimizer or its position."""
    shardings = parallel.state_shardings(mesh, fresh, fresh.params, rules)
    target = parallel.with_shardings(fresh, shardings)
    skipped = _NOT_CONTINUED if config.reset_optimizer else ()
    with RunCheckpoints(source / CHECKPOINTS, read_only=True) as theirs:
        latest = theirs.latest_step()
        if latest is None:
            raise FileNotFoundError(f"continue_from={str(source)!r} has no checkpoint")
        state = theirs.restore(latest, target, skip=skipped)
    step = 0 if config.reset_data_offset else latest
    _check_step(config, step, source)
    if config.reset_optimizer:
        state = dataclasses.replace(state, opt_state=tx.init(state.params), key=fresh.key)
    logger.info(
        "starting from step %d of the run in %s, as step %d, %s optimizer state",
        latest, source, step, "without its" if config.reset_optimizer else "with its",
    )  # fmt: skip
    return _at(state, step)


def _at(state: training.TrainState, step: int) -> training.TrainState:
    """The state as if `step` updates were done."""
    return dataclasses.replace(
        state,
        step=jnp.asarray(step, jnp.int32),
        opt_state=training.at_step(state.opt_state, step),
    )


def _without_source(config: StageConfig) -> StageConfig:
    return dataclasses.replace(
        config, continue_from="", reset_optimizer=False, reset_data_offset=False
    )


def _check_step(config: StageConfig, step: int, source: Path) -> None:
    if step >= config.num_steps:
        raise ValueError(
            f"{source} is at step {step}, and the stage ends at num_steps={config.num_steps}; set "
            "more steps, or reset_data_offset=True to begin at step 0"
        )


def _has_checkpoint(workdir: Path) -> bool:
    return _newest_step(workdir) is not None


def _newest_step(workdir: Path) -> int | None:
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)
