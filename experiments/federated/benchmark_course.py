"""What our courses reach and what they cost: accuracy after rounds, memory of many clients."""

import dataclasses
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.workers import Worker
from experiments.federated.benchmark_work import (
    WIDTHS,
    Work,
    accuracy,
    draw_weights,
    load_digits,
    write_work,
)
from experiments.federated.peers.gate import read_work

GIB = 2**30


def accuracy_of_rounds(rounds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Accuracy of the course of the benchmark after some rounds, on one device and on all.

    Args:
      rounds: at which it is looked at.
    """
    found = {}
    for name, num_devices in (("one device", 1), ("one device a core", 0)):
        with Worker(name, make_course_actions, tuple(rounds), num_devices) as worker:
            found[name] = worker.ask("accuracy").value
    return found


def make_course_actions(rounds: tuple[int, ...], num_devices: int) -> dict[str, Any]:
    """The course of the benchmark, in a process of its own."""
    from jaxlab import federated

    federated.use_cpu_cores()
    from experiments.federated.benchmark_ours import make_course, to_layers

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "work.npz")
            write_work(path, Work(num_rounds=max(rounds)))
            settings, x, y, layers = read_work(str(path))
        simulation, _ = make_course(Work(**settings), x, y, layers, num_devices)
        found = {}

        def look(state: Any) -> None:
            if state.server.round in rounds:
                layers = to_layers(simulation.variables(state))
                found[f"after {state.server.round} rounds"] = accuracy(layers)

        federated.run_course(simulation.course, simulation.start(), on_round=look)
        return found

    return {"accuracy": run}


def memory_of_course(num_clients: int) -> dict[str, dict[str, float]]:
    """Peak memory of processes that run five rounds with many clients and evaluate all of them.

    Clients have 50 digits of 784 bytes each, drawn with repetition from MNIST. `scaffold` keeps a
    control variate of the size of the model for every client in files.

    Args:
      num_clients: clients.
    """
    found = {}
    for name in ("fed_avg", "scaffold"):
        with Worker(name, make_memory_actions, num_clients, name) as worker:
            found[name] = worker.ask("run").value
    return found


def make_memory_actions(num_clients: int, name: str) -> dict[str, Any]:
    """A course of many clients, in a process of its own."""
    from jaxlab import federated

    federated.use_cpu_cores()

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            simulation, stored = _many_clients(num_clients, name, folder)
            end = federated.run_course(simulation.course, simulation.start())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "peak GiB": peak * (1 if sys.platform == "darwin" else 1024) / GIB,
            "files GiB": stored / GIB,
            "accuracy": end.server.evaluations[-1].metrics["test/correct"],
            "rounds": float(end.server.round),
        }

    return {"run": run}


def _many_clients(num_clients: int, name: str, folder: str) -> tuple[Any, int]:
    """The simulation, and the bytes that its clients keep."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.federated.benchmark_ours import to_variables
    from jaxlab import federated, parallel
    from jaxlab.federated import datasets, models

    work = dataclasses.replace(Work(), num_clients=num_clients, num_rounds=5)
    train, tested = load_digits()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(train["y"]), (num_clients, work.client_size))
    tests = np.array_split(np.arange(len(tested["y"])), num_clients)
    data, test = (
        federated.gather_clients({"x": part["x"], "y": part["y"]}, list(who))
        for part, who in ((train, rows), (tested, tests))
    )
    schedule = federated.Schedule(work.batch_size)
    example = jax.ShapeDtypeStruct((28, 28, 1), jnp.float32)
    model = models.MLP(WIDTHS[1:], use_norm=False)
    task = federated.classification(model, example, datasets.scale_pixels())
    if name == "scaffold":
        algorithm = federated.scaffold(task, work.rate, schedule, num_clients)
    else:
        algorithm = federated.fed_avg(task, optax.sgd(work.rate), schedule)
    variables = jax.tree.map(jnp.asarray, to_variables(task, draw_weights()))
    store = federated.ClientStore(
        jax.device_get(algorithm.init_client(variables)), num_clients, folder
    )
    config = federated.CourseConfig(
        num_clients, work.num_rounds, federated.Strategy(cohort_size=work.cohort_size),
        eval_every_rounds=0,
    )  # fmt: skip
    simulation = federated.make_simulation(
        config, algorithm, data, variables, schedule, mesh=parallel.make_mesh(),
        splits={"test": test}, store=store,
    )  # fmt: skip
    return simulation, store.num_bytes
