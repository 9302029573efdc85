"""The distillation commands: a run from texts to a model, its evaluation, export, and ablations."""

import csv
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import run_config
from experiments.distillation.models import check_sizes, start_layers, student_sizes
from experiments.distillation.settings import (
    AblationConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
)
from experiments.distillation.variants import compile_variants, parse_variant
from jaxlab import distillation as kd
from jaxlab.layers import BertConfig
from jaxlab.training import OptimizerConfig
from tests.experiments.distillation_runs import ablation_flags, run_flags

SHIPPED = runpy.run_path(str(Path(__file__).parents[2] / "configs/distillation/ablation.py"))

# The first test trains three networks, which is three programs to compile.
pytestmark = pytest.mark.timeout(300)


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def run_well(run_program, name, *arguments):
    code, output, errors = run_program(f"distillation.{name}", *arguments)
    assert code == 0, errors
    return output


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of a run, which the first test that needs it fills."""
    return tmp_path_factory.mktemp("distillation")


@pytest.fixture
def finished(world, run_program):
    """The folder of a run with all its stages."""
    if not (world / "run" / "results.json").exists():
        run_well(run_program, "train", *run_flags(world))
    return world / "run"


def test_a_run_reports_teacher_student_and_labels_alone(finished):
    results = read_json(finished / "results.json")
    for name in ("teacher", "hard", "distilled"):
        assert 0.0 <= results[f"{name}/accuracy"] <= 1.0
    assert 0.0 <= results["distilled/agreement"] <= 1.0 and "hard/agreement" in results
    assert results["distilled/kl"] >= 0.0 and results["distilled/parameters"] > 0
    # Colours and heavenly bodies are told apart by single words: less than this is not learning.
    assert results["teacher/accuracy"] >= 0.75


def test_a_finished_run_gives_its_result_again(world, finished, run_program):
    before = read_json(finished / "results.json")
    run_well(run_program, "train", *run_flags(world))
    after = read_json(finished / "results.json")
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_the_model_of_a_run_loads_with_its_labels(finished):
    found = kd.load_pretrained(finished / "model")
    assert found.label_names == ("colour", "sky")
    assert found.config.encoder.num_layers == 1
    assert (finished / "model" / "vocab.txt").is_file()
    assert not any("projection" in name for name in found.params)


def test_evaluation_scores_the_model_of_a_run(world, finished, run_program):
    run_well(run_program, "evaluate", f"--workdir={finished}")
    found = read_json(finished / "evaluation.json")
    results = read_json(finished / "results.json")
    assert found["accuracy"] == results["distilled/accuracy"]
    np.testing.assert_allclose(found["kl"], results["distilled/kl"], rtol=1e-5)
    rows = list(csv.DictReader((finished / "predictions.csv").open(encoding="utf-8")))
    assert len(rows) == 12
    assert rows[0]["text"].split()[1] == "is"
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert right == found["accuracy"]
    learnt = ("--config.data.with_validation=True", "--part=validation")
    run_well(run_program, "evaluate", *run_flags(world), *learnt)
    found = read_json(finished / "evaluation.json")
    assert found["part"] == "validation" and not {"accuracy", "kl"} & set(found)


def test_timing_and_what_evaluation_refuses(world, finished, run_program):
    run_well(run_program, "evaluate", *run_flags(world), "--timing")
    found = read_json(finished / "evaluation.json")
    assert found["latency/p50_ms"] > 0 and found["throughput/texts_per_s"] > 0
    for flag, message in (
        ("--part=holdout", "--part=holdout: texts has train, validation, test"),
        (f"--submission={world / 'submission'}", "texts is no task of GLUE"),
        (f"--model={world / 'nowhere'}", "is no folder with a config.json"),
    ):
        code, _, errors = run_program("distillation.evaluate", *run_flags(world), flag)
        assert code == 2 and message in errors and "Traceback" not in errors
    code, _, errors = run_program("distillation.evaluate", f"--workdir={world / 'mistyped'}")
    assert code == 2 and "has no model/ of a run" in errors and not (world / "mistyped").exists()


def logits_of(network, ids, mask):
    params = jax.tree.map(jnp.asarray, network.params)
    return kd.TextModel(network.config).apply({"params": params}, ids, mask=mask).logits


@pytest.mark.parametrize("form", ["huggingface", "stablehlo"])
def test_an_export_gives_the_same_logits(finished, tmp_path, run_program, form):
    out = tmp_path / "out"
    run_well(run_program, "export", f"--workdir={finished}", f"--output={out}", f"--format={form}")
    before, after = (kd.load_pretrained(path) for path in (finished / "model", out))
    ids = jnp.array([[2, 5, 14, 8, 3], [2, 6, 3, 0, 0]])
    mask = ids != 0
    expected, again = (logits_of(network, ids, mask) for network in (before, after))
    found = again if form == "huggingface" else kd.read_program(out)(after.params, ids, mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_export_without_a_place_is_refused(finished, run_program):
    code, _, errors = run_program("distillation.export", f"--workdir={finished}")
    assert code == 2 and "--output is missing" in errors


def test_a_cached_teacher_teaches_the_same(world, finished, run_program):
    flags = [*run_flags(world, "cached"), "--config.cache_teacher=True"]
    run_well(run_program, "train", *flags)
    first, second = (read_json(path / "results.json") for path in (finished, world / "cached"))
    # The teacher's outputs were computed in batches of other rows.
    for name in ("distilled/accuracy", "distilled/kl"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3)
    assert (world / "cached" / "stage_2" / "teacher_outputs").is_dir()


def test_an_ablation_compares_variants_over_seeds(tmp_path, run_program):
    run_well(run_program, "ablate", *ablation_flags(tmp_path))
    runs = tmp_path / "run" / "runs.jsonl"
    rows = [json.loads(line) for line in runs.read_text("utf-8").splitlines()]
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in ("hard", "kd", "hidden")
    ]
    results = read_json(tmp_path / "run" / "results.json")
    own = [row["test/accuracy"] for row in rows if row["variant"] == "kd"]
    np.testing.assert_allclose(results["kd/test/accuracy"], np.mean(own))
    assert {"kd/over hard", "kd/p", "teacher/test/accuracy"} <= results.keys()
    table = (tmp_path / "run" / "table.md").read_text("utf-8")
    assert "| hidden |" in table and (tmp_path / "run" / "ablation.png").stat().st_size > 1000
    assert not (tmp_path / "run" / "seed_0" / "checkpoints").exists()
    # Complete seeds are not trained again, and others may be asked for, but nothing else.
    run_well(run_program, "ablate", *ablation_flags(tmp_path, seeds=(1,)))
    assert [json.loads(line) for line in runs.read_text("utf-8").splitlines()] == rows
    results = read_json(tmp_path / "run" / "results.json")
    assert results["kd/test/accuracy"] == own[1]
    code, _, errors = run_program(
        "distillation.ablate", *ablation_flags(tmp_path), "--config.stage.num_steps=9"
    )
    assert code == 2 and "stage.num_steps: 8 -> 9" in errors


@pytest.mark.parametrize(
    "line, message",
    [
        ("kd", "write NAME = PART"),
        ("kd = ", "write NAME = PART"),
        ("kd = start:first", "learns nothing"),
        ("kd = gap:colour", "no knowledge that can be matched"),
        ("kd = gap:hiden_mse", "the nearest is 'hidden_mse'"),
        ("kd = respons~4", "part 'respons~4': write response, .*, start:LAYERS, or a match"),
        ("kd = response@x", "could not convert"),
        ("kd = response@-1", "weight -1 must be a number of 0 or more"),
        ("kd = hard@inf", "weight inf must be"),
        ("kd = response~0", "temperature=0.0 divides logits"),
    ],
    ids=[
        "name",
        "empty",
        "nothing",
        "knowledge",
        "nearly",
        "word",
        "weight",
        "negative",
        "infinite",
        "temperature",
    ],
)
def test_a_variant_that_cannot_be_read_is_told(line, message):
    with pytest.raises(ValueError, match=message):
        parse_variant(line)


def compile_for_minilm(lines, response):
    variants = [parse_variant(line) for line in lines]
    sizes = kd.Shape(3, 384, 12), kd.Shape(6, 384, 12)
    base = kd.ObjectiveConfig(response=response, hard=kd.HardConfig(1.0))
    return variants, compile_variants(variants, base, *sizes, "classification")


@pytest.mark.parametrize("kind", SHIPPED["KINDS"])
def test_the_students_of_the_shipped_comparisons_learn_what_they_say(kind):
    config = run_config(SHIPPED["get_config"](kind), AblationConfig)
    response = config.stage.objective.response
    variants, compiled = compile_for_minilm(config.variants, response)
    assert config.baseline in [variant.name for variant in variants]
    for variant, factors in zip(variants, compiled.factors, strict=True):
        used = {name.partition("/")[0] for name, factor in factors.items() if factor}
        wanted = {match.knowledge for match in variant.matches}
        wanted |= {"response"} if variant.response else set()
        assert used == wanted | ({"hard"} if variant.hard else set())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variants": ("kd = response", "kd = hard")}, "every name once"),
        ({"variants": ("kd = response",)}, "baseline='hard' is none of the variants"),
        ({"variants": ("hard = emd:hidden_mse",)}, "'hard': emd:hidden_mse takes layers"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\): give one at least, and every one once"),
        ({"at_once": -1}, "at_once=-1 must be 0"),
        ({"teacher": TeacherConfig("minilm_l6,mpnet_base")}, "give one teacher"),
        ({"cache_teacher": True}, "cache_teacher: one pass of the teacher feeds all"),
    ],
    ids=["names", "baseline", "moving", "seeds", "at once", "teachers", "cache"],
)
def test_what_cannot_be_compared_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        AblationConfig(stage=StageConfig(num_steps=1, global_batch_size=8), **changes)


R_DROP = kd.ObjectiveConfig(hard=kd.HardConfig(1.0, r_drop=1.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("microbatch_size", {"microbatch_size": 4}),
        ("best_metric", {"best_metric": "validation/accuracy", "patience": 1}),
        ("optimizer.ema_decay", {"optimizer": OptimizerConfig(ema_decay=0.9)}),
        ("objective.matches", {"objective": kd.ObjectiveConfig("last1:cos")}),
        ("objective.hard.r_drop", {"objective": R_DROP}),
    ],
)
def test_what_students_side_by_side_do_not_have_is_refused(name, changes):
    with pytest.raises(ValueError, match=f"stage.{name} is not for students side by side"):
        AblationConfig(stage=StageConfig(num_steps=1, global_batch_size=8, **changes))


def test_students_of_logits_need_a_loss_between_them():
    with pytest.raises(ValueError, match=r"\['kd'\] learn logits, and .* is 'none'"):
        compile_for_minilm(["hard = hard", "kd = response"], kd.ResponseConfig("none"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_layers": 9}, "student.num_layers=9 is more than the 6 of the weights"),
        ({"width": 768}, "student.width=768 is more than the 384 of the weights"),
        (
            {"num_heads": 7},
            "student.num_heads=7 does not divide the width 384; use such as 4, 6, 8",
        ),
    ],
    ids=["layers", "width", "heads"],
)
def test_sizes_that_a_student_cannot_have_are_told_by_their_settings(changes, message):
    teacher = BertConfig(100, 6, 384, 12, 1536)
    student = StudentConfig(**changes)
    with pytest.raises(ValueError, match=message):
        check_sizes(student, student_sizes(student, teacher), teacher)
    larger = StudentConfig(weights="random", num_layers=9, width=768)
    check_sizes(larger, student_sizes(larger, teacher), teacher)


def test_layers_of_the_start_by_name_and_number():
    assert start_layers("gap") == "gap" and start_layers("0, 2,4") == (0, 2, 4)
    with pytest.raises(ValueError, match="numbers with commas"):
        start_layers("0,two")
