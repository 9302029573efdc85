"""Filters of pairs, tables of captions, and pictures as ArrayRecord."""

import math

import numpy as np
import pytest

from jaxlab.data.pairs import (
    PUBLISHED_FILTER,
    ImageRecord,
    PairFilter,
    RecordImages,
    TextRecord,
    make_records,
    open_pairs,
    read_black_list,
    read_captions,
    write_array_records,
    write_texts,
)


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("一二三四", 0.9, "too short"),
        ("  一二三四 ", 0.9, "too short"),
        ("一二三四五", 0.26, None),
        ("一" * 50, 0.26, None),
        ("一" * 51, 0.9, "too long"),
        ("一二三四五", 0.2599, "low score"),
        ("一二三四五", math.nan, "low score"),
    ],
)
def test_published_rules_at_their_borders(text, score, reason):
    assert PUBLISHED_FILTER.reason_to_drop(text, score) == reason


def test_black_list_minds_no_case_and_scores_are_asked_for(tmp_path):
    (tmp_path / "words.txt").write_text("# adverts\nJPG\n\n包邮\n", "utf-8")
    rules = PairFilter(black_list=read_black_list(tmp_path / "words.txt"))
    assert rules.reason_to_drop("img_001.jpg") == "black-listed word"
    assert rules.reason_to_drop("全国包邮") == "black-listed word"
    assert rules.reason_to_drop("") is None
    with pytest.raises(ValueError, match="needs a score for every pair, and '一只猫' has none"):
        PairFilter(min_score=0.1).reason_to_drop("一只猫")
    (tmp_path / "empty.txt").write_text("\n# nothing\n", "utf-8")
    with pytest.raises(ValueError, match="has no word"):
        read_black_list(tmp_path / "empty.txt")
    for fields in ({"min_length": 9, "max_length": 5}, {"min_length": -1}, {"black_list": (" ",)}):
        with pytest.raises(ValueError):
            PairFilter(**fields)


CSV = """\ufeffimage,text,score
a.jpg,一只猫,0.5
"b, c.jpg","猫, 狗",
a.jpg,猫咪,0.25
d.jpg,一只猫,1
"""
JSONL = """{"image": "a.jpg", "caption": "一只猫", "score": 0.5}

{"image": "b, c.jpg", "text": "猫, 狗"}
{"image": "a.jpg", "text": "猫咪", "score": 0.25}
{"image": "d.jpg", "text": "一只猫", "score": 1}
"""
TSV = "\n".join(
    "\t".join(cells)
    for cells in (
        ("image", "caption", "score"),
        ("a.jpg", "一只猫", "0.5"),
        ("b, c.jpg", "猫, 狗", ""),
        ("a.jpg", "猫咪", "0.25"),
        ("d.jpg", "一只猫", "1"),
    )
)


@pytest.mark.parametrize(("ending", "text"), [("csv", CSV), ("jsonl", JSONL), ("tsv", TSV)])
def test_tables_of_captions_give_pictures_and_texts_ids(tmp_path, ending, text):
    path = tmp_path / f"captions.{ending}"
    path.write_text(text, "utf-8")
    captions = read_captions(path)
    assert [row.score for row in captions.rows] == [0.5, None, 0.25, 1.0]
    images, texts = make_records(captions)
    assert images == {0: "a.jpg", 1: "b, c.jpg", 2: "d.jpg"}
    assert texts == [
        TextRecord(0, "一只猫", (0, 2)), TextRecord(1, "猫, 狗", (1,)), TextRecord(2, "猫咪", (0,)),
    ]  # fmt: skip


def test_broken_lines_of_captions_are_listed_or_skipped(tmp_path, caplog):
    path = tmp_path / "captions.csv"
    path.write_text(
        "image,text,score\na.jpg,猫,0.5\n,狗,\nb.jpg,,\nc.jpg,鸟,high\nd.jpg,1,2,3\n", "utf-8"
    )
    with pytest.raises(ValueError) as error:
        read_captions(path)
    for line in (
        "csv:3: image is ''", "csv:4: text is ''", "csv:5: score is 'high'", "csv:6: more columns"
    ):  # fmt: skip
        assert line in str(error.value)
    captions = read_captions(path, on_error="skip")
    assert captions.num_skipped == 4 and [row.image for row in captions.rows] == ["a.jpg"]
    (tmp_path / "captions.jsonl").write_text('{"image": 3, "text": "猫"}\n[1]\n{"image"\n', "utf-8")
    with pytest.raises(ValueError) as error:
        read_captions(tmp_path / "captions.jsonl")
    for line in ("jsonl:1: image is 3", "jsonl:2: a JSON list", "jsonl:3: malformed JSON"):
        assert line in str(error.value)


def test_files_that_are_no_tables_of_captions_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("picture,words\na.jpg,猫\n", "utf-8")
    with pytest.raises(ValueError, match=r"header is \['picture', 'words'\]; wanted .* commas"):
        read_captions(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("image,text\n", "utf-8")
    with pytest.raises(ValueError, match="the split is empty"):
        read_captions(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes("image,text\na.jpg,一只黑色的猫\n".encode("gb18030"))
    with pytest.raises(ValueError, match="not UTF-8 text .* save it as UTF-8"):
        read_captions(tmp_path / "c.csv")
    with pytest.raises(ValueError, match="ends in '.xlsx'; captions are read from .csv"):
        (tmp_path / "d.xlsx").touch()
        read_captions(tmp_path / "d.xlsx")


RECORDS = [ImageRecord(7, b"seven"), ImageRecord(-3, b"\x00three"), ImageRecord(2**62, b"")]


def test_array_records_give_back_ids_and_bytes(tmp_path):
    assert write_array_records(tmp_path / "records/train", RECORDS) == 3
    images = RecordImages(tmp_path / "records/train")
    assert list(images) == RECORDS and len(images) == 3 and 7 in images and 8 not in images
    np.testing.assert_array_equal(images.image_ids, np.array([7, -3, 2**62], np.int64), strict=True)
    write_texts(tmp_path / "train_texts.jsonl", [TextRecord(1, "七", (7,))])
    assert open_pairs(tmp_path, "train")[0]["image"] == b"seven"
    with pytest.raises(KeyError, match="no image_id=8"):
        images.read(8)
    with pytest.raises(ValueError, match="image_id=7: not a readable image"):
        RecordImages(tmp_path / "records/train", verify_images=True)


def test_array_records_that_were_not_finished_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_id=7 repeats"):
        write_array_records(tmp_path, [*RECORDS, RECORDS[0]])
    with pytest.raises(FileNotFoundError, match="the ids of the records, written last"):
        RecordImages(tmp_path)
    write_array_records(tmp_path, RECORDS)
    np.save(tmp_path / "imgs.ids.npy", np.array([7, 2**62, -3]))
    with pytest.raises(ValueError, match="record 1 holds image_id=-3, its ids say 4611"):
        RecordImages(tmp_path).read(2**62)
    np.save(tmp_path / "imgs.ids.npy", np.array([7]))
    with pytest.raises(ValueError, match="has 3 records, .* 1 ids"):
        RecordImages(tmp_path)
