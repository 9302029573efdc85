"""Files of `torch.save` (zip form) without torch: `.pt`, `.pth`, `pytorch_model.bin`.

Such a file is a zip archive with a pickle (`NAME/data.pkl`), one uncompressed member a storage
(`NAME/data/0`, ...), and `NAME/version`, `NAME/byteorder`. Tensors come back as read-only views of
the mapped file: opening a 3.6 GB file takes milliseconds and no memory, a tensor's pages are read
when it is used, and tensors that share a storage share it here too. Nothing in the file is executed
(see `torch_pickle`). TorchScript archives (`torch.jit.save`) have the same form with a program
beside the weights; `read_torch_script` reads the weights.
"""

import mmap
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlab.checkpoints.foreign import files, torch_pickle

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_CHUNK_BYTES = 1 << 20
_SCRIPT_MEMBERS = ("constants.pkl", "bytecode.pkl")
_CONVERT = (
    "python -c \"import torch; torch.save(torch.load('{path}', map_location='cpu'), 'NEW.pt')\""
)


@dataclass(frozen=True)
class _Archive:
    path: Path
    buffer: mmap.mmap
    members: Mapping[str, zipfile.ZipInfo]
    root: str


def is_torch_zip(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a zip archive with the pickle of `torch.save` in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_is_pickle_member(name) for name in archive.namelist())


def read_torch_zip(path: str | os.PathLike[str], *, verify: bool = False) -> Any:
    """What a torch zip file holds, tensors as read-only NumPy arrays.

    Stored members are mapped, not read; compressed ones (torch writes none) are decompressed. The
    arrays keep the mapping alive, so the file must stay unchanged while they are used.

    Args:
      path: a file written by `torch.save`.
      verify: read every member once and compare its CRC-32, which finds damage inside tensors.

    Returns:
      The saved object: usually a dict of arrays, or a dict that has one under `"state_dict"`.
      bfloat16 tensors have the dtype of `jax.numpy.bfloat16`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is empty, truncated, damaged, of the older non-zip form, a TorchScript
        archive, written on a big-endian machine, or its pickle asks for anything but tensors,
        storages, ordered dicts and NumPy scalars. The message names the file and what to do.
    """
    archive = _open(Path(path))
    try:
        if _is_script(archive):
            raise ValueError(
                "a TorchScript archive (a program with weights); read_torch_script reads its "
                "weights, or keep them with torch: "
                f"torch.save(torch.jit.load('{archive.path}', 'cpu').state_dict(), 'NEW.pt')"
            )
        return _load(archive, torch_pickle.load, verify)
    except ValueError as error:
        raise ValueError(f"{archive.path}: {error}") from error


