"""The Python of the README runs as it stands: the first example, and every other one after it."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxlab.federated
from jaxlab.federated import datasets

README = Path(jaxlab.federated.__file__).with_name("README.md").read_text("utf-8")
FIRST, *OTHERS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHOWN = {
    "def loss": r"\(150,\) \{.*test/correct",
    "clipped_mean": r"0\.[6-9]",
    "on_battery": "completeness of the course: pass",
    "def show": "round 20, 0.0 virtual s, .*test/correct",
    "load_mnist": "100 clients hold",
    "EarlyStop": r"0\.\d+ 0\.\d+",
    "import csv": "",
    "def make_model": "",
    "save_course": "",
}


@pytest.fixture(name="names", scope="module")
def run_first():
    names = {}
    exec(compile(FIRST, "README.md", "exec"), names)
    return names


def small_mnist():
    rng = np.random.default_rng(0)
    parts = [
        {
            "x": rng.integers(0, 256, (size, 28, 28, 1)).astype(np.uint8),
            "y": rng.integers(0, 10, size).astype(np.int32),
        }
        for size in (4000, 1000)
    ]
    return datasets.CentralData(datasets.DataInfo("mnist", "drawn", "", 10), *parts)


def test_the_first_example_learns(names):
    state = names["state"]
    assert names["simulation"].report(state)["rounds"] == 20
    # Better than the more frequent of two classes.
    assert state.server.evaluations[-1].metrics["test/correct"] > 0.6


@pytest.mark.parametrize("word", SHOWN)
def test_every_other_example_runs_after_the_first(word, names, capsys, monkeypatch, tmp_path):
    (example,) = [text for text in OTHERS if word in text]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_mnist", small_mnist)
    exec(compile(example, "README.md", "exec"), dict(names))
    assert re.search(SHOWN[word], capsys.readouterr().out, re.DOTALL)


def test_no_example_is_left_out():
    assert len(OTHERS) == len(SHOWN)
    assert all(any(word in text for word in SHOWN) for text in OTHERS)
