"""The benchmark of simulators: its ratios, what it refuses, and its suites at a tiny size."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.common.workers import Timed
from experiments.federated import benchmark_course, benchmark_speed, benchmark_work
from experiments.federated.benchmark_work import Simulator, Work, write_work

OURS = (sys.executable, "experiments.federated.benchmark_ours")
CHECK = Work(num_clients=4, cohort_size=4, client_size=20, batch_size=20)
TINY = functools.partial(Work, num_clients=50, cohort_size=4, client_size=20)

# Full batches and no draws: what a check asks for, in float64 and without a framework.
PEER = """
import numpy as np

from experiments.federated.peers.gate import open_gate, read_work


def gradients(layers, x, labels):
    inputs = [x]
    for kernel, bias in zip(layers[:-2:2], layers[1:-2:2]):
        inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0))
    logits = inputs[-1] @ layers[-2] + layers[-1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(10)[labels]) / len(labels)
    found = []
    for before, kernel in zip(inputs[::-1], layers[-2::-2]):
        found = [before.T @ error, error.sum(axis=0), *found]
        error = (error @ kernel.T) * (before > 0)
    return found


path, gate = open_gate()
settings, x, y, layers = read_work(path)
layers = [layer.astype(np.float64) for layer in layers]
while gate.wait(lambda: layers):
    {begin}
    steps = [gradients(layers, *client) for client in zip(x, y)]
    means = [np.mean(each, axis=0) for each in zip(*steps)]
    layers = [a - {factor} * settings["rate"] * b for a, b in zip(layers, means)]
"""


def draw_digits(count, seed):
    """Pictures whose class is told by two bright rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, count)
    x = rng.integers(0, 100, (count, 28, 28, 1), dtype=np.uint8)
    for row in range(2):
        x[np.arange(count), 2 * y + row] = 255
    return {"x": x, "y": y}


@pytest.fixture
def digits(monkeypatch):
    drawn = draw_digits(2600, 0), draw_digits(200, 1)
    for module in (benchmark_work, benchmark_course):
        monkeypatch.setattr(module, "load_digits", lambda: drawn)


