"""The tensors of any weight file, and folders in Hugging Face's form."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxlab.checkpoints.foreign import state_dicts
from jaxlab.checkpoints.foreign.safetensors import write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


def assert_tensors(got):
    assert got.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(got[name], array, strict=True)


@pytest.mark.parametrize(
    ("tree", "values"),
    [
        (TENSORS, {}),
        ({"epoch": 3, "state_dict": TENSORS}, {"epoch": 3}),
        ({"model": TENSORS, "name": "x"}, {"name": "x"}),
        (TENSORS | {"step": 7}, {}),
        ({"model": {"depth": 2}, **TENSORS}, {}),
    ],
)
def test_tensors_are_found_where_trainers_leave_them(tree, values, tmp_path):
    write_torch_zip(tmp_path / "any.name", tree)
    content = state_dicts.read_state_dict(tmp_path / "any.name")
    assert_tensors(content.tensors)
    assert (content.values, content.kind) == (values, "torch")


def test_content_decides_and_not_the_name(tmp_path):
    write_safetensors(tmp_path / "model.bin", TENSORS, {"note": "饺子"})
    content = state_dicts.read_state_dict(tmp_path / "model.bin")
    assert_tensors(content.tensors)
    assert (content.values, content.kind) == ({"note": "饺子"}, "safetensors")
    script = state_dicts.read_state_dict(GOLDEN / "torch_script.pt", verify=True)
    assert script.kind == "torchscript" and set(script.tensors) == {"weight", "bias"}


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=r"is a pointer of Git LFS .*git lfs pull"):
        state_dicts.read_state_dict(path)


def write_index(folder, places, name="model.safetensors"):
    (folder / "config.json").write_text('{"model_type": "any"}')
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))


def test_the_first_form_of_a_folder_is_read(tmp_path):
    assert not state_dicts.has_tensors(tmp_path)
    write_index(tmp_path, dict.fromkeys(TENSORS, "part.bin"), "pytorch_model.bin")
    write_torch_zip(tmp_path / "part.bin", TENSORS)
    assert state_dicts.has_tensors(tmp_path)
    content = state_dicts.read_model_folder(tmp_path)
    assert content.config == {"model_type": "any"}
    assert_tensors(content.tensors)
    write_safetensors(tmp_path / "model.safetensors", {"other": np.ones(1)})
    assert set(state_dicts.read_model_folder(tmp_path).tensors) == {"other"}


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write_index(tmp_path, {"a.weight": "1.safetensors", "b": "2.safetensors"})
    for i in (1, 2):
        write_safetensors(tmp_path / f"{i}.safetensors", TENSORS)
    with pytest.raises(
        ValueError, match=r"2\.safetensors holds \['a.weight', 'b'\], which another"
    ):
        state_dicts.read_model_folder(tmp_path)


def test_all_missing_files_of_an_index_are_named(tmp_path):
    write_index(tmp_path, {"a.weight": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"2 of the 2 .*: 1\.safetensors, 2\.safetensors"):
        state_dicts.read_model_folder(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {"a": "../x.bin"}}, {"weight_map": [1]}])
def test_an_index_of_another_form_is_refused(index, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"has no 'weight_map' from names of tensors to names of"):
        state_dicts.read_model_folder(tmp_path)
