"""Checkpoint files of the original: there and back, and nothing is run."""

import io
import os
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign import torch_zip
from jaxlab.checkpoints.foreign.names import NameMismatchError
from jaxlab.federated import models

EXAMPLE = jax.ShapeDtypeStruct((4,), jnp.float32)
MODULE = models.LogisticRegression(3)


@pytest.fixture(name="variables")
def make_variables():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    return {"params": {"fc": {"kernel": np.float32(kernel), "bias": np.float32(bias)}}}


def test_a_checkpoint_comes_back_and_has_the_form_of_the_original(tmp_path, variables):
    path = models.write_original(tmp_path / "model.pt", MODULE, EXAMPLE, variables, 17)
    saved = torch_zip.read_torch_zip(path)
    assert saved["cur_round"] == 17 and list(saved) == ["cur_round", "model"]
    np.testing.assert_array_equal(
        saved["model"]["fc.weight"], variables["params"]["fc"]["kernel"].T
    )
    number, back = models.read_original(path, MODULE, EXAMPLE)
    assert number == 17
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), back, variables))


def test_a_checkpoint_of_another_model_is_refused_by_its_names(tmp_path, variables):
    path = models.write_original(tmp_path / "model.pt", MODULE, EXAMPLE, variables, 1)
    with pytest.raises(NameMismatchError, match="fc"):
        models.read_original(path, models.LogisticRegression(5), EXAMPLE)


def test_a_round_that_is_no_number_is_refused(tmp_path):
    tensors = {"fc.weight": np.zeros((3, 4), np.float32), "fc.bias": np.zeros(3, np.float32)}
    path = tmp_path / "model.pt"
    torch_zip.write_torch_zip(path, {"cur_round": "five", "model": tensors})
    with pytest.raises(ValueError, match="cur_round is 'five'"):
        models.read_original(path, MODULE, EXAMPLE)
    torch_zip.write_torch_zip(path, tensors)
    assert models.read_original(path, MODULE, EXAMPLE).round == -1


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_nothing(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"cur_round": 1, "model": Harm()}, 2)
    data = program
    if zipped:
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("model/data.pkl", program)
            archive.writestr("model/version", "3\n")
        data = buffer.getvalue()
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"mkdir|model\.pt"):
        models.read_original("model.pt", MODULE, EXAMPLE)
    assert not (tmp_path / "harm").exists()
