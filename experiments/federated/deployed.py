"""Both ends of a deployed course, made of the settings that its server was started with.

The server sends its settings along, so that every node makes the same model, algorithm and keys of
them. What a node trains on is its own part of the data set that they name, or a file of its own.
"""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.configs import run_config
from experiments.federated.courses import make_is_converged
from experiments.federated.learned import MODEL, save_variables
from experiments.federated.metrics import ClientNumbers, watched_metric
from experiments.federated.settings import RunConfig
from experiments.federated.tasks import Problem, make_problem, plan_course
from jaxlab.federated import ClientData, ConfigError, datasets, deployment
from jaxlab.training.workdir import RESULTS, read_json, write_json

WORKDIR, SETTINGS = "JAXLAB_DEPLOY_WORKDIR", "settings"
"""Environment variable that tells the ServerApp its folder; key of an app's configuration."""
PROGRESS, OUTCOME, ERROR = "progress.jsonl", "outcome.json", "error.txt"
JOINED = "joined.json"
"""Which clients have joined the server that runs now."""
MAX_NAMED = 10


Examples = dict[str, np.ndarray]


class Settings(NamedTuple):
    """What a deployed course is made of.

    Attributes:
      config: the settings of the run.
      live: times and limits.
      answer_timeout_s: seconds that a client may take to answer.
    """

    config: RunConfig
    live: deployment.LiveConfig
    answer_timeout_s: float


def write_settings(settings: Settings) -> str:
    """The settings as a text that crosses the wire."""
    return json.dumps(
        {
            "config": dataclasses.asdict(settings.config),
            "live": dataclasses.asdict(settings.live),
            "answer_timeout_s": settings.answer_timeout_s,
        }
    )


def read_settings(text: str) -> Settings:
    """The settings in a text, checked.

    Raises:
      ValueError: listing all that is unknown or out of range.
    """
    found = json.loads(text)
    return Settings(
        run_config(found["config"], RunConfig),
        run_config(found["live"], deployment.LiveConfig, "live"),
        float(found["answer_timeout_s"]),
    )


class Course(NamedTuple):
    """A course, and the problem that it is about.

    Attributes:
      problem: data and model.
      agreement: what server and nodes agree on.
      learner_options: what else `make_learner` takes.
      splits: what evaluations go over.
      metric: what is shown.
    """

    problem: Problem
    agreement: deployment.Agreement
    learner_options: dict[str, Any]
    splits: dict[str, ClientData]
    metric: str


