"""Every shipped config: it builds, and each of its training steps traces and keeps its shapes."""

import dataclasses
import importlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chinese_clip import train
from experiments.chinese_clip.tasks import count_steps
from experiments.common import run_config, to_config_dict
from experiments.common.program import config_class_of
from experiments.federated import tasks as federated_tasks
from experiments.federated.settings import DevicesConfig
from experiments.ndv import train as ndv_train
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.chinese_clip.data import PairDataConfig, prepare_pixels
from jaxlab.chinese_clip.emoji import make_prepare
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.federated import EvaluationInput, gather_clients
from jaxlab.federated.client_data import view_client
from jaxlab.federated.datasets import DataInfo, FederatedData
from jaxlab.federated.local import Limits
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.ndv.fusion import MEMBERS, NUM_FEATURES, Scaling
from jaxlab.ndv.train import Examples, init_networks
from tests import distillation_configs

CHECKOUT = Path(__file__).resolve().parents[1]
# Train nothing, or in steps of another form.
NO_STEPS = {"ndv.reproduce", "federated.simulate", "distillation.ablate"}


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
    stage = stage.with_steps(steps_per_epoch=6104)
    if config.data == "emoji":
        prepare, picture = make_prepare(config.emoji.augment, vision.image_size), (64, 64, 4)
    else:
        prepare, picture = prepare_pixels, (vision.image_size, vision.image_size, 3)
    tx, step = train.make_step(
        config, stage, train.make_model(config), prepare, parallel.make_mesh()
    )
    parts = clip.split_variables(abstract_variables(config.model), image_locked=stage.image_locked)
    state = jax.eval_shape(
        lambda params, extra, key: training.TrainState.create(params, tx, key, extra),
        parts.params, parts.extra, jax.eval_shape(lambda: jax.random.key(0)),
    )  # fmt: skip
    batch = {"ids": shape(rows, config.model.context_length, dtype=jnp.int32)}
    if stage.cached_views:
        batch["image_features"] = shape(rows, vision.output_dim)
    else:
        batch["image"] = shape(rows, *picture, dtype=jnp.uint8)
    frozen = {} if stage.cached_views else parts.frozen
    return step, (state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))


def shallow(config):
    """The config with few of its up to 32 blocks a tower, which are all alike."""
    vision, text = config.model.vision, config.model.text
    if isinstance(vision, VisionTransformerConfig):
        vision = dataclasses.replace(vision, num_layers=2)
    else:
        vision = dataclasses.replace(vision, stages=(1,) * len(vision.stages))
    text = dataclasses.replace(text, num_layers=min(2, text.num_layers))
    model = dataclasses.replace(config.model, vision=vision, text=text)
    return dataclasses.replace(config, model=model)


def chinese_clip_steps(config):
    stages = [stage for stage in (config.stage_1, config.stage_2) if stage is not None]
    return [abstract_step(shallow(config), stage) for stage in stages]


def program_of(path, kind):
    """What decides the program of a config's steps: its settings but for rates and lengths."""
    config = build(path, kind)
    if experiment_of(path) == "distillation.train":
        return distillation_configs.program_of(config)
    if experiment_of(path) != "chinese_clip.train" or config.data == "emoji":
        return path, kind

    def plain(stage):
        if stage is None:
            return None
        optimizer = dataclasses.replace(stage.optimizer, learning_rate=1.0, warmup_steps=1)
        return dataclasses.replace(
            stage, num_epochs=1, num_steps=0, eval_every_epochs=0, eval_every_steps=0,
            best_metric="any", global_batch_size=stage.num_microbatches * 8, microbatch_size=None,
            optimizer=optimizer,
        )  # fmt: skip

    model = dataclasses.replace(config.model, context_length=52)
    return dataclasses.replace(
        config, model=model, weights="", image_tower="", text_tower="",
        pairs=PairDataConfig(folder="any"),
        stage_1=plain(config.stage_1), stage_2=plain(config.stage_2),
    )  # fmt: skip


def programs():
    """The configs, those left out that trace to the program of an earlier one."""
    found = {}
    for each in shipped():
        if experiment_of(each.values[0]) not in NO_STEPS:
            found.setdefault(program_of(*each.values), each)
    return list(found.values())


def ndv_steps(config):
    tx, step = ndv_train.make_step(config)
    networks = jax.eval_shape(
        lambda key: init_networks(key, config.num_networks, config.widths), jax.random.key(0)
    )
    state = jax.eval_shape(
        lambda params, key: training.TrainState.create(params, tx, key, {}),
        networks, jax.random.key(0),
    )  # fmt: skip
    rows = config.global_batch_size
    batch = Examples(
        shape(rows, NUM_FEATURES), shape(rows, len(MEMBERS)), shape(rows), shape(rows)
    )._asdict()
    scaling = Scaling(shape(NUM_FEATURES), shape(NUM_FEATURES))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return [(step, (state, scaling, batch, key))]


# Experiment -> from its config to its steps, each with the shapes of what it takes.
STEPS = {
    "chinese_clip.train": chinese_clip_steps,
    "ndv.train": ndv_steps,
    "distillation.train": distillation_configs.distillation_steps,
}


