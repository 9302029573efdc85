"""Files of torch.save without torch: goldens that torch made, archives made by hand, attacks."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxlab.checkpoints.foreign import torch_zip

GOLDEN = Path(__file__).parents[1] / "golden"


# --- a writer of the format that shares nothing with the library's --------------------------------


class Storage:
    def __init__(self, type_name, key, length):
        self.pid = ("storage", TORCH[type_name], key, "cuda:0", length)


class Call:
    """Pickles as a call of `function(*args)`, followed by a BUILD with `state` if there is one."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def _fake_torch():
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    table = {}
    for name in ("FloatStorage", "BFloat16Storage", "LongStorage", "HalfStorage", "Size"):
        table[name] = type(name, (), {"__module__": "torch"})
        setattr(torch, name, table[name])
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        table[name] = types.FunctionType((lambda: None).__code__, {}, name)
        table[name].__module__, table[name].__qualname__ = "torch._utils", name
        setattr(utils, name, table[name])
    return {"torch": torch, "torch._utils": utils}, table


MODULES, TORCH = _fake_torch()


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


@pytest.fixture
def save(tmp_path, monkeypatch):
    """save(tree, {key: bytes}, ...) writes an archive by hand and gives its path."""

    def write(
        tree,
        storages=None,
        *,
        byteorder=b"little",
        compression=zipfile.ZIP_STORED,
        name="model.pt",
        protocol=2,
    ):
        buffer = io.BytesIO()
        with monkeypatch.context() as patch:
            for module, value in MODULES.items():
                patch.setitem(sys.modules, module, value)
            _Pickler(buffer, protocol).dump(tree)
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", buffer.getvalue())
            if byteorder:
                archive.writestr("archive/byteorder", byteorder)
            for key, data in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", data)
            archive.writestr("archive/version", b"3\n")
        return path

    return write


def tensor(key, length, offset, size, stride, kind="FloatStorage"):
    return Call(
        TORCH["_rebuild_tensor_v2"],
        Storage(kind, key, length),
        offset,
        size,
        stride,
        False,
        collections.OrderedDict(),
    )


# --- what torch wrote -----------------------------------------------------------------------------


def test_golden_tensors_equal_what_torch_saved():
    state = torch_zip.read_torch_zip(GOLDEN / "torch_zip.pt", verify=True)["state_dict"]
    with np.load(GOLDEN / "torch_zip.npz") as golden:
        want = {name: golden[name] for name in golden.files if name != "torch_version"}
    assert state.keys() == want.keys()
    for name, array in state.items():
        assert array.dtype.name == name.removeprefix("cast.") or not name.startswith("cast.")
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        np.testing.assert_array_equal(array, want[name], err_msg=name, strict=True)


def test_golden_trainer_state_holds_plain_values():
    trainer = torch_zip.read_torch_zip(GOLDEN / "torch_zip.pt")
    assert (trainer["epoch"], trainer["step"], trainer["name"]) == (3, 10**12, "饺子")
    (group,) = trainer["optimizer"]["param_groups"]
    assert group["lr"] == 2.5e-5 and isinstance(group["lr"], np.float64)
    assert group["steps"] == 7 and group["half"] == np.float32(0.5) and group["flag"]
    assert group["betas"] == (0.9, 0.98) and group["size"] == (2, 3) and group["foreach"] is None
    assert trainer["optimizer"]["state"][0]["step"] == 5.0


def test_shared_storages_stay_shared_and_arrays_are_read_only():
    state = torch_zip.read_torch_zip(GOLDEN / "torch_zip.pt")["state_dict"]
    for name in ("transposed", "strided", "row", "expanded"):
        assert np.shares_memory(state[name], state["base"]), name
    assert not np.shares_memory(state["parameter"], state["base"])
    with pytest.raises(ValueError, match="read-only"):
        state["base"][0, 0] = 1


def test_legacy_file_is_refused_with_the_line_that_converts_it():
    with pytest.raises(ValueError, match=r"non-zip form.*torch\.save\(torch\.load\('.*legacy\.pt'"):
        torch_zip.read_torch_zip(GOLDEN / "torch_legacy.pt")


def test_torchscript_archive_is_refused_with_the_function_that_reads_it():
    with pytest.raises(ValueError, match=r"TorchScript.*read_torch_script.*torch\.jit\.load"):
        torch_zip.read_torch_zip(GOLDEN / "torch_script.pt")


