"""Every shipped config: it builds, and each of its training steps traces and keeps its shapes."""

import importlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.chinese_clip import train
from experiments.common import run_config, to_config_dict
from experiments.common.program import config_class_of
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.chinese_clip.emoji import make_prepare
from jaxlab.chinese_clip.model import abstract_variables

CHECKOUT = Path(__file__).resolve().parents[1]
NO_STEPS = {"ndv.reproduce"}  # experiments that train nothing


def load(path):
    spec = importlib.util.spec_from_file_location(f"config_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped():
    """(file, argument) of every config; a file names its arguments, the default first, in KINDS."""
    found = []
    for path in sorted(CHECKOUT.glob("configs/*/[!_]*.py")):
        for kind in getattr(load(path), "KINDS", ("",)):
            name = f"{path.parent.name}/{path.name}{kind and ':' + kind}"
            found.append(pytest.param(path, kind, id=name))
    return found


def experiment_of(path):
    """Name of the experiment that a config is for: its folder and, by default, `train`."""
    return f"{path.parent.name}.{getattr(load(path), 'VERB', 'train')}"


def build(path, kind):
    main = importlib.import_module(f"experiments.{experiment_of(path)}").main
    return run_config(load(path).get_config(*[kind][: bool(kind)]), config_class_of(main))


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def abstract_step(config, stage):
    """A stage's step, and the shapes of what it takes: state, frozen variables, batch, key."""
    vision, rows = config.model.vision, stage.global_batch_size
    prepare = make_prepare(config.emoji.augment, vision.image_size)
    model = clip.ChineseClip(config.model, remat=config.remat, dtype=config.dtype)
    tx, step = train.make_step(config, stage, model, prepare, parallel.make_mesh())
    parts = clip.split_variables(abstract_variables(config.model), image_locked=stage.image_locked)
    state = jax.eval_shape(
        lambda params, extra, key: training.TrainState.create(params, tx, key, extra),
        parts.params, parts.extra, jax.eval_shape(lambda: jax.random.key(0)),
    )  # fmt: skip
    batch = {"ids": shape(rows, config.model.context_length, dtype=jnp.int32)}
    if stage.cached_views:
        batch["image_features"] = shape(rows, vision.output_dim)
    else:
        batch["image"] = shape(rows, 64, 64, 4, dtype=jnp.uint8)
    frozen = {} if stage.cached_views else parts.frozen
    return step, (state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))


def chinese_clip_steps(config):
    stages = [stage for stage in (config.stage_1, config.stage_2) if stage is not None]
    return [abstract_step(config, stage) for stage in stages]


# Experiment -> from its config to its steps, each with the shapes of what it takes.
STEPS = {"chinese_clip.train": chinese_clip_steps}


@pytest.mark.parametrize(("path", "kind"), shipped())
def test_every_config_builds_and_comes_back_from_its_config_dict(path, kind):
    config = build(path, kind)
    assert run_config(to_config_dict(config), type(config)) == config


@pytest.mark.parametrize(
    ("path", "kind"), [each for each in shipped() if experiment_of(each.values[0]) not in NO_STEPS]
)
def test_every_step_of_a_config_traces_and_keeps_its_shapes(path, kind):
    for step, arguments in STEPS[experiment_of(path)](build(path, kind)):
        state, metrics = jax.eval_shape(step, *arguments)
        changed = jax.tree.map(
            lambda before, after: (before.shape, before.dtype) != (after.shape, after.dtype),
            arguments[0], state,
        )  # fmt: skip
        assert not any(jax.tree.leaves(changed))
        assert {"loss", "grad_norm", "learning_rate"} <= metrics.keys()
        assert all(metric.shape == () for metric in metrics.values())


def test_an_unknown_argument_of_a_config_is_refused_by_name():
    with pytest.raises(ValueError, match=r"tiny.py:three is unknown; use one of two_stage"):
        load(CHECKOUT / "configs/chinese_clip/tiny.py").get_config("three")


@pytest.mark.parametrize("number", [1, 2])
def test_the_steps_of_the_smoke_config_lower_for_accelerators(number):
    config = build(CHECKOUT / "configs/chinese_clip/smoke.py", "")
    step, arguments = abstract_step(config, getattr(config, f"stage_{number}"))
    traced = jax.jit(step, donate_argnums=0).trace(*arguments)
    lowered = traced.lower(lowering_platforms=("tpu", "cuda"))
    assert "stablehlo.dot_general" in lowered.as_text()
