"""Columns of Arrow and NumPy in canonical form, and their hashes, on the host.

Equal values must have equal hashes whatever the width or encoding of their column:

* integers, booleans, dates, times, timestamps and durations are int64 words (the unit of a
  timestamp is its column's; date64 is taken in days, as date32); unsigned integers from 2^63 on,
  which share their words with negative ones, are hashed as the 16 bytes of a longer integer;
* floats are float64 words, with -0.0 made 0.0 and every NaN the same one, which is a value;
* decimals of up to 128 bits are their scale and their unscaled integer, in as many bytes as needed;
* strings and binary values are their bytes, UTF-8 for strings; the empty string is a value;
* nulls (and NaT) are no values;
* dictionary-encoded columns hash their dictionary once.

Lists, structs and maps are refused unless they are asked to be hashed by a serialisation of their
values.
"""

import dataclasses
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from jaxlab.ndv.hashing import (
    FAST,
    Hasher,
    Lanes,
    hash_bytes,
    hash_words,
    murmur3_x64_128,
    split_words,
)

NAN_BITS = 0x7FF8000000000000
_MS_PER_DAY = 86_400_000


@dataclasses.dataclass(frozen=True)
class CanonicalColumn:
    """A column of words or of byte strings.

    Attributes:
      valid: which rows hold a value.
      words: the int64 or float64 bits of every row (any bits where invalid), or None.
      data: the bytes of all rows, or None.
      offsets: row i is data[offsets[i]:offsets[i + 1]], or None.
      is_float: whether the words are the bits of floats.
      is_unsigned: whether the words are those of unsigned integers.
    """

    valid: Bool[np.ndarray, " rows"]
    words: UInt64[np.ndarray, " rows"] | None = None
    data: UInt8[np.ndarray, " bytes"] | None = None
    offsets: Int64[np.ndarray, " ends"] | None = None
    is_float: bool = False
    is_unsigned: bool = False


class HashedColumn(NamedTuple):
    """Hashes of the rows of a column.

    Attributes:
      lanes: the hashes; of no meaning in invalid rows.
      valid: which rows hold a value.
      second: for hash id 1 the second 64 bits of the hashes, else None.
    """

    lanes: Lanes
    valid: Bool[np.ndarray, " rows"]
    second: Lanes | None = None


def hash_column(
    column: Any, hasher: Hasher = FAST, *, serialize_nested: bool = False
) -> HashedColumn:
    """Hashes of a column's rows.

    Args:
      column: NumPy array of one dimension, Arrow array or chunked array, or a list of values, None
        for nulls.
      hasher: which hash.
      serialize_nested: whether lists, structs and maps are hashed by their serialisation.

    Returns:
      One hash per row; feed `lanes` and `valid` to the update of a sketch.

    Raises:
      TypeError: if the type of the column has no canonical form.
      ValueError: if a NumPy array is not of one dimension.
    """
    if isinstance(column, (list, tuple)):
        column = np.fromiter(column, object, len(column))
    if not isinstance(column, np.ndarray):
        import pyarrow as pa

        if isinstance(column, pa.ChunkedArray):
            parts = [
                hash_column(chunk, hasher, serialize_nested=serialize_nested)
                for chunk in column.chunks
            ]
            return _concatenate(parts, hasher)
        if isinstance(column, pa.DictionaryArray):
            return _hash_dictionary(column, hasher, serialize_nested)
    return _hash_canonical(canonical_column(column, serialize_nested=serialize_nested), hasher)


def canonical_column(column: Any, *, serialize_nested: bool = False) -> CanonicalColumn:
    """The canonical form of a column that is not dictionary-encoded or chunked.

    Args:
      column: NumPy array of one dimension or Arrow array.
      serialize_nested: whether lists, structs and maps become bytes.

    Raises:
      TypeError: if the type has no canonical form.
      ValueError: if a NumPy array is not of one dimension.
    """
    if isinstance(column, np.ndarray):
        return _canonical_numpy(column, serialize_nested)
    import pyarrow as pa

    if not isinstance(column, pa.Array):
        raise TypeError(
            f"column is a {type(column).__name__}; wanted a NumPy array, an Arrow array or an "
            "Arrow chunked array"
        )
    return _canonical_arrow(column, serialize_nested)