# --- archives made by hand ------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("byteorder", [b"little", None])
def test_views_of_one_storage(save, compression, byteorder):
    base = np.arange(24, dtype=np.float32)
    path = save(
        {
            "plain": tensor("0", 24, 0, (4, 6), (6, 1)),
            "view": tensor("0", 24, 8, (2, 3), (6, 2)),
            "wrapped": Call(
                TORCH["_rebuild_parameter"],
                tensor("0", 24, 23, (), ()),
                True,
                collections.OrderedDict(),
            ),
            "old": Call(TORCH["_rebuild_tensor"], Storage("FloatStorage", "0", 24), 1, (2,), (3,)),
        },
        {"0": base.tobytes()},
        compression=compression,
        byteorder=byteorder,
    )
    state = torch_zip.read_torch_zip(path, verify=True)
    np.testing.assert_array_equal(state["plain"], base.reshape(4, 6), strict=True)
    np.testing.assert_array_equal(state["view"], [[8, 10, 12], [14, 16, 18]])
    np.testing.assert_array_equal(state["wrapped"], np.float32(23), strict=True)
    np.testing.assert_array_equal(state["old"], [1, 4])
    assert np.shares_memory(state["plain"], state["view"])


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_view_equals_indexing_the_storage_by_hand(save, data):
    size = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    stride = tuple(data.draw(st.integers(0, 5)) for _ in size)
    offset, length = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 40))
    path = save(
        tensor("0", length, offset, size, stride, "LongStorage"),
        {"0": np.arange(length).tobytes()},
    )
    want = np.empty(size, np.int64)
    for index in np.ndindex(*size):
        want[index] = offset + sum(i * s for i, s in zip(index, stride, strict=True))
    if want.size and want.max() >= length:
        with pytest.raises(ValueError, match=f"of a storage of {length}"):
            torch_zip.read_torch_zip(path)
    else:
        np.testing.assert_array_equal(torch_zip.read_torch_zip(path), want, strict=True)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_of_old_and_new_numpy(save, protocol, module, monkeypatch):
    fake = types.ModuleType(module)
    fake.scalar = types.FunctionType((lambda: None).__code__, {}, "scalar")
    fake.scalar.__module__, fake.scalar.__qualname__ = module, "scalar"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, fake)
        big = Call(fake.scalar, np.dtype(">i4"), np.array(9, ">i4").tobytes())
        path = save(
            {"lr": Call(fake.scalar, np.dtype("f8"), np.float64(1e-4).tobytes()), "big": big},
            protocol=protocol,
        )
    assert torch_zip.read_torch_zip(path) == {"lr": 1e-4, "big": 9}


def test_opening_a_large_file_reads_none_of_its_tensors(tmp_path):
    path = tmp_path / "large.pt"
    torch_zip.write_torch_zip(path, {"w": np.ones(16 << 20, np.float32)})
    before = _resident_mib()
    state = torch_zip.read_torch_zip(path)
    assert state["w"].nbytes == 64 << 20
    assert _resident_mib() - before < 8
    assert state["w"][12345] == 1.0


def _resident_mib():
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- what is refused ------------------------------------------------------------------------------


class _Attack:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch {marker}",), r"(posix|nt)\.system"),
        (eval, ("open('{marker}', 'w')",), r"builtin(s|__)\.eval"),
        (getattr, ((), "__class__"), r"builtin(s|__)\.getattr"),
        (os.mkdir, ("{marker}",), r"(posix|nt)\.mkdir"),
        (np.load, ("{marker}",), r"numpy\.load"),
        (pickle.loads, (b"",), r"pickle\.loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_globals_are_refused_by_name_and_not_run(
    save, tmp_path, function, args, named, protocol
):
    marker = tmp_path / "ran"
    args = tuple(a.format(marker=marker) if isinstance(a, str) else a for a in args)
    path = save({"state_dict": {}, "x": _Attack(function, *args)}, protocol=protocol)
    with pytest.raises(ValueError, match=named) as error:
        torch_zip.read_torch_zip(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_codecs_other_than_latin1_are_refused(save):
    import _codecs

    with pytest.raises(ValueError, match="'rot13'"):
        torch_zip.read_torch_zip(save(Call(_codecs.encode, "abc", "rot13")))


def test_object_scalars_are_refused(save):
    scalar = np.float64(0).__reduce__()[0]
    with pytest.raises(ValueError, match="'O8'"):
        torch_zip.read_torch_zip(save(Call(scalar, np.dtype(object), b"12345678")))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            pickle.PROTO + b"\x02" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",
            "LONG_BINPUT 2147483647",
        ),
        (pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + bytes(8) + b".", "BYTEARRAY8 at byte 2"),
        (b"(ios\nsystem\n.", "INST at byte 1"),
        (pickle.PROTO + b"\x02" + pickle.EXT1 + b"\x01.", "EXT1"),
        (pickle.PROTO + b"\x02}", "STOP"),
        (pickle.PROTO + b"\x02" + pickle.BINUNICODE + b"\xff\xff\xff\xffx.", "4294967295"),
    ],
)
def test_instructions_that_torch_does_not_write_are_refused(tmp_path, program, message):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(ValueError, match=message):
        torch_zip.read_torch_zip(path)


