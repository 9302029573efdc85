"""Weights of TorchScript archives: what torch wrote, archives made by hand, attacks."""

import importlib.util
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxlab.checkpoints.foreign import torch_zip

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHIVE = GOLDEN / "chinese_clip_openai.pt"


def _golden_script():
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make_chinese_clip_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _golden_script()


class Module:
    """What a module of a program looks like to pickle."""

    __module__ = "__torch__.any"

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


@pytest.fixture
def save(tmp_path, monkeypatch):
    def write(tree, protocol=2):
        module = types.ModuleType("__torch__.any")
        module.Module = Module
        buffer = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "__torch__", types.ModuleType("__torch__"))
            patch.setitem(sys.modules, "__torch__.any", module)
            pickle.Pickler(buffer, protocol).dump(tree)
        path = tmp_path / "script.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("script/data.pkl", buffer.getvalue())
            archive.writestr("script/constants.pkl", b"\x80\x02).")
        return path

    return write


def test_golden_tensors_equal_what_torch_saved():
    assert torch_zip.is_torch_script(ARCHIVE)
    assert not torch_zip.is_torch_script(GOLDEN / "torch_zip.pt")
    state = torch_zip.read_torch_script(ARCHIVE, verify=True)
    want = MAKE.openai_state() | {n: np.array(v) for n, v in MAKE.OPENAI_SIZES.items()}
    assert state.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name, strict=True)
        assert not state[name].flags.writeable and not state[name].flags.owndata


def test_other_torch_files_are_told():
    with pytest.raises(ValueError, match=r"torch_zip\.pt: no TorchScript.*read_torch_zip reads"):
        torch_zip.read_torch_script(GOLDEN / "torch_zip.pt")
    with pytest.raises(ValueError, match=r"a TorchScript archive.*read_torch_script reads"):
        torch_zip.read_torch_zip(ARCHIVE)


def test_only_modules_give_names(save):
    tree = Module(training=True, a=Module(hook=None, sizes=[1, 2]), b=Module())
    assert torch_zip.read_torch_script(save(tree)) == {}
    with pytest.raises(ValueError, match="it holds a dict, and a module is expected"):
        torch_zip.read_torch_script(save({"a": 1}))


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_globals_are_refused_by_name_and_not_run(save, tmp_path, protocol):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(ValueError, match=r"script\.pt: .*(posix|nt)\.mkdir"):
        torch_zip.read_torch_script(save(Module(a=Attack()), protocol))
    assert not (tmp_path / "ran").exists()


def test_a_module_is_never_called(save):
    class Call:
        def __reduce__(self):
            return Module, (1,)

    with pytest.raises(ValueError, match="its pickle cannot be read"):
        torch_zip.read_torch_script(save(Module(a=Call())))


def test_modules_that_hold_themselves_end(save):
    module = Module()
    module.again = module
    with pytest.raises(ValueError, match="more than 10000 modules within modules"):
        torch_zip.read_torch_script(save(module))


def test_new_objects_are_for_programs_only(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02ccollections\nOrderedDict\n)\x81.")
    with pytest.raises(ValueError, match="NEWOBJ at byte"):
        torch_zip.read_torch_zip(path)


def test_damaged_bytes_give_a_value_error_and_nothing_else(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [n for n in members if n.endswith("/data.pkl")]
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        data = np.frombuffer(members[name], np.uint8).copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        path = tmp_path / "script.pt"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in (members | {name: data.tobytes()}).items():
                archive.writestr(member, content)
        try:
            torch_zip.read_torch_script(path)
        except ValueError as error:
            assert "script.pt" in str(error)
            refused += 1
    assert refused > 30


def test_truncated_archive_says_so(tmp_path):
    data = ARCHIVE.read_bytes()
    (tmp_path / "ViT.pt").write_bytes(data[: len(data) // 2])
    assert not torch_zip.is_torch_script(tmp_path / "ViT.pt")
    with pytest.raises(ValueError, match=r"ViT\.pt is truncated.*Download it again"):
        torch_zip.read_torch_script(tmp_path / "ViT.pt")
