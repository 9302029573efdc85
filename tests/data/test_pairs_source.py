import base64
import io
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.pairs import (
    ImageRecord,
    LmdbImages,
    LmdbPairs,
    TextRecord,
    TsvImages,
    open_lmdb_pairs,
    open_pairs,
    open_tsv_pairs,
    read_texts,
    write_images_tsv,
    write_lmdb,
    write_texts,
)


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [ImageRecord(image_id, png(image_id % 256)) for image_id in (3, 2**40, 5)]
TEXTS = [
    TextRecord(10, "一只猫", (2**40, 3)),
    TextRecord(11, "小猫", (3,)),
    TextRecord(12, "狗", (5,)),
]


def write_split(folder, split="train", images=IMAGES, texts=TEXTS):
    write_images_tsv(folder / f"{split}_imgs.tsv", images)
    write_texts(folder / f"{split}_texts.jsonl", texts)


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


@pytest.fixture(params=["tsv", "lmdb"])
def source(request, tmp_path):
    write_split(tmp_path)
    if request.param == "lmdb":
        write_lmdb(tmp_path / "lmdb" / "train", IMAGES, TEXTS)
    return open_pairs(tmp_path, "train")


def test_records_of_both_formats(source):
    assert len(source) == 4
    found = [
        (r["example_id"], r["image_id"], r["text_id"], r["text"], r["image"])
        for r in map(source.__getitem__, range(4))
    ]
    image = dict(IMAGES)
    assert found == [
        (0, 2**40, 10, "一只猫", image[2**40]),
        (1, 3, 10, "一只猫", image[3]),
        (2, 3, 11, "小猫", image[3]),
        (3, 5, 12, "狗", image[5]),
    ]
    assert source[0]["image_id"].dtype == np.int64
    assert source.num_skipped == 0


def test_a_source_may_be_pickled_opened_twice_and_shared_by_threads(source, tmp_path):
    again = open_pairs(tmp_path, "train")
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: copy[i % 4]["image"], range(100)))
    assert read == [again[i % 4]["image"] for i in range(100)]


def test_a_source_feeds_grain(source):
    import grain

    dataset = grain.MapDataset.source(source).map(lambda r: r["text_id"]).batch(4)
    assert dataset[0].tolist() == [10, 10, 11, 12]


BROKEN_LINES = [
    (b"7\n", "1 columns, expected 2: id<TAB>base64"),
    (b"7\tAAAA\tx\n", "3 columns, expected 2"),
    (b"seven\tAAAA\n", "image_id='seven' is not an integer"),
    (b"1.5\tAAAA\n", "image_id='1.5' is not an integer"),
    (b"9999999999999999999\tAAAA\n", "image_id=9999999999999999999 does not fit 64 bits"),
    (b"3\tAAAA\n", "image_id=3 repeats an earlier line"),
    (b"7\tAAA\n", "image_id=7: not base64"),
    (b"7\tAA!A\n", "image_id=7: not base64"),
    (b"7\t\n", "image_id=7: the image column is empty"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN_LINES)
def test_a_broken_image_line_is_told_or_skipped(tmp_path, line, problem, caplog):
    path = tmp_path / "train_imgs.tsv"
    write_images_tsv(path, IMAGES)
    append(path, line)
    with pytest.raises(ValueError, match=r'1 broken records.*on_error="skip"') as error:
        TsvImages(path)
    assert f"{path}:4: {problem}" in str(error.value)
    with caplog.at_level(logging.WARNING):
        images = TsvImages(path, on_error="skip")
    assert list(images) == IMAGES and images.num_skipped == 1
    assert f"skipped 1 broken records, kept 3 images:\n  {path}:4: {problem}" in caplog.text


BROKEN_TEXTS = [
    (b"{\n", "malformed JSON"),
    (b'{"text_id": 1, "text": "\xff", "image_ids": []}\n', "malformed JSON"),
    (b"[1, 2]\n", "a JSON list, expected an object with ['text_id', 'text', 'image_ids']"),
    (b'{"text_id": 1, "caption": "a", "image_ids": [3]}\n', "lack ['text']"),
    (b'{"text_id": "1", "text": "a", "image_ids": [3]}\n', "text_id='1' is not an integer"),
    (b'{"text_id": 1, "text": 5, "image_ids": [3]}\n', "text is a int, expected a string"),
    (b'{"text_id": 1, "text": "a", "image_ids": 3}\n', "image_ids is a int, expected a list"),
    (b'{"text_id": 1, "text": "a", "image_ids": [3.5]}\n', "image_ids[0]=3.5 is not an integer"),
    (b'{"text_id": 1, "text": "a", "image_ids": [3, 3]}\n', "image_ids repeats 3"),
    (b'{"text_id": 10, "text": "a", "image_ids": [3]}\n', "text_id=10 repeats an earlier line"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN_TEXTS)
def test_a_broken_text_line_is_told_or_skipped(tmp_path, line, problem):
    path = tmp_path / "train_texts.jsonl"
    write_texts(path, TEXTS)
    append(path, line)
    with pytest.raises(ValueError, match="1 broken records") as error:
        read_texts(path)
    assert f"{path}:4: " in str(error.value) and problem in str(error.value)
    assert read_texts(path, on_error="skip") == (tuple(TEXTS), 1)


def test_all_problems_of_a_file_come_at_once_and_the_list_is_short(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"a\tAAAA\n" * 12)
    with pytest.raises(ValueError, match="12 broken records") as error:
        TsvImages(path)
    assert ":10: " in str(error.value) and ":11: " not in str(error.value)
    assert "... and 2 more" in str(error.value)


def test_a_pair_without_its_image_is_told_or_skipped(tmp_path):
    texts = [*TEXTS, TextRecord(13, "鸟", (99,))]
    write_split(tmp_path, texts=texts)
    write_lmdb(tmp_path / "db", IMAGES, texts)
    problem = r"pair 4: text_id=13 names image_id=99, which .* lacks"
    paths = tmp_path / "train_imgs.tsv", tmp_path / "train_texts.jsonl"
    with pytest.raises(ValueError, match=problem):
        open_tsv_pairs(*paths)
    with pytest.raises(ValueError, match=problem):
        open_lmdb_pairs(tmp_path / "db")
    for source in (
        open_tsv_pairs(*paths, on_error="skip"),
        open_lmdb_pairs(tmp_path / "db", on_error="skip"),
    ):
        assert (len(source), source.num_skipped) == (4, 1)
        assert [source[i]["text_id"] for i in range(4)] == [10, 10, 11, 12]


def test_corrupt_pictures_are_found_where_asked(tmp_path):
    broken = [*IMAGES[:2], ImageRecord(5, IMAGES[2].image[:30])]
    write_split(tmp_path, images=broken)
    write_lmdb(tmp_path / "lmdb" / "valid", broken, TEXTS)
    for split, place in (("train", ":3: image_id=5"), ("valid", ":key '5': ")):
        assert len(open_pairs(tmp_path, split)) == 4  # base64 and ids are sound
        with pytest.raises(ValueError, match=f"{place}.*not a readable image"):
            open_pairs(tmp_path, split, verify_images=True)
        source = open_pairs(tmp_path, split, verify_images=True, on_error="skip")
        assert (len(source), source.num_skipped) == (3, 2)  # the image, and the pair that names it


def test_damaged_lmdb_entries_are_told(tmp_path):
    import lmdb

    write_lmdb(tmp_path, IMAGES, TEXTS)
    with lmdb.open(str(tmp_path / "imgs")) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"007", b"AAAA")
            transaction.put(b"5", b"A")
    with lmdb.open(str(tmp_path / "pairs")) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"2", b"garbage")
            transaction.delete(b"3")
    with pytest.raises(ValueError, match=r"key '007': expected the decimal id without padding"):
        LmdbImages(tmp_path / "imgs")
    images = LmdbImages(tmp_path / "imgs", on_error="skip")
    with pytest.raises(ValueError, match=r"imgs: image_id=5: not base64"):
        images.read(5)
    with pytest.raises(KeyError, match="no image_id=6"):
        images.read(6)
    pairs = LmdbPairs(tmp_path / "pairs")
    with pytest.raises(ValueError, match=r"pairs: key '2': not a pickled pair"):
        pairs[2]
    with pytest.raises(ValueError, match=r"key '3' is missing although num_samples=4"):
        pairs[3]
    with pytest.raises(IndexError, match="index=4 is outside the 4 pairs"):
        pairs[4]


