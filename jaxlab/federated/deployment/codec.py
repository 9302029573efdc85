"""Messages as bytes: who asks whom for what, and apart from it the content.

The content of a broadcast is the same for all clients: it is packed once, and whatever stores what
it carries by its hash, as Flower does, stores it once.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxlab.federated import wire
from jaxlab.federated.messages import Message


class Packed(NamedTuple):
    """A message in bytes.

    Attributes:
      header: all but the content.
      content: the content.
    """

    header: bytes
    content: bytes

    @property
    def num_bytes(self) -> int:
        """Length of both."""
        return len(self.header) + len(self.content)


class Packer:
    """Packs messages; a content that several of them share is packed once."""

    def __init__(self) -> None:
        """Nothing is packed yet."""
        self._contents: dict[int, tuple[Any, bytes]] = {}

    def __call__(self, message: Message) -> Packed:
        """The message in bytes."""
        content = message.content
        # The content itself is kept, so that nothing else can get its id meanwhile.
        if id(content) not in self._contents:
            self._contents[id(content)] = content, wire.pack(content)
        header = wire.pack_message(dataclasses.replace(message, content=None))
        return Packed(header, self._contents[id(content)][1])


def unpack(packed: Packed, max_bytes: int) -> Message:
    """The message in some bytes.

    Args:
      packed: as it has come; it may be anything.
      max_bytes: larger ones are refused.

    Raises:
      ValueError: saying what is wrong.
    """
    if packed.num_bytes > max_bytes:
        raise ValueError(f"it has {packed.num_bytes} bytes; {max_bytes} are allowed")
    message = wire.unpack_message(packed.header, max_bytes=max_bytes)
    return dataclasses.replace(message, content=wire.unpack(packed.content, max_bytes=max_bytes))
