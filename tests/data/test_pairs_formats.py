import base64
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.data import pairs
from jaxlab.data.pairs import (
    Features,
    ImageRecord,
    LmdbImages,
    LmdbPairs,
    Pair,
    TextRecord,
    TsvImages,
    flatten_pairs,
    texts_of_images,
)
from jaxlab.data.pairs.lmdb import unpickle_pair
from jaxlab.data.pairs.tsv import decode_base64

ids = st.integers(-(2**63), 2**63 - 1)
images = st.lists(
    st.builds(ImageRecord, ids, st.binary(min_size=1, max_size=40)),
    min_size=1,
    max_size=6,
    unique_by=lambda record: record.image_id,
)
# Every character that UTF-8 can hold, line separators included.
texts = st.lists(
    st.builds(
        TextRecord,
        ids,
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.lists(ids, max_size=4, unique=True).map(tuple),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda record: record.text_id,
)
TEXTS = (
    TextRecord(10, "一只猫", (2**40, 3)),
    TextRecord(11, "小猫", (3,)),
    TextRecord(12, "没有图", ()),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@settings(max_examples=40, deadline=None)
@given(records=images)
def test_tsv_round_trip(folder, records):
    path = folder / "a_imgs.tsv"
    assert pairs.write_images_tsv(path, records) == len(records)
    read = TsvImages(path)
    assert list(read) == records
    assert read.image_ids.dtype == np.int64 and len(read) == len(records)
    for image_id, image in reversed(records):  # any order
        assert read.read(image_id) == image


@settings(max_examples=40, deadline=None)
@given(records=texts)
def test_jsonl_round_trip(folder, records):
    path = folder / "a_texts.jsonl"
    assert pairs.write_texts(path, records) == len(records)
    assert pairs.read_texts(path) == (tuple(records), 0)


@settings(max_examples=15, deadline=None)
@given(records=images, text_records=texts)
def test_lmdb_round_trip(tmp_path_factory, records, text_records):
    split = tmp_path_factory.mktemp("lmdb")
    expected = flatten_pairs(text_records)
    assert pairs.write_lmdb(split, records, text_records) == (len(records), len(expected))
    read = LmdbImages(split / "imgs")
    assert sorted(read) == sorted(records)
    if not expected:
        with pytest.raises(ValueError, match="the split is empty"):
            LmdbPairs(split / "pairs")
        return
    read_pairs = LmdbPairs(split / "pairs")
    assert [read_pairs[i] for i in range(len(read_pairs))] == expected


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=60))
def test_both_alphabets_of_base64_decode(content):
    assert decode_base64(base64.b64encode(content)) == content
    assert decode_base64(base64.urlsafe_b64encode(content)) == content


def test_files_of_the_original_are_read(tmp_path):
    """Bytes as the original's own scripts write them, not by our writers."""
    image = bytes(range(250, 256)) * 3  # its base64 has both special characters
    path = tmp_path / "train_imgs.tsv"
    path.write_text(
        f"1000002\t{base64.urlsafe_b64encode(image).decode()}\r\n"
        f"1000016\t{base64.b64encode(image).decode()}\n"
    )
    assert list(TsvImages(path)) == [(1000002, image), (1000016, image)]
    path = tmp_path / "train_texts.jsonl"
    path.write_text(
        '{"text_id": 8428, "text": "\\u9ad8\\u7ea7", "image_ids": [1076345, 517602]}\n', "utf-8"
    )
    assert pairs.read_texts(path).records == (TextRecord(8428, "高级", (1076345, 517602)),)


