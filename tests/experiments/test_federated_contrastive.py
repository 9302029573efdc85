"""Courses without labels from the command line, and the linear layer that measures them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.federated import tasks
from experiments.federated.probed import probe_config, probe_model
from experiments.federated.settings import (
    AlgorithmConfig,
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
    TaskConfig,
)
from jaxlab.federated import ConfigError
from jaxlab.federated.models import SimCLR
from jaxlab.federated.probe import extract_features
from jaxlab.parallel import make_mesh

CONFIG = """
from configs.federated.contrastive import get_config as full
from experiments.common import to_config_dict

KINDS = ("fed_simclr", "fed_gc")
VERB = "simulate"


def get_config(arg="fed_gc"):
    config = full(arg)
    with config.unlocked():
        config.num_rounds = 2
        config.data = {{"name": "npz", "path": "{path}", "num_clients": 3, "splitter": "dirichlet"}}
        config.model.blocks, config.model.stages, config.model.hidden = (1,), (4,), 4
        config.task.crop, config.task.blur = 1.0, 0.0
        config.local.batch_size, config.evaluation.every_rounds = 16, 0
    return config
"""


@pytest.fixture(scope="module", name="pictures")
def pictures_fixture(tmp_path_factory):
    """A file of pictures of bytes: bars that lie or stand, on noise."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (160, 8, 8, 1), dtype=np.uint8)
    y = np.arange(160, dtype=np.int32) % 2
    for picture, label, place in zip(x, y, rng.integers(0, 8, 160), strict=True):
        picture[(place, slice(None)) if label else (slice(None), place)] = 250
    path = tmp_path_factory.mktemp("pictures") / "bars.npz"
    np.savez(path, x=x, y=y)
    return path


def settings(path, **changes):
    return dataclasses.replace(
        RunConfig(
            num_rounds=2,
            data=DataConfig(name="npz", path=str(path), num_clients=3, splitter="iid"),
            model=ModelConfig(name="simclr", blocks=(1,), stages=(4,), hidden=4),
            task=TaskConfig(name="contrastive"),
            local=LocalConfig(batch_size=16, amount=2, unit="step"),
            strategy=StrategyConfig(cohort_share=1.0),
            evaluation=EvaluationConfig(every_rounds=1),
        ),
        **changes,
    )


def test_fedgc_is_simulated_and_probed_by_command(run_program, pictures, tmp_path):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(path=pictures), "utf-8")
    options = (f"--config={config}:fed_gc", f"--workdir={tmp_path / 'run'}")
    code, output, errors = run_program("federated.simulate", *options)
    assert code == 0, errors
    report = json.loads((tmp_path / "run/report.json").read_text("utf-8"))["sync"]
    assert {"test/loss", "test/accuracy", "bytes_up", "bytes_down"} <= report.keys()
    code, output, errors = run_program("federated.probe", *options, "--epochs=3")
    assert code == 0, errors
    probed = json.loads((tmp_path / "run/probe.json").read_text("utf-8"))
    names = {"test/loss", "test/accuracy"}
    assert probed.keys() == names | {f"untrained/{name}" for name in names}
    assert "A linear layer on features" in output


def test_a_layer_on_features_that_tell_classes_apart_learns_them(pictures):
    config = settings(pictures)
    problem = tasks.make_problem(config)
    layer = LocalConfig(batch_size=16, learning_rate=0.5, momentum=0.9)
    mesh = make_mesh(devices=jax.devices()[:1])
    # The label is written into the pictures, so that any features show it.
    told = problem.data.map(
        lambda part: dataclasses.replace(
            part,
            examples={**part.examples, "x": np.where(
                np.asarray(part.examples["y"])[:, None, None, None] > 0, np.uint8(255),
                np.asarray(part.examples["x"]) // 8,
            )},
        )
    )  # fmt: skip
    found = probe_model(
        probe_config(config, layer, 20), problem._replace(data=told), problem.variables, mesh
    )
    assert found["test/accuracy"] > 0.95


def test_features_are_those_in_front_of_the_projector(pictures):
    problem = tasks.make_problem(settings(pictures))
    module, x = problem.module, problem.data.test.examples["x"]
    assert isinstance(module, SimCLR)
    data = dataclasses.replace(problem.data.test, examples={"x": np.asarray(x, np.float32) / 255})
    found = extract_features(module, problem.variables, data, batch_size=32).examples["x"]
    _, kept = module.apply(
        problem.variables, jnp.asarray(data.examples["x"]), train=False, capture_intermediates=True
    )
    wanted = kept["intermediates"]["backbone"]["__call__"][0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": ModelConfig(name="resnet")}, "compares projections"),
        ({"task": TaskConfig()}, "gives projections"),
        ({"evaluation": EvaluationConfig(scores=("f1",))}, "scores of its own"),
        ({"algorithm": AlgorithmConfig(name="fed_em")}, "mixes predictions"),
        (
            {"algorithm": AlgorithmConfig(name="fed_gc"),
             "strategy": StrategyConfig(kind="goal_achieved")},
            "wait for each other",
        ),
        (
            {"algorithm": AlgorithmConfig(name="fed_gc"), "compression": CompressionConfig(bits=8)},
            "would not see",
        ),
    ],
    ids=["resnet", "labels", "scores", "fed_em", "asynchronous", "compressed"],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        settings("bars.npz", **changes)


def test_numbers_want_noise(pictures):
    problem = tasks.make_problem(settings(pictures))
    numbers = problem.data.map(
        lambda part: dataclasses.replace(
            part, examples={**part.examples, "x": np.asarray(part.examples["x"], np.float32)}
        )
    )
    with pytest.raises(ConfigError, match=r"task\.noise=0"):
        tasks.make_problem(settings(pictures), numbers)
    noisy = settings(pictures, task=TaskConfig(name="contrastive", noise=5.0))
    assert tasks.make_problem(noisy, numbers).task.loss is not None


def test_a_probe_wants_classes(pictures):
    problem = tasks.make_problem(settings(pictures))
    info = dataclasses.replace(problem.data.info, num_classes=None)
    data = dataclasses.replace(problem.data, info=info)
    config = probe_config(settings(pictures), LocalConfig(), 1)
    with pytest.raises(ConfigError, match="tells classes apart"):
        probe_model(config, problem._replace(data=data), problem.variables, make_mesh())
