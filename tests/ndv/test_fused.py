"""Sketches in one pass over Arrow's buffers: bit for bit those of the usual way."""

import decimal
import itertools
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import column_sketch, fused, hll, table
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import FAST, INTERCHANGE, Hasher, fmix32, join_words

ROWS = 5000
RNG = np.random.default_rng(0)
NUMBERS = pa.array(RNG.integers(-900, 10**4, ROWS))
IS_NULL = pa.array(RNG.random(ROWS) < 0.2)


def with_nulls(column):
    return pc.if_else(IS_NULL.slice(0, len(column)), None, column)


def texts(lengths, kind):
    data = RNG.choice(np.frombuffer(b"abc\x00\xc3", np.uint8), int(lengths.sum())).tobytes()
    ends = np.cumsum(np.append(0, lengths))
    return pa.array([data[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)], kind)


def decimals(precision, scale):
    bits = RNG.integers(0, 3.3 * precision, 999)
    values = [decimal.Decimal(int(RNG.integers(0, 2**62)) % 2 ** min(int(b), 62)) for b in bits]
    values += [decimal.Decimal(2**b + d) for b in range(0, 120, 7) for d in (-1, 0, 1)]
    values = [-v if i % 3 else v for i, v in enumerate(values)] + [None, decimal.Decimal(0)]
    with decimal.localcontext(prec=60):
        limit = 10**precision
        fit = [v if v is None else (v % limit).scaleb(-scale) for v in values]
    return pa.array(fit, pa.decimal128(precision, scale))


def columns():
    doubles = np.where(RNG.random(ROWS) < 0.1, -0.0, RNG.normal(size=ROWS))
    doubles[::7], doubles[::11] = np.nan, -np.nan
    mixed = texts(RNG.integers(0, 40, ROWS), pa.binary())
    return {
        "int64": NUMBERS,
        "int64 with nulls": with_nulls(NUMBERS),
        "int8": pc.bit_wise_and(NUMBERS, 127).cast(pa.int8()),
        "int32 with nulls": with_nulls(NUMBERS.cast(pa.int32())),
        "uint32": pa.array(RNG.integers(0, 2**32, ROWS, np.uint32)),
        "uint64": with_nulls(pa.array(RNG.integers(0, 2**64, ROWS, np.uint64))),
        "doubles": pa.array(doubles),
        "floats with nulls": with_nulls(pa.array(doubles.astype(np.float32))),
        "dates": with_nulls(NUMBERS.cast(pa.int32()).cast(pa.date32())),
        "times": NUMBERS.cast(pa.timestamp("us")),
        "binary": mixed,
        "binary with nulls": with_nulls(mixed),
        "short strings": with_nulls(NUMBERS.cast(pa.string())),
        "large strings": with_nulls(NUMBERS).cast(pa.large_string()),
        "decimals": decimals(38, 4),
        "short decimals": decimals(9, 2),
        "negative scale": decimals(20, -3),
        "NumPy": NUMBERS.to_numpy(),
        "all null": pa.nulls(ROWS, pa.int64()),
        "no rows": NUMBERS.slice(0, 0),
        "no texts": pa.array([], pa.string()),
    }


COLUMNS = columns()


@pytest.fixture(autouse=True, scope="module")
def loops():
    pytest.importorskip("numba", reason="Numba comes with the extra `ndv`")
    fused.prepare()


