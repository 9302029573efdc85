"""Checkpoints of TensorFlow 2.21 (`tests/golden/make_tensor_bundle.py`), and broken ones."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.tensor_bundle import read_tensor_bundle

GOLDEN = Path(__file__).parents[1] / "golden/tensor_bundle"
NUMBERS = np.arange(6).reshape(2, 3)
TYPES = (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool"),
)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "copy")
    return tmp_path / "copy"


def test_variables_of_every_type_come_out_of_two_files():
    found = read_tensor_bundle(GOLDEN / "types.ckpt")
    for name in TYPES:
        array = found[f"types/{name}"]
        assert array.dtype == np.dtype(name)
        np.testing.assert_array_equal(array, NUMBERS.astype(name))
    assert found["types/bfloat16"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["types/bfloat16"].astype(int), NUMBERS)
    assert found["types/scalar"].shape == () and found["types/scalar"] == 2.5
    assert found["types/empty"].shape == (0, 3)
    assert [found[f"many/variable_{i:03d}"] for i in range(150)] == list(range(150))
    assert "types/text" not in found and len(found) == 165
    assert not found["types/int32"].flags.writeable


def test_the_index_may_be_named_itself():
    found = read_tensor_bundle(str(GOLDEN / "bert_model.ckpt.index"))
    kernel = found["bert/encoder/layer_1/intermediate/dense/kernel"]
    assert kernel.shape == (4, 8) and found["global_step"] == 1000


def test_missing_files_are_named(copy):
    with pytest.raises(FileNotFoundError, match=r"bert\.index does not exist; give what"):
        read_tensor_bundle(copy / "bert")
    (copy / "types.ckpt.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"speaks of \['.*data-00001-of-00002'\]"):
        read_tensor_bundle(copy / "types.ckpt")


def test_a_file_of_data_that_is_cut_off_is_told(copy):
    path = copy / "bert_model.ckpt.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"has \d+ bytes of '.*', its index says \d+ and .* need"):
        read_tensor_bundle(copy / "bert_model.ckpt")


@pytest.mark.parametrize("change", ["byte", "end", "start", "empty"])
def test_a_damaged_index_is_told(change, copy):
    path = copy / "bert_model.ckpt.index"
    content = bytearray(path.read_bytes())
    changed = {
        "byte": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "end": content[:-20],
        "start": content[20:],
        "empty": b"",
    }
    path.write_bytes(bytes(changed[change]))
    with pytest.raises(ValueError, match="is no index of a TensorFlow checkpoint, damaged or"):
        read_tensor_bundle(copy / "bert_model.ckpt")
