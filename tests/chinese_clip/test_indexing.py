"""An index that follows a folder: new, changed, removed and damaged pictures; kills in between."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip import indexing
from jaxlab.chinese_clip.indexing import list_files, picture_suffixes

helpers = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_model.py"))))
encoded, picture = helpers.encoded, helpers.picture


@pytest.fixture(scope="module")
def model():
    return helpers.tiny_model()


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of several formats in two folders, and five files that are none."""
    folder = tmp_path / "pictures"
    (folder / "海边" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for i, (name, kind) in enumerate(
        [
            ("a.png", "PNG"), ("b.JPG", "JPEG"), ("海边/c.webp", "WEBP"),
            ("海边/deep/d.bmp", "BMP"), ("e.gif", "GIF"), ("no_ending", "PNG"),
            ("<script>alert(1)<b>.png", "PNG"),
        ]
    ):  # fmt: skip
        (folder / name).write_bytes(encoded(picture(i), kind))
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes(encoded(picture(9))[:200])
    (folder / "text.jpg").write_text("no picture")
    (folder / ".hidden" / "f.png").write_bytes(encoded(picture(7)))
    (folder / ".g.png").write_bytes(encoded(picture(8)))
    return folder


PICTURES = [
    "<script>alert(1)<b>.png", "a.png", "b.JPG", "e.gif", "no_ending", "海边/c.webp",
    "海边/deep/d.bmp",
]  # fmt: skip


@pytest.mark.parametrize("int8", [False, True])
def test_a_folder_is_indexed_with_what_was_left_out(model, folder, tmp_path, int8, caplog):
    steps = []
    index, report = clip.update_index(
        tmp_path / "index", folder, model, int8=int8, on_progress=steps.append, part_size=4
    )
    assert [item.path for item in index.items] == PICTURES
    assert (report.added, report.unchanged, report.other_files) == (7, 0, 1)
    assert [one.path for one in report.skipped] == ["broken.png", "text.jpg"]
    assert "cannot be decoded" in report.skipped[0].reason
    assert report.skipped[1].reason == "no picture, whatever its name"
    assert "left out broken.png" in caplog.text
    assert sum(steps) == 10 and len(steps) == 3
    wanted = model.encode_image([folder / path for path in PICTURES])
    np.testing.assert_allclose(index.vectors, wanted, atol=1e-6)
    assert index.items[1][1:] == ((folder / "a.png").stat().st_size, *index.items[1][2:])
    assert (index.items[1].width, index.items[1].height) == (20, 14)
    assert (index.quantized is not None) == int8
    assert index.find(model, image=folder / "e.gif", k=1)[0].path == "e.gif"
    assert index.info.fingerprints == dict(model.fingerprints)
    assert len(index.info.background) == 101
    assert not (tmp_path / "index" / "journal").exists()


def test_updates_encode_what_changed_and_nothing_else(model, folder, tmp_path, monkeypatch):
    where = tmp_path / "index"
    first, _ = clip.update_index(where, folder, model)
    before = {i.path: v.copy() for i, v in zip(first.items, first.vectors, strict=True)}
    (folder / "a.png").write_bytes(encoded(picture(50)))
    (folder / "b.JPG").unlink()
    (folder / "new.png").write_bytes(encoded(picture(51)))
    (folder / "e.gif").write_bytes(b"GIF89a no more")
    read = []
    decode = indexing._decode_one
    monkeypatch.setattr(
        indexing, "_decode_one", lambda *args: read.append(args[1].path) or decode(*args)
    )
    index, report = clip.update_index(where, folder, model)
    assert sorted(read) == ["a.png", "broken.png", "e.gif", "new.png", "notes.txt", "text.jpg"]
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 2, 4)
    paths = [item.path for item in index.items]
    assert paths == sorted({*PICTURES, "new.png"} - {"b.JPG", "e.gif"})
    for path, vector in zip(paths, index.vectors, strict=True):
        if path in ("a.png", "new.png"):
            wanted = model.encode_image(folder / path)[0]
            np.testing.assert_allclose(vector, wanted, atol=1e-6)
        else:
            np.testing.assert_array_equal(vector, before[path])
    _, report = clip.update_index(where, folder, model, int8=True)
    assert (report.added, report.changed, report.removed, report.unchanged) == (0, 0, 0, 6)
    assert clip.load_index(where).quantized is not None


