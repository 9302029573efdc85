"""Records over a socket between a program of Flower, which lives for one message, and a node.

Names and settings as JSON, then the bytes of the arrays; nothing that could be run.
"""

import json
import struct
from io import BufferedIOBase
from typing import Any

MAX_HEAD_BYTES = 2**24
_LENGTH = struct.Struct("<Q")


def send(file: BufferedIOBase, head: dict[str, Any], parts: list[bytes]) -> None:
    """Writes a head and some bytes."""
    text = json.dumps({**head, "lengths": [len(part) for part in parts]}).encode()
    for data in (_LENGTH.pack(len(text)), text, *parts):
        file.write(data)
    file.flush()


def receive(file: BufferedIOBase) -> tuple[dict[str, Any], list[bytes]]:
    """Reads what `send` has written.

    Raises:
      ConnectionError: if the other side is gone, or sends something else.
    """
    (length,) = _LENGTH.unpack(_read(file, _LENGTH.size))
    if length > MAX_HEAD_BYTES:
        raise ConnectionError(f"a head of {length} bytes; at most {MAX_HEAD_BYTES} are read")
    head = json.loads(_read(file, length))
    return head, [_read(file, size) for size in head.pop("lengths")]


def _read(file: BufferedIOBase, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ConnectionError("the other side of the pipe is gone")
    return data