def deployable(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The settings without what only a simulation does, and what that is.

    Args:
      config: the settings of a run.

    Returns:
      The settings, and a clause for everything that they had and a deployment leaves out.

    Raises:
      ConfigError: (a ValueError) if nothing would be evaluated, or functions of one's own are
        named.
    """
    evaluation = config.evaluation
    if not evaluation.splits:
        raise ConfigError(
            "evaluation.splits=() and the server of a deployed course holds no examples; name what "
            "clients evaluate on, such as ('test',)"
        )
    factories = {
        f"{group}.factory": getattr(config, group).factory for group in ("data", "model", "task")
    }
    if named := [f"{name}={value!r}" for name, value in factories.items() if value]:
        raise ConfigError(
            f"{', '.join(named)}: settings travel to the nodes, which run no code that a server "
            "names; deploy your own code as an app of two files, see help(jaxlab.federated."
            "deployment)"
        )
    left_out = {
        f"devices.kind={config.devices.kind!r} (time is real)": config.devices.kind != "none",
        f"devices.failure_rate={config.devices.failure_rate}": config.devices.failure_rate,
        "beside (deploy it by itself)": config.beside is not None,
        f"baselines={config.baselines} (simulate them)": config.baselines,
        f"evaluation.by_server={evaluation.by_server} (the server holds no examples)": (
            evaluation.by_server
        ),
    }
    kept = dataclasses.replace(
        config, beside=None, baselines=(), baseline_rounds=0,
        evaluation=dataclasses.replace(evaluation, by_server=()),
    )  # fmt: skip
    return kept, [name for name, given in left_out.items() if given]


def make_course(settings: Settings) -> Course:
    """The course of the settings, without what only a simulation does.

    Args:
      settings: of the server.

    Raises:
      ValueError: if they contradict each other, or data is missing.
    """
    config, _ = deployable(settings.config)
    problem = make_problem(config)
    plan = plan_course(config, problem)
    examples = problem.data.train.examples
    agreement = deployment.Agreement(
        dataclasses.replace(plan.config, answer_timeout_s=settings.answer_timeout_s),
        plan.algorithm, problem.variables, problem.schedule,
        {n: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for n, v in examples.items()},
    )  # fmt: skip
    metric = watched_metric(config, problem.data.info.num_classes)
    options = {
        "aggregator": plan.aggregator,
        "sampler": plan.sampler,
        "summarize": ClientNumbers(config.evaluation.report).summarize,
        "is_converged": make_is_converged(config, metric),
    }
    return Course(problem, agreement, options, plan.splits, metric)


def part_of(data: ClientData, client: int) -> dict[str, np.ndarray]:
    """The examples of one client.

    Args:
      data: of all.
      client: its id, from 1.
    """
    start, size = int(data.offsets[client - 1]), int(data.sizes[client - 1])
    return {
        name: np.asarray(values[start : start + size]) for name, values in data.examples.items()
    }


def make_own_node(course: Course, client: int, own: Path | None) -> deployment.Node:
    """The node of a client.

    Args:
      course: what is learned.
      client: its id, from 1.
      own: an NPZ file with its examples, `x` and `y` to train on and `x_test`, `y_test`, `x_val`,
        `y_val` to evaluate; None takes its part of the data set of the settings.

    Raises:
      ValueError: if there is no such client, or the file has other arrays.
    """
    count = course.agreement.config.num_clients
    if not 1 <= client <= count:
        raise ValueError(f"client={client}: the course has the clients 1 to {count}")
    if own is None:
        train = part_of(course.problem.data.train, client)
        splits = {name: part_of(data, client) for name, data in course.splits.items()}
    else:
        train, splits = read_own(own, tuple(course.splits), course.agreement.example)
    return deployment.make_node(course.agreement, train, splits, number=client)


def read_own(
    path: Path, splits: tuple[str, ...], example: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Examples, dict[str, Examples]]:
    """Training examples and splits of an NPZ file.

    Args:
      path: the file, see `datasets.read_npz`.
      splits: names of what evaluations go over; those that the file lacks are left out.
      example: form of an example; numbers of NumPy's own types become its types.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no NPZ file of arrays, or they do not fit together.
    """
    train, parts = datasets.read_npz(path)
    held = {"train": train} | {name: parts[name] for name in splits if name in parts}
    converted = {name: as_agreed(part, example) for name, part in held.items()}
    return converted["train"], converted


def as_agreed(part: Examples, example: Mapping[str, jax.ShapeDtypeStruct]) -> Examples:
    """The arrays in the number types that are agreed on, where no value changes its meaning.

    NumPy makes float64 and int64 of lists; JAX computes in 32 bits.

    Args:
      part: name -> (examples, ...).
      example: form of an example.
    """

    def convert(values: np.ndarray, wanted: np.dtype[Any]) -> np.ndarray:
        if values.dtype.kind != wanted.kind or wanted.kind not in "if":
            return values
        converted = values.astype(wanted)
        is_same = wanted.kind == "f" or np.array_equal(converted, values)
        return converted if is_same else values

    return {
        name: convert(values, np.dtype(example[name].dtype)) if name in example else values
        for name, values in part.items()
    }


def make_app() -> Any:
    """The ServerApp; its folder comes from the environment, its settings from the app."""

    def place(context: Any) -> deployment.ServerPlace:
        leave_with_parent()
        workdir = Path(os.environ[WORKDIR])

        def tell(error: Exception) -> None:
            (workdir / ERROR).write_text(str(error), "utf-8")

        try:
            return make_place(context.run_config, workdir)._replace(on_error=tell)
        except Exception as error:
            tell(error)
            raise

    return deployment.make_server_app(place)


def leave_with_parent(patience_s: float = 10.0) -> None:
    """Ends this process when the one that started it is gone.

    Flower's own way out waits for ever for a SuperLink that was killed.

    Args:
      patience_s: seconds that Flower's way out is given.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(patience_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_place(app: Mapping[str, Any], workdir: Path) -> deployment.ServerPlace:
    """The server of a deployed course.

    Args:
      app: configuration of the app.
      workdir: folder of the run.
    """
    settings = read_settings(app[SETTINGS])
    course = make_course(settings)
    learner = deployment.make_learner(course.agreement, **course.learner_options)

    def write_joined(state: deployment.LiveState) -> None:
        write_json(workdir / JOINED, {"clients": sorted(state.nodes)})

    return deployment.ServerPlace(
        learner, workdir, settings.live,
        on_progress=make_writer(settings, course, workdir), on_join=write_joined,
    )  # fmt: skip


def describe_joined(path: Path, num_clients: int) -> tuple[str, bool]:
    """How many clients have joined, and whether some have not.

    Args:
      path: what the server writes of them.
      num_clients: of the course.
    """
    joined = (read_json(path) or {}).get("clients", [])
    missing = sorted(set(range(1, num_clients + 1)) - set(joined))
    if not missing:
        return f"all {num_clients} clients have joined", False
    named = ", ".join(map(str, missing[:MAX_NAMED])) + ("..." if missing[MAX_NAMED:] else "")
    return f"{len(joined)} of {num_clients} clients have joined; waiting for {named}", True


def make_writer(
    settings: Settings, course: Course, workdir: Path
) -> Callable[[deployment.LiveState], None]:
    """Writes a line whenever the course has moved on, and its results at the end.

    Args:
      settings: of the course.
      course: what is learned.
      workdir: folder of the run.
    """

    def write(state: deployment.LiveState) -> None:
        server = state.server
        line: dict[str, Any] = {"round": server.round, "seconds": server.clock_us / 1e6}
        if server.evaluations:
            last = server.evaluations[-1]
            line |= {"evaluated_round": last.round, **last.metrics}
        with open(workdir / PROGRESS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if server.finished:
            finish(state)

    def finish(state: deployment.LiveState) -> None:
        server = state.server
        variables = course.agreement.algorithm.variables(server.model)
        config, problem = settings.config, course.problem
        save_variables(
            workdir / MODEL, problem.module, problem.example, variables, config.algorithm.num_mixed
        )
        metrics = dict(server.evaluations[-1].metrics) if server.evaluations else {}
        counts = {name: float(count) for name, count in sorted(server.counts.items())}
        numbers = {"rounds": server.round, "seconds": server.clock_us / 1e6}
        write_json(workdir / RESULTS, {**metrics, **numbers, **counts})
        write_json(workdir / OUTCOME, {"finished": True})

    return write