@pytest.fixture
def usual_way(monkeypatch):
    """A function that gives what a call gives without the loops."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "is_ready", lambda: False)
            return function()

    return call


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("start", [0, 3])
def test_hashes_are_those_of_the_column(name, start):
    column = COLUMNS[name][start:]
    (array,) = fused.arrays_of(column, Hasher(0, 77))
    hashed = hash_column(column, Hasher(0, 77))
    expected = join_words(hashed.lanes)[hashed.valid]
    lanes, number = fused.hash_rows(array, Hasher(0, 77))
    np.testing.assert_array_equal(join_words(lanes)[:number], expected)


@pytest.mark.parametrize("name", COLUMNS)
def test_registers_of_a_distinct_count_are_the_same(name, usual_way, monkeypatch):
    monkeypatch.setattr(fused, "_PIECE_ROWS", 1000)
    start = hll.update_from_column(hll.empty(6), np.arange(20))
    found = hll.update_from_column(start, COLUMNS[name])
    expected = usual_way(lambda: hll.update_from_column(start, COLUMNS[name]))
    np.testing.assert_array_equal(found.registers, expected.registers)


@pytest.mark.parametrize("budget_bytes", [256, 4096, 2**16, 2**20])
def test_messages_are_the_same(budget_bytes, usual_way, monkeypatch):
    """Some columns fit a dictionary, others do not, or only for a while, or have heavy values."""
    monkeypatch.setattr(fused, "_PIECE_ROWS", 700)
    heavy = np.where(RNG.random(ROWS) < 0.6, RNG.integers(0, 3, ROWS), RNG.permutation(ROWS))
    arrays = {name: column for name, column in COLUMNS.items() if len(column) == ROWS}
    arrays["heavy"] = pa.array(heavy)
    arrays["heavy texts"] = arrays["heavy"].cast(pa.string())
    arrays["grows"] = pa.array(np.minimum(np.arange(ROWS) % 97, np.arange(ROWS) // 2))
    arrays["dictionary"] = arrays["heavy texts"].dictionary_encode()
    whole = pa.table(arrays)

    def message():
        batches = whole.to_batches(max_chunksize=2100)
        found = table.sketch(batches, budget_bytes=budget_bytes, block_rows=1024)
        return table.table_to_bytes(found)

    found = message()
    assert found == usual_way(message)
    one_piece = table.sketch([whole], budget_bytes=budget_bytes, block_rows=1024)
    assert table.table_to_bytes(one_piece) == found


TYPES = st.sampled_from(
    [pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.date32(),
     pa.large_binary(), pa.timestamp("ns"), pa.decimal128(14, 3)]
)  # fmt: skip


@st.composite
def chunked_columns(draw):
    """A column of few or many values, with nulls, in chunks that are slices of arrays."""
    kind, bits = draw(TYPES), draw(st.integers(0, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chunks = []
    for size in draw(st.lists(st.integers(0, 900), max_size=4)):
        values = pa.array(rng.integers(0, 2**bits, size), mask=rng.random(size) < 0.1)
        if pa.types.is_decimal(kind) or pa.types.is_date(kind):
            values = values.cast(pa.int32())
        elif pa.types.is_large_binary(kind):
            values = values.cast(pa.string())
        start = draw(st.integers(0, size))
        chunks.append(values.cast(kind).slice(start, draw(st.integers(0, size))))
    return pa.chunked_array(chunks, kind)


@settings(max_examples=25, deadline=None)
@given(column=chunked_columns(), budget=st.sampled_from([256, 2048]), rows=st.integers(1, 400))
def test_any_column_gives_the_same_message(column, budget, rows):
    def message():
        given = [pa.table({"x": column})]
        found = table.sketch(given, columns=["x"], budget_bytes=budget, block_rows=rows)
        return table.table_to_bytes(found)

    found = message()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "is_ready", lambda: False)
        assert message() == found


def word_of(hash_word):
    """The number that has a hash: the rounds backwards."""
    left, right = np.uint32(hash_word >> 32), np.uint32(hash_word & 0xFFFFFFFF)
    for step in (4, 3, 2, 1):
        key = np.array([(step * 0x9E3779B9) % 2**32], np.uint32)
        left, right = (right ^ fmix32(left + key))[0], left
    return int(left) | int(right) << 32


def test_ranks_reach_the_end_of_the_hash(usual_way):
    hashes = [(5 << 58) | (1 << k) >> 1 for k in range(59)] + [2**64 - 1, 0]
    words = np.array([word_of(h) for h in hashes], np.uint64).view(np.int64)
    np.testing.assert_array_equal(join_words(hash_column(words).lanes), np.array(hashes, np.uint64))
    for k in range(len(words)):
        found = hll.update_from_column(hll.empty(6), words[k:])
        expected = usual_way(lambda k=k: hll.update_from_column(hll.empty(6), words[k:]))
        np.testing.assert_array_equal(found.registers, expected.registers)


def test_a_block_sample_is_collapsed_to_the_same_values(usual_way):
    def message():
        batches = pa.table({"x": COLUMNS["binary with nulls"]}).to_batches(max_chunksize=999)
        return table.table_to_bytes(table.sketch(batches, collapse=True, rate=0.5))

    assert message() == usual_way(message)


@pytest.mark.parametrize("first", [1, 30])
def test_a_column_that_began_on_an_accelerator_goes_on_in_the_loops(first, usual_way, monkeypatch):
    """Some batches before the loops are ready, by a device; the others by the loops."""
    rows = pa.table({"x": COLUMNS["int64 with nulls"]})
    batches = rows.to_batches(max_chunksize=100)

    def message(between=lambda: None):
        told = itertools.count(1)
        return table.table_to_bytes(
            table.sketch(batches, budget_bytes=700, block_rows=256,
                         on_batch=lambda _: between() if next(told) == first else None)
        )  # fmt: skip

    expected = usual_way(message)
    monkeypatch.setattr(column_sketch, "_has_accelerator", lambda: True)
    is_ready = [False]
    monkeypatch.setattr(fused, "is_ready", lambda: is_ready[0])
    assert message(lambda: is_ready.__setitem__(0, True)) == expected


def test_other_types_and_hashes_go_the_usual_way():
    assert fused.arrays_of(NUMBERS, INTERCHANGE) is None
    for column in (pa.array([True]), pa.array([[1]]), np.array(["a"]), np.zeros((2, 2)), [1],
                   NUMBERS.dictionary_encode(), pa.array([0]).cast(pa.date64())):  # fmt: skip
        assert fused.arrays_of(column, FAST) is None


def test_a_process_goes_over_when_the_usual_way_took_as_long(monkeypatch, tmp_path):
    loads = []

    def load():
        loads.append(1)

    load.cache_info = lambda: type("Info", (), {"currsize": len(loads)})
    monkeypatch.setattr(fused, "_load", load)
    monkeypatch.setattr(fused, "_marker", lambda: tmp_path / "compiled")
    for taken, is_compiled, expected in [
        (0.5, True, False), (2, False, False), (2, True, True), (20, False, True)
    ]:  # fmt: skip
        loads.clear()
        monkeypatch.setattr(fused, "_taken_s", float(taken))
        (tmp_path / "compiled").touch()
        if not is_compiled:
            (tmp_path / "compiled").unlink()
        assert fused.is_ready() is expected and len(loads) == expected
    monkeypatch.setattr(fused, "_has_numba", lambda: False)
    loads.clear()
    assert not fused.is_ready()
    with pytest.raises(ModuleNotFoundError, match="install the extra"):
        fused.prepare()


def test_time_of_the_usual_way_is_counted(monkeypatch):
    monkeypatch.setattr(fused, "_taken_s", 0.0)
    with fused.metered():
        sum(range(1000))
    assert 0 < fused._taken_s < 10


def test_numba_is_needed_by_the_loops_alone():
    """The other modules may be imported without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", None)
        patch.delitem(sys.modules, "jaxlab.ndv.arrow_kernels", raising=False)
        with pytest.raises(ImportError):
            import jaxlab.ndv.arrow_kernels  # noqa: F401
        import jaxlab.ndv.fused  # noqa: F401
