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

import jax
from absl import flags
from jax.sharding import Mesh

from experiments.common import print_results, run
from experiments.federated import courses
from experiments.federated.cores import start_devices
from experiments.federated.courses import evaluate_clients, write_clients
from experiments.federated.learned import load_variables
from experiments.federated.metrics import ClientNumbers
from experiments.federated.settings import RunConfig
from experiments.federated.tables import print_spread
from experiments.federated.tasks import (
    Plan,
    Problem,
    chosen_plan,
    make_problem,
    make_simulation,
)
from jaxlab.federated import CourseState, Simulation
from jaxlab.federated.evaluation import make_server_evaluation
from jaxlab.federated.monitoring import SERVER_SUFFIX
from jaxlab.federated.width import AUTO
from jaxlab.training.workdir import open_workdir, write_json

logger = logging.getLogger(__name__)

NUMBERS, CLIENTS = "evaluation.json", "evaluation.csv"

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None,
    "Checkpoint of FederatedScope, or model.safetensors of a run, to evaluate in place of the run.",
)  # fmt: skip
_COURSE = flags.DEFINE_string(
    "course",
    None,
    "Which course of the run: sync, async, beside, or a baseline, local or global; by default the "
    "main one.",
)


def main(config: RunConfig, workdir: Path) -> None:
    """Load, evaluate, report."""
    if _CHECKPOINT.value is None and not workdir.expanduser().is_dir():
        raise FileNotFoundError(
            f"--workdir={workdir} is no folder; give that of a run of simulate, or --checkpoint"
        )
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
    by_server = evaluate_by_server(config, plan, state, mesh, numbers)
    write_json(workdir / NUMBERS, metrics | by_server)
    write_clients(workdir / CLIENTS, plan, numbers)
    title = "The checkpoint" if _CHECKPOINT.value else plan.name
    print_spread(metrics, f"{title} over its clients")
    if by_server:
        print_results(by_server, title=f"{title}, by the server")
    print(f"Every client: {workdir / CLIENTS}")


def evaluate_by_server(
    config: RunConfig, plan: Plan, state: CourseState, mesh: Mesh, numbers: ClientNumbers
) -> dict[str, float]:
    """Metrics of the shared model over the examples that the server evaluates on by itself.

    Args:
      config: the settings of the run.
      plan: the course.
      state: where it stands.
      mesh: the devices.
      numbers: makes metrics of sums.
    """
    evaluate = make_server_evaluation(plan.algorithm, plan.variables, plan.server_splits, mesh)
    sums = evaluate(plan.algorithm.evaluation(state.server.model), jax.random.key(config.seed))
    metrics: dict[str, float] = {}
    for split, each in sums.items():
        metrics |= numbers.summarize(f"{split}{SERVER_SUFFIX}", each)
    return metrics


def with_variables(config: RunConfig, problem: Problem, path: str) -> Problem:
    """The problem with the model of a file.

    Args:
      config: the settings.
      problem: tells which model the file should have.
      path: a checkpoint of the original or `model.safetensors`.
    """
    variables = load_variables(path, problem.module, problem.example, config.algorithm.num_mixed)
    return problem._replace(variables=variables)


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
