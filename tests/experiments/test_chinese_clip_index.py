"""The commands that index pictures, search the index and calibrate a model."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from jaxlab import chinese_clip as clip

CHECKOUT = Path(__file__).resolve().parents[2]
helpers = SimpleNamespace(
    **runpy.run_path(str(CHECKOUT / "tests" / "chinese_clip" / "tiny_model.py"))
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    clip.save_published(folder, helpers.tiny_weights().variables, helpers.CONFIG)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(9):
        (folder / f"图{i}.png").write_bytes(helpers.encoded(helpers.picture(i)))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    return folder


@pytest.fixture
def run(run_program):
    """Runs a program of Chinese CLIP: `(verb, *arguments) -> (exit code, output, errors)`."""
    return lambda verb, *arguments: run_program(f"chinese_clip.{verb}", *arguments)


def test_a_folder_is_indexed_updated_and_searched(run, weights, folder, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    lines = [f"{folder / f'图{i}.png'}\t描述 {i}" for i in range(9)]
    pairs.write_text("\n".join(lines) + "\n\n", "utf-8")
    code, output, errors = run("calibrate", f"--weights={weights}", f"--pairs={pairs}")
    assert code == 0, errors
    assert f"Written: {weights / 'calibration.json'}" in output and "precision of 0.9" in output

    where = tmp_path / "index"
    arguments = (f"--weights={weights}", f"--folder={folder}", f"--output={where}")
    code, output, errors = run("index", *arguments, "--int8")
    assert code == 0, errors
    assert "│ pictures in the index              │      9 │" in output
    assert "│ damaged pictures, left out         │      1 │" in output
    (folder / "new.png").write_bytes(helpers.encoded(helpers.picture(50)))
    code, output, errors = run("index", *arguments)
    assert code == 0, errors
    assert "│ new                                │      1 │" in output
    index = clip.load_index(where)
    assert len(index) == 10 and index.quantized is None
    assert json.loads((where / "index.json").read_text())["info"]["model"] == str(weights)

    code, output, errors = run("search", f"--index={where}", "--query=猫", "--top_k=3")
    assert code == 0, errors
    lines = [line for line in output.splitlines() if any(f"{i}. " in line for i in range(1, 5))]
    hits = index.find(clip.load(weights), text="猫", k=3)
    assert [line.split(". ", 1)[1].split("│")[0].strip() for line in lines] == [
        h.path for h in hits
    ]
    for line, hit in zip(lines, hits, strict=True):
        cosine, percentile, probability = (float(cell) for cell in line.split("│")[2:5])
        assert cosine == pytest.approx(hit.cosine, abs=1e-3)
        assert percentile == pytest.approx(100 * hit.percentile, abs=0.05)
        assert probability == pytest.approx(hit.probability, rel=0.01)
    with Image.open(where / "search.png") as drawn:
        assert drawn.width == 1100

    code, output, errors = run(
        "search", f"--index={where}", f"--image={folder / 'new.png'}",
        f"--picture={tmp_path / 'found.png'}",
    )  # fmt: skip
    assert code == 0, errors
    assert "1. new.png" in output and "probability" not in output
    assert (tmp_path / "found.png").is_file()


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("index", [], "--folder is missing; give a folder, as --folder=FOLDER"),
        ("index", ["--folder=x"], "--output is missing"),
        ("index", ["--folder=x", "--output={new}"], "give the model: either --weights=PATH"),
        (
            "index",
            ["--folder=x", "--output={new}", "--weights=ViT-B-17"],
            "the nearest name is ViT-B-16",
        ),
        (
            "index",
            ["--folder=x", "--output={new}", "--weights=RN50", "--workdir=y"],
            "give the model: either",
        ),
        ("search", ["--index={new}", "--query=x"], "build an index first: python -m experiments"),
        ("search", ["--index={new}", "--query=x", "--folder=y"], "--index is searched by itself"),
        ("serve", [], "--index is missing; give the folder of an index"),
        ("serve", ["--index={new}"], "build an index first"),
        ("calibrate", [], "give the model: either --weights=PATH or a released name"),
        (
            "calibrate",
            ["--weights=ViT-B-16"],
            "--output is missing; give a JSON file, or a path as --weights",
        ),
        (
            "calibrate",
            ["--weights={here}", "--pairs={here}/few"],
            "few holds 1 pairs; give at least",
        ),
        ("calibrate", ["--weights={here}", "--pairs={here}/bad"], "bad line 1 is 'no tab'; wanted"),
    ],
)
def test_a_mistake_is_one_line(run, weights, tmp_path, verb, arguments, message):
    (weights / "few").write_text("a.png\tx\n")
    (weights / "bad").write_text("no tab\n")
    filled = [argument.format(new=tmp_path / "new", here=weights) for argument in arguments]
    code, output, errors = run(verb, *filled)
    assert code == 2, errors
    last = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and message in last[0], errors
    assert "Traceback" not in errors + output
    assert not (tmp_path / "new").exists()