def test_a_killed_update_goes_on_from_its_journal(model, folder, tmp_path, monkeypatch):
    where = tmp_path / "index"

    class Killed(BaseException):
        pass

    def kill_after_two_parts(_):
        kill_after_two_parts.seen += 1
        if kill_after_two_parts.seen == 2:
            raise Killed

    kill_after_two_parts.seen = 0
    with pytest.raises(Killed):
        clip.update_index(where, folder, model, part_size=3, on_progress=kill_after_two_parts)
    with pytest.raises(FileNotFoundError):
        clip.load_index(where)
    # A part that was being written when the power went: vectors without their items.
    np.save(where / "journal" / "part-000009.npy", np.zeros((1, 12), np.float32))
    (folder / "a.png").write_bytes(encoded(picture(60)))  # changed after it was encoded
    index, report = clip.update_index(where, folder, model, part_size=3)
    assert report.continued == 4 and report.added == 7
    assert [item.path for item in index.items] == PICTURES
    wanted = model.encode_image([folder / path for path in PICTURES])
    np.testing.assert_allclose(index.vectors, wanted, atol=1e-6)


def test_the_journal_of_another_model_is_not_used(model, folder, tmp_path):
    where = tmp_path / "index"

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clip.update_index(where, folder, helpers.tiny_model(seed=1), on_progress=stop)
    assert list((where / "journal").glob("part-*.jsonl"))
    index, report = clip.update_index(where, folder, model)
    assert report.continued == 0
    wanted = model.encode_image(folder / "a.png")[0]
    np.testing.assert_allclose(index.vectors[1], wanted, atol=1e-6)


def test_mistakes_are_told_and_nothing_is_lost(model, folder, tmp_path):
    where = tmp_path / "index"
    with pytest.raises(NotADirectoryError, match="absent is not a folder; give one that holds"):
        clip.update_index(where, folder / "absent", model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no picture that can be read \(1 other files"):
        clip.update_index(tmp_path / "no", tmp_path / "empty", model)
    with pytest.raises(ValueError, match="holds other things and no index"):
        clip.update_index(folder, folder, model)
    with pytest.raises(ValueError, match="was loaded without its image tower"):
        clip.update_index(where, folder, helpers.tiny_model(towers="text"))
    clip.update_index(where, folder, model)
    with pytest.raises(ValueError, match="has other weights"):
        clip.update_index(where, folder, helpers.tiny_model(seed=1))
    with pytest.raises(ValueError, match="is the index of .*pictures, not of .*empty"):
        clip.update_index(where, tmp_path / "empty", model)
    with pytest.raises(ValueError, match="was made with compat='white'"):
        clip.update_index(where, folder, helpers.tiny_model(compat="original"))
    assert len(clip.load_index(where)) == 7


def test_two_updates_of_one_index_do_not_meet(model, folder, tmp_path):
    where = tmp_path / "index"

    def meanwhile(_):
        with pytest.raises(BlockingIOError, match="is in use by another run"):
            clip.update_index(where, folder, model)

    clip.update_index(where, folder, model, on_progress=meanwhile)


def test_an_index_within_its_own_folder_does_not_list_itself(model, folder):
    index, _ = clip.update_index(folder / "index", folder, model)
    index, report = clip.update_index(folder / "index", folder, model)
    assert [item.path for item in index.items] == PICTURES and report.other_files == 1


def test_links_that_lead_out_and_hidden_files_are_left_out(folder, tmp_path):
    (tmp_path / "outside.png").write_bytes(encoded(picture(3)))
    os.symlink(tmp_path / "outside.png", folder / "out.png")
    os.symlink(folder / "a.png", folder / "within.png")
    os.symlink(tmp_path, folder / "loop")
    paths = [entry.path for entry in list_files(folder)]
    assert "within.png" in paths and "out.png" not in paths
    assert not any(path.startswith((".", "loop")) for path in paths)


def test_formats_that_start_other_programs_are_not_read(model, folder, tmp_path):
    assert {".png", ".jpg", ".webp", ".gif", ".tiff"} <= picture_suffixes()
    assert not {".eps", ".pdf", ".ps", ".mpg", ".wmf"} & picture_suffixes()
    picture(1).save(folder / "page.eps")
    index, report = clip.update_index(tmp_path / "index", folder, model)
    assert "page.eps" not in [item.path for item in index.items] and report.other_files == 2


def test_a_decompression_bomb_is_skipped(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    Image.new("L", (100, 100)).save(folder / "bomb.png")
    _, report = clip.update_index(tmp_path / "index", folder, model)
    assert "bomb.png" in [one.path for one in report.skipped]
