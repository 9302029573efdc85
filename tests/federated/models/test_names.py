"""The original's outputs from the original's tensors."""

import functools
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.federated import models
from jaxlab.federated.strategy import ConfigError
from jaxlab.layers.bert import BertConfig

FOLDER = Path(__file__).parents[2] / "golden"
MODULES = {
    "lr": models.LogisticRegression(5),
    "mlp": models.MLP((7, 6, 5)),
    "convnet2": models.convnet2(5, hidden=11),
    "convnet5": models.convnet5(5, hidden=11),
    "vgg11": models.vgg11(5, hidden=11),
    "lstm": models.LSTM(20, 20, 13),
    "resnet": models.ResNet(5, (1, 2, 1, 1)),
    "simclr": models.SimCLR((1, 2, 1, 1)),
    "bert": models.TextClassifier(5, BertConfig(20, 2, 8, 2, 16, 12)),
}


@functools.cache
def maker():
    return runpy.run_path(str(FOLDER / "make_federated_models.py"))


@pytest.fixture(name="golden", scope="module")
def golden_fixture():
    with np.load(FOLDER / "federated_models.npz") as arrays:
        return dict(arrays)


def original(golden, name):
    """Input, its shape, and the tensors of the original."""
    x = maker()["inputs"](name)
    shapes = json.loads(str(golden[f"{name}_shapes"]))
    return x, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), maker()["draw"](shapes)


@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_those_of_the_original(golden, name):
    module = MODULES[name]
    x, example, tensors = original(golden, name)
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(module.apply)(models.load_original(module, example, tensors), x)
    # Float32 sums of up to 4,608 products a layer, in another order.
    np.testing.assert_allclose(outputs, golden[f"{name}_eval"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["mlp", "convnet2"])
def test_a_step_of_the_norms_is_that_of_the_original(golden, name):
    module = MODULES[name]
    x, example, tensors = original(golden, name)
    variables = models.load_original(module, example, tensors)

    @jax.jit
    def train(variables, x):
        with jax.default_matmul_precision("highest"):
            return module.apply(variables, x, train=True, mutable=["batch_stats"])

    outputs, changed = train(variables, x)
    np.testing.assert_allclose(outputs, golden[f"{name}_train"], rtol=1e-4, atol=2e-5)
    stats = flatten({**variables, **jax.device_get(changed)})
    saved = models.original_table(module, example).save(stats)
    running = [key for key in saved if "running" in key]
    assert len(running) == 4
    for key in running:
        np.testing.assert_allclose(saved[key], golden[f"{name}_after_{key}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_tensors_go_to_the_original_and_back(golden, name):
    module = MODULES[name]
    _, example, tensors = original(golden, name)
    variables = models.load_original(module, example, tensors)
    saved = models.save_original(module, example, variables)
    left_out = {key for key in tensors if key.startswith("norms.2.") or key == "rounds_done"}
    assert saved.keys() == tensors.keys() - left_out
    for key, value in saved.items():
        np.testing.assert_array_equal(value, tensors[key])
        assert value.dtype == tensors[key].dtype


def test_a_matrix_factorisation_and_a_probe_have_the_names_of_the_original():
    example = jax.ShapeDtypeStruct((2,), jnp.int32)
    module = models.MatrixFactorization(3, 4, 2)
    tensors = {"embed_user.weight": np.ones((3, 2)), "embed_item.weight": np.zeros((4, 2))}
    variables = models.load_original(module, example, tensors)
    assert variables["params"]["embed_user"]["embedding"].shape == (3, 2)
    shared = {"embed_item.weight": np.full((4, 2), 7.0)}
    with pytest.raises(NameMismatchError, match="embed_user.weight"):
        models.load_original(module, example, shared)
    merged = models.load_original(module, example, shared, variables)["params"]
    assert [merged[f"embed_{kind}"]["embedding"][0, 0] for kind in ("user", "item")] == [1, 7]
    picture = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32)
    names = models.original_table(models.ResNetProbe(5), picture)
    assert names.our_paths_of("backbone.layer2.0.shortcut.0.weight") == (
        "params/backbone/layer2_0/shortcut_conv/kernel",
    )
    assert names.our_paths_of("linear.bias") == ("params/linear/bias",)


def test_tensors_of_another_model_are_all_told(golden):
    _, example, tensors = original(golden, "lr")
    del tensors["fc.bias"]
    tensors["fc.weight"] = tensors["fc.weight"][:, 1:]
    tensors["other"] = np.zeros(1)
    with pytest.raises(NameMismatchError) as caught:
        models.load_original(MODULES["lr"], example, tensors)
    problems = caught.value.problems
    assert (problems.missing, problems.unexpected) == (["fc.bias"], ["other"])
    assert problems.misshaped == {"fc.weight": ((5, 11), (5, 12))}


def test_a_module_of_ones_own_has_no_names():
    with pytest.raises(ConfigError, match="Dense is none of the original's models"):
        models.original_table(nn.Dense(2), jax.ShapeDtypeStruct((3,), jnp.float32))