@pytest.mark.parametrize(("path", "kind"), shipped())
def test_every_config_builds_and_comes_back_from_its_config_dict(path, kind):
    config = build(path, kind)
    assert run_config(to_config_dict(config), type(config)) == config


@pytest.mark.parametrize(("path", "kind"), programs())
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


# Steps of a fine-tuning on a number of pairs, from the published batches and epochs.
@pytest.mark.parametrize(
    ("name", "kind", "num_pairs", "steps"),
    [
        ("muge", "rn50", 250_314, 11 * 60),
        ("muge", "vit_b_16", 250_314, 20 * 20),
        ("muge", "script", 250_314, 245 * 3),  # 735, the length of the original's schedule
        ("muge", "notebook", 250_314, 5215),
        ("flickr30k_cn", "vit_h_14", 148_915, 37 * 18),
        ("coco_cn", "rn50", 20_065, 40),  # a batch that is larger than the data
    ],
)
def test_published_epochs_make_the_steps_of_the_original(name, kind, num_pairs, steps):
    stage = build(CHECKOUT / f"configs/chinese_clip/{name}.py", kind).stage_2
    steps_per_epoch = count_steps(num_pairs, stage, "wrap")
    resolved = stage.with_steps(steps_per_epoch)
    assert resolved.num_steps == steps > resolved.optimizer.warmup_steps
    assert resolved.eval_every_steps == (150 if kind == "script" else steps_per_epoch)


@pytest.mark.parametrize("name", ["rn50", "vit_b_16", "vit_l_14", "vit_l_14_336", "vit_h_14"])
def test_batches_of_the_published_recipes_divide_over_a_pod(name):
    config = build(CHECKOUT / f"configs/chinese_clip/{name}.py", "")
    for stage in (config.stage_1, config.stage_2):
        assert stage is None or stage.global_batch_size % 128 == 0
    assert (config.stage_1 is None) == (name == "vit_l_14_336")


# Data set of a federated course -> shape and type of an input, largest number in it, classes.
FEDERATED_INPUTS = {
    "synthetic": ((150,), np.float32, 1, 2),
    "mnist": ((28, 28, 1), np.uint8, 255, 10),
    "femnist": ((28, 28, 1), np.float32, 1, 62),
    "celeba": ((84, 84, 3), np.uint8, 255, 2),
    "cifar10": ((32, 32, 3), np.uint8, 255, 10),
    "shakespeare": ((80,), np.uint8, 79, 80),
    "leaf_shakespeare": ((80,), np.uint8, 79, 80),
    "movielens": ((2,), np.int32, 99, None),
}


def like_data(config):
    """Data of the form that a config names: as many clients as it wants, two examples each."""
    size, dtype, most, classes = FEDERATED_INPUTS[config.data.name]
    num_clients = max(config.data.num_clients, config.strategy.cohort_size, 10)
    x = np.full((2 * num_clients, *size), most).astype(dtype)
    y = np.zeros(len(x), np.float32 if classes is None else np.int32)
    rows = np.split(np.arange(len(x)), num_clients)
    held = gather_clients({"x": x, "y": y}, rows)
    names = tuple(map(str, range(num_clients)))
    return FederatedData(DataInfo(config.data.name, "", "", classes), names, held, held, held)


def federated_configs():
    """Those left out that differ from an earlier one in numbers alone, or in the server's step."""
    found = {}
    for each in shipped():
        if experiment_of(each.values[0]) == "federated.simulate":
            config = build(*each.values)
            program = (
                config.data.name, config.model.name, config.algorithm.name, config.personal,
                config.data.name == "synthetic" and (config.server, config.algorithm),
            )  # fmt: skip
            found.setdefault(program, each)
    return list(found.values())


@pytest.mark.parametrize(("path", "kind"), federated_configs())
def test_every_round_of_a_federated_config_traces_and_keeps_its_shapes(path, kind):
    config = build(path, kind)
    if config.devices.kind == "file":  # which is not here
        config = dataclasses.replace(config, devices=DevicesConfig(kind="drawn"))
    problem = federated_tasks.make_problem(config, like_data(config), is_abstract=True)
    for beside in (None, *([config.beside] if config.beside else [])):
        plan = federated_tasks.plan_course(config, problem, beside)
        algorithm, limits = plan.algorithm, Limits(2, problem.schedule.max_epochs(np.array([2])))
        view = view_client(jax.tree.map(jnp.asarray, problem.data.train), jnp.int32(0))

        def play(variables, keys, algorithm=algorithm, limits=limits, view=view):
            server, kept = algorithm.init_server(variables), algorithm.init_client(variables)
            result = algorithm.local(algorithm.broadcast(server), kept, view, limits, keys[0])
            moved = algorithm.update_server(server, result.update, jnp.float32(1))
            given = EvaluationInput(view, view, limits, keys[1])
            sums = algorithm.evaluate(algorithm.evaluation(moved), result.client_state, given)
            return (server, kept), (moved, result.client_state), sums

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
        before, after, sums = jax.eval_shape(play, problem.variables, keys)
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert {"loss"} <= sums.keys() and all(value.shape == (2,) for value in sums.values())
