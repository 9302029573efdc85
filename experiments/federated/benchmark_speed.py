"""Rounds of several simulators, one let through at a time."""

import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.federated.benchmark_work import CHECK, Simulator, Work, accuracy, write_work

OURS = "jaxlab"
PEERS = {
    "fedjax": ("fedjax 0.0.17 and jax 0.4", "fedjax_rounds"),
    "pfl": ("pfl 0.6.0 and torch", "pfl_rounds"),
    "federatedscope": ("FederatedScope 0.3.0 and torch", "federatedscope_rounds"),
    "flower": ("flwr[simulation] and torch", "flower_rounds"),
}
"""Flag of the interpreter -> what its environment holds, and the script of `peers`."""

_WEIGHT_ERROR = 1e-6
_CHECK_ROUNDS = 2

Commands = Mapping[str, tuple[str, str]]


def speed(
    pythons: Mapping[str, str], num_rounds: int, warm_up: int, torch_threads: int
) -> dict[str, dict[str, float]]:
    """Clients a second of every simulator, by the median round, and ours over theirs.

    Args:
      pythons: name of a peer -> its interpreter.
      num_rounds: that are timed.
      warm_up: rounds before them.
      torch_threads: of pfl-research, 0 for its default; FederatedScope takes one by itself.

    Raises:
      RuntimeError: if a simulator does not give the model that ours gives, or its process ends.
    """
    if torch_threads:
        os.environ["OMP_NUM_THREADS"] = str(torch_threads)
    commands = {OURS: (sys.executable, "experiments.federated.benchmark_ours")}
    for name, python in pythons.items():
        commands[name] = (python, f"experiments.federated.peers.{PEERS[name][1]}")
    with tempfile.TemporaryDirectory() as folder:
        check(commands, Path(folder))
        work = Work()
        write_work(Path(folder, "work.npz"), work)
        with contextlib.ExitStack() as stack:
            simulators = [
                stack.enter_context(
                    Simulator(name, *command, Path(folder, "work.npz"), Path(folder, f"{name}.log"))
                )
                for name, command in commands.items()
            ]
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(warm_up + num_rounds):
                for simulator in simulators:
                    times[simulator.name].append(simulator.round())
            reached = {simulator.name: accuracy(simulator.weights()) for simulator in simulators}
    return _rows(times, reached, work.cohort_size, warm_up)


def check(commands: Commands, folder: Path) -> None:
    """Let every simulator do two rounds in which chance has no part, and compare the models.

    Args:
      commands: name -> interpreter and module; the first is compared with.
      folder: for files.

    Raises:
      RuntimeError: if models differ.
    """
    path = folder / "check.npz"
    write_work(path, CHECK)
    wanted: list[np.ndarray] = []
    for name, command in commands.items():
        with Simulator(name, *command, path, folder / f"{name}.log") as simulator:
            for _ in range(_CHECK_ROUNDS):
                simulator.round()
            found = simulator.weights()
        wanted = wanted or found
        error = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
        if not error <= _WEIGHT_ERROR:
            raise RuntimeError(
                f"after {_CHECK_ROUNDS} rounds over all clients the weights of {name} differ by "
                f"{error:.2g} from those of {next(iter(commands))}, more than {_WEIGHT_ERROR:g}: "
                "they do not do the same work"
            )


def _rows(
    times: Mapping[str, list[tuple[float, float]]],
    reached: Mapping[str, float],
    cohort_size: int,
    warm_up: int,
) -> dict[str, dict[str, float]]:
    rows = {}
    for name, taken in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken[warm_up:], strict=True))
        rows[name] = {
            "clients/s": cohort_size / wall,
            "best": cohort_size / min(seconds for seconds, _ in taken),
            # The processes that Flower trains in are not this one.
            **({} if name == "flower" else {"by CPU time": cohort_size / cpu}),
            "first round, s": taken[0][0],
            "accuracy": reached[name],
        }
    for row in rows.values():
        row["jaxlab / this"] = rows[OURS]["clients/s"] / row["clients/s"]
        if "by CPU time" in row:
            row["by CPU"] = rows[OURS]["by CPU time"] / row["by CPU time"]
    return rows
