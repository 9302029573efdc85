"""Building a data set: from pictures with captions, between the forms, filtered and counted."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.images import decode_image, squash_resize
from jaxlab.data.pairs import open_pairs, read_image_truth, read_texts

PROGRAM = "chinese_clip.build_dataset"
NAMES = ["红色的猫", "蓝色的狗", "一只绿色的小鸟", "黄色的鱼", "白色的马", "黑色的牛"]


@pytest.fixture
def album(tmp_path):
    """Six pictures in a folder with a sub-folder, and a table of their captions with scores."""
    folder = tmp_path / "album"
    (folder / "more").mkdir(parents=True)
    lines = ["image,text,score"]
    for i, name in enumerate(NAMES):
        path = f"more/{i}.png" if i % 2 else f"{i}.jpg"
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / path)
        lines += [f"{path},{name},0.{i + 1}", f"{path},动物的照片第一,0.5"]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path


def arguments(album, folder="data", **flags):
    given = {
        "images": album / "album", "captions": album / "captions.csv", "output": album / folder,
        **flags,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_pictures_with_captions_become_a_data_set(album, run_program):
    code, output, errors = run_program(PROGRAM, *arguments(album))
    assert code == 0, errors
    for what, count in (("images", 6), ("texts", 7), ("pairs", 12)):
        assert re.search(rf"{what}\D+{count}\b", output)
    assert "left out" not in output
    source = open_pairs(album / "data", "train", verify_images=True)
    assert len(source) == 12
    assert source[0]["text"] == NAMES[0]
    assert source[0]["image"] == (album / "album/0.jpg").read_bytes()
    texts = read_texts(album / "data/train_texts.jsonl").records
    assert [text.text for text in texts] == [NAMES[0], "动物的照片第一", *NAMES[1:]]
    assert texts[1].image_ids == (0, 1, 2, 3, 4, 5)
    assert read_image_truth(album / "data/train_texts.tr.jsonl")[3] == (1, 4)
    # A second time nothing is overwritten unless that is asked for.
    code, _, errors = run_program(PROGRAM, *arguments(album))
    assert code == 2 and "exist already" in errors and "--overwrite" in errors
    code, _, errors = run_program(PROGRAM, *arguments(album), "--overwrite", "--format=lmdb")
    assert code == 0, errors
    assert not (album / "data/train_imgs.tsv").exists()


@pytest.mark.parametrize(
    ("first", "second"), [("tsv", "lmdb"), ("lmdb", "records"), ("records", "tsv")]
)
def test_forms_turn_into_each_other_without_loss(album, run_program, first, second):
    for flags in (
        arguments(album, "one", format=first),
        [f"--input={album / 'one'}", f"--output={album / 'two'}", f"--format={second}"],
    ):
        code, _, errors = run_program(PROGRAM, *flags)
        assert code == 0, errors
    one, two = open_pairs(album / "one", "train"), open_pairs(album / "two", "train")
    assert type(one.images) is not type(two.images)
    assert sorted(map(_key, one)) == sorted(map(_key, two))
    for name in ("train_texts.jsonl", "train_texts.tr.jsonl"):
        assert (album / "one" / name).read_bytes() == (album / "two" / name).read_bytes()


def _key(record):
    return int(record["image_id"]), int(record["text_id"]), record["text"], record["image"]


def test_filters_count_what_they_leave_out(album, run_program):
    (album / "words.txt").write_text("小鸟\n", "utf-8")
    code, output, errors = run_program(
        PROGRAM,
        *arguments(
            album, min_length=4, max_length=7, min_score=0.25, black_list=album / "words.txt"
        ),
    )
    assert code == 0, errors
    texts = {text.text for text in read_texts(album / "data/train_texts.jsonl").records}
    # Scores 0.1 and 0.2 go, and the bird of the black list.
    assert texts == {"动物的照片第一", *NAMES[3:]}
    for reason, count in (("low score", 2), ("black-listed word", 1)):
        assert re.search(rf"caption: {reason}\D+{count}\b", output)
    code, _, errors = run_program(PROGRAM, *arguments(album, "other"), "--min_length=60")
    assert code == 2 and "the filter leaves none of 12 captions" in errors


def test_pictures_are_stored_in_the_size_of_training(album, run_program):
    code, _, errors = run_program(PROGRAM, *arguments(album, image_size=16))
    assert code == 0, errors
    stored = Image.open(io.BytesIO(open_pairs(album / "data", "train")[0]["image"]))
    assert stored.size == (16, 16) and stored.format == "JPEG"
    wanted = squash_resize(decode_image((album / "album/0.jpg").read_bytes()), 16)
    assert np.abs(np.asarray(stored).astype(int) - wanted).mean() < 12  # noise is hard on JPEG


def test_validation_pictures_are_not_trained_on(album, run_program):
    code, _, errors = run_program(PROGRAM, *arguments(album, valid_share=0.34))
    assert code == 0, errors
    seen = [{int(r["image_id"]) for r in open_pairs(album / "data", s)} for s in ("train", "valid")]
    assert len(seen[0]) == 4 and len(seen[1]) == 2 and not seen[0] & seen[1]


def test_broken_and_missing_pictures_stop_or_are_left_out_with_their_texts(album, run_program):
    (album / "album/0.jpg").write_bytes(b"no picture")
    (album / "album/more/1.png").unlink()
    code, _, errors = run_program(PROGRAM, *arguments(album))
    assert code == 2 and "image_id=0: 0.jpg: " in errors and "image_id=1: more/1.png: " in errors
    assert not (album / "data/train_imgs.tsv").exists()
    code, output, errors = run_program(PROGRAM, *arguments(album), "--on_error=skip")
    assert code == 0, errors
    texts = read_texts(album / "data/train_texts.jsonl").records
    assert {t.text for t in texts} == {"动物的照片第一", *NAMES[2:]}
    assert texts[0].image_ids == (2, 3, 4, 5)
    assert re.search(r"broken picture\D+2\b", output)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": None}, "--output is missing"),
        ({"captions": None, "images": None}, "give either --input"),
        ({"images": None}, "--images is missing"),
        ({"valid_share": 1.5}, "--valid_share=1.5 must be in"),
        ({"min_length": 9, "max_length": 3}, "--max_length=3 is less than --min_length=9"),
        ({"min_length": -9}, "--min_length=-9 and max_length=0 must not be negative"),
        ({"split": "valid", "valid_share": 0.5}, "would write one split twice"),
    ],
)
def test_mistakes_in_the_flags_are_told(album, run_program, flags, message):
    code, _, errors = run_program(PROGRAM, *arguments(album, **flags))
    assert code == 2 and message in errors and "Traceback" not in errors


def test_a_text_whose_truth_is_withheld_stays(album, run_program):
    code, _, errors = run_program(PROGRAM, *arguments(album, "one"))
    assert code == 0, errors
    with (album / "one/train_texts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text_id": 99, "text": "没有答案", "image_ids": []}) + "\n")
    code, _, errors = run_program(PROGRAM, f"--input={album / 'one'}", f"--output={album / 'two'}")
    assert code == 0, errors
    assert read_texts(album / "two/train_texts.jsonl").records[-1].text == "没有答案"
