"""The wire form of protocol buffers: fields of a message by number, without their description."""

from collections.abc import Iterator

_WIRES = {1: 8, 5: 4}


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends.

    Args:
      data: holds it.
      at: where it begins.

    Raises:
      ValueError: if it has more than 64 bits.
      IndexError: if the data end before it does.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} has no end")


def message_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields, in their order.

    Args:
      data: the message.

    Yields:
      Number of a field, and its value: an integer, or the bytes of what has another form.

    Raises:
      ValueError: if it is no message.
      IndexError: if it is cut off.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = varint(data, at)
        elif wire in _WIRES:
            length = _WIRES[wire]
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        if at + length > len(data):
            raise ValueError(f"field {number} ends {at + length - len(data)} bytes after the data")
        yield number, data[at : at + length]
        at += length


def packed_numbers(data: memoryview) -> list[int]:
    """The numbers of a packed field.

    Args:
      data: its value.

    Raises:
      ValueError: if a number has more than 64 bits.
      IndexError: if the last one is cut off.
    """
    numbers, at = [], 0
    while at < len(data):
        number, at = varint(data, at)
        numbers.append(number)
    return numbers
