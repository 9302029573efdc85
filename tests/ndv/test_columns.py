"""Canonical columns: equal values have equal hashes whatever their width, encoding or library."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from jaxlab.ndv.columns import canonical_column, hash_column, serialize
from jaxlab.ndv.hashing import AUTHORS, FAST, INTERCHANGE, join_words

HASHERS = (FAST, INTERCHANGE, AUTHORS)


def hashes(column, hasher=FAST, **options):
    """Hashes of the valid rows, None for the others."""
    hashed = hash_column(column, hasher, **options)
    words = join_words(hashed.lanes)
    return [int(w) if ok else None for w, ok in zip(words, hashed.valid, strict=True)]


@pytest.mark.parametrize("hasher", HASHERS)
def test_the_width_of_integers_does_not_matter(hasher):
    values = [-128, -1, 0, 1, 127]
    expected = hashes(np.array(values, np.int64), hasher)
    assert len(set(expected)) == 5
    for width in ("int8", "int16", "int32"):
        assert hashes(np.array(values, width), hasher) == expected
        assert hashes(pa.array(values, width), hasher) == expected
    for width in ("uint8", "uint16", "uint32", "uint64"):
        assert hashes(np.array(values[2:], width), hasher) == expected[2:]
    assert hashes(np.array([False, True]), hasher) == expected[2:4]
    assert hashes(pa.array([False, True]), hasher) == expected[2:4]


@pytest.mark.parametrize("hasher", HASHERS)
def test_large_unsigned_numbers_are_no_negative_ones(hasher):
    column = np.array([2**63, 5, 2**64 - 1, 2**63 - 1], np.uint64)
    assert canonical_column(column).words.tolist() == [2**63, 5, 2**64 - 1, 2**63 - 1]
    got = hashes(column, hasher)
    assert got == hashes(pa.array(column), hasher)
    # Those that int64 holds are as ever; the others are not the negative ones of the same bits.
    assert got[1::2] == hashes(np.array([5, 2**63 - 1]), hasher)
    assert len({*got, *hashes(column.view(np.int64), hasher)}) == 6
    second = hash_column(column, INTERCHANGE).second
    signed = hash_column(column.view(np.int64), INTERCHANGE).second
    assert (join_words(second) == join_words(signed)).tolist() == [False, True, False, True]


def test_the_text_of_a_large_unsigned_number_is_hashed_by_the_text_hash():
    assert hashes(np.array([2**64 - 1], np.uint64), AUTHORS) == hashes(
        np.array([str(2**64 - 1)]), AUTHORS
    )


@pytest.mark.parametrize("hasher", HASHERS)
def test_floats_have_one_zero_and_one_nan(hasher):
    other_nan = np.array([0xFFF8000000000001], np.uint64).view(np.float64)[0]
    column = np.array([0.0, -0.0, np.nan, other_nan, 0.5, -0.5])
    got = hashes(column, hasher)
    assert got[0] == got[1] and got[2] == got[3] and len(set(got)) == 4 and None not in got
    assert hashes(column.astype(np.float32), hasher) == got
    assert hashes(column.astype(np.float16), hasher) == got
    assert hashes(pa.array(column), hasher) == got
    assert hashes(pa.array(column.astype(np.float16)), hasher) == got


@pytest.mark.parametrize("hasher", HASHERS)
def test_nulls_are_no_values(hasher):
    got = hashes(pa.array([7, None, -3], pa.int8()), hasher)
    full = hashes(np.array([7, -3]), hasher)
    assert got == [full[0], None, full[1]]
    floats = hashes(pa.array([None, np.nan], pa.float32()), hasher)
    assert floats == [None, hashes(np.array([np.nan]), hasher)[0]]
    texts = hashes(pa.array([None, ""]), hasher)
    assert texts[0] is None and texts[1] is not None
    assert hashes(pa.nulls(3), hasher) == [None] * 3
    assert hashes(np.array(["NaT", "2020-01-01"], "datetime64[s]"), hasher)[0] is None
    assert hashes(np.array([None, "a"], object), hasher)[0] is None


@pytest.mark.parametrize("hasher", HASHERS)
def test_texts_are_equal_in_every_encoding(hasher):
    texts = ["", "a", "größe", "a" * 40, "汉字", "a"]
    expected = hashes(np.array(texts), hasher)
    assert len(set(expected)) == 5 and expected[1] == expected[5]
    encoded = [text.encode() for text in texts]
    columns = [
        pa.array(texts), pa.array(texts, pa.large_string()), pa.array(texts, pa.string_view()),
        pa.array(encoded), pa.array(encoded, pa.large_binary()), np.array(texts, object),
        pa.array(encoded, pa.binary_view()), pa.array(texts).dictionary_encode(),
        pa.chunked_array([texts[:2], texts[2:]]), np.array(encoded),
        pa.array(["before", *texts, "after"])[1:-1],
    ]  # fmt: skip
    for column in columns:
        assert hashes(column, hasher) == expected
    fixed = pa.array([b"abc", None, b"xyz"], pa.binary(3))
    assert hashes(fixed, hasher) == hashes(pa.array([b"abc", None, b"xyz"]), hasher)


@pytest.mark.parametrize("hasher", [FAST, INTERCHANGE])
def test_dictionaries_equal_plain_columns(hasher):
    plain = pa.array([5, None, 5, 9, 2**40])
    assert hashes(plain.dictionary_encode(), hasher) == hashes(plain, hasher)
    # A repeated entry, an unused one, a null one, and a null index.
    indices = pa.array([0, 1, 2, 3, None], pa.int8())
    encoded = pa.DictionaryArray.from_arrays(indices, pa.array([5, 9, 5, None, 11]))
    five, nine = hashes(np.array([5, 9]), hasher)
    assert hashes(encoded, hasher) == [five, nine, five, None, None]
    assert hash_column(encoded, INTERCHANGE).second is not None
    chunks = pa.chunked_array([encoded[:2], encoded[2:]])
    assert hashes(chunks, hasher) == hashes(encoded, hasher)
    nothing = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.array([], "str"))
    assert hashes(nothing, hasher) == [None, None]


def test_dates_and_times_are_their_numbers():
    days = [datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)]
    expected = hashes(np.array([-1, 19782]))
    assert hashes(pa.array(days, pa.date32())) == expected
    assert hashes(pa.array(days, pa.date64())) == expected
    assert hashes(np.array(days, "datetime64[D]")) == expected
    assert hashes(np.array(["1970-01", "1970-02"], "datetime64[M]")) == hashes(np.array([0, 31]))
    moments = np.array([0, 1_500_000], "datetime64[us]")
    assert hashes(pa.array(moments)) == hashes(moments) == hashes(np.array([0, 1_500_000]))
    spans = np.array([3, 4], "timedelta64[s]")
    assert hashes(pa.array(spans)) == hashes(spans) == hashes(np.array([3, 4]))
    assert hashes(pa.array([1, 2], pa.time32("ms"))) == hashes(np.array([1, 2]))
    assert hashes(pa.array([1, 2], pa.time64("ns"))) == hashes(np.array([1, 2]))


def test_decimals_are_their_unscaled_number_and_scale():
    values = [decimal.Decimal("1.50"), decimal.Decimal("-1.50"), None, decimal.Decimal("1.51")]
    wide = pa.array(values, pa.decimal128(38, 2))
    got = hashes(wide)
    assert got[2] is None and len(set(got)) == 4
    assert hashes(wide[1:]) == got[1:]
    for narrow in (pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(12, 2)):
        assert hashes(wide.cast(narrow)) == got
    assert hashes(wide.cast(pa.decimal128(38, 3)))[0] != got[0]
    with pytest.raises(TypeError, match="decimals of scale -200"):
        hash_column(pa.nulls(1, pa.decimal128(38, -200)))


def test_decimals_take_the_bytes_that_they_need():
    numbers = [0, 1, -1, 127, 128, -128, -129, 255, 32767, 32768, 10**38 - 1, 1 - 10**38]
    column = canonical_column(pa.array(map(decimal.Decimal, numbers), pa.decimal128(38, 0)))
    rows = [
        column.data[start:end].tobytes()
        for start, end in zip(column.offsets, column.offsets[1:], strict=False)
    ]
    for number, row in zip(numbers, rows, strict=True):
        assert row[0] == 0 and int.from_bytes(row[1:], "little", signed=True) == number
        bits = (number if number >= 0 else ~number).bit_length() + (number != 0)
        assert len(row) == 1 + -(-bits // 8)


def test_nested_values_are_refused_unless_asked_for():
    lists = pa.array([[1, 2], [1], None, [1, 2]])
    with pytest.raises(TypeError, match=r"Arrow type list<.*> has no canonical form; leave"):
        hash_column(lists)
    got = hashes(lists, serialize_nested=True)
    assert got[0] == got[3] != got[1] and got[2] is None
    structs = pa.array([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}])
    assert len(set(hashes(structs, serialize_nested=True))) == 2
    with pytest.raises(TypeError, match="decimal256"):
        hash_column(pa.array([decimal.Decimal(1)], pa.decimal256(50, 2)))


def test_serialisation_tells_values_apart_and_equal_ones_not():
    different = [
        None, 0, 1, "0", b"", [], [0], [[0]], [0, None], {}, {"a": 0}, {"a": None}, 0.5, np.nan,
        ["ab", "c"], ["a", "bc"], datetime.date(2020, 1, 1), decimal.Decimal("1.5"),
    ]  # fmt: skip
    assert len({serialize(value) for value in different}) == len(different)
    assert serialize(-0.0) == serialize(0.0) and serialize(-np.nan) == serialize(np.nan)
    assert serialize(True) == serialize(1)


def test_columns_without_rows_have_no_hashes():
    for column in (np.zeros(0), pa.array([], pa.string()), pa.chunked_array([], pa.int8())):
        hashed = hash_column(column, INTERCHANGE)
        assert hashed.lanes.hi.shape == hashed.valid.shape == hashed.second.lo.shape == (0,)


def test_what_is_no_column_is_refused():
    with pytest.raises(ValueError, match=r"column has shape \(2, 2\)"):
        hash_column(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="NumPy type complex128 has no canonical form"):
        hash_column(np.zeros(2, complex))
    with pytest.raises(TypeError, match="column is a set"):
        hash_column({1, 2})
    with pytest.raises(TypeError, match="have no common type"):
        hash_column(np.array([1, "a"], object))
