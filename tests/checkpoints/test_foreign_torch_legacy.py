"""Files of torch.save from before torch 1.6: what torch wrote, damage, attacks."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxlab.checkpoints.foreign.state_dicts import read_state_dict
from jaxlab.checkpoints.foreign.torch_legacy import MAGIC, is_torch_legacy, read_torch_legacy

GOLDEN = Path(__file__).parents[1] / "golden"
LEGACY = GOLDEN / "torch_legacy.pt"


def want():
    with np.load(GOLDEN / "torch_zip.npz") as golden:
        return golden["row"]


def test_golden_tensor_equals_what_torch_saved():
    assert is_torch_legacy(LEGACY) and not is_torch_legacy(GOLDEN / "torch_zip.pt")
    state = read_torch_legacy(LEGACY)
    assert set(state) == {"w"}
    np.testing.assert_array_equal(state["w"], want(), strict=True)
    assert not state["w"].flags.writeable
    np.testing.assert_array_equal(read_state_dict(LEGACY, verify=True).tensors["w"], want())


def parts(*values, data=b""):
    return MAGIC + b"".join(pickle.dumps(value, 2) for value in values) + data


MACHINE = {"protocol_version": 1001, "little_endian": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (parts(1000, MACHINE, {}, []), "it is of version 1000; 1001 is read"),
        (parts(1001, MACHINE | {"little_endian": False}, {}, []), "a little-endian one is read"),
        (parts(1001, MACHINE, {}, ["0"]), "its list of storages is not that of its tensors"),
        (parts(1001, MACHINE), r"the pickle at byte \d+ does not end: the file is truncated"),
        (parts(1001, MACHINE, os.getcwd, []), r"global (posix|nt)\.getcwd"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.bin: .*{message}"):
        read_torch_legacy(path)


def test_a_program_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "model.bin"
    for place in range(3):
        values = [1001, MACHINE, {}, []]
        values[place] = Attack()
        path.write_bytes(parts(*values))
        with pytest.raises(ValueError, match=r"(posix|nt)\.mkdir"):
            read_torch_legacy(path)
    assert not (tmp_path / "ran").exists()


def test_plain_values_are_read(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(parts(1001, MACHINE, {"epoch": 3}, []))
    assert read_torch_legacy(path) == {"epoch": 3}
    with pytest.raises(ValueError, match=r"model\.bin holds no tensors.*\['epoch'\]"):
        read_state_dict(path)


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_truncated_file_says_so(cut, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(LEGACY.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="truncated"):
        read_torch_legacy(path)


def test_damaged_bytes_give_a_value_error_and_nothing_else(tmp_path):
    whole, path = LEGACY.read_bytes(), tmp_path / "model.bin"
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(MAGIC), len(data), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(data)
        try:
            read_torch_legacy(path)
        except ValueError as error:
            assert "model.bin" in str(error)
            refused += 1
    assert refused > 50
