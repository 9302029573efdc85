"""The benchmark of distillation at a tiny size: what it counts, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from experiments.common.workers import Timed
from experiments.distillation import benchmark_speed, benchmark_sweep
from experiments.distillation.benchmark_work import Sizes, Work, draw_batch, textbrewer_matches

TINY = Work(Sizes(2, 8, 2, 8), Sizes(1, 8, 2, 8), vocab_size=20, batch_size=2, length=4, rounds=3)


class Fake:
    """A worker whose steps take fixed times, and whose losses are fixed."""

    def __init__(self, seconds, losses=(2.0, 1.0)):
        self.seconds, self.losses = iter(seconds), losses

    def ask(self, action):
        if action == "losses":
            return Timed(self.losses, 0.0, 0.0)
        taken = next(self.seconds)
        return Timed(0.0, taken, taken / 2)


def test_ratios_are_of_medians_after_the_first_step():
    ours, peer = Fake([90, 1, 9, 2]), Fake([1, 4, 8, 3], (2.0, 1.00005))
    rows = benchmark_speed.compare({"ours": ours, "peer": peer}, TINY, 1e-4)
    assert rows["peer"] == {"steps/s": 1 / 4, "best": 1 / 3, "steps/CPU s": 1 / 2}
    assert (rows["ours"]["ratio"], rows["ours"]["by CPU time"]) == (2, 2)
    assert rows["ours"]["best"] == 1
    np.testing.assert_allclose(rows["ours"]["loss error"], 5e-5, rtol=1e-3)


def test_unequal_work_is_refused():
    workers = {"ours": Fake([]), "TextBrewer": Fake([], (2.0, 1.001))}
    with pytest.raises(RuntimeError, match="ours and TextBrewer differ by 0.001 of their losses"):
        benchmark_speed.compare(workers, TINY, 1e-4)


def test_what_cannot_be_done_is_told_at_once():
    with pytest.raises(ValueError, match="widths 8 and 4 differ.*3 layers do not divide.*=600 is"):
        Work(Sizes(4, 8, 2, 8), Sizes(3, 4, 2, 8), length=600)


def test_matches_and_batches_are_of_the_sizes():
    work = Work(Sizes(12, 8, 2, 8), Sizes(3, 8, 2, 8), length=10)
    matches = textbrewer_matches(work)
    assert [match["layer_T"] for match in matches[:4]] == [0, 4, 8, 12]
    assert matches[-1]["layer_S"] == [3, 3] and len(matches) == 8
    batch = draw_batch(work)
    lengths = batch["mask"].sum(axis=1)
    assert lengths.min() >= 5 and batch["ids"].shape == (32, 10)
    assert not batch["ids"][~batch["mask"]].any()


@pytest.fixture
def quick_compiler():
    """What is run here is small: compiling it takes the time, and half of it without effort."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class InPlace:
    """A worker that works in this process."""

    def __init__(self, name, make, *args, threads=0):
        self.actions = make(*args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, action):
        return Timed(self.actions[action](), 1.0, 1.0)


def run_suite(run_program, monkeypatch, tmp_path, suite, *arguments):
    for module in (benchmark_speed, benchmark_sweep):
        monkeypatch.setattr(f"{module.__name__}.Worker", InPlace)
        monkeypatch.setattr(f"{module.__name__}.use_device", lambda device: None)
    target = tmp_path / "found.json"
    code, output, errors = run_program(
        "distillation.benchmark", f"--suite={suite}", f"--json={target}", "--rounds=1",
        "--teacher=1,8,2,8", "--student=1,8,2,8", "--vocabulary=20", "--batch=2", "--length=4",
        "--dropout=0",
        *arguments,
    )  # fmt: skip
    assert code == 0, errors
    ((title, found),) = json.loads(target.read_text("utf-8")).items()
    assert title in output and "1 to 1 layers of 8, 2 texts of 4 tokens" in title
    return found


@pytest.mark.usefixtures("quick_compiler")
def test_a_cached_teacher_does_the_same_work(run_program, monkeypatch, tmp_path):
    found = run_suite(run_program, monkeypatch, tmp_path, "cache")
    assert found["cached"]["loss error"] < 1e-5
    assert found["cached"]["ratio"] == found["live"]["steps/s"] == 1


@pytest.mark.usefixtures("quick_compiler")
def test_a_sweep_does_the_same_work(run_program, monkeypatch, tmp_path):
    found = run_suite(run_program, monkeypatch, tmp_path, "sweep", "--students=2", "--at_once=2")
    assert found["one by one"]["seconds"] == 2 and found["2 at once"]["speed-up"] == 2
    assert all(row["temporary GiB"] > 0 for row in found.values())
    assert found["2 at once"]["arguments GiB"] > found["one by one"]["arguments GiB"]


def test_students_that_train_otherwise_are_refused():
    workers = [Fake([], (2.0, 1.0)), Fake([], (2.0, 1.1))]
    with pytest.raises(RuntimeError, match="students 2 at once differ by 0.1"):
        benchmark_sweep._check(["one by one", "2 at once"], workers, 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--suite is missing; give speed, cache or sweep"),
        (("--suite=cache", "--teacher=12,768"), "--teacher=12,768: wanted layers,width,heads,mlp"),
        (("--suite=sweep", "--at_once=1,x"), "--at_once=1,x has ['x']; wanted integers from 1"),
        (("--suite=cache", "--json=none/found.json"), "--json=none/found.json cannot be written"),
    ],
)
def test_a_wrong_flag_is_one_sentence(run_program, arguments, message):
    code, _, errors = run_program("distillation.benchmark", *arguments)
    assert code == 2 and f"error: {message}" in errors and "Traceback" not in errors