def value_kind(kind: Any) -> str | None:
    """What values of an Arrow type are to the hash: types of one kind may be mixed in a column.

    Equal numbers of two kinds have different hashes, as 1 and 1.0, or 2.50 of scale 2 and 2.500 of
    scale 3, and would be counted twice.

    Args:
      kind: an Arrow type.

    Returns:
      A name for messages, such as `texts`; None for the type of nulls, which goes with all.
    """
    import pyarrow.types as types

    if types.is_null(kind):
        return None
    if types.is_dictionary(kind):
        return value_kind(kind.value_type)
    if types.is_boolean(kind) or types.is_integer(kind):
        return "integers"
    if types.is_floating(kind):
        return "floats"
    if types.is_date(kind):
        return "dates"
    if types.is_timestamp(kind) or types.is_time(kind) or types.is_duration(kind):
        name = "timestamps" if types.is_timestamp(kind) else str(kind).split("[")[0]
        return f"{name} in {kind.unit}"
    if types.is_decimal(kind):
        return f"decimals of scale {kind.scale}"
    if types.is_fixed_size_binary(kind) or _is_text(kind):
        return "texts"
    return str(kind)


def check_kinds(
    seen: dict[str, tuple[str, str]], schema: Any, names: Iterable[str], where: str
) -> None:
    """Checks that columns have the kind of values that they had before, and takes note of new ones.

    Args:
      seen: name of a column -> its kind and where it was seen; it is changed.
      schema: Arrow schema of the next rows.
      names: columns to look at.
      where: what the next rows are called, such as the name of a file.

    Raises:
      ValueError: naming the first column whose values are of another kind.
    """
    for name in names:
        kind = value_kind(schema.field(name).type)
        if kind is None:
            continue
        before, place = seen.setdefault(name, (kind, where))
        if before != kind:
            raise ValueError(
                f"column {name!r} holds {before} in {place} and {kind} in {where}: equal values "
                "would be counted twice; cast them to one type"
            )


def _hash_canonical(column: CanonicalColumn, hasher: Hasher) -> HashedColumn:
    if column.words is None:
        assert column.data is not None and column.offsets is not None
        lanes, second = hash_bytes(column.data, column.offsets, hasher)
        return HashedColumn(lanes, column.valid, second)
    hashed = _hash_words(column, column.words, hasher)
    if column.is_unsigned and (large := np.flatnonzero(column.words >> np.uint64(63))).size:
        _replace(hashed, large, _hash_large(column.words[large], hasher))
    return hashed


def _hash_words(column: CanonicalColumn, words: np.ndarray, hasher: Hasher) -> HashedColumn:
    if hasher.hash_id == 0:
        return HashedColumn(hash_words(split_words(words), hasher), column.valid)
    if hasher.hash_id == 1:
        data = np.ascontiguousarray(words, "<u8").view(np.uint8)
        offsets = np.arange(len(words) + 1, dtype=np.int64) * 8
        first, other = murmur3_x64_128(data, offsets, hasher.seed)
        return HashedColumn(split_words(first), column.valid, split_words(other))
    numbers = words.view(np.float64 if column.is_float else np.int64)
    data, offsets = _pack([repr(number).encode() for number in numbers.tolist()])
    return HashedColumn(hash_bytes(data, offsets, hasher)[0], column.valid)


def _hash_large(words: np.ndarray, hasher: Hasher) -> tuple[Lanes, Lanes | None]:
    """Hashes of unsigned integers from 2^63 on."""
    if hasher.hash_id == 2:
        data, offsets = _pack([repr(number).encode() for number in words.tolist()])
    else:
        wide = np.stack([words, np.zeros_like(words)], axis=1)
        data = wide.astype("<u8").view(np.uint8).reshape(-1)
        offsets = np.arange(len(words) + 1, dtype=np.int64) * 16
    return hash_bytes(data, offsets, hasher)


def _replace(hashed: HashedColumn, rows: np.ndarray, by: tuple[Lanes, Lanes | None]) -> None:
    """Write other hashes into some rows of a column that nobody else holds."""
    pairs = [(hashed.lanes, by[0])]
    if hashed.second is not None and by[1] is not None:
        pairs.append((hashed.second, by[1]))
    for lanes, new in pairs:
        lanes.hi[rows], lanes.lo[rows] = new


