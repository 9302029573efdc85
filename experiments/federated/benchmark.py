r"""Measure simulated courses: rounds beside other simulators, accuracy, memory.

    python -m experiments.federated.benchmark --suite=speed --json=speed.json \
        --fedjax_python=FEDJAX/bin/python --pfl_python=PFL/bin/python \
        --federatedscope_python=FEDERATEDSCOPE/bin/python --flower_python=FLOWER/bin/python
    python -m experiments.federated.benchmark --suite=accuracy
    python -m experiments.federated.benchmark --suite=memory

Suites: `speed` (rounds of all simulators in turns, each in its own environment, after all have
given the same model), `accuracy` (the course of the speed suite over 60 rounds), `memory` (courses
of 10,000 clients in a process each). The work is that of `benchmark_work`;
`experiments/BENCHMARKS.md` holds the numbers last measured and how the environments are made.
"""

from pathlib import Path

from absl import flags

from experiments.common import print_grid, run
from experiments.common.json_file import json_target, write_json
from experiments.federated.benchmark_course import accuracy_of_rounds, memory_of_course
from experiments.federated.benchmark_speed import PEERS, speed

_SUITE = flags.DEFINE_enum("suite", None, ["speed", "accuracy", "memory"], "What to measure.")
_PYTHONS = {
    name: flags.DEFINE_string(f"{name}_python", None, f"Interpreter of an environment of {title}.")
    for name, (title, _) in PEERS.items()
}
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Timed rounds, of which the median counts.", 1)
_WARM_UP = flags.DEFINE_integer("warm_up", 3, "Rounds before them.", 1)
_THREADS = flags.DEFINE_integer("torch_threads", 0, "Of pfl-research; 0 leaves its default.", 0)
_CLIENTS = flags.DEFINE_integer("clients", 10_000, "Clients of the memory suite.", 50)

flags.declare_key_flag("json")


def main() -> None:
    """Run a suite, print its table, save its numbers."""
    if _SUITE.value is None:
        raise ValueError("--suite is missing; give speed, accuracy or memory")
    target = json_target()
    found = {"speed": _speed, "accuracy": _accuracy, "memory": _memory}[_SUITE.value]()
    for title, grid in found.items():
        print_grid(grid, title)
    if target is not None:
        write_json(target, found)


def _speed() -> dict[str, dict[str, dict[str, float]]]:
    pythons = {name: flag.value for name, flag in _PYTHONS.items() if flag.value is not None}
    for name, python in pythons.items():
        if not Path(python).is_file():
            raise ValueError(f"--{name}_python={python} is no file; give its bin/python")
    found = speed(pythons, _ROUNDS.value, _WARM_UP.value, _THREADS.value)
    return {"Clients a second": found}


def _accuracy() -> dict[str, dict[str, dict[str, float]]]:
    return {"Accuracy on MNIST's test digits": accuracy_of_rounds((20, 40, 60))}


def _memory() -> dict[str, dict[str, dict[str, float]]]:
    return {"Memory of a course": memory_of_course(_CLIENTS.value)}


if __name__ == "__main__":
    run(main)
