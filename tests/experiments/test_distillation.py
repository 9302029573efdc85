"""The distillation commands: a run from texts to a model, its evaluation, export, and ablations."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.distillation import ablate, evaluate, export, train
from experiments.distillation.models import start_layers
from experiments.distillation.variants import parse_variant
from jaxlab import distillation as kd
from tests.experiments.distillation_runs import ablation_config, run_config

FLAGS = flags.FLAGS


@pytest.fixture(autouse=True, scope="module")
def parsed_flags():
    if not FLAGS.is_parsed():
        FLAGS(["test"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with all its stages, and its settings."""
    folder = tmp_path_factory.mktemp("distillation")
    config = run_config(folder)
    train.main(config, folder / "run")
    return config, folder / "run"


def test_a_run_reports_teacher_student_and_labels_alone(finished):
    _, workdir = finished
    results = json.loads((workdir / "results.json").read_text())
    for name in ("teacher", "hard", "distilled"):
        assert 0.0 <= results[f"{name}/accuracy"] <= 1.0
    assert 0.0 <= results["distilled/agreement"] <= 1.0 and "hard/agreement" in results
    assert results["distilled/kl"] >= 0.0 and results["distilled/parameters"] > 0
    # Colours and heavenly bodies are told apart by single words: less than this is not learning.
    assert results["teacher/accuracy"] >= 0.75


def test_a_finished_run_gives_its_result_again(finished):
    config, workdir = finished
    before = json.loads((workdir / "results.json").read_text())
    train.main(config, workdir)
    after = json.loads((workdir / "results.json").read_text())
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_the_model_of_a_run_loads_with_its_labels(finished):
    _, workdir = finished
    found = kd.load_pretrained(workdir / "model")
    assert found.label_names == ("colour", "sky")
    assert found.config.encoder.num_layers == 1
    assert (workdir / "model" / "vocab.txt").is_file()
    assert not any("projection" in name for name in found.params)


def test_evaluation_scores_the_model_of_a_run(finished):
    config, workdir = finished
    evaluate.main(config, workdir)
    found = json.loads((workdir / "evaluation.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    assert found["accuracy"] == results["distilled/accuracy"]
    np.testing.assert_allclose(found["kl"], results["distilled/kl"], rtol=1e-5)
    rows = list(csv.DictReader((workdir / "predictions.csv").open(encoding="utf-8")))
    assert len(rows) == 12
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert right == found["accuracy"]


def test_timing_and_unknown_parts(finished):
    config, workdir = finished
    with flagsaver.flagsaver(timing=True):
        evaluate.main(config, workdir)
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["latency/p50_ms"] > 0 and found["throughput/texts_per_s"] > 0
    with (
        flagsaver.flagsaver(part="holdout"),
        pytest.raises(ValueError, match="--part=holdout: texts has train, validation, test"),
    ):
        evaluate.main(config, workdir)
    with (
        flagsaver.flagsaver(submission=str(workdir / "submission")),
        pytest.raises(ValueError, match="is no task of GLUE"),
    ):
        evaluate.main(config, workdir)


@pytest.mark.parametrize("form", ["huggingface", "stablehlo"])
def test_an_export_gives_the_same_logits(finished, tmp_path, form):
    _, workdir = finished
    with flagsaver.flagsaver(output=str(tmp_path / "out"), format=form):
        export.main(workdir)
    before, after = (kd.load_pretrained(p) for p in (workdir / "model", tmp_path / "out"))
    ids = jnp.array([[2, 5, 14, 8, 3], [2, 6, 3, 0, 0]])
    mask = ids != 0
    expected = kd.TextModel(before.config).apply({"params": before.params}, ids, mask=mask).logits
    if form == "huggingface":
        found = kd.TextModel(after.config).apply({"params": after.params}, ids, mask=mask).logits
    else:
        found = kd.read_program(tmp_path / "out")(after.params, ids, mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_export_without_a_place_is_refused(finished):
    with pytest.raises(ValueError, match="--output is missing"):
        export.main(finished[1])


def test_a_cached_teacher_teaches_the_same(finished, tmp_path):
    config, workdir = finished
    cached = run_config(tmp_path, cache_teacher=True)
    train.main(cached, tmp_path / "run")
    first, second = (
        json.loads((folder / "results.json").read_text()) for folder in (workdir, tmp_path / "run")
    )
    # The teacher's outputs were computed in batches of other rows and lengths.
    for name in ("distilled/accuracy", "distilled/kl"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3)
    assert (tmp_path / "run" / "stage_2" / "teacher_outputs").is_dir()


def test_an_ablation_compares_variants_over_seeds(tmp_path):
    config = ablation_config(tmp_path)
    ablate.main(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "runs.jsonl").open()]
    assert [(r["variant"], r["seed"]) for r in rows] == [
        (name, seed) for seed in (0, 1) for name in ("hard", "kd", "hidden")
    ]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    kd_rows = [r["test/accuracy"] for r in rows if r["variant"] == "kd"]
    np.testing.assert_allclose(results["kd/test/accuracy"], np.mean(kd_rows))
    assert {"kd/over hard", "kd/p", "teacher/test/accuracy"} <= results.keys()
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| hidden |" in table and (tmp_path / "run" / "ablation.png").stat().st_size > 1000
    # Complete seeds are not trained again.
    assert not (tmp_path / "run" / "seed_0" / "checkpoints").exists()
    ablate.main(config, tmp_path / "run")
    again = [json.loads(line) for line in (tmp_path / "run" / "runs.jsonl").open()]
    assert again == rows


@pytest.mark.parametrize(
    "line, message",
    [
        ("kd", "write NAME = PART"),
        ("kd = ", "write NAME = PART"),
        ("kd = start:first", "learns nothing"),
        ("kd = gap:colour", "no knowledge that can be matched"),
        ("kd = response@x", "could not convert"),
    ],
    ids=["name", "empty", "nothing", "knowledge", "weight"],
)
def test_a_variant_that_cannot_be_read_is_told(line, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(line)


def test_layers_of_the_start_by_name_and_number():
    assert start_layers("gap") == "gap" and start_layers("0, 2,4") == (0, 2, 4)
    with pytest.raises(ValueError, match="numbers with commas"):
        start_layers("0,two")