def _hash_dictionary(column: Any, hasher: Hasher, serialize_nested: bool) -> HashedColumn:
    values = hash_column(column.dictionary, hasher, serialize_nested=serialize_nested)
    valid = _valid(column)
    indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if not len(values.valid):
        values = _concatenate([values, _zero_row(hasher)], hasher)

    def take(lanes: Lanes) -> Lanes:
        return Lanes(np.asarray(lanes.hi)[indices], np.asarray(lanes.lo)[indices])

    second = None if values.second is None else take(values.second)
    return HashedColumn(take(values.lanes), valid & values.valid[indices], second)


def _zero_row(hasher: Hasher) -> HashedColumn:
    zero = Lanes(np.zeros(1, np.uint32), np.zeros(1, np.uint32))
    return HashedColumn(zero, np.zeros(1, bool), zero if hasher.hash_id == 1 else None)


def _concatenate(parts: list[HashedColumn], hasher: Hasher) -> HashedColumn:
    def joined(pairs: list[Lanes]) -> Lanes:
        nothing = np.zeros(0, np.uint32)
        return Lanes(*(np.concatenate([nothing, *(pair[i] for pair in pairs)]) for i in (0, 1)))

    valid = np.concatenate([np.zeros(0, bool), *(part.valid for part in parts)])
    seconds = [part.second for part in parts if part.second is not None]
    second = joined(seconds) if hasher.hash_id == 1 else None
    return HashedColumn(joined([part.lanes for part in parts]), valid, second)


def _from_integers(values: np.ndarray, valid: np.ndarray) -> CanonicalColumn:
    if values.dtype == np.uint64:
        return CanonicalColumn(valid, words=values, is_unsigned=True)
    return CanonicalColumn(valid, words=values.astype(np.int64, copy=False).view(np.uint64))


def _from_floats(values: np.ndarray, valid: np.ndarray) -> CanonicalColumn:
    numbers = values.astype(np.float64, copy=False) + 0.0  # -0.0 + 0.0 is 0.0
    words, is_nan = numbers.view(np.uint64), np.isnan(numbers)
    if is_nan.any():
        words = np.where(is_nan, np.uint64(NAN_BITS), words)
    return CanonicalColumn(valid, words=words, is_float=True)


def _from_texts(texts: list[bytes], valid: np.ndarray) -> CanonicalColumn:
    data, offsets = _pack(texts)
    return CanonicalColumn(valid, data=data, offsets=offsets)


