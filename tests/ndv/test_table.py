"""Table sketches: dictionaries, cuts, merges, messages, lost partitions, estimates, bad input."""

import itertools

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import bottom_k, column_records, column_sketch, table
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import join_words
from jaxlab.ndv.table import (
    estimate_table,
    merge,
    merge_all,
    sketch,
    table_from_bytes,
    table_to_bytes,
)

# Up to 77 values, blocks of 128 rows.
SMALL = {"budget_bytes": 700, "block_rows": 128}
SMALL_SETTINGS = column_sketch.settings_for_budget(**SMALL)


def batches_of(columns, size=100):
    return pa.table(columns).to_batches(max_chunksize=size)


def assert_equal(a, b):
    assert a.columns.keys() == b.columns.keys()
    for name, left in a.columns.items():
        right = b.columns[name]
        assert left[1:] == right[1:]
        assert type(left.record.sketch) is type(right.record.sketch)
        for x, y in zip(
            jax.tree.leaves(left.record.sketch), jax.tree.leaves(right.record.sketch), strict=True
        ):
            np.testing.assert_array_equal(x, y)
        for field in ("num_rows", "num_nulls", "rate"):
            assert getattr(left.record, field) == getattr(right.record, field)
        for field in ("partitions", "heavy_hashes", "heavy_counts", "weights"):
            np.testing.assert_array_equal(
                getattr(left.record, field), getattr(right.record, field), err_msg=field
            )
    assert (a.num_rows, a.num_read, a.is_block_sample) == (
        b.num_rows,
        b.num_read,
        b.is_block_sample,
    )


def test_the_budget_decides_the_sizes():
    assert SMALL_SETTINGS.capacity == 77
    for budget in (256, 700, 5000, 2**16, 2**20):
        chosen = column_sketch.settings_for_budget(budget)
        assert chosen.max_bytes + 16 * chosen.num_heavy + 80 == budget
        assert 7 * chosen.capacity <= chosen.max_bytes < 7 * (chosen.capacity + 1)


