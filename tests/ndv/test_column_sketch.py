"""Columns on an accelerator: the same bits as on the host, whatever their type, nulls and batches.

The CPU stands in for the accelerator: the same compiled update, of blocks that were padded and
handed over. What the host does is held to a sort of all rows in `test_table.py`.
"""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jaxlab.ndv import column_sketch, fused, table
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import FAST, INTERCHANGE

ROWS = 3000
# Up to 77 values; blocks that do not divide the rows.
SMALL = {"budget_bytes": 700, "block_rows": 256}
RNG = np.random.default_rng(0)
NUMBERS = RNG.integers(-900, 900, ROWS)
IS_NULL = pa.array(RNG.random(ROWS) < 0.3)


def with_nulls(values):
    return pc.if_else(IS_NULL, None, values)


COLUMNS = {
    "integers": pa.array(NUMBERS),
    "integers with nulls": with_nulls(pa.array(NUMBERS)),
    "unsigned": pa.array(RNG.integers(0, 2**64, ROWS, np.uint64)),
    "doubles": with_nulls(pa.array(np.where(NUMBERS % 7 == 0, np.nan, NUMBERS / 8))),
    "dates": with_nulls(pa.array(NUMBERS.astype(np.int32)).cast(pa.date32())),
    "decimals": pa.array([decimal.Decimal(int(number)) / 4 for number in NUMBERS]),
    "texts": pa.array([f"a long text, number {number}" for number in NUMBERS]),
    "dictionary": with_nulls(pa.array(NUMBERS).cast(pa.string())).dictionary_encode(),
    "heavy": pa.array(np.where(RNG.random(ROWS) < 0.6, NUMBERS % 3, NUMBERS)),
    "ascending": pa.array(np.arange(ROWS) // 2),
    "few": pa.array(NUMBERS % 50),
    "only nulls": pa.nulls(ROWS, pa.int64()),
}  # fmt: skip


@pytest.fixture
def on_device(monkeypatch):
    """Sketches as on an accelerator, without the loops; tells how many blocks were handed over."""
    blocks = []
    add = column_sketch._add_on_device

    def counted(state, block, settings):
        blocks.append(block.rows)
        return add(state, block, settings)

    def sketches(call):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "is_ready", lambda: False)
            expected = call()
            patch.setattr(column_sketch, "_has_accelerator", lambda: True)
            patch.setattr(column_sketch, "_add_on_device", counted)
            return expected, call(), len(blocks)

    return sketches


def message(column, size, **options):
    batches = pa.table({"x": column}).to_batches(max_chunksize=size)
    return table.table_to_bytes(table.sketch(batches, **{**SMALL, **options}))


@pytest.mark.parametrize("size", [ROWS, 700, 97])
@pytest.mark.parametrize("name", COLUMNS)
def test_an_accelerator_sends_the_bytes_of_the_host(name, size, on_device):
    expected, found, handed = on_device(lambda: message(COLUMNS[name], size))
    assert found == expected
    # From the first block on, that has too many values, all others go there.
    if name in ("few", "only nulls"):
        assert handed == 0
    else:
        assert handed >= (1 if size == ROWS else 3)


@pytest.mark.parametrize(
    "options",
    [
        {"hasher": INTERCHANGE}, {"rate": 0.6, "seed": 3}, {"collapse": True, "rate": 0.5},
        {"mixed_rates": True, "rate": 0.5, "is_sampled": True}, {"block_rows": 1000},
    ],
    ids=["other hash", "sample", "blocks", "mixed rates", "long blocks"],
)  # fmt: skip
def test_an_accelerator_sends_the_bytes_of_the_host_for_all_settings(options, on_device):
    expected, found, handed = on_device(
        lambda: message(COLUMNS["integers with nulls"], 700, **options)
    )
    assert found == expected and handed > 0


def test_a_column_on_an_accelerator_is_the_same_for_any_cut_into_calls(on_device):
    settings = column_sketch.settings_for_budget(**SMALL)

    def record(cuts):
        state = column_sketch.empty_column()
        for part in np.split(NUMBERS, cuts):
            state = column_sketch.add_column(state, part, settings)
        return column_sketch.finish_column(state, settings)

    whole, others, handed = on_device(lambda: [record(cuts) for cuts in ([], [1], [255, 256, 257])])
    assert handed > 3
    for found in [*whole, *others]:
        for field in ("hi", "lo", "count"):
            np.testing.assert_array_equal(
                getattr(found.sketch, field), getattr(whole[0].sketch, field)
            )
        np.testing.assert_array_equal(found.heavy_counts, whole[0].heavy_counts)
        assert found.num_rows == ROWS


def test_the_counts_of_a_device_are_those_of_the_rows(on_device):
    """A slow second form: the smallest hashes of all rows, with their rows."""
    settings = column_sketch.settings_for_budget(**SMALL)

    def record():
        state = column_sketch.add_column(column_sketch.empty_column(), NUMBERS, settings)
        return column_sketch.finish_column(state, settings)

    _, found, handed = on_device(record)
    lanes = hash_column(NUMBERS, FAST).lanes
    words = lanes.hi.astype(np.uint64) << np.uint64(32) | lanes.lo
    distinct, counts = np.unique(words, return_counts=True)
    kept = int((found.sketch.count > 0).sum()) - 1  # the last is the threshold
    assert handed > 0 and kept > 60
    held = found.sketch.hi.astype(np.uint64) << np.uint64(32) | found.sketch.lo
    np.testing.assert_array_equal(held[: kept + 1], distinct[: kept + 1])
    np.testing.assert_array_equal(found.sketch.count[:kept], counts[:kept])
