"""Files of `torch.save` in the form before torch 1.6, without torch.

Many weights of those years are still distributed so (the Chinese RoBERTa and RBT3 among them). The
file is a row of pickles (a magic number, a version, facts about the machine, the object, the keys
of its storages) and then every storage: its length in elements, eight bytes, and its bytes. Nothing
in it is executed (see `torch_pickle`).
"""

import mmap
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlab.checkpoints.foreign import torch_pickle

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
_VERSION = 1001
_LENGTH_BYTES = 8


def is_torch_legacy(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts as `torch.save` did before torch 1.6."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_torch_legacy(path: str | os.PathLike[str]) -> Any:
    """What such a file holds, tensors as read-only NumPy arrays.

    Storages that happen to lie aligned in the file are mapped; the others, whose place the lengths
    of the pickles decide, are copied, one by one.

    Args:
      path: a file written by `torch.save`.

    Returns:
      The saved object: usually a dict of arrays, or a dict that has one under `"state_dict"`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is not of this form, truncated, damaged, written on a big-endian
        machine, or its pickle asks for anything but tensors, storages, ordered dicts and NumPy
        scalars.
    """
    path = Path(path)
    if not is_torch_legacy(path):
        raise ValueError(f"{path} does not start with the number of torch's older form")
    try:
        with path.open("rb") as file:
            return _load(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(file: BinaryIO) -> Any:
    _, version, machine, program, keys = (_next_pickle(file) for _ in range(5))
    if (found := torch_pickle.load(version, _no_storage)) != _VERSION:
        raise ValueError(f"it is of version {found!r}; {_VERSION} is read")
    facts = torch_pickle.load(machine, _no_storage)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise ValueError(f"it was written on a machine with {facts!r}; a little-endian one is read")
    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    listed = torch_pickle.load(keys, _no_storage)
    storages = _find_storages(buffer, file.tell(), program, listed)
    return torch_pickle.load(program, lambda ref: storages[ref.key])


def _next_pickle(file: BinaryIO) -> bytes:
    """The pickle that starts at the position of the file, which moves behind it."""
    start = file.tell()
    try:
        for _ in pickletools.genops(file):
            pass
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the pickle at byte {start} does not end: the file is truncated or damaged ({error})"
        ) from error
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _no_storage(ref: torch_pickle.StorageRef) -> np.ndarray:
    raise ValueError(f"a storage ({ref.key!r}) stands where plain values are expected")


def _find_storages(buffer: mmap.mmap, at: int, program: bytes, keys: Any) -> dict[str, np.ndarray]:
    """The storages by key. How many bytes one has stands in the object's pickle alone."""
    wanted: dict[str, torch_pickle.StorageRef] = {}

    def note(ref: torch_pickle.StorageRef) -> np.ndarray:
        wanted[ref.key] = ref
        return np.zeros(ref.num_elements, ref.dtype)  # costs memory only when it is touched

    torch_pickle.load(program, note)
    if not isinstance(keys, list) or set(keys) != set(wanted) or len(keys) != len(wanted):
        raise ValueError("its list of storages is not that of its tensors: the file is damaged")
    storages = {}
    for key in keys:
        ref = wanted[key]
        length = int.from_bytes(buffer[at : at + _LENGTH_BYTES], "little")
        start = at + _LENGTH_BYTES
        at = start + ref.num_elements * ref.dtype.itemsize
        if at > len(buffer):
            raise ValueError(
                f"it is truncated: storage {key!r} ends at byte {at} of {len(buffer)}. Download "
                "it again"
            )
        if length != ref.num_elements:
            raise ValueError(
                f"storage {key!r} has {length} elements and its tensors {ref.num_elements}: the "
                "file is damaged"
            )
        array = np.frombuffer(buffer, ref.dtype, length, start)
        storages[key] = array if array.flags.aligned else _read_only(array.copy())
    return storages


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
