"""Bytes of trees: there and back, and never more than an error for whatever else comes."""

import collections
import json
import math
import struct
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxlab.federated.messages import MODEL, Message
from jaxlab.federated.wire import (
    WireError,
    name_leaves,
    pack,
    pack_message,
    packed_size,
    restore_leaves,
    unpack,
    unpack_message,
)

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", ">f4", ">i2"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4),
]


def _arrays(dtype):
    dtype = np.dtype(dtype)
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    if dtype.type.__module__ == "numpy":
        return hnp.arrays(dtype, shapes)
    integers = hnp.arrays(np.int8, shapes, elements=st.integers(-8, 7))
    return integers.map(lambda values: values.astype(dtype))


LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20)),
    st.sampled_from(DTYPES).flatmap(_arrays),
    st.sampled_from(DTYPES).flatmap(_arrays).filter(lambda a: a.size).map(lambda a: a.flat[0]),
)
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.lists(trees, max_size=4),
        st.lists(trees, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), trees, max_size=4),
        st.dictionaries(st.integers(), trees, max_size=4),
    ),
    max_leaves=8,
)


def same(a, b):
    """Whether two trees are equal: types, order of keys and bits included."""
    if isinstance(a, np.ndarray | np.generic):
        a, b = np.asarray(a), (b if type(a) is type(b) else None)
        if b is None or a.shape != b.shape or a.dtype.name != b.dtype.name:
            return False
        native = a.byteswap() if a.dtype.byteorder == ">" else a
        return native.tobytes() == np.asarray(b).tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return math.isnan(b) if math.isnan(a) else struct.pack("d", a) == struct.pack("d", b)
    return a == b


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_trees_come_back_as_they_were(tree):
    data = pack(tree)
    assert same(tree, unpack(data))
    assert packed_size(tree) == len(data)


def test_arrays_of_jax_come_back_as_arrays_of_numpy_that_may_be_changed():
    tree = {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "n": jnp.float32(2.5)}
    back = unpack(pack(tree))
    assert back["w"].dtype == ml_dtypes.bfloat16 and back["n"].shape == ()
    np.testing.assert_array_equal(back["w"], np.asarray(tree["w"]))
    back["w"][0, 0] = 7


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_draw_afterwards_what_they_would_have_drawn(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    back = unpack(pack({"keys": keys}))["keys"]
    assert back.shape == (2,) and back.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(keys))


def test_sizes_are_known_from_shapes():
    tree = {"a": jnp.zeros((3, 4), jnp.bfloat16), "b": [np.zeros(5), 1.5]}
    shapes = jax.eval_shape(lambda: {"a": tree["a"], "b": [jnp.zeros(5), 1.5]})
    shapes["b"] = [jax.ShapeDtypeStruct((5,), np.float64), 1.5]
    assert packed_size(shapes) == len(pack(tree))
    with pytest.raises(TypeError, match="only packed_size"):
        pack(shapes)


@pytest.mark.parametrize(
    "tree, wrong",
    [
        ({"a": [1, {2}]}, r"tree\['a'\]\[1\] is a set"),
        ({"a": object()}, r"tree\['a'\] is a object"),
        ({"a": np.array([object()])}, r"tree\['a'\] is an array of object"),
        ({"a": np.zeros(2, "datetime64[s]")}, "an array of datetime64"),
        (np.zeros(2, [("x", "f4")]), "tree is an array of"),
        ({1.5: 0}, "tree has the key 1.5, a float"),
        ({True: 0}, "tree has the key True, a bool"),
        ({1: 0, "1": 0}, "keys of both kinds"),
    ],
)
def test_what_has_no_bytes_is_refused_by_its_place(tree, wrong):
    with pytest.raises(TypeError, match=wrong):
        pack(tree)


def test_trees_that_would_not_be_read_are_not_written():
    deep = []
    for _ in range(70):
        deep = [deep]
    with pytest.raises(WireError, match="more than 64 deep"):
        pack(deep)
    with pytest.raises(WireError, match="put long lists of numbers into arrays"):
        pack("9" * (1 << 24))
    with pytest.raises(WireError, match="no text holds"):
        pack(10**5000)