def test_lmdb_has_the_keys_and_values_of_the_original(tmp_path):
    import lmdb

    pairs.write_lmdb(tmp_path, [ImageRecord(3, b"abc"), ImageRecord(2**40, b"d")], TEXTS)
    with lmdb.open(str(tmp_path / "imgs"), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            assert transaction.get(b"num_images") == b"2"
            assert base64.urlsafe_b64decode(transaction.get(b"3")) == b"abc"
    with lmdb.open(str(tmp_path / "pairs"), readonly=True, lock=False) as environment:
        with environment.begin() as transaction:
            assert transaction.get(b"num_samples") == b"3"
            assert pickle.loads(transaction.get(b"1")) == (3, 10, "一只猫")


def test_many_to_many_is_flattened_in_order():
    assert flatten_pairs(TEXTS) == [
        Pair(2**40, 10, "一只猫"),
        Pair(3, 10, "一只猫"),
        Pair(3, 11, "小猫"),
    ]


def test_truth_of_images_is_derived_in_first_seen_order(tmp_path):
    assert list(texts_of_images(TEXTS).items()) == [(2**40, (10,)), (3, (10, 11))]
    path = tmp_path / "valid_texts.tr.jsonl"
    assert pairs.write_image_truth(path, TEXTS) == 2
    assert path.read_text("utf-8").splitlines() == [
        '{"image_id": 1099511627776, "text_ids": [10]}',
        '{"image_id": 3, "text_ids": [10, 11]}',
    ]
    assert list(pairs.read_image_truth(path).items()) == [(2**40, (10,)), (3, (10, 11))]


def test_the_lmdb_map_grows_and_leaves_no_reserve(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlab.data.pairs.lmdb.INITIAL_MAP_BYTES", 64 * 1024)
    monkeypatch.setattr("jaxlab.data.pairs.lmdb.ENTRIES_PER_TRANSACTION", 7)
    rng = np.random.default_rng(0)
    records = [ImageRecord(i, rng.bytes(5000)) for i in range(100)]  # ten times the first map
    pairs.write_lmdb(tmp_path, records, TEXTS)
    read = LmdbImages(tmp_path / "imgs")
    assert sorted(read) == records
    assert (tmp_path / "imgs" / "data.mdb").stat().st_size < 2 * 2**20


def test_a_second_write_replaces_the_first(tmp_path):
    pairs.write_lmdb(tmp_path, [ImageRecord(1, b"old"), ImageRecord(2, b"old")], TEXTS)
    pairs.write_lmdb(tmp_path, [ImageRecord(1, b"new")], TEXTS[:1])
    assert list(LmdbImages(tmp_path / "imgs")) == [(1, b"new")]
    assert len(LmdbPairs(tmp_path / "pairs")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imgs", "pairs"]


def test_writers_refuse_ids_that_repeat_or_are_none(tmp_path):
    twice = [ImageRecord(1, b"a"), ImageRecord(1, b"b")]
    with pytest.raises(ValueError, match="image_id=1 repeats"):
        pairs.write_images_tsv(tmp_path / "x.tsv", twice)
    with pytest.raises(ValueError, match="image_id=1 repeats"):
        pairs.write_lmdb(tmp_path / "x", twice, TEXTS)
    with pytest.raises(ValueError, match="text_id=10 repeats"):
        pairs.write_texts(tmp_path / "x.jsonl", [TEXTS[0], TEXTS[0]])
    with pytest.raises(ValueError, match=r"image_ids\[0\]=9223372036854775808 does not fit"):
        pairs.write_texts(tmp_path / "x.jsonl", [TextRecord(1, "", (2**63,))])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing half written


class Evil:
    def __reduce__(self):
        return (eval, ("1/0",))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (pickle.dumps(Evil()), r"names builtins\.eval"),
        (pickle.dumps(np.int64(3)), "names numpy"),
        (pickle.dumps([1, 2, "a"]), r"a pickled list .*expected the tuple \(image_id"),
        (pickle.dumps((1, 2)), "a pickled tuple"),
        (pickle.dumps((1, 2, b"a")), "a pickled tuple"),
        (pickle.dumps((True, 2, "a")), "image_id=True is not an integer"),
        (pickle.dumps((1, 2**70, "a")), "text_id=.* does not fit 64 bits"),
        (pickle.dumps((1, 2, "a"))[:-3], "not a pickled pair"),
        (b"", "not a pickled pair"),
    ],
)
def test_pickles_of_anything_else_are_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        unpickle_pair(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(protocol):
    value = pickle.dumps((2**40, -1, "高"), protocol=protocol)
    assert unpickle_pair(value) == Pair(2**40, -1, "高")


@pytest.mark.parametrize("ending", ["jsonl", "npz"])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_features_round_trip_exactly(tmp_path, ending, kind):
    rows = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    features = Features(np.array([5, -2, 2**40]), rows)
    path = tmp_path / f"x.{ending}"
    pairs.write_features(path, features, kind)
    read = pairs.read_features(path, kind)
    np.testing.assert_array_equal(read.ids, features.ids)
    np.testing.assert_array_equal(read.features, rows)
    if ending == "jsonl":
        first = json.loads(path.read_text().splitlines()[0])
        assert first == {f"{kind}_id": 5, "feature": rows[0].tolist()}


def test_broken_features_are_told(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"image_id": 1, "feature": [1, 2]}\n{"image_id": 2, "feature": [1]}\n'
        '{"image_id": 1, "feature": [1, 2]}\n{"text_id": 3, "feature": [1, 2]}\n'
        '{"image_id": 4, "feature": "1 2"}\n'
    )
    with pytest.raises(ValueError, match=r"4 broken records") as error:
        pairs.read_features(path, "image")
    assert ":2: feature has 1 numbers, the lines before have 2" in str(error.value)
    assert ":3: image_id=1 repeats an earlier line" in str(error.value)
    assert ":4: fields ['feature', 'text_id'] lack ['image_id']" in str(error.value)
    assert ":5: feature is no list of numbers" in str(error.value)
    with pytest.raises(ValueError, match=r"ends in '\.csv'"):
        pairs.read_features(tmp_path / "x.csv", "image")
    np.savez(tmp_path / "x.npz", ids=np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"x\.npz lacks \['features'\]"):
        pairs.read_features(tmp_path / "x.npz", "image")


def test_predictions_round_trip(tmp_path):
    path = tmp_path / "valid_predictions.jsonl"
    pairs.write_predictions(path, {7: (3, 1, 2), 8: (1, 3, 2)}, "text")
    assert path.read_text().splitlines()[0] == '{"text_id": 7, "image_ids": [3, 1, 2]}'
    assert pairs.read_predictions(path, "text") == {7: (3, 1, 2), 8: (1, 3, 2)}
    with pytest.raises(ValueError, match=r"lack \['image_id', 'text_ids'\]"):
        pairs.read_predictions(path, "image")
