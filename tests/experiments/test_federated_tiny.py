"""The tiny federated config from end to end, on real MNIST, with the bars that it must meet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_asynchronous_course_reaches_the_target_first(tmp_path):
    # Without the single thread that the test settings give to every worker.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(
        [
            *(sys.executable, "-m", "experiments.federated.simulate"),
            *("--config=configs/federated/tiny.py", f"--workdir={tmp_path}"),
        ],
        cwd=CHECKOUT,
        env=env,
        check=True,
    )
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results.keys() == {
        "test/accuracy", "sync/virtual_seconds_to_target", "async/virtual_seconds_to_target",
        "clients_per_second",
    }  # fmt: skip
    assert results["test/accuracy"] > 0.94
    waited = results["sync/virtual_seconds_to_target"]
    assert results["async/virtual_seconds_to_target"] < waited / 3
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_course_of_the_benchmark_reaches_its_accuracy(monkeypatch):
    from experiments.federated.benchmark_course import accuracy_of_rounds
    from experiments.federated.benchmark_work import load_digits

    try:
        load_digits()
    except (OSError, RuntimeError) as error:
        pytest.skip(f"MNIST cannot be had here: {error}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the single thread of the test settings
    found = accuracy_of_rounds((40, 60))
    for accuracies in found.values():
        assert accuracies["after 40 rounds"] == pytest.approx(0.9195, abs=0.01)
        assert accuracies["after 60 rounds"] == pytest.approx(0.928, abs=0.01)