SAMPLE = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": [True, 2, "drei", b"4"],
    "n": 1.5,
}


@pytest.fixture(name="sample", scope="module")
def make_sample():
    return pack(SAMPLE)


def test_every_truncation_is_an_error(sample):
    for length in range(len(sample)):
        with pytest.raises(WireError):
            unpack(sample[:length])
    with pytest.raises(WireError, match="followed by something else"):
        unpack(sample + b"\0")


def test_every_changed_bit_is_an_error(sample):
    for place in range(len(sample)):
        for bit in range(8):
            changed = bytearray(sample)
            changed[place] ^= 1 << bit
            with pytest.raises(WireError):
                unpack(changed)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_noise_is_an_error(noise, begins_well):
    with pytest.raises(WireError):
        unpack(b"jaxlab\x01\x00" + noise if begins_well else noise)


def test_what_is_too_large_is_not_looked_at(sample):
    assert same(unpack(sample, max_bytes=len(sample)), SAMPLE)
    with pytest.raises(WireError, match=f"{len(sample)} bytes; at most {len(sample) - 1}"):
        unpack(sample, max_bytes=len(sample) - 1)


def forge(header, body=b"", version=1):
    """Data with a right checksum, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    lengths = struct.pack("<HIQ", version, len(text), len(body))
    checksum = zlib.crc32(lengths + text + body)
    return b"jaxlab" + lengths + struct.pack("<I", checksum) + text + body


def array(name, shape):
    return {"array": [name, shape]}


@pytest.mark.parametrize(
    "header, body, wrong",
    [
        (array("object", [1]), b"12345678", "array of 'object'"),
        (array("float128", [1]), bytes(16), "array of 'float128'"),
        (array("O", [1]), b"12345678", "array of 'O'"),
        (array("float32", [-1]), b"", "of the shape"),
        (array("float32", [-1, -1]), bytes(4), "of the shape"),
        (array("float32", [True]), bytes(4), "of the shape"),
        (array("float32", [1.0]), bytes(4), "of the shape"),
        (array("float32", [1] * 33), bytes(4), "of the shape"),
        (array("float32", [2**61]), bytes(4), "of the shape"),
        (array("float32", [0, 2**62]), b"", "of the shape"),
        (array("float32", [2**32, 2**32]), b"", "of the shape"),
        (array("float32", [10**400]), b"", "of the shape"),
        (array("float32", [2**40]), bytes(4), "tells of 4398046511104 bytes where 4 are left"),
        (array("float32", [2]), bytes(4), "tells of 8 bytes where 4 are left"),
        ([array("int8", [3]), array("int8", [2])], bytes(4), "tells of 2 bytes where 1 are left"),
        (array("float32", [1]), bytes(8), "holds 8 bytes of numbers and its text tells of 4"),
        (array("bool", [2]), b"\x01\x02", "neither 0 nor 1"),
        ({"scalar": "object"}, bytes(8), "array of 'object'"),
        ({"scalar": ["float32"]}, bytes(4), "for 'scalar'"),
        ({"bytes": -1}, b"", "tells of -1 bytes"),
        ({"bytes": True}, b"1", "for 'bytes'"),
        ({"float": "1e5"}, b"", "for 'float'"),
        ({"key": ["threefry2x32", [3]]}, bytes(12), "a key 'threefry2x32'"),
        ({"key": ["mine", [2]]}, bytes(8), "a key 'mine'"),
        ({"pickle": "gASVAAA="}, b"", "for 'pickle'"),
        ({"py/object": "os.system"}, b"", "for 'py/object'"),
        ({"tuple": 3}, b"", "for 'tuple'"),
        ({"tuple": [], "dict": []}, b"", "an object of 2 names"),
        ({}, b"", "an object of 0 names"),
        ({"dict": [["a", 1], ["a", 2]]}, b"", "key 'a' of a dict twice"),
        ({"dict": [["a", 1], [1, 2]]}, b"", "texts and integers"),
        ({"dict": [[[1], 1]]}, b"", "for an entry of a dict"),
        ({"dict": [["a"]]}, b"", "for an entry of a dict"),
        (b"NaN", b"", "NaN, which is no JSON"),
        (b"{", b"", "the text is no JSON"),
        (b"\xff", b"", "the text is no JSON"),
        (b"9" * 5000, b"", "the text is no JSON"),
        (b"[" * 100 + b"]" * 100, b"", "more than 64 deep"),
        (b"[" * 10**6 + b"]" * 10**6, b"", "too deep"),
        (b"[" * 10**6, b"", "too deep|no JSON"),
        (b" " * (1 << 24) + b"1", b"", "at most 16777216"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, bytes) else f"{len(value)}_bytes",
)
def test_forged_data_is_one_error_and_runs_nothing(header, body, wrong):
    with pytest.raises(WireError, match=wrong):
        unpack(forge(header, body))


def test_another_version_is_told():
    assert unpack(forge([1])) == [1]
    with pytest.raises(WireError, match="version 2; this is version 1"):
        unpack(forge([1], version=2))


def test_messages_come_back():
    content = [10, {"kernel": np.ones((2, 2), np.float32)}]
    message = Message(MODEL, 3, (0, 5), content, round=7, time_us=10**12, serial=9, request=4)
    back = unpack_message(pack_message(message))
    assert same(back.content, content) and type(back.receivers) is tuple
    assert [getattr(back, n) for n in ("type", "sender", "receivers", "delivery_order")] == [
        MODEL, 3, (0, 5), (10**12, 7, 9)
    ]  # fmt: skip
    with pytest.raises(TypeError, match="content is a set"):
        pack_message(Message(MODEL, 3, (0,), {1}))


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"sender": "3"}, "of another type: sender"),
        ({"round": True, "receivers": [None], "type": 5}, "round, type, receivers"),
        ({"content": b"bytes"}, "content is a bytes"),
        ({"code": "import os"}, "the data is no message"),
    ],
)
def test_what_is_no_message_is_refused(change, wrong):
    fields = unpack(pack_message(Message(MODEL, 3, (0,))))
    with pytest.raises(WireError, match=wrong):
        unpack_message(pack(fields | change))
    with pytest.raises(WireError, match="the data is no message"):
        unpack_message(pack([1, 2]))


def test_any_tree_goes_by_names_into_its_structure():
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3, jnp.bfloat16)}}
    state = optax.adam(1e-3).init(params)
    named = unpack(pack(name_leaves(state)))
    assert "0/mu/dense/kernel" in named
    back = restore_leaves(named, state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert all(map(same, jax.tree.leaves(back), map(np.asarray, jax.tree.leaves(state))))


def test_leaves_that_do_not_fit_are_all_named():
    target = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2), "c": np.zeros(2, np.int32)}
    named = {"a": np.zeros((3, 2), np.float32), "c": np.zeros(2), "d": 1}
    with pytest.raises(WireError) as caught:
        restore_leaves(named, target, "the model")
    for problem in (
        "the model does not fit", "b is missing", "d is unexpected",
        "a is float32 (3, 2) and should be float32 (2, 3)", "c is float64 (2,) and should be int32",
    ):  # fmt: skip
        assert problem in str(caught.value)
    with pytest.raises(WireError, match="got a list"):
        restore_leaves([1], target)
    with pytest.raises(WireError, match="2 leaves have 1 different paths"):
        name_leaves({"a/b": 1, "a": {"b": 2}})


def test_named_tuples_and_mappings_come_back_plain():
    Point = collections.namedtuple("Point", "x y")
    assert same(unpack(pack(Point(1, 2))), (1, 2))
    assert same(unpack(pack(collections.OrderedDict(b=1, a=2))), {"b": 1, "a": 2})