def is_torch_script(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a TorchScript archive (`torch.jit.save`): a program with weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    roots = [name.rpartition("/")[0] for name in names if _is_pickle_member(name)]
    return any(f"{root}/{part}" in names for root in roots for part in _SCRIPT_MEMBERS)


def read_torch_script(
    path: str | os.PathLike[str], *, verify: bool = False
) -> dict[str, np.ndarray]:
    """The weights of a TorchScript archive, such as the files of OpenAI's CLIP.

    The program in the archive is neither run nor parsed.

    Args:
      path: a file written by `torch.jit.save`.
      verify: read every member once and compare its CRC-32.

    Returns:
      Name -> read-only array that shares memory with the mapped file, as `state_dict()` of the
      module names them.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is empty, truncated, damaged, no TorchScript archive, or its pickle
        asks for anything but modules, tensors and plain values.
    """
    archive = _open(Path(path))
    try:
        if not _is_script(archive):
            raise ValueError("no TorchScript archive; read_torch_zip reads files of torch.save")
        return _load(archive, torch_pickle.load_script, verify)
    except ValueError as error:
        raise ValueError(f"{archive.path}: {error}") from error


def _load(
    archive: _Archive, load: Callable[[bytes, torch_pickle.LoadStorage], Any], verify: bool
) -> Any:
    _check_byte_order(archive)
    if verify:
        _verify(archive)
    storages: dict[torch_pickle.StorageRef, np.ndarray] = {}

    def load_storage(ref: torch_pickle.StorageRef) -> np.ndarray:
        if ref not in storages:
            storages[ref] = _storage(archive, ref)
        return storages[ref]

    return load(bytes(_member(archive, "data.pkl")), load_storage)


def write_torch_zip(path: str | os.PathLike[str], tree: Any) -> None:
    """Saves nested dicts of arrays as a file that `torch.load(..., weights_only=True)` reads.

    The bytes depend on the values alone (no dates, no random ids). The file appears complete or not
    at all. Arrays are written one after the other: the extra memory is that of the largest one
    that is not contiguous.

    Args:
      path: the file to write, replaced if it exists.
      tree: dicts, lists, tuples, strings, numbers, booleans, None and NumPy arrays. An array
        that appears twice is written twice.

    Raises:
      TypeError: if a value or a dtype has no form in torch.
    """
    path = Path(path)
    pickled, arrays = torch_pickle.dump(tree)
    root = path.stem or "archive"
    with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write(archive, f"{root}/data.pkl", pickled)
        _write(archive, f"{root}/byteorder", b"little")
        for key, array in enumerate(arrays):
            flat = np.ascontiguousarray(array).reshape(-1)
            _write(archive, f"{root}/data/{key}", flat.view(np.uint8).data)
        _write(archive, f"{root}/version", b"3\n")


def _is_pickle_member(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _open(path: Path) -> _Archive:
    with path.open("rb") as file:
        head = file.read(512)
        _check_head(path, head)
        try:
            with zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"{path} is truncated or damaged: it starts as a zip file and has no readable "
                f"directory at its end ({path.stat().st_size} bytes). Download it again"
            ) from error
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    roots = [name.rpartition("/")[0] for name in members if _is_pickle_member(name)]
    if len(roots) != 1:
        raise ValueError(
            f"{path} is a zip file with {len(roots)} members NAME/data.pkl; a file of torch.save "
            "has one"
        )
    return _Archive(path, buffer, members, roots[0])


def _check_head(path: Path, head: bytes) -> None:
    if not head:
        raise ValueError(f"{path} is empty (0 bytes). Download it again")
    if head.startswith(b"PK\x03\x04"):
        return
    if head[0] == 0x80 or head[257:262] == b"ustar":
        raise ValueError(
            f"{path} is of torch's older, non-zip form, which is not read. Convert it once, "
            f"where torch is installed: {_CONVERT.format(path=path)}"
        )
    raise ValueError(
        f"{path} is not a file of torch.save: it starts with {head[:16]!r}, and a zip file starts "
        "with b'PK\\x03\\x04'"
    )


def _is_script(archive: _Archive) -> bool:
    return any(f"{archive.root}/{part}" in archive.members for part in _SCRIPT_MEMBERS)


def _check_byte_order(archive: _Archive) -> None:
    if f"{archive.root}/byteorder" in archive.members:
        order = bytes(_member(archive, "byteorder"))
        if order != b"little":
            raise ValueError(
                f"written in byte order {order!r}; only b'little' is read. "
                f"Save it again on a little-endian machine: {_CONVERT.format(path=archive.path)}"
            )


def _member(archive: _Archive, name: str) -> memoryview:
    """The bytes of a member: a view of the map when it is stored, decompressed otherwise."""
    info = archive.members.get(f"{archive.root}/{name}")
    if info is None:
        raise ValueError(f"the member {name} is missing: the file is truncated or damaged")
    if info.flag_bits & 1:
        raise ValueError(f"the member {name} is encrypted")
    if info.compress_type != zipfile.ZIP_STORED:
        try:
            with zipfile.ZipFile(archive.path) as file:
                return memoryview(file.read(info))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"the member {name} cannot be decompressed: {error}") from error
    start = _start(archive, info)
    view = memoryview(archive.buffer)[start : start + info.file_size]
    if len(view) != info.file_size:
        raise ValueError(f"the member {name} is truncated: {len(view)} of {info.file_size} bytes")
    return view


def _start(archive: _Archive, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin."""
    at = info.header_offset
    header = archive.buffer[at : at + _LOCAL_HEADER_BYTES]
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise ValueError(
            f"the member {info.filename} has no header at byte {at}: the file is damaged"
        )
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return at + _LOCAL_HEADER_BYTES + lengths


def _storage(archive: _Archive, ref: torch_pickle.StorageRef) -> np.ndarray:
    name = f"data/{ref.key}"
    info = archive.members.get(f"{archive.root}/{name}")
    wanted = ref.num_elements * ref.dtype.itemsize
    if info is not None and info.file_size != wanted:
        raise ValueError(
            f"the member {name} has {info.file_size} bytes; {ref.num_elements} elements of "
            f"{ref.dtype} need {wanted}: the file is truncated or damaged"
        )
    data = _member(archive, name)
    array = np.frombuffer(data, ref.dtype) if wanted else np.zeros(0, ref.dtype)
    return array if array.flags.aligned else array.copy()


def _verify(archive: _Archive) -> None:
    with archive.path.open("rb") as file:
        bad = [
            name
            for name, info in archive.members.items()
            if name.startswith(f"{archive.root}/") and _crc32(archive, info, file) != info.CRC
        ]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(archive.members)} members do not match their CRC-32 "
            f"({', '.join(bad[:5])}{', ...' if bad[5:] else ''}): the file is damaged. "
            "Download it again"
        )


def _crc32(archive: _Archive, info: zipfile.ZipInfo, file: BinaryIO) -> int:
    """CRC-32 of a member. Read through the file: the pages of the map stay untouched."""
    if info.compress_type != zipfile.ZIP_STORED:
        return zlib.crc32(_member(archive, info.filename.removeprefix(f"{archive.root}/")))
    file.seek(_start(archive, info))
    crc, left = 0, info.file_size
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc


def _write(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Appends a stored member whose bytes start at a multiple of 64, as torch aligns them."""
    info = zipfile.ZipInfo(name)
    info.file_size = len(data)
    is_large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
    zip64_bytes = 20 if is_large else 0
    file = archive.fp
    assert file is not None
    start = file.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + zip64_bytes + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=is_large) as member:
        member.write(data)
