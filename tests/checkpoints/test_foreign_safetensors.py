"""safetensors files against the format's own package, both ways, and broken files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors

RNG = np.random.default_rng(0)
TENSORS = {
    "text/权重": RNG.standard_normal((3, 4), dtype=np.float32),
    "odd bytes": np.arange(3, dtype=np.uint8),
    "scalar": np.float32(2.6593).reshape(()),
    "empty": np.zeros((0, 5), np.float16),
    "transposed": np.arange(12, dtype=np.int64).reshape(3, 4).T,
    "mask": np.array([True, False]),
    "half": np.array([1.5, -2], np.float16),
    "double": np.array([np.pi]),
}
METADATA = {"format": "np", "config": '{"名": 1}'}


def _assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)


def test_the_formats_own_package_reads_ours(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, TENSORS, METADATA)
    _assert_same(safetensors.numpy.load_file(path), TENSORS)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == METADATA
    assert list(tmp_path.iterdir()) == [path]


def test_we_read_the_formats_own_package(tmp_path):
    path = tmp_path / "w.safetensors"
    contiguous = {n: np.array(t, order="C") for n, t in TENSORS.items()}
    safetensors.numpy.save_file(contiguous, path, METADATA)
    file = read_safetensors(path)
    _assert_same(file.tensors, TENSORS)
    assert file.metadata == METADATA


def test_round_trip_without_metadata_and_with_bfloat16(tmp_path):
    path = tmp_path / "w.safetensors"
    want = {"a": jnp.asarray([1.0, 2.5, -3.0], jnp.bfloat16), "b": jnp.arange(3)}
    write_safetensors(path, want)
    file = read_safetensors(path)
    assert file.metadata == {} and file.tensors["a"].dtype == jnp.bfloat16
    _assert_same(file.tensors, {n: np.asarray(t) for n, t in want.items()})


def test_bytes_depend_on_content_alone_and_arrays_are_read_only(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_safetensors(one, TENSORS, METADATA)
    write_safetensors(two, dict(reversed(TENSORS.items())), METADATA)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        read_safetensors(one).tensors["text/权重"][0, 0] = 1


def test_unknown_dtypes_are_all_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.ones(2)})
    with pytest.raises(TypeError, match="'x': 'complex64'.*'y': 'complex128'"):
        write_safetensors(path, {"x": np.zeros(1, "c8"), "a": np.ones(1), "y": np.zeros(1, "c16")})
    np.testing.assert_array_equal(read_safetensors(path).tensors["a"], np.ones(2))


@pytest.mark.parametrize("keep", [4, 9, 100, -1])
def test_truncated_file_says_so(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"w\.safetensors is truncated.*Download it again"):
        read_safetensors(path)


def _raw(header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 something else", "is not a safetensors file"),
        (_raw(b"{nonsense"), "not JSON"),
        (_raw({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "'F4'"),
        (_raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "0:4"),
        (_raw({"a": {"dtype": "U8", "shape": [-4], "data_offsets": [4, 0]}}, bytes(4)), "4:0"),
        (_raw({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, bytes(9)), "describes"),
        (_raw({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)), "data_offsets"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_safetensors(path)
    assert str(path) in str(error.value)
