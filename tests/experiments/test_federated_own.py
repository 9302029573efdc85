"""Federated courses on a user's own files, model and loss, as the guide shows them."""

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import run_config
from experiments.common.flags import load_config
from experiments.federated import data, deployed, learned, own, tasks
from experiments.federated.settings import DataConfig, ModelConfig, RunConfig, TaskConfig
from jaxlab import federated
from jaxlab.checkpoints.foreign import safetensors
from jaxlab.federated import ConfigError
from jaxlab.federated.datasets import CentralData, DataInfo, make_linear_regression

CHECKOUT = Path(__file__).resolve().parents[2]
SECTION = "### Your own data, model and loss"
START = "    python -m experiments.federated.simulate "


def section():
    guide = (CHECKOUT / "jaxlab/federated/README.md").read_text("utf-8")
    return guide.partition(SECTION)[2].partition("\n## ")[0]


def blocks():
    return re.findall(r"```python\n(.*?)```", section(), re.DOTALL)


def commands():
    lines = section().replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix(START)) for line in lines if line.startswith(START)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the user of the guide works: their files and their module."""
    path = tmp_path_factory.mktemp("user")
    (path / "configs").symlink_to(CHECKOUT / "configs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        exec(blocks()[0], {})
    (path / "mine.py").write_text(blocks()[1], "utf-8")
    return path


@pytest.mark.smoke
@pytest.mark.parametrize("number", [0, 3])
def test_the_courses_of_the_guide_on_own_data_run_as_pasted(
    run_program, folder, monkeypatch, caplog, number
):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    short = ("num_rounds=3", "width=1", "baselines=()")
    arguments = [*commands()[number], *(f"--config.{setting}" for setting in short)]
    code, _, errors = run_program("federated.simulate", *arguments)
    assert code == 0, errors
    workdir = folder / next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2]
    results = json.loads((workdir / "results.json").read_text("utf-8"))
    assert results["test/accuracy"] > 0.6
    assert "classification with 2 classes; 3 clients" in caplog.text
    names = {line.split(",")[0] for line in (workdir / "sync/clients.csv").open()}
    assert names == {"client", "north", "south", "west"}
    assert "data.num_held_out=5000 (was 100)" in caplog.text
    if number == 3:
        tensors = safetensors.read_safetensors(workdir / "sync/model.safetensors").tensors
        assert {np.shape(tensor) for tensor in tensors.values()} == {(4, 16), (16,), (16, 2), (2,)}


def settings_of(number, folder):
    config = load_config(str(folder / "configs/federated/own.py"))
    given = dict(
        argument.removeprefix("--config.").split("=", 1)
        for argument in commands()[number]
        if argument.startswith("--config.")
    )
    for name, value in given.items():
        known = config
        for part in name.split("."):
            known = known[part]
        config.update_from_flattened_dict({name: int(value) if type(known) is int else value})
    RunConfig.adapt(config, given)
    return run_config(config, RunConfig)


@pytest.mark.parametrize(("number", "names"), [(1, "north south west"), (2, "1 2 3 4 5")])
def test_the_npz_file_of_the_guide_has_the_clients_that_it_says(folder, monkeypatch, number, names):
    monkeypatch.chdir(folder)
    config = settings_of(number, folder)
    problem = tasks.make_problem(config)
    assert problem.data.names == tuple(names.split())
    assert int(problem.data.train.sizes.sum()) == 400 and int(problem.data.test.sizes.sum()) == 200
    assert [plan.name for plan in tasks.plan_run(config, problem)] == ["sync"]


def test_a_model_of_ones_own_comes_back_from_its_file(tmp_path):
    path, example = tmp_path / "model.safetensors", jax.ShapeDtypeStruct((3,), np.float32)
    variables = Wide().init(jax.random.key(0), np.zeros((1, 3), np.float32), train=False)
    learned.save_variables(path, Wide(), example, variables, 0)
    found = learned.load_variables(str(path), Wide(), example)
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(variables))
    with pytest.raises(ConfigError, match=r"params/Dense_0/kernel \(3, 7\), \(4, 7\)"):
        learned.load_variables(str(path), Wide(), jax.ShapeDtypeStruct((4,), np.float32))


def test_the_scores_of_a_task_are_known_before_it_runs():
    example = jax.ShapeDtypeStruct((3,), np.float32)
    examples = {"x": np.zeros((5, 3), np.float32), "y": np.zeros(5, np.int32)}
    names = ("correct", "f1", "hits@2", "roc_auc")
    task = federated.classification(Wide(), example, scores=names)
    assert set(own.score_names(task, examples)) == set(names)


def test_the_guide_has_as_many_commands_as_are_run():
    assert len(commands()) == 4 and len(blocks()) == 2


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(7)(x)


MODULE = """
from jaxlab.federated import datasets
def load(settings): return settings.path
def nothing(): return None
def model(info): return info
def task(module, example, prepare): return module
VALUE = 3
"""
INFO = DataInfo("mine", "here", num_classes=2)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE, "utf-8")
    (tmp_path / "users_broken.py").write_text("import not_there_at_all", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: own.make_own_model("nowhere.at_all:f", INFO), "there is no module nowhere"),
        (lambda: own.make_own_model("users_module:f", INFO), "has no function f; wanted make_mo"),
        (lambda: own.make_own_model("users_module:VALUE", INFO), "has no function VALUE"),
        (lambda: own.make_own_model("users_module:nothing", INFO), r"takes nothing\(\); wanted ma"),
        (
            lambda: own.make_own_model("users_module:model", INFO),
            "returned a DataInfo; wanted a fl",
        ),
        (
            lambda: own.load_own_data("users_module:load", DataConfig(name="npz", path="p")),
            "returned a str; wanted jaxlab.federated.datasets.FederatedData",
        ),
        (
            lambda: own.make_own_task("users_module:task", Wide(), None, None),
            "returned a Wide; wanted a jaxlab.federated.Task",
        ),
        (lambda: ModelConfig(name="own"), r"factory='' must name a function, such as 'my_package"),
        (lambda: DataConfig(name="own", factory="file.py"), "factory='file.py' must name a functi"),
        (lambda: TaskConfig("a.b.c"), "factory='a.b.c' must name a function"),
        (lambda: ModelConfig(factory="a:b"), "factory='a:b' changes nothing with name='logistic'"),
    ],
)
def test_a_factory_that_is_none_is_one_sentence(module, make, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


def test_an_error_inside_the_users_module_is_theirs(module):
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        own.make_own_model("users_broken:f", INFO)


def test_a_model_that_does_not_fit_is_told_before_the_course(monkeypatch):
    example = jax.ShapeDtypeStruct((3,), np.float32)
    with pytest.raises(ConfigError, match=r"outputs of shape \(1, 7\); the data wants \(1, 2\)"):
        own.check_output("mine:f", Wide(), example, 2)
    own.check_output("mine:f", Wide(), example, 7)
    monkeypatch.setattr(own, "call_factory", lambda *arguments: Plain())
    with pytest.raises(ConfigError, match="Plain.__call__.* takes no train"):
        own.make_own_model("mine:f", INFO)


def test_nodes_run_no_code_that_a_server_names():
    for given in (
        {"task": TaskConfig("mine:make_task")},
        {"model": ModelConfig(name="own", factory="mine:make_model")},
        {"data": DataConfig(name="own", factory="mine:load")},
    ):
        with pytest.raises(ConfigError, match="factory='mine:.*run no code that a server names"):
            deployed.deployable(RunConfig(**given))


def test_clients_that_are_there_are_not_shared_out_again(monkeypatch):
    loaded = make_linear_regression(3)
    monkeypatch.setattr(data, "load_own_data", lambda *arguments: loaded)
    assert data.load_data(DataConfig(name="own", factory="m:f")).names == loaded.names
    with pytest.raises(ConfigError, match="whose clients are there; set it to 'own'"):
        data.load_data(DataConfig(name="own", factory="m:f", splitter="iid", num_clients=2))


def central(y, *, source="mine.npz", num_classes=None, test=None):
    info = DataInfo("mine", source, num_classes=num_classes)
    held = None if test is None else {"x": np.zeros((len(test), 2)), "y": np.asarray(test)}
    return CentralData(info, {"x": np.zeros((len(y), 2)), "y": np.asarray(y)}, held)


@pytest.mark.parametrize(
    ("y", "task", "is_typed", "num_classes", "labels"),
    [
        ([0, 2, 1], "auto", True, 3, [0, 2, 1]),
        ([-1, 1, 1], "auto", True, 2, [0, 1, 1]),
        ([True, False], "auto", True, 2, [1, 0]),
        (["b", "a"], "auto", True, 2, [1, 0]),
        ([0.0, 1.0], "auto", True, None, [0.0, 1.0]),
        ([0.0, 1.0], "auto", False, 2, [0, 1]),
        ([0.5, 1.0], "auto", False, None, [0.5, 1.0]),
        (list(range(0, 202, 2)), "auto", True, None, list(range(0, 202, 2))),
        ([[0, 1], [1, 0]], "auto", True, None, [[0, 1], [1, 0]]),
        ([0, 1], "regression", True, None, [0.0, 1.0]),
        ([2.5, 0.5], "classification", True, 2, [1, 0]),
    ],
)
def test_a_target_is_classes_or_numbers(y, task, is_typed, num_classes, labels):
    found = data.with_target(central(y), task, is_typed=is_typed)
    assert found.info.num_classes == num_classes
    assert found.train["y"].dtype == (np.float32 if num_classes is None else np.int32)
    np.testing.assert_array_equal(found.train["y"], labels)


def test_training_and_test_targets_are_numbered_together():
    found = data.with_target(central(["b"], test=["a", "b"]), "auto", is_typed=True)
    assert found.train["y"].tolist() == [1] and found.test["y"].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="task='regression': y of mine.npz has .* wanted numbers"):
        data.with_target(central(["b"]), "regression", is_typed=True)
    with pytest.raises(ConfigError, match=r"y of mine.npz has shape \(1, 2\); wanted a class"):
        data.with_target(central([[1, 2]]), "classification", is_typed=True)