@pytest.fixture
def make_peer(tmp_path, monkeypatch):
    """Writes a peer: `(name, factor of its rate, what it does before a round) -> command`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(benchmark_speed, "CHECK", CHECK)

    def make(name, factor=1.0, begin="pass"):
        text = PEER.replace("{factor}", str(factor)).replace("{begin}", begin)
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        return sys.executable, name

    return make


def test_ratios_are_of_medians_after_the_warm_up():
    times = {
        "jaxlab": [(9.0, 9.0), (1.0, 2.0), (3.0, 4.0), (2.0, 3.0)],
        "pfl": [(7.0, 8.0), (8.0, 6.0), (4.0, 9.0), (20.0, 7.0)],
        "flower": [(50.0, 0.1), (60.0, 0.1), (70.0, 0.1), (80.0, 0.1)],
    }
    rows = benchmark_speed._rows(times, dict.fromkeys(times, 0.5), cohort_size=40, warm_up=1)
    assert rows["jaxlab"] == {
        "clients/s": 20, "best": 40, "by CPU time": pytest.approx(40 / 3), "first round, s": 9,
        "accuracy": 0.5, "jaxlab / this": 1, "by CPU": 1,
    }  # fmt: skip
    assert rows["pfl"]["jaxlab / this"] == 20 / 5
    assert rows["pfl"]["by CPU"] == pytest.approx(7 / 3)
    # The best round may be one of the warm-up; Flower's processor time is not known.
    assert rows["flower"]["best"] == 40 / 50 and rows["flower"]["jaxlab / this"] == 35
    assert not {"by CPU time", "by CPU"} & rows["flower"].keys()


def test_our_rounds_are_those_of_a_plain_form_and_others_are_refused(digits, make_peer, tmp_path):
    plain, other = make_peer("plain"), make_peer("other", factor=1.001)
    benchmark_speed.check({"jaxlab": OURS, "plain": plain}, tmp_path)
    with pytest.raises(RuntimeError, match="weights of other differ by .* do not do the same work"):
        benchmark_speed.check({"plain": plain, "other": other}, tmp_path)


@pytest.mark.parametrize("begin", ["", "raise SystemExit('no room for 3 models')"])
def test_a_process_that_ends_is_told_with_its_last_lines(digits, make_peer, tmp_path, begin):
    work, log = tmp_path / "work.npz", tmp_path / "peer.log"
    write_work(work, TINY())
    python, name = make_peer("broken", begin=begin) if begin else (sys.executable, "not_there")
    wanted = "no room for 3 models" if begin else "No module named not_there"
    with pytest.raises(RuntimeError) as error:  # noqa: PT012
        with Simulator("the peer", python, name, work, log) as simulator:
            simulator.round()
    told = str(error.value)
    assert "the process of the peer ended (exit code 1) before its round was over" in told
    assert told.endswith(wanted) and f"-m {name}" in told


class InPlace:
    """A worker that works in this process, where digits are drawn."""

    def __init__(self, name, make, *args):
        self.actions = make(*args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, action):
        return Timed(self.actions[action](), 1.0, 1.0)


@pytest.fixture
def tiny(digits, monkeypatch):
    monkeypatch.setattr(benchmark_course, "Worker", InPlace)
    for module in (benchmark_course, benchmark_speed):
        monkeypatch.setattr(module, "Work", TINY)


def run_suite(run_program, tmp_path, *arguments):
    target = tmp_path / "found.json"
    code, output, errors = run_program("federated.benchmark", *arguments, f"--json={target}")
    assert code == 0, errors
    (found,) = json.loads(target.read_text("utf-8")).items()
    assert found[0] in output
    return found[1]


def test_the_accuracy_suite_learns_and_does_not_depend_on_devices(tiny, run_program, tmp_path):
    found = run_suite(run_program, tmp_path, "--suite=accuracy")
    one, all_devices = found["one device"], found["one device a core"]
    assert one == pytest.approx(all_devices, abs=0.02)  # of 200 digits: the order of additions
    assert list(one) == [f"after {count} rounds" for count in (20, 40, 60)]
    assert one["after 60 rounds"] > 0.9


def test_the_memory_suite_counts_what_clients_keep(tiny, run_program, tmp_path):
    found = run_suite(run_program, tmp_path, "--suite=memory", "--clients=50")
    assert found["fed_avg"]["files GiB"] == 0
    model = benchmark_work.NUM_PARAMETERS * 4
    assert found["scaffold"]["files GiB"] == pytest.approx(50 * model / 2**30)
    for row in found.values():
        assert row["rounds"] == 5 and row["peak GiB"] > 0 and 0 < row["accuracy"] <= 1


def test_the_speed_suite_times_us_alone(tiny, run_program, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_speed, "check", lambda commands, folder: None)
    found = run_suite(run_program, tmp_path, "--suite=speed", "--rounds=1", "--warm_up=1")
    assert found.keys() == {"jaxlab"} and found["jaxlab"]["jaxlab / this"] == 1
    assert found["jaxlab"]["clients/s"] > 0 and found["jaxlab"]["accuracy"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--suite is missing; give speed, accuracy or memory"),
        (
            ("--suite=speed", "--fedjax_python=none/bin/python"),
            "--fedjax_python=none/bin/python is no file; give its bin/python",
        ),
        (("--suite=memory", "--clients=3"), "flag --clients=3"),
        (("--suite=memory", "--json=none/found.json"), "--json=none/found.json cannot be written"),
    ],
)
def test_a_wrong_flag_is_one_sentence(run_program, arguments, message):
    assert not Path("none").exists()
    code, _, errors = run_program("federated.benchmark", *arguments)
    assert code == 2 and f"error: {message}" in errors and "Traceback" not in errors
