import numpy as np
import pytest

from jaxlab.checkpoints.foreign.onnx import linear_names, read_onnx

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, 2, 3], np.float32)


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """A field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array, kind=1, data=None):
    dims = b"".join(field(1, size) for size in array.shape)
    content = field(9, array.tobytes()) if data is None else data
    return field(5, dims + field(2, kind) + field(8, name) + content)


def node(op, inputs, outputs):
    names = [field(1, name) for name in inputs] + [field(2, name) for name in outputs]
    # An attribute and a name, which are not read.
    return field(1, b"".join(names) + field(4, op) + field(3, "/n") + field(5, b"\x0a\x01a"))


def write(path, *parts):
    path.write_bytes(field(1, 8) + field(2, "pytorch") + field(7, b"".join(parts)))
    return path


def export(path, *more, bias_first=True):
    """A linear layer as torch exports it, and the tensors `more`."""
    added = ["fc.bias", "y"] if bias_first else ["y", "fc.bias"]
    return write(
        path,
        node("MatMul", ["x", "onnx::MatMul_470"], ["y"]),
        node("Add", added, ["z"]),
        tensor("fc.bias", BIAS),
        tensor("onnx::MatMul_470", KERNEL),
        *more,
    )


@pytest.mark.parametrize("bias_first", [False, True])
def test_kernels_take_the_names_of_their_biases(bias_first, tmp_path):
    content = read_onnx(export(tmp_path / "a.onnx", bias_first=bias_first))
    assert content.nodes[0] == ("MatMul", ("x", "onnx::MatMul_470"), ("y",))
    np.testing.assert_array_equal(content.tensors["onnx::MatMul_470"], KERNEL)
    named = linear_names(content)
    assert set(named) == {"fc.bias", "fc.weight"}
    np.testing.assert_array_equal(named["fc.weight"], KERNEL.T)
    np.testing.assert_array_equal(named["fc.bias"], BIAS)
    assert not named["fc.weight"].flags.owndata


def test_other_additions_name_nothing(tmp_path):
    more = (
        node("Add", ["y", "z"], ["w"]),
        node("MatMul", ["w", "other"], ["v"]),
        node("Add", ["v", "constant"], ["u"]),
        tensor("other", KERNEL),
        tensor("constant", BIAS),
    )
    named = linear_names(read_onnx(export(tmp_path / "a.onnx", *more)))
    assert set(named) == {"fc.bias", "fc.weight", "other", "constant"}


def test_a_name_that_is_taken_is_an_error(tmp_path):
    content = read_onnx(export(tmp_path / "a.onnx", tensor("fc.weight", KERNEL)))
    with pytest.raises(ValueError, match=r"onnx::MatMul_470 would be fc.weight"):
        linear_names(content)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(7, np.int64), (10, np.float16), (11, np.float64), (3, np.int8)]
)
def test_tensors_of_other_types_are_read(kind, dtype, tmp_path):
    array = np.array([[1, -2], [3, 100]], dtype)
    content = read_onnx(write(tmp_path / "a.onnx", tensor("t", array, kind)))
    np.testing.assert_array_equal(content.tensors["t"], array)
    assert content.tensors["t"].dtype == dtype


def test_packed_fields_are_read(tmp_path):
    numbers = np.array([1, -2, 300], np.int64)
    packed = field(7, b"".join(varint(int(n) % 2**64) for n in numbers))
    floats = field(4, BIAS.tobytes())
    path = write(tmp_path / "a.onnx", tensor("i", numbers, 7, packed), tensor("f", BIAS, 1, floats))
    tensors = read_onnx(path).tensors
    np.testing.assert_array_equal(tensors["i"], numbers)
    np.testing.assert_array_equal(tensors["f"], BIAS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is no model", "is no ONNX file"),
        (field(1, 8), "it has no graph"),
        (field(7, tensor("t", BIAS))[:-3], "3 bytes after the data"),
        (field(7, tensor("t", BIAS, 1, field(9, b"12"))), r"2 bytes; \[3\] of float32 need 12"),
        (field(7, tensor("t", BIAS, 77)), "is of type 77"),
        (field(7, tensor("t", BIAS, 1, field(14, 1))), "lies in another file"),
    ],
    ids=["empty", "text", "no_graph", "truncated", "short", "strange", "external"],
)
def test_broken_files_are_refused(content, message, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_onnx(path)
