"""Features of a locked tower on disk: computed once, resumed, compared before they are used."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxlab.chinese_clip import feature_cache
from jaxlab.chinese_clip.data import make_cached_transform
from jaxlab.chinese_clip.feature_cache import (
    CachedPairs,
    CachePlan,
    compute_features,
    tower_fingerprint,
)
from jaxlab.data.pairs import Pair, PairSource
from jaxlab.text import WordPieceTokenizer

SIZE, VIEWS, DIM = 4, 3, 48
IDS = np.array([7, -2, 2**60, 40, 11, 5, 9], np.int64)
BROKEN = 40


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_ROWS", 3)


class NoPictures:
    """A store whose pictures must not be read."""

    path = Path("nowhere")

    def __len__(self):
        return len(IDS)

    def __contains__(self, image_id):
        return True

    def read(self, image_id):
        raise AssertionError("a picture was read")


def plan(folder, **fields):
    return CachePlan(folder, IDS, VIEWS, 5, {"tower": "abc", "image_size": SIZE})._replace(**fields)


class Work:
    """Stands for the tower: a view's features are its pixels, which depend on image and view."""

    def __init__(self, stop_after=None, broken=()):
        self.batches, self.broken, self.stop_after = 0, broken, stop_after

    def load(self, image_id, rng):
        if image_id in self.broken:
            raise ValueError(f"image of example {image_id}: no picture")
        return rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)

    def encode(self, pixels):
        assert pixels.shape == (4, SIZE, SIZE, 3) and pixels.dtype == np.uint8
        if self.batches == self.stop_after:
            raise KeyboardInterrupt
        self.batches += 1
        return pixels.reshape(4, DIM).astype(np.float32) / 256

    def run(self, plan, **fields):
        return compute_features(
            plan, self.load, self.encode, image_size=SIZE, batch_size=4, num_threads=2, **fields
        )


def expected(image_id, view):
    rng = np.random.default_rng((5, int(image_id) % 2**64, view))
    return rng.integers(0, 256, (SIZE, SIZE, 3)).reshape(DIM).astype(np.float32) / 256


def assert_complete(cache, skipped=()):
    for image_id in IDS.tolist():
        assert (image_id in cache) == (image_id not in skipped)
        for view in range(VIEWS if image_id in cache else 0):
            found = cache.read(image_id, view)
            np.testing.assert_array_equal(found, expected(image_id, view), strict=True)


def test_every_view_of_every_image_is_there_and_nothing_is_computed_twice(tmp_path):
    work = Work()
    assert_complete(work.run(plan(tmp_path)))
    # Files of 3, 3 and 1 images with 3 views: 3 + 3 + 1 batches of 4.
    assert work.batches == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"features_{i:05d}.npy" for i in range(3)),
        "identity.json",
    ]
    assert_complete(work.run(plan(tmp_path)))
    assert work.batches == 7
    assert np.load(tmp_path / "features_00001.npy").shape == (3, VIEWS, DIM)


def test_a_killed_run_goes_on_with_the_file_it_was_at(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Work(stop_after=4).run(plan(tmp_path))
    assert (tmp_path / "features_00000.npy").exists()
    assert not (tmp_path / "features_00001.npy").exists()
    again = Work()
    assert_complete(again.run(plan(tmp_path)))
    assert again.batches == 4


def test_two_processes_share_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache.jax, "process_count", lambda: 2)
    for name in ("barrier", "is_main_process"):
        monkeypatch.setattr(feature_cache.parallel, name, lambda *names: True)
    monkeypatch.setattr(feature_cache.jax, "process_index", lambda: 1)
    with pytest.raises(FileNotFoundError, match="features_00000"):  # that of the other process
        Work().run(plan(tmp_path))
    assert [path.name for path in tmp_path.glob("*.npy")] == ["features_00001.npy"]
    monkeypatch.setattr(feature_cache.jax, "process_index", lambda: 0)
    # Had both started at once, process 0 would have had files 0 and 2; now it has the first missing
    # and every second after it.
    with pytest.raises(FileNotFoundError, match="features_00002"):
        Work().run(plan(tmp_path))
    assert_complete(Work().run(plan(tmp_path)))


def test_features_of_something_else_are_refused_by_name(tmp_path):
    Work().run(plan(tmp_path))
    other = plan(tmp_path, identity={"tower": "xyz", "image_size": SIZE}, num_views=2)
    with pytest.raises(ValueError, match=r"num_views: 3 there, 2 here; tower: abc there, xyz here"):
        Work().run(other)
    with pytest.raises(ValueError, match="images: .* num_images: 7 there, 6 here"):
        Work().run(plan(tmp_path, image_ids=IDS[1:]))
    np.save(tmp_path / "features_00002.npy", np.zeros((2, VIEWS, DIM), np.float32))
    with pytest.raises(ValueError, match=r"features_00002.npy holds float32\[2, 3, 48\], wanted"):
        Work().run(plan(tmp_path))


def test_half_precision_takes_half_the_space(tmp_path):
    cache = Work().run(plan(tmp_path, dtype="float16"))
    found = cache.read(11, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(11, 2), rtol=5e-4)
    assert np.load(tmp_path / "features_00000.npy").dtype == np.float16


def test_broken_pictures_stop_the_run_or_are_left_out_with_their_pairs(tmp_path, caplog):
    work = Work(broken=(BROKEN, 9))
    with pytest.raises(ValueError, match="image_id=40: image of example 40: no picture"):
        work.run(plan(tmp_path))
    cache = work.run(plan(tmp_path), on_error="skip")
    assert "skipped 1 broken records" in caplog.text
    assert_complete(cache, skipped=(BROKEN, 9))
    with pytest.raises(KeyError, match="no image_id=40"):
        cache.read(BROKEN, 0)
    assert json.loads((tmp_path / "broken_00001.json").read_text()) == [BROKEN]
    pairs = [Pair(i, n, f"第{n}") for n, i in enumerate([7, BROKEN, 11, 9, 7])]
    source = PairSource(NoPictures(), pairs, np.array([0, 1, 2, 4], np.int64), 0)
    records = CachedPairs(source, cache)
    assert [int(records[i]["example_id"]) for i in range(len(records))] == [0, 2, 4]


def test_a_training_example_takes_a_random_view_and_no_picture(tmp_path):
    cache = Work().run(plan(tmp_path))
    pairs = [Pair(11, 70, "一只猫")]
    source = PairSource(NoPictures(), pairs, np.array([0], np.int64), 0)
    transform = make_cached_transform(cache, WordPieceTokenizer(), 8)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        example = transform(CachedPairs(source, cache)[0], rng)
        assert example.keys() == {"image_features", "ids"} and example["ids"].shape == (8,)
        seen |= {v for v in range(VIEWS)
                 if np.array_equal(example["image_features"], expected(11, v))}  # fmt: skip
    assert seen == set(range(VIEWS))


def test_fingerprint_is_that_of_the_image_tower_alone():
    variables = {
        "params": {"visual": {"w": np.ones((2, 3), np.float32)}, "bert": {"w": np.ones(2)}},
        "batch_stats": {"visual": {"mean": np.zeros(3)}},
    }
    print_ = tower_fingerprint(variables)
    variables["params"]["bert"]["w"] = np.zeros(2)
    assert tower_fingerprint(variables) == print_
    variables["batch_stats"]["visual"]["mean"] = np.ones(3)
    assert tower_fingerprint(variables) != print_
