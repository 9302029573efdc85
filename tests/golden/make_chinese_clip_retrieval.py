"""Makes chinese_clip_retrieval.npz: predictions and recalls of the original's evaluation scripts.

`python tests/golden/make_chinese_clip_retrieval.py` with cn_clip 1.6.0 and torch 2.13.0. Features
and truth are drawn by NumPy (`draw`: the tests call it too). The scripts themselves run
(`make_topk_predictions.py`, `evaluation.py`, their `_tr` forms and
`transform_ir_annotation_to_tr.py`), on the CPU: `.cuda()` gives the tensor back.

The original refuses to score galleries of fewer than 10 items; there its predictions are filled up
with ids that exist nowhere.
"""

import contextlib
import io
import json
import runpy
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

# name -> images, texts, dimensions, "ties" (small integers) or "random" (unit vectors)
CASES = {
    "five": (5, 7, 4, "ties"),
    "ten": (10, 12, 3, "ties"),
    "hundreds": (300, 120, 6, "ties"),
    "hundreds_random": (300, 120, 16, "random"),
    "thousands": (30_000, 60, 5, "ties"),
    "thousands_random": (30_000, 60, 16, "random"),
}
DIRECTIONS = ("text_to_image", "image_to_text")
NUM_STORED = 30
OUTPUT = Path(__file__).with_name("chinese_clip_retrieval.npz")


class Case(NamedTuple):
    """Features with ids, and the images of every text."""

    image_ids: np.ndarray
    images: np.ndarray
    text_ids: np.ndarray
    texts: np.ndarray
    truth: list[list[int]]


def draw(name: str) -> Case:
    """The features and the truth of a case; some texts have no image, some have several."""
    num_images, num_texts, dim, kind = CASES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))

    def features(rows):
        if kind == "ties":
            return rng.integers(-2, 3, (rows, dim)).astype(np.float32)
        drawn = rng.standard_normal((rows, dim), dtype=np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    images, texts = features(num_images), features(num_texts)
    image_ids = rng.permutation(num_images).astype(np.int64) * 3 + 2**33
    text_ids = rng.permutation(num_texts).astype(np.int64) + 5
    best = np.argsort(-(texts @ images.T), axis=1, kind="stable")
    truth = []
    for row in range(num_texts):
        count = rng.integers(0, 4)
        # Near the top, so that the recalls are neither 0 nor 100.
        places = rng.choice(min(num_images, 25), min(count, num_images), replace=False)
        truth.append(image_ids[best[row, places]].tolist())
    return Case(image_ids, images, text_ids, texts, truth)


def write_inputs(case: Case, folder: Path) -> None:
    """The files that the original reads."""
    for kind, ids, rows in (
        ("image", case.image_ids, case.images),
        ("text", case.text_ids, case.texts),
    ):
        with (folder / f"{kind}s.jsonl").open("w") as file:
            for row_id, row in zip(ids.tolist(), rows, strict=True):
                file.write(json.dumps({f"{kind}_id": row_id, "feature": row.tolist()}) + "\n")
    with (folder / "valid_texts.jsonl").open("w") as file:
        for text_id, true in zip(case.text_ids.tolist(), case.truth, strict=True):
            record = {"text_id": text_id, "text": "", "image_ids": true}
            file.write(json.dumps(record) + "\n")


def run_script(name: str, *arguments: object) -> None:
    """Runs a script of the original in this process, its prints swallowed."""
    import torch

    argv = [name, *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_: tensor),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        runpy.run_path(str(script(name)), run_name="__main__")


def script(name: str) -> Path:
    """The file of a script of the original."""
    found = find_spec("cn_clip")
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "eval" / f"{name}.py"


def run_original(folder: Path, fill: bool) -> dict[str, dict]:
    """Direction -> what the original wrote: `predictions` (lists by query id) and `result`.

    Args:
      folder: holds what `write_inputs` writes.
      fill: fill predictions up to 10 before they are scored.
    """
    run_script("transform_ir_annotation_to_tr", "--input", folder / "valid_texts.jsonl")
    written = {}
    for direction, suffix, truth, query, found in (
        ("text_to_image", "", "valid_texts.jsonl", "text_id", "image_ids"),
        ("image_to_text", "_tr", "valid_texts.tr.jsonl", "image_id", "text_ids"),
    ):
        predicted, result = folder / f"{direction}.jsonl", folder / f"{direction}.json"
        run_script(
            f"make_topk_predictions{suffix}",
            *("--image-feats", folder / "images.jsonl", "--text-feats", folder / "texts.jsonl"),
            *("--top-k", 10, "--output", predicted),
        )
        lines = [json.loads(line) for line in predicted.read_text().splitlines()]
        predictions = {line[query]: line[found] for line in lines}
        scored = folder / f"{direction}_filled.jsonl"
        with scored.open("w") as file:
            for query_id, ids in predictions.items():
                filled = ids + [-1 - i for i in range(10 - len(ids))] if fill else ids
                file.write(json.dumps({query: query_id, found: filled}) + "\n")
        run_script(f"evaluation{suffix}", folder / truth, scored, result)
        written[direction] = {
            "predictions": predictions,
            "result": json.loads(result.read_text()),
        }
    return written


def main() -> None:
    """Write the goldens."""
    import tempfile
    from importlib.metadata import version

    arrays = {"versions": np.array([f"{p} {version(p)}" for p in ("cn_clip", "torch", "numpy")])}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(draw(name), Path(folder))
            written = run_original(Path(folder), fill=CASES[name][0] < 10 or CASES[name][1] < 10)
        for direction, content in written.items():
            predictions = np.array(list(content["predictions"].values()), np.int64)
            score = content["result"]["scoreJson"]
            key = f"{name}/{direction}"
            arrays[f"{key}/predictions"] = predictions[:NUM_STORED]
            arrays[f"{key}/checksum"] = np.int64(zlib.crc32(predictions.tobytes()))
            arrays[f"{key}/recalls"] = np.array(
                [score[metric] for metric in ("mean_recall", "r1", "r5", "r10")]
            )
            print(key, predictions.shape, arrays[f"{key}/recalls"].round(2))
    np.savez_compressed(OUTPUT, **arrays)


if __name__ == "__main__":
    main()
