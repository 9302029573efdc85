"""Feature arrays: pieces, resuming after a kill, skipped rows, refusals; all forms agree."""

import json

import numpy as np
import pytest

from jaxlab.data.pairs import Features, FeatureWriter, read_features, write_features

IDS = np.array([7, -3, 2**40, 5, 9], np.int64)
ROWS = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
NONE = np.zeros(0, np.int64)


def writer(path, ids=IDS, source="w", dim=4):
    return FeatureWriter(path, ids, dim, source)


def test_pieces_become_one_mapped_array(tmp_path):
    out = writer(tmp_path / "new" / "a.npy")
    out.write(ROWS[:2], NONE)
    out.write(ROWS[2:], NONE)
    assert out.finish() == 5 and out.is_complete
    ids, rows = read_features(tmp_path / "new" / "a.npy", "image")
    assert isinstance(rows, np.memmap) or isinstance(rows.base, np.memmap)
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(ids, IDS)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"a.npy", "a.ids.npy", "a.json"}


def test_a_killed_run_goes_on_after_its_last_piece(tmp_path):
    first = writer(tmp_path / "a.npy")
    first.write(ROWS[:3], NONE)
    del first  # nothing is closed: what was written is there
    with pytest.raises(FileNotFoundError, match="not finished.*goes on where it stopped"):
        read_features(tmp_path / "a.npy", "image")
    second = writer(tmp_path / "a.npy")
    assert second.rows_done == 3 and not second.is_complete
    second.write(ROWS[3:], NONE)
    second.finish()
    np.testing.assert_array_equal(read_features(tmp_path / "a.npy", "image").features, ROWS)
    third = writer(tmp_path / "a.npy")
    assert third.is_complete and third.rows_done == 5 and third.finish() == 5


def test_a_kill_before_the_renaming_loses_nothing(tmp_path):
    first = writer(tmp_path / "a.npy")
    first.write(ROWS, np.array([1]))
    del first
    second = writer(tmp_path / "a.npy")
    assert second.rows_done == 5 and second.finish() == 4
    np.testing.assert_array_equal(read_features(tmp_path / "a.npy", "text").ids, IDS[[0, 2, 3, 4]])


def test_a_deleted_array_is_made_anew(tmp_path):
    first = writer(tmp_path / "a.npy")
    first.write(ROWS, NONE)
    first.finish()
    (tmp_path / "a.npy").unlink()
    assert writer(tmp_path / "a.npy").rows_done == 0


def test_skipped_rows_are_left_out_and_remembered(tmp_path):
    out = writer(tmp_path / "a.npy")
    out.write(ROWS[:2], np.array([0]))
    out = writer(tmp_path / "a.npy")
    out.write(ROWS[2:], np.array([1]))
    assert out.finish() == 3
    ids, rows = read_features(tmp_path / "a.npy", "image")
    np.testing.assert_array_equal(ids, IDS[[1, 2, 4]])
    np.testing.assert_array_equal(rows, ROWS[[1, 2, 4]])
    assert writer(tmp_path / "a.npy").finish() == 3


def test_rows_of_other_weights_or_ids_are_not_mixed(tmp_path):
    writer(tmp_path / "a.npy").write(ROWS[:2], NONE)
    for options, message in (
        ({"source": "v"}, "source is 'w' there and 'v' here"),
        ({"ids": IDS[::-1]}, "ids_sha256"),
        ({"dim": 5}, "dim is 4 there and 5 here"),
    ):
        with pytest.raises(ValueError, match=message):
            writer(tmp_path / "a.npy", **options)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is damaged"):
        writer(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", ROWS)
    with pytest.raises(ValueError, match="b.json beside it"):
        writer(tmp_path / "b.npy")
    with pytest.raises(ValueError, match="expected '.npy'"):
        writer(tmp_path / "a.jsonl")


def test_missing_rows_are_not_finished(tmp_path):
    out = writer(tmp_path / "a.npy")
    out.write(ROWS[:2], NONE)
    with pytest.raises(ValueError, match="2 of 5 rows are written"):
        out.finish()
    out.write(ROWS[2:], np.arange(3))
    out = writer(tmp_path / "b.npy")
    out.write(ROWS, np.arange(5))
    with pytest.raises(ValueError, match="5 of them were skipped"):
        out.finish()


def test_all_forms_hold_the_same_features(tmp_path):
    for ending in (".jsonl", ".npz", ".npy"):
        write_features(tmp_path / f"a{ending}", Features(IDS, ROWS), "text")
        ids, rows = read_features(tmp_path / f"a{ending}", "text")
        np.testing.assert_array_equal(rows, ROWS)
        np.testing.assert_array_equal(ids, IDS)
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])
    assert line == {"text_id": -3, "feature": ROWS[1].tolist()}
    write_features(tmp_path / "a.npy", Features(IDS[:2], ROWS[:2]), "text")  # replaced
    assert len(read_features(tmp_path / "a.npy", "text").ids) == 2


def test_arrays_that_do_not_belong_together_are_refused(tmp_path):
    write_features(tmp_path / "a.npy", Features(IDS, ROWS), "text")
    np.save(tmp_path / "a.ids.npy", IDS[:2])
    with pytest.raises(ValueError, match=r"\(5, 4\) and a.ids.npy \(2,\)"):
        read_features(tmp_path / "a.npy", "text")
    (tmp_path / "a.ids.npy").unlink()
    with pytest.raises(FileNotFoundError, match="the ids of a.npy"):
        read_features(tmp_path / "a.npy", "text")
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="cut short"):
        read_features(tmp_path / "a.npy", "text")
