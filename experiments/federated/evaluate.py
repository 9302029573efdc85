"""Evaluate what a course has learned on every client, shared and personal models.

    python -m experiments.federated.evaluate --config=configs/federated/tiny.py --workdir=DIR
    python -m experiments.federated.evaluate --config=configs/federated/femnist.py --workdir=DIR \
        --checkpoint=femnist.pt

The course is the one that the run in DIR has simulated (`--course` where there are two), with all
that its clients keep; or `--checkpoint`, the shared model of a file of FederatedScope or of
`model.safetensors`, with clients that have kept nothing. Printed is how the numbers of the clients
are spread; DIR gets `evaluation.json` with that and `evaluation.csv` with every client's own.
"""

import logging
from pathlib import Path

from absl import flags

from experiments.common import print_grid, run
from experiments.federated import courses
from experiments.federated.cores import start_devices
from experiments.federated.courses import ClientNumbers, evaluate_clients, spread, write_clients
from experiments.federated.settings import RunConfig
from experiments.federated.tasks import (
    Plan,
    Problem,
    load_variables,
    make_problem,
    make_simulation,
    plan_course,
)
from jaxlab.federated import CourseState, Simulation
from jaxlab.federated.width import AUTO
from jaxlab.training.workdir import open_workdir, write_json

logger = logging.getLogger(__name__)

NUMBERS, CLIENTS = "evaluation.json", "evaluation.csv"

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None,
    "Checkpoint of FederatedScope, or model.safetensors of a run, to evaluate in place of the run.",
)  # fmt: skip
_COURSE = flags.DEFINE_string(
    "course", None, "Which course of the run: sync, async or beside; by default the main one."
)


def main(config: RunConfig, workdir: Path) -> None:
    """Load, evaluate, report."""
    mesh = start_devices()
    workdir = open_workdir(workdir)
    problem = make_problem(config, is_abstract=_CHECKPOINT.value is not None)
    if _CHECKPOINT.value is not None:
        problem = with_variables(config, problem, _CHECKPOINT.value)
    plan = chosen_plan(config, problem, _COURSE.value)
    numbers = ClientNumbers(("weighted_avg", "avg", "fairness"))
    simulation = make_simulation(problem, plan, mesh, width=config.width or AUTO)
    if _CHECKPOINT.value is not None:
        state = simulation.start()
    else:
        state = finished_state(simulation, workdir / plan.name)
    metrics = evaluate_clients(simulation, state, plan, numbers)
    write_json(workdir / NUMBERS, metrics)
    write_clients(workdir / CLIENTS, problem, plan, numbers)
    title = f"{_CHECKPOINT.value or workdir / plan.name}, over the clients"
    print_grid(spread(metrics), title=title)
    print(f"Every client: {workdir / CLIENTS}")


def with_variables(config: RunConfig, problem: Problem, path: str) -> Problem:
    """The problem with the model of a file.

    Args:
      config: the settings.
      problem: tells which model the file should have.
      path: a checkpoint of the original or `model.safetensors`.
    """
    num_models = config.algorithm.num_models if config.algorithm.name == "fed_em" else 0
    variables = load_variables(path, problem.module, problem.example, num_models)
    return problem._replace(variables=variables)


def chosen_plan(config: RunConfig, problem: Problem, name: str | None) -> Plan:
    """The course of a run that is to be evaluated.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      name: of the course; None is the main one.

    Raises:
      ValueError: if the run has no such course.
    """
    plans = [plan_course(config, problem)]
    if config.beside is not None:
        plans.append(plan_course(config, problem, config.beside))
    named = {plan.name: plan for plan in plans}
    if name is not None and name not in named:
        raise ValueError(f"--course={name} is not in this run; it has {', '.join(named)}")
    return named[name or plans[0].name]


def finished_state(simulation: Simulation, folder: Path) -> CourseState:
    """The state of a course at its end, or where it was saved last.

    Args:
      simulation: the course.
      folder: its folder.

    Raises:
      FileNotFoundError: if nothing was saved.
    """
    state = courses.restore(simulation, folder)
    if state is None:
        raise FileNotFoundError(
            f"{folder} has no checkpoint of a course; simulate it first (python -m "
            "experiments.federated.simulate), or give --checkpoint"
        )
    return state


if __name__ == "__main__":
    run(
        main,
        workdir_help="Folder of the run whose course is evaluated, and of the result; made if "
        "absent where --checkpoint is given.",
    )