def _pack(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def _canonical_numpy(column: np.ndarray, serialize_nested: bool) -> CanonicalColumn:
    if column.ndim != 1:
        raise ValueError(f"column has shape {column.shape}; wanted one dimension")
    kind, valid = column.dtype.kind, np.ones(len(column), bool)
    if kind in "biu":
        return _from_integers(column, valid)
    if kind == "f":
        return _from_floats(column, valid)
    if kind in "mM":
        days = column.astype("datetime64[D]") if kind == "M" and _is_coarse(column) else column
        return _from_integers(days.view(np.int64), ~np.isnat(column))
    if kind == "U":
        return _from_texts([text.encode() for text in column.tolist()], valid)
    if kind == "S":
        return _from_texts(column.tolist(), valid)
    if kind == "O":
        return _canonical_objects(column, serialize_nested)
    raise TypeError(
        f"NumPy type {column.dtype} has no canonical form; wanted booleans, integers, floats, "
        "dates, strings, bytes or objects of one of these kinds"
    )


def _is_coarse(column: np.ndarray) -> bool:
    """Whether dates count years, months or weeks, which become days."""
    return np.datetime_data(column.dtype)[0] in ("Y", "M", "W")


def _canonical_objects(column: np.ndarray, serialize_nested: bool) -> CanonicalColumn:
    import pyarrow as pa

    try:
        array = pa.array(column.tolist())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(
            f"objects of this column have no common type ({error}); convert them to one"
        ) from error
    return _canonical_arrow(array, serialize_nested)


def _canonical_arrow(column: Any, serialize_nested: bool) -> CanonicalColumn:
    import pyarrow as pa
    import pyarrow.types as types

    kind = column.type
    valid = _valid(column)
    if types.is_null(kind):
        return CanonicalColumn(valid, words=np.zeros(len(column), np.uint64))
    if types.is_boolean(kind):
        return _from_integers(_numpy(column.cast(pa.uint8())), valid)
    if types.is_integer(kind):
        return _from_integers(_numpy(column), valid)
    if types.is_floating(kind):
        return _from_floats(_numpy(column.cast(pa.float64())), valid)
    if types.is_temporal(kind) and kind.bit_width in (32, 64):
        whole = pa.int32() if kind.bit_width == 32 else pa.int64()
        numbers = _numpy(column.view(whole))
        return _from_integers(numbers // _MS_PER_DAY if types.is_date64(kind) else numbers, valid)
    if types.is_decimal(kind) and kind.bit_width <= 128:
        return _from_decimals(column, valid)
    if types.is_fixed_size_binary(kind) or _is_text(kind):
        return _from_binary(column, valid)
    if not serialize_nested:
        raise TypeError(
            f"Arrow type {kind} has no canonical form; leave the column out, select a field of it, "
            "cast it, or take its values by their serialisation (serialize_nested=True, on the "
            "command line --serialize_nested)"
        )
    return _from_texts([serialize(value) for value in column.to_pylist()], valid)


def _valid(column: Any) -> np.ndarray:
    if column.null_count:
        return ~column.is_null().to_numpy(zero_copy_only=False)
    return np.ones(len(column), bool)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    checks = (
        types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary, types.is_binary_view,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def _numpy(column: Any) -> np.ndarray:
    """The numbers of an Arrow array, 0 for nulls."""
    filled = column.fill_null(0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False)


def _from_decimals(column: Any, valid: np.ndarray) -> CanonicalColumn:
    import pyarrow as pa

    scale = column.type.scale
    if not -128 <= scale <= 127:
        raise TypeError(f"decimals of scale {scale} have no canonical form; cast to one from -128")
    wide = column.cast(pa.decimal128(38, scale))
    first = wide.offset * 16
    raw = np.frombuffer(wide.buffers()[1] or b"", np.uint8)[first : first + 16 * len(wide)]
    rows = np.zeros((len(wide), 17), np.uint8)
    rows[:, 0] = scale % 256
    rows[:, 1:] = np.where(valid[:, None], raw.reshape(-1, 16), 0)
    # A byte is needed if it, or the top bit of the one before (0 at first), is not the sign's.
    sign = np.where(rows[:, -1:] >= 128, np.uint8(255), np.uint8(0))
    differs = rows[:, 1:] != sign
    differs[:, 1:] |= (rows[:, 1:-1] ^ sign) >= 128
    differs[:, :1] |= sign > 0
    needed = 17 - np.argmax(np.pad(differs, ((0, 0), (1, 0)), constant_values=True)[:, ::-1], 1)
    offsets = np.zeros(len(wide) + 1, np.int64)
    np.cumsum(needed, out=offsets[1:])
    return CanonicalColumn(valid, data=rows[np.arange(17) < needed[:, None]], offsets=offsets)


def _from_binary(column: Any, valid: np.ndarray) -> CanonicalColumn:
    import pyarrow as pa

    texts = column.cast(pa.large_binary())
    _, ends, data = texts.buffers()
    if not len(texts):
        return _from_texts([], valid)
    offsets = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return CanonicalColumn(valid, data=np.frombuffer(data or b"", np.uint8), offsets=offsets)


def serialize(value: Any) -> bytes:
    """Bytes of a nested value: a letter for its type, lengths, and the parts in order.

    Equal values have equal bytes, and different ones different bytes. Numbers and texts inside are
    in the canonical forms of the module.

    Args:
      value: None, a boolean, number, text, bytes, list, dict, or anything else by its text.
    """
    if value is None:
        return b"n"
    if isinstance(value, int):  # booleans too
        body = int(value).to_bytes(16, "little", signed=True)
        return b"i" + body
    if isinstance(value, float):
        number = value + 0.0
        return b"f" + (
            struct.pack("<d", number) if number == number else struct.pack("<Q", NAN_BITS)
        )
    if isinstance(value, (list, tuple)):
        return b"l" + struct.pack("<Q", len(value)) + b"".join(serialize(item) for item in value)
    if isinstance(value, dict):
        return b"d" + serialize([part for item in value.items() for part in item])
    if isinstance(value, (str, bytes)):
        body = value.encode() if isinstance(value, str) else value
        return b"s" + struct.pack("<Q", len(body)) + body
    body = f"{type(value).__name__}:{value}".encode()
    return b"o" + struct.pack("<Q", len(body)) + body