@pytest.mark.parametrize("repeats", [1, 1000])
@pytest.mark.parametrize("budget", [256, 4096])
def test_a_message_fits_its_budget_whatever_the_counts(budget, repeats):
    """Counts of two bytes leave room for fewer values; the rest stays a bottom-k."""
    capacity = column_sketch.settings_for_budget(budget).capacity
    for number in (capacity // 2, capacity, 3 * capacity):
        values = np.repeat([f"a long text, number {i}" for i in range(number)], repeats)
        column = sketch([pa.table({"x": values})], budget_bytes=budget).columns["x"]
        assert column.sent_bytes <= budget
        held = bottom_k.held(column.record.sketch)
        words = np.sort(join_words(hash_column(np.unique(values)).lanes))
        np.testing.assert_array_equal(held.words, words[: len(held.words)])
        assert (held.counts == repeats).all() and len(held.words) > capacity // 3
        if len(held.words) < number:
            assert held.limit == words[len(held.words)]
            assert column_records.read_profile(column.record, number).num_retained is not None


BUDGETS = [256, 300, 384, 511, 512, 700, 1000, 1151, 1155, 1500, 2048, 3000, 4096, 5500, 8192,
           12_000, 16_384, 32_768, 65_536]  # fmt: skip
BUDGETED = {
    "few": lambda rng, rows: rng.integers(0, 20, rows),
    "integers": lambda rng, rows: rng.integers(0, 700, rows),
    "wide": lambda rng, rows: rng.integers(0, 2**60, rows),
    "skewed": lambda rng, rows: rng.zipf(1.3, rows),
    "heavy": lambda rng, rows: np.where(rng.random(rows) < 0.9, 3, rng.integers(0, 3000, rows)),
    "cents": lambda rng, rows: rng.integers(0, 900, rows) / 100,
    "texts": lambda rng, rows: [f"a long text, number {i}" for i in rng.integers(0, 600, rows)],
    "words": lambda rng, rows: [str(i) for i in rng.integers(0, 900, rows)],
    "even": lambda rng, rows: np.repeat(np.arange(rows // 50), 50),
}


@pytest.mark.parametrize("name", BUDGETED)
def test_a_larger_budget_sends_no_less_unless_it_makes_the_column_exact(name):
    """Sketches may be up to 17 bytes smaller where a budget sets 16 aside for a heavy value."""
    rows = pa.table({"x": BUDGETED[name](np.random.default_rng(0), 6000)})
    sent: dict[bool, list[int]] = {True: [], False: []}
    for budget in BUDGETS:
        column = sketch([rows], budget_bytes=budget, block_rows=2048).columns["x"]
        is_exact = column_records.is_dictionary(column.record)
        assert column.sent_bytes <= budget
        # Once exact, exact at all larger budgets, with a number of heavy values in the message.
        assert is_exact or not sent[True]
        assert column.sent_bytes >= max(sent[is_exact], default=0) - (2 if is_exact else 17)
        sent[is_exact].append(column.sent_bytes)
    assert sent[True]


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(0)
    skewed = np.where(rng.random(1500) < 0.4, 7, rng.integers(0, 900, 1500))
    few = np.array(["red", "green", "blue", None], object)[rng.integers(0, 4, 1500)]
    return {"skewed": skewed, "few": few.tolist(), "key": np.arange(1500), "void": [None] * 1500}


def test_a_full_scan_is_exact_for_small_columns_and_near_for_others(columns):
    found = sketch(batches_of(columns), **SMALL)
    whole = [n for n, c in found.columns.items() if column_records.is_dictionary(c.record)]
    assert whole == ["few", "void"]
    answers = {answer.column: answer for answer in estimate_table(found)}
    few = answers["few"]
    assert (few.result.estimate, few.result.method) == (3, "EXACT")
    assert few.null_fraction == columns["few"].count(None) / 1500 and few.num_rows == 1500
    assert (answers["void"].result.estimate, answers["void"].result.status) == (0, "empty")
    skewed = answers["skewed"].result
    truth = len(np.unique(columns["skewed"]))
    assert skewed.method == "SKETCH" and skewed.low < truth < skewed.high
    assert answers["key"].result.estimate == pytest.approx(1500, rel=0.4)
    for name, answer in answers.items():
        assert answer.bytes_exchanged <= 700, name
    unique = estimate_table(found, unique_columns=["key"])[2].result
    assert (unique.estimate, unique.method) == (1500, "UNIQUE_KEY")


def test_heavy_values_are_counted_exactly(columns):
    record = sketch(batches_of(columns), **SMALL).columns["skewed"].record
    sevens = int((columns["skewed"] == 7).sum())
    assert record.heavy_counts.tolist() == [sevens]
    read = column_records.read_profile(record, 1500)
    # With the heavy value apart the rows are near; without, one of 77 values stands for it.
    assert float(read.profile.n) == pytest.approx(1500, rel=0.2)
    assert float(read.profile.n_tail) >= sevens


@given(cuts=st.lists(st.integers(1, 700), max_size=6), rate=st.sampled_from([1, 0.4]))
@settings(max_examples=12, deadline=None)
def test_the_cut_into_batches_does_not_matter(columns, cuts, rate):
    whole = pa.table({name: columns[name] for name in ("skewed", "few")})
    edges = [0, *sorted({min(cut, 1500) for cut in np.cumsum(cuts).tolist()} | {1500})]
    parts = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    options = {**SMALL, "rate": rate, "partition": 3, "seed": 5}
    assert_equal(sketch(parts, **options), sketch([whole], **options))


ROWS = st.lists(st.sampled_from([*range(300), *[5] * 100]), max_size=400)


@given(
    parts=st.lists(ROWS, min_size=3, max_size=3),
    mixed=st.booleans(),
    most=st.sampled_from([20, 100, 2**20]),
)
@settings(max_examples=40, deadline=None)
def test_merging_is_associative_and_commutative(parts, mixed, most):
    a, b, c = (
        sketch(
            [pa.table({"x": pa.array(rows, pa.int64())})], partition=index, mixed_rates=mixed,
            is_sampled=True, rate=(0.5, 0.25, 1.0)[index] if mixed else 0.5, **SMALL,
        )
        for index, rows in enumerate(parts)
    )  # fmt: skip

    def both(x, y):
        return merge(x, y, max_values=most)

    left, right = both(both(a, b), c), both(a, both(b, c))
    # The joint rate of mixed ones is a quotient of floats; everything else is the same bits.
    rates = [t.columns["x"].record.rate for t in (left, right)]
    assert rates[0] == pytest.approx(rates[1])
    if not mixed:
        assert_equal(left, right)
        assert_equal(left, merge_all([c, a, b], max_values=most))
    assert_equal(both(a, b), both(b, a))
    # Exactly the rows of all values below the smallest threshold of a message, at most so many.
    held = bottom_k.held(left.columns["x"].record.sketch)
    limits = [bottom_k.held(part.columns["x"].record.sketch).limit for part in (a, b, c)]
    values, counts = np.unique(np.array(sum(parts, []), np.int64), return_counts=True)
    words = join_words(hash_column(values).lanes)
    least = min([limit for limit in limits if limit is not None], default=2**64 - 1)
    below = words < np.uint64(least)
    order = np.argsort(words[below])
    np.testing.assert_array_equal(held.words, words[below][order][:most])
    np.testing.assert_array_equal(held.counts, counts[below][order][:most])
    assert column_records.is_dictionary(left.columns["x"].record) == (
        limits == [None] * 3 and len(values) <= most
    )


def test_the_union_of_many_partitions_holds_all_of_their_values():
    """Partitions of different values: 20 times the values of a message, and their precision."""
    parts = [sketch([pa.table({"x": np.arange(i, 40_000, 20)})], partition=i, **SMALL)
             for i in range(20)]  # fmt: skip
    record = merge_all(parts).columns["x"].record
    retained = column_records.read_profile(record, 40_000).num_retained
    least = min(bottom_k.held(part.columns["x"].record.sketch).limit for part in parts)
    words = join_words(hash_column(np.arange(40_000)).lanes)
    assert retained == (words < np.uint64(least)).sum() > 10 * 77
    few = merge_all(parts, max_values=77).columns["x"].record
    assert column_records.read_profile(few, 40_000).num_retained == 77


def test_messages_round_trip_and_refuse_every_damage(columns):
    found = sketch(batches_of(columns), partition=2**40, rate=0.5, **SMALL)
    data = table_to_bytes(found)
    assert_equal(table_from_bytes(data), found)
    assert sum(column.sent_bytes for column in found.columns.values()) < len(data)
    for length in range(0, len(data), 97):
        with pytest.raises(ValueError):
            table_from_bytes(data[:length])
    for place in range(0, len(data), 61):
        changed = bytearray(data)
        changed[place] ^= 0x40
        with pytest.raises(ValueError):
            table_from_bytes(bytes(changed))
    with pytest.raises(ValueError, match="1 bytes too many|checksum"):
        table_from_bytes(data + b"x")


def parted(num=3, **options):
    rng = np.random.default_rng(1)
    for index in range(num):
        rows = {"x": rng.integers(0, 20, 50)}
        yield sketch(batches_of(rows), partition=index, **{**SMALL, **options})


def test_repeated_lost_and_undeclared_partitions_are_named():
    a, b, c = parted()
    with pytest.raises(ValueError, match=r"column 'x': cannot merge: partitions \[1\]"):
        merge_all([a, b, b])
    both = merge(a, c)
    with pytest.raises(ValueError, match=r"partitions \[1\] are missing from column 'x' \(1 of 3"):
        estimate_table(both, partitions=range(3))
    with pytest.raises(ValueError, match="were not declared"):
        estimate_table(both, partitions=[0])
    whole = merge(both, b)
    assert estimate_table(whole, partitions=range(3))[0].num_rows == 150
    sent = sum(part.columns["x"].sent_bytes for part in (a, b, c))
    assert whole.columns["x"].sent_bytes == sent


def test_a_sample_estimates_the_whole_column():
    rng = np.random.default_rng(4)
    parts = [{"x": rng.integers(0, 5000, 40_000)} for _ in range(2)]
    found = merge_all(
        sketch(batches_of(part, 9000), rate=0.05, partition=i, block_rows=1024)
        for i, part in enumerate(parts)
    )
    assert found.num_rows == 80_000 and found.num_read == pytest.approx(4000, abs=300)
    (answer,) = estimate_table(found)
    assert answer.result.method == "FUSED" and answer.result.status == "ok"
    assert answer.result.estimate == pytest.approx(5000, rel=0.08)
    assert answer.result.low < 5000 < answer.result.high
    again = sketch(batches_of(parts[0]), rate=0.05, is_sampled=True)
    assert again.num_rows == 800_000 and again.columns["x"].population == 800_000


def test_blocks_are_collapsed():
    batches = [pa.table({"x": np.repeat(np.arange(b * 25, b * 25 + 25), 4)}) for b in range(10)]
    found = sketch(batches, rate=0.1, collapse=True)
    assert found.num_rows == 10_000 and found.columns["x"].population == 2500
    (answer,) = estimate_table(found)
    assert answer.result.status == "block" and answer.result.method == "COLLAPSE+DUJ1"
    assert answer.result.estimate == pytest.approx(2500)
    assert (answer.result.low, answer.result.high) == (250, 250 + 10_000 - 1000)


@pytest.mark.parametrize("same", [True, False])
def test_clustered_blocks_of_one_value_each_leave_the_truth_inside(same):
    """A column that is constant in 20 of its blocks of 100 rows, and a key in the other 1,980."""
    truth = 198_000 + (1 if same else 20)
    batches = [pa.table({"x": [0 if same else b] * 99 + [None]}) for b in range(20)]
    found = sketch(batches, rate=0.01, collapse=True)
    (answer,) = estimate_table(found)
    assert (answer.result.method, answer.result.status) == ("COLLAPSE+DUJ1", "block")
    # 200,000 rows, of which 2,000 were read.
    assert (answer.result.low, answer.result.high) == (truth - 198_000, truth)
    half = estimate_table(merge(found, sketch([], columns=["x"], rate=0.01, collapse=True)))
    assert half[0].result == answer.result


def test_a_column_that_is_not_unique_is_named_and_estimated(caplog):
    found = sketch([pa.table({"id": [*range(90), *[7] * 10], "key": np.arange(100)})])
    first, second = estimate_table(found, unique_columns=["id", "key"])
    assert (first.result.estimate, first.result.method) == (90, "EXACT")
    assert (second.result.estimate, second.result.method) == (100, "UNIQUE_KEY")
    assert [record.getMessage() for record in caplog.records] == [
        "column 'id' was declared unique, but 10 of 100 sampled rows repeat a value; remove it "
        "from unique_columns"
    ]


def test_a_unique_column_of_a_block_sample_has_the_rows_of_the_table(caplog):
    batches = [pa.table({"x": np.arange(b * 50, b * 50 + 50)}) for b in range(10)]
    found = sketch(batches, rate=0.1, collapse=True)
    (answer,) = estimate_table(found, unique_columns=["x"])
    assert (answer.result.estimate, answer.result.method) == (5000, "UNIQUE_KEY")
    assert not caplog.records


def test_partitions_of_different_rates_are_estimated_by_gee_mixed():
    full = sketch([pa.table({"x": np.arange(20)})], partition=0, mixed_rates=True)
    quarter = sketch(
        [pa.table({"x": [19, 20, 21, 22, 22]})],
        partition=1, rate=0.25, is_sampled=True, mixed_rates=True,
    )  # fmt: skip
    (answer,) = estimate_table(merge(full, quarter))
    # 20 of the full scan, of the others 20 and 21 stand for two values each, 22 for itself.
    assert (answer.result.estimate, answer.result.method) == (25, "GEE_MIXED")
    assert (answer.result.low, answer.result.high) == (23, 29)


def test_a_sketch_of_mixed_rates_holds_what_the_whole_profile_says():
    """Of 400 values a sketch keeps 77: as wide as that leaves it, around the exact interval."""
    parts = [{"x": np.arange(100)}, {"x": [*range(100, 400), *[100] * 1000]}]
    tables = [
        [sketch([pa.table(rows)], partition=i, rate=rate, is_sampled=True, mixed_rates=True, **how)
         for i, (rows, rate) in enumerate(zip(parts, (1, 0.25), strict=True))]
        for how in ({}, SMALL)
    ]  # fmt: skip
    exact, found = (estimate_table(merge(*pair))[0].result for pair in tables)
    assert (exact.low, exact.estimate, exact.high, exact.method) == (400, 699, 1297, "GEE_MIXED")
    assert found.method == "GEE_MIXED" and found.status == "ok"
    assert found.low < 330 and found.high > 1500
    narrow = estimate_table(merge(*tables[1]), level=0.5)[0].result
    assert found.low < narrow.low and narrow.high < found.high


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sketch([], rate=1.5), ValueError, "rate=1.5 is not in"),
        (lambda: sketch([]), ValueError, "batches is empty and columns is None"),
        (lambda: sketch([], columns=["x"], budget_bytes=100), ValueError, "budget_bytes=100"),
        (
            lambda: sketch([pa.table({"x": [1]})], columns=["y"]),
            ValueError,
            r"columns \['y'\] do not exist; the table has x",
        ),
        (lambda: sketch([pa.table({"x": [[1]]})]), TypeError, "column 'x': Arrow type list"),
        (lambda: merge_all([]), ValueError, "tables is empty"),
        (
            lambda: merge(sketch([pa.table({"x": [1]})]), sketch([pa.table({"y": [1]})])),
            ValueError,
            r"columns \['x', 'y'\] are in one",
        ),
        (
            lambda: merge(
                sketch([pa.table({"x": [1]})], rate=0.5), sketch([pa.table({"x": [1]})], rate=0.25)
            ),
            ValueError,
            "cannot merge: sampling rates 0.5 and 0.25",
        ),
        (
            lambda: merge(*[sketch([pa.table({"x": [1]})])] * 2, max_values=1),
            ValueError,
            "column 'x': capacity=1 is not from 2 to",
        ),
        (
            lambda: merge(
                sketch([pa.table({"x": [1]})]), sketch([pa.table({"x": [1]})], collapse=True)
            ),
            ValueError,
            "one table sketch is of blocks",
        ),
        (
            lambda: estimate_table(sketch([pa.table({"x": [1]})]), unique_columns=["y"]),
            ValueError,
            r"unique_columns has \['y'\]; there are x",
        ),
        (lambda: table.table_from_bytes(b"JXND" + bytes(40)), ValueError, "bytes start with"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nested_columns_are_hashed_when_asked():
    nested = pa.table({"x": [[1, 2], [1, 2], [3]]})
    assert estimate_table(sketch([nested], serialize_nested=True))[0].result.estimate == 2


def test_a_sample_without_rows_leaves_the_column_open():
    found = sketch([pa.table({"x": [1, 2, None]})], rate=1e-9)
    assert (found.num_rows, found.num_read) == (3, 0)
    result = estimate_table(found)[0].result
    assert (result.low, result.estimate, result.high, result.status) == (0, 0, 2, "empty")
    assert result.reason.startswith("none of up to 2 rows with a value was read")


def test_a_table_without_batches_has_empty_columns():
    (answer,) = estimate_table(sketch([], columns=["x"]))
    assert (answer.result.estimate, answer.result.status, answer.null_fraction) == (0, "empty", 0)


def test_progress_is_told_by_the_batch():
    told = []
    sketch(batches_of({"x": np.arange(250)}), on_batch=told.append)
    assert told == [100, 100, 50]


@pytest.mark.parametrize("kind", ["few", "growing", "unique", "skewed"])
def test_large_columns_equal_a_sort_of_all_rows(kind):
    rng = np.random.default_rng(5)
    rows = 150_000
    values = {
        "few": rng.integers(0, 50, rows),
        "growing": rng.integers(0, 10**9, rows) % np.linspace(10, 400, rows).astype(int),
        "unique": rng.permutation(rows),
        "skewed": rng.zipf(1.3, rows),
    }[kind]
    options = {"budget_bytes": 4096, "block_rows": 2**14}
    chosen = column_sketch.settings_for_budget(**options)
    found = sketch(batches_of({"x": values}, 70_000), **options).columns["x"].record
    words = join_words(hash_column(values).lanes)
    # The first whole number of blocks after which the dictionary is too large.
    ends = range(2**14, rows + 2**14, 2**14)
    too_large = [end for end in ends if len(np.unique(words[:end])) > chosen.capacity]
    distinct, counts = np.unique(words, return_counts=True)
    kept = len(distinct) if not too_large else min(len(distinct), chosen.capacity)
    held = bottom_k.held(found.sketch)
    kept = min(kept, len(held.words)) if len(held.words) > 0.8 * kept else kept
    np.testing.assert_array_equal(held.words, distinct[:kept])
    np.testing.assert_array_equal(held.counts, counts[:kept])
    assert held.limit == (int(distinct[kept]) if kept < len(distinct) else None)
    if not too_large:
        return
    early, early_counts = np.unique(words[: too_large[0]], return_counts=True)
    share = early_counts * 4 * chosen.num_heavy >= early_counts.sum()
    heavy = early[share & (early_counts >= 16)]
    assert set(found.heavy_hashes.tolist()) <= set(heavy.tolist())
    np.testing.assert_array_equal(
        found.heavy_counts, counts[np.searchsorted(distinct, found.heavy_hashes)]
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (pa.array([1, 2]), pa.array([1.0, 2.0]), "'a' holds integers in batch 0 and floats in"),
        (pa.array([1, 2]), pa.array(["1"]), "integers in batch 0 and texts in batch 1"),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), "timestamps in us"),
        (pa.array([1], pa.decimal128(9, 2)), pa.array([1], pa.decimal128(9, 3)), "scale 2"),
        (pa.array([1], pa.date32()), pa.array([1], pa.timestamp("s")), "dates in batch 0"),
    ],
)
def test_columns_of_two_kinds_of_values_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        sketch([pa.table({"a": first}), pa.table({"a": second})])


def test_types_of_one_kind_of_values_mix():
    texts = [pa.array(["x", "y"]), pa.array(["y"], pa.large_string()), pa.array(["z"])]
    parts = [*texts, pa.nulls(2), pa.array(["x", "w"]).dictionary_encode()]
    found = estimate_table(sketch([pa.table({"a": part}) for part in parts]))[0]
    assert found.result.estimate == 4
    numbers = [pa.array([1, 2], kind) for kind in (pa.int8(), pa.int64(), pa.uint32())]
    assert estimate_table(sketch([pa.table({"a": n}) for n in numbers]))[0].result.estimate == 2