def test_an_lmdb_that_lost_images_is_told(tmp_path):
    import lmdb

    write_lmdb(tmp_path, IMAGES, TEXTS)
    with lmdb.open(str(tmp_path / "imgs")) as environment:
        with environment.begin(write=True) as transaction:
            transaction.delete(b"5")
    with pytest.raises(ValueError, match="3 images announced, 2 present"):
        LmdbImages(tmp_path / "imgs")
    with lmdb.open(str(tmp_path / "imgs")) as environment:
        with environment.begin(write=True) as transaction:
            transaction.delete(b"num_images")
    with pytest.raises(ValueError, match="no key 'num_images'"):
        LmdbImages(tmp_path / "imgs")
    (tmp_path / "imgs" / "data.mdb").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="not a readable LMDB database"):
        LmdbImages(tmp_path / "imgs")


def test_missing_files_and_empty_splits_are_told(tmp_path):
    write_split(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"valid_imgs\.tsv does not exist; expected image"):
        open_pairs(tmp_path, "valid")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected a folder"):
        open_pairs(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"data\.mdb does not exist; expected an LMDB"):
        open_lmdb_pairs(tmp_path)
    (tmp_path / "train_texts.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match=r"train_texts\.jsonl: the split is empty"):
        open_pairs(tmp_path, "train")
    write_texts(tmp_path / "train_texts.jsonl", [TextRecord(1, "无", ())])
    with pytest.raises(ValueError, match=r"the split is empty, expected at least one of its pairs"):
        open_pairs(tmp_path, "train")
    (tmp_path / "train_imgs.tsv").write_bytes(b"x\n")
    with pytest.raises(ValueError, match=r"the split is empty.* \(1 were broken and skipped\)"):
        open_pairs(tmp_path, "train", on_error="skip")


def test_unknown_policy_is_refused(tmp_path):
    write_split(tmp_path)
    with pytest.raises(Exception, match="on_error|ignore"):
        TsvImages(tmp_path / "train_imgs.tsv", on_error="ignore")


def test_a_file_changed_after_opening_is_told(tmp_path):
    path = tmp_path / "x.tsv"
    write_images_tsv(path, IMAGES)
    images = TsvImages(path)
    path.write_bytes(b"3\t" + b"!" * 200)
    with pytest.raises(ValueError, match="image_id=3: not base64.* changed after it was opened"):
        images.read(3)
    with pytest.raises(KeyError, match="has no image_id=4"):
        images.read(4)


def test_crlf_and_urlsafe_lines_have_exact_spans(tmp_path):
    path = tmp_path / "x.tsv"
    image = bytes(range(200, 256))
    encoded = base64.urlsafe_b64encode(image)
    path.write_bytes(b"\n1\t" + encoded + b"\r\n\n-2\t" + encoded)  # blank lines, no final newline
    assert list(TsvImages(path)) == [(1, image), (-2, image)]