def test_damaged_bytes_give_a_value_error_and_nothing_else(tmp_path):
    whole, path = (GOLDEN / "torch_zip.pt").read_bytes(), tmp_path / "model.pt"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(data)
        try:
            torch_zip.read_torch_zip(path)
        except ValueError as error:
            assert "model.pt" in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2, 3), (3,), 0),
        ((2**70,), (0,), 0),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((1.5,), (1,), 0),
    ],
)
def test_malformed_views_are_refused(save, size, stride, offset):
    path = save(tensor("0", 4, offset, size, stride), {"0": bytes(16)})
    with pytest.raises(ValueError, match="model.pt"):
        torch_zip.read_torch_zip(path)


def test_big_endian_is_refused(save):
    with pytest.raises(ValueError, match=r"byte order b'big'.*little-endian machine"):
        torch_zip.read_torch_zip(save({}, byteorder=b"big"))


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
def test_truncated_file_says_so(save, keep):
    path = save({"w": tensor("0", 256, 0, (256,), (1,))}, {"0": bytes(1024)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=r"model\.pt is truncated.*Download it again"):
        torch_zip.read_torch_zip(path)


def test_short_or_missing_storage_says_so(save):
    tree = {"w": tensor("0", 256, 0, (256,), (1,))}
    with pytest.raises(ValueError, match=r"data/0 has 100 bytes; 256 elements .* need 1024"):
        torch_zip.read_torch_zip(save(tree, {"0": bytes(100)}))
    with pytest.raises(ValueError, match=r"data/0 is missing"):
        torch_zip.read_torch_zip(save(tree))


def test_damage_inside_a_tensor_is_found_by_verify(save):
    path = save({"w": tensor("0", 256, 0, (256,), (1,))}, {"0": b"\x07" * 1024})
    data = bytearray(path.read_bytes())
    data[data.index(b"\x07" * 1024) + 100] ^= 1
    path.write_bytes(data)
    torch_zip.read_torch_zip(path)
    with pytest.raises(ValueError, match=r"archive/data/0\).*CRC-32|CRC-32 \(archive/data/0\)"):
        torch_zip.read_torch_zip(path, verify=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "DOCTYPE"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "non-zip form"),
        (bytes(257) + b"ustar" + bytes(250), "not a file of torch.save|non-zip form"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        torch_zip.read_torch_zip(path)
    assert not torch_zip.is_torch_zip(path)


def test_zip_without_a_pickle_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="0 members NAME/data.pkl"):
        torch_zip.read_torch_zip(GOLDEN / "torch_zip.npz")
    assert torch_zip.is_torch_zip(GOLDEN / "torch_zip.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        torch_zip.read_torch_zip(tmp_path / "absent.pt")


# --- the library's writer -------------------------------------------------------------------------


def test_written_file_reads_back_the_same(tmp_path):
    want = torch_zip.read_torch_zip(GOLDEN / "torch_zip.pt")
    path = tmp_path / "copy 1.pt"
    torch_zip.write_torch_zip(path, want)
    got = torch_zip.read_torch_zip(path, verify=True)
    assert got["optimizer"]["param_groups"] == want["optimizer"]["param_groups"]
    assert list(got) == list(want) and list(got["state_dict"]) == list(want["state_dict"])
    for name, array in want["state_dict"].items():
        np.testing.assert_array_equal(got["state_dict"][name], array, strict=True)
    assert list(tmp_path.iterdir()) == [path]


def test_written_members_are_aligned_and_reproducible(tmp_path):
    tree = {"a": np.arange(5, dtype=np.int8), "b": np.ones(3), "c": np.float32(np.ones((2, 2))).T}
    for name in ("one/w.pt", "two/w.pt"):
        (tmp_path / name).parent.mkdir()
        torch_zip.write_torch_zip(tmp_path / name, tree)
    data = (tmp_path / "one/w.pt").read_bytes()
    assert data == (tmp_path / "two/w.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "one/w.pt") as archive:
        for info in archive.infolist():
            name_bytes = int.from_bytes(data[info.header_offset + 26 :][:2], "little")
            extra_bytes = int.from_bytes(data[info.header_offset + 28 :][:2], "little")
            assert (info.header_offset + 30 + name_bytes + extra_bytes) % 64 == 0
            assert info.compress_type == zipfile.ZIP_STORED


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pt"
    torch_zip.write_torch_zip(path, {"a": np.ones(2)})
    with pytest.raises(TypeError, match="complex128"):
        torch_zip.write_torch_zip(path, {"a": np.ones(2) * 1j})
    with pytest.raises(TypeError, match="a set cannot be written"):
        torch_zip.write_torch_zip(path, {"a": {1, 2}})
    np.testing.assert_array_equal(torch_zip.read_torch_zip(path)["a"], np.ones(2))
    assert list(tmp_path.iterdir()) == [path]
