"""The index of pictures: exact search in both kinds, changes, files, and what is refused."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.index import IndexInfo, Item, quantize
from jaxlab.metrics import top_k_blockwise

helpers = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_model.py"))))
INFO = IndexInfo(folder="/pictures", model="tiny", fingerprints={"image": "a", "text": "b"})


def unit_rows(count, dim, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def items_of(count):
    return [Item(f"{i:05d}.png", 10 + i, i, 4, 3) for i in range(count)]


def index_of(vectors, int8=False, info=INFO):
    return clip.make_index(info, items_of(len(vectors)), vectors, int8=int8)


def brute_force(queries, vectors, k):
    """Scores in float64 and a stable sort."""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("count", "dim"), [(1, 3), (50, 8), (9000, 64)])
def test_search_is_exactly_brute_force(int8, count, dim):
    vectors, queries = unit_rows(count, dim), unit_rows(20, dim, seed=1)
    index = index_of(vectors, int8)
    found = index.search(queries, 10)
    scores, rows = brute_force(queries, vectors, min(10, count))
    np.testing.assert_array_equal(found.indices, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-7)
    plain = top_k_blockwise(queries, vectors, 10)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_equal_vectors_keep_the_order_of_the_rows(int8):
    vectors = np.repeat(unit_rows(5, 16), 7, axis=0)
    found = index_of(vectors, int8).search(vectors[14:15], 7)
    assert found.indices.tolist() == [list(range(14, 21))]
    np.testing.assert_allclose(found.scores, 1.0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 1000))
def test_int8_finds_what_float32_finds(count, dim, k, seed):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(count, dim, seed)
    vectors[rng.random(count) < 0.3] = vectors[0]  # ties
    vectors[rng.random(count) < 0.1] = 0.0
    queries = 5 * unit_rows(3, dim, seed + 1)
    exact, coarse = (index_of(vectors, int8).search(queries, k) for int8 in (False, True))
    np.testing.assert_array_equal(exact.indices, coarse.indices)
    np.testing.assert_array_equal(exact.scores, coarse.scores)
    np.testing.assert_array_equal(exact.indices, brute_force(queries, vectors, k)[1])


def test_the_error_of_the_codes_is_within_its_bound_and_most_of_it():
    vectors = unit_rows(500, 64)
    vectors[3] = 0.0
    codes, scales, errors = quantize(vectors)
    rest = np.linalg.norm(vectors - codes.astype(np.float64) * scales[:, None], axis=1)
    assert (rest <= errors).all() and (rest >= 0.999 * errors).all()
    assert errors[3] == 0 and not codes[3].any()
    assert errors.max() <= 64**0.5 * scales.max() / 2 * 1.001
    assert np.abs(codes).max(axis=1)[:3].tolist() == [127] * 3


@pytest.mark.parametrize("int8", [False, True])
def test_pages_continue_each_other(int8):
    index, queries = index_of(unit_rows(200, 8), int8), unit_rows(2, 8, seed=1)
    whole = index.search(queries, 60).indices
    pages = [index.search(queries, 25, offset=start).indices for start in (0, 25, 50)]
    np.testing.assert_array_equal(np.concatenate(pages, axis=1)[:, :60], whole)
    assert index.search(queries, 25, offset=190).indices.shape == (2, 10)
    assert index.search(queries, 25, offset=500).indices.shape == (2, 0)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((1, 7), np.float32), 3, r"this index takes \(queries, 8\)"),
        (np.full((1, 8), np.nan, np.float32), 3, "holds NaN or infinity"),
        (np.zeros((1, 8), np.float32), 0, "ask for at least one picture"),
    ],
)
def test_bad_queries_are_refused(queries, k, message):
    with pytest.raises(ValueError, match=message):
        index_of(unit_rows(5, 8)).search(queries, k)


def test_a_zero_query_has_cosine_zero_with_everything():
    found = index_of(unit_rows(5, 8), int8=True).search(np.zeros((1, 8), np.float32), 3)
    assert found.indices.tolist() == [[0, 1, 2]] and not found.scores.any()


@pytest.mark.parametrize("int8", [False, True])
def test_pictures_are_added_replaced_and_removed(int8):
    vectors, new = unit_rows(6, 8), unit_rows(2, 8, seed=9)
    index = index_of(vectors, int8)
    items = [Item("new.png", 1, 1, 1, 1), index.items[2]._replace(num_bytes=99)]
    added = index.add(items, new)
    assert [item.path for item in added.items] == [
        *(f"0000{i}.png" for i in (0, 1, 3, 4, 5)), "new.png", "00002.png"
    ]  # fmt: skip
    assert added.search(new, 1).indices.tolist() == [[5], [6]] and added.items[6].num_bytes == 99
    assert len(index) == 6 and index.items[2].num_bytes == 12  # as it was
    less = added.remove(["new.png", "00000.png"])
    np.testing.assert_array_equal(less.search(vectors[1:2], 1).indices, [[0]])
    assert (less.quantized is not None) == int8
    with pytest.raises(KeyError, match=r"the index holds no \['x'\]"):
        index.remove(["x"])


def test_vectors_that_are_none_are_refused():
    for vectors, message in (
        (2 * unit_rows(2, 4), "2 vectors are not of length 1, the first is 0"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), "the first is 1 "),
        (unit_rows(3, 4), "2 items and vectors of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.make_index(INFO, items_of(2), vectors)
    with pytest.raises(ValueError, match="a path occurs twice"):
        clip.make_index(INFO, [items_of(1)[0]] * 2, unit_rows(2, 4))


@pytest.mark.parametrize("int8", [False, True])
def test_an_index_is_saved_and_read_without_pickles(tmp_path, int8):
    calibration = clip.fit_calibration(np.array([0.5, 0.6]), np.array([0.1, 0.2]))
    info = dataclasses.replace(INFO, calibration=calibration, background=(0.0, 0.5))
    index = index_of(unit_rows(30, 8), int8, info)
    odd = Item("图/a\udcff\n.png", 1, 2, 3, 4)  # a name that is no text, and a line break
    index = index.add([odd], unit_rows(1, 8, seed=5))
    clip.save_index(index, tmp_path / "a" / "index")
    loaded = clip.load_index(tmp_path / "a" / "index")
    assert loaded.info == info and loaded.items == index.items and loaded.items[-1] == odd
    assert isinstance(loaded.vectors, np.memmap)
    np.testing.assert_array_equal(loaded.vectors, index.vectors)
    queries = unit_rows(3, 8, seed=2)
    np.testing.assert_array_equal(
        loaded.search(queries, 5).indices, index.search(queries, 5).indices
    )
    assert (loaded.quantized is not None) == int8
    clip.save_index(loaded.remove(["00003.png"]), tmp_path / "a" / "index")  # over its own files
    names = sorted(path.name for path in (tmp_path / "a" / "index").iterdir())
    arrays = ["codes-2.npy", "errors-2.npy"] if int8 else []
    scales = ["scales-2.npy"] if int8 else []
    assert names == [*arrays, "index.json", "items-2.jsonl", *scales, "vectors-2.npy"]
    assert len(clip.load_index(tmp_path / "a" / "index")) == 30


def test_damaged_or_foreign_folders_are_refused(tmp_path):
    where = tmp_path / "index"
    with pytest.raises(FileNotFoundError, match="build an index first: python -m experiments"):
        clip.load_index(where)
    clip.save_index(index_of(unit_rows(3, 8), int8=True), where)
    document = json.loads((where / "index.json").read_text())

    def rewrite(**changes):
        (where / "index.json").write_text(json.dumps({**document, **changes}))

    for changes, message in (
        ({"version": 9}, "has version 9, this library reads 1"),
        ({"format": "x"}, "is not the index of pictures"),
        ({"num_items": 4}, "build the index anew"),
        ({"dim": 7}, "build the index anew"),
        ({"info": {}}, "is damaged"),
        ({"files": {}}, "is damaged"),
    ):
        rewrite(**changes)
        with pytest.raises(ValueError, match=message):
            clip.load_index(where)
    rewrite()
    lines = (where / "items-1.jsonl").read_text()
    (where / "items-1.jsonl").write_text(lines + "{}\n")
    with pytest.raises(ValueError, match="items-1.jsonl line 4 is damaged"):
        clip.load_index(where)
    (where / "items-1.jsonl").write_text(lines)
    data = (where / "codes-1.npy").read_bytes()
    (where / "codes-1.npy").write_bytes(data[:-5])
    with pytest.raises(ValueError, match="codes-1.npy is damaged"):
        clip.load_index(where)
    np.save(where / "codes-1.npy", np.array([{}], object))  # a pickle
    with pytest.raises(ValueError, match="codes-1.npy is damaged"):
        clip.load_index(where)
    (where / "codes-1.npy").unlink()
    with pytest.raises(FileNotFoundError, match="codes-1.npy is missing; build the index anew"):
        clip.load_index(where)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other things and no index"):
        clip.save_index(index_of(unit_rows(3, 8)), tmp_path / "other")


def test_hits_of_texts_carry_percentiles_and_probabilities_for_the_size_of_the_index():
    calibration = clip.fit_calibration(np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.3]))
    info = dataclasses.replace(INFO, calibration=calibration, background=(0.0, 0.5, 1.0))
    index = index_of(unit_rows(100, 8), info=info)
    found = index.search(unit_rows(1, 8, seed=1), 3)
    hits = index.to_hits(found, of_text=True)[0]
    for hit, score in zip(hits, found.scores[0], strict=True):
        assert hit.percentile == pytest.approx(float(score), abs=1e-6)
        assert hit.probability == pytest.approx(calibration.with_prior(0.01).probability(score))
    assert index.to_hits(found)[0][0].probability is None


def test_an_index_refuses_the_features_of_another_model():
    model, other = helpers.tiny_model(), helpers.tiny_model(seed=1)
    info = dataclasses.replace(INFO, fingerprints=dict(model.fingerprints))
    index = index_of(unit_rows(4, 12), info=info)
    text_tower = helpers.tiny_model(towers="text")
    assert [hit.row for hit in index.find(text_tower, text="猫", k=9)] == [
        hit.row for hit in index.find(model, text="猫", k=4)
    ]
    with pytest.raises(ValueError, match=r"other weights \(image, text tower\).*or build an index"):
        index.find(other, text="猫")
    changed = dataclasses.replace(index, info=dataclasses.replace(info, model=other.name))
    with pytest.raises(ValueError, match=r"as it was before.* Build an index .*after removing"):
        changed.find(other, text="猫")
    only_image = dataclasses.replace(
        index, info=dataclasses.replace(info, fingerprints={"image": "x"})
    )
    with pytest.raises(ValueError, match="other towers: their features cannot be compared"):
        only_image.find(text_tower, text="猫")
    with pytest.raises(ValueError, match="give exactly one of text, image and row"):
        index.find(model, text="猫", row=1)
    with pytest.raises(IndexError, match="rows 0 to 3"):
        index.find(model, row=4)
    assert index.find(model, row=2)[0].row == 2


def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path):
    info = dataclasses.replace(INFO, folder=str(tmp_path / "in"))
    (tmp_path / "in").mkdir()
    items = [Item("a.png", 1, 1, 1, 1), Item("../secret", 1, 1, 1, 1)]
    index = clip.make_index(info, items, unit_rows(2, 4))
    assert index.to_path(0) == tmp_path / "in" / "a.png"
    with pytest.raises(ValueError, match="leads out of"):
        index.to_path(1)
    with pytest.raises(IndexError):
        index.to_path(-1)
