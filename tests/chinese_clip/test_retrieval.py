"""Predictions and their scores: the original's results, and files that cannot be scored."""

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxlab.chinese_clip.evaluate import prediction_kind, read_truth, score_files
from jaxlab.data.pairs import read_texts, write_image_truth, write_predictions
from jaxlab.metrics import top_k_blockwise

GOLDEN = Path(__file__).parents[1] / "golden"


def _golden_script():
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make_chinese_clip_retrieval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _golden_script()
METRICS = ("mean_recall", "r1", "r5", "r10")


# 30,000 queries among 60 texts: with the original itself, in test_retrieval_parity.py.
COMPARED = [
    (name, direction)
    for name in MAKE.CASES
    for direction in MAKE.DIRECTIONS
    if not (name.startswith("thousands") and direction == "image_to_text")
]


@pytest.mark.parametrize(("name", "direction"), COMPARED)
def test_predictions_and_recalls_equal_the_originals(tmp_path, name, direction):
    case, kind = MAKE.draw(name), "text" if direction == "text_to_image" else "image"
    MAKE.write_inputs(case, tmp_path)
    sides = (case.texts, case.text_ids), (case.images, case.image_ids)
    (queries, query_ids), (gallery, gallery_ids) = sides if kind == "text" else sides[::-1]
    found = gallery_ids[top_k_blockwise(queries, gallery, 10).indices]
    with np.load(GOLDEN / "chinese_clip_retrieval.npz") as golden:
        expected = {part: golden[f"{name}/{direction}/{part}"] for part in
                    ("predictions", "checksum", "recalls")}  # fmt: skip
    np.testing.assert_array_equal(found[: MAKE.NUM_STORED], expected["predictions"])
    assert zlib.crc32(found.tobytes()) == expected["checksum"]
    write_predictions(
        tmp_path / "p.jsonl", dict(zip(query_ids.tolist(), found.tolist(), strict=True)), kind
    )
    result = score_files(tmp_path / "valid_texts.jsonl", tmp_path / "p.jsonl")
    scores = result["scoreJson"]
    assert [scores[metric] for metric in METRICS] == pytest.approx(expected["recalls"], abs=1e-12)
    assert result["success"] is True and result["score"] == scores["score"]
    assert set(scores) == {"score", *METRICS}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def truth(tmp_path):
    """Two texts; the second has no image."""
    records = [{"text_id": 1, "image_ids": [30]}, {"text_id": 2, "image_ids": []}]
    return write_lines(tmp_path / "valid_texts.jsonl", records)


def test_queries_without_truth_are_missed_or_skipped(tmp_path, truth):
    images = list(range(30, 40))
    predictions = write_lines(
        tmp_path / "p.jsonl", [{"text_id": i, "image_ids": images} for i in (1, 2)]
    )
    assert score_files(truth, predictions)["score"] == pytest.approx(50.0)
    assert score_files(truth, predictions, missing="skip")["score"] == pytest.approx(100.0)


def test_the_truth_of_images_follows_from_the_texts(tmp_path):
    records = [
        {"text_id": i, "text": "", "image_ids": images}
        for i, images in ((1, [7, 8]), (2, [8]), (3, []))
    ]
    path = write_lines(tmp_path / "valid_texts.jsonl", records)
    write_image_truth(tmp_path / "valid_texts.tr.jsonl", read_texts(path).records)
    for name in ("valid_texts.jsonl", "valid_texts.tr.jsonl"):
        assert read_truth(tmp_path / name, "image") == {7: (1,), 8: (1, 2)}
    assert read_truth(path, "text") == {1: (7, 8), 2: (8,), 3: ()}


def test_a_gallery_of_three_images_is_accepted_but_not_a_cut_prediction(tmp_path, truth):
    lines = [{"text_id": 1, "image_ids": [31, 30, 32]}, {"text_id": 2, "image_ids": [30, 31, 32]}]
    scores = score_files(truth, write_lines(tmp_path / "p.jsonl", lines))["scoreJson"]
    assert scores["r1"] == 0.0 and scores["r5"] == scores["r10"] == 50.0
    lines[0]["image_ids"] = [31, 30]
    result = score_files(truth, write_lines(tmp_path / "p.jsonl", lines))
    assert not result["success"] and "query 1: 2 ids, wanted exactly 3" in result["errorDetail"]


IDS = list(range(30, 40))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "is empty"),
        (['{"text_id": 1'], "malformed JSON"),
        (['{"text_id": 1, "image_ids": []}', "nonsense"], "p.jsonl:2: malformed JSON"),
        (['{"query": 1}'], "have neither 'text_id' nor 'image_id'"),
        ([{"text_id": 1}], r"fields \['text_id'\] lack \['image_ids'\]"),
        ([{"text_id": "1", "image_ids": IDS}], "text_id='1' is not an integer"),
        ([{"text_id": 1, "image_ids": "30"}], "image_ids is a str, expected a list"),
        ([{"text_id": 1, "image_ids": [*IDS[:9], "39"]}], r"image_ids\[9\]='39' is not an"),
        ([{"text_id": 1, "image_ids": [*IDS[:9], 30]}], "image_ids repeats 30"),
        ([{"text_id": 1, "image_ids": IDS[:9]}, {"text_id": 2, "image_ids": IDS}],
         "query 1: 9 ids, wanted exactly 10"),
        ([{"text_id": i, "image_ids": [*IDS, 40]} for i in (1, 2)],
         "query 1: 11 ids, wanted exactly 10"),
        ([{"text_id": 1, "image_ids": IDS}], "query 2: missing"),
        ([{"text_id": 1, "image_ids": IDS}] * 2, "p.jsonl:2: text_id=1 repeats"),
    ],
)  # fmt: skip
def test_broken_predictions_fail_with_a_readable_message(tmp_path, truth, lines, message):
    path = tmp_path / "p.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text))
    result = score_files(truth, path)
    assert result.keys() == {"success", "score", "scoreJson", "errorMsg", "errorDetail"}
    assert result["success"] is False and result["score"] == 0 and result["scoreJson"] == {}
    with pytest.raises(ValueError, match=message):
        raise ValueError(result["errorDetail"])
    assert result["errorMsg"] and "\n" not in result["errorMsg"]


def test_a_broken_or_missing_truth_is_an_error_of_its_own(tmp_path, truth):
    predictions = write_lines(tmp_path / "p.jsonl", [{"text_id": 1, "image_ids": IDS}])
    with pytest.raises(FileNotFoundError, match="none.jsonl does not exist"):
        score_files(tmp_path / "none.jsonl", predictions)
    with pytest.raises(FileNotFoundError, match="expected predictions"):
        score_files(truth, tmp_path / "none.jsonl")
    write_lines(tmp_path / "t.jsonl", [{"image_id": 1, "text_ids": [1]}])
    with pytest.raises(ValueError, match=r"lack \['text_id', 'image_ids'\]"):
        score_files(tmp_path / "t.jsonl", predictions)


def test_the_first_line_says_what_the_queries_are(tmp_path):
    for kind, found in (("text", "image_ids"), ("image", "text_ids")):
        path = write_lines(tmp_path / "p.jsonl", [{f"{kind}_id": 1, found: []}])
        assert prediction_kind(path) == kind
