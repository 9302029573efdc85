"""Distil a teacher into a student on a task of texts, and report both.

    python -m experiments.distillation.train --config=configs/distillation/tiny.py --workdir=DIR

The teacher learns the task first, where the settings say so; the student learns from it in one or
two stages; a second student of the same start learns from labels alone, to compare with. DIR gets a
folder a stage (checkpoints, `metrics.jsonl`, TensorBoard), `teacher_model/` and `model/` in the
form of Hugging Face with their vocabulary, and `results.json`. Run again, it goes on where it was.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.common import print_grid, run, start
from experiments.distillation.augmentation import augment_problem
from experiments.distillation.caching import open_cache
from experiments.distillation.models import Network, make_model, make_student, open_network
from experiments.distillation.scores import compare, headline, score
from experiments.distillation.settings import NetworksConfig, RunConfig, StageConfig
from experiments.distillation.tasks import Problem, load_problem, save_network
from jaxlab import distillation as kd
from jaxlab import parallel, training
from jaxlab.distillation.evaluate import predict
from jaxlab.training.workdir import open_workdir

logger = logging.getLogger(__name__)

TEACHER, STAGE_1, STAGE_2, HARD = "teacher", "stage_1", "stage_2", "hard"
TEACHER_MODEL, MODEL, HARD_MODEL = "teacher_model", "model", "hard_model"


def main(config: RunConfig, workdir: Path) -> None:
    """Load, teach, distil, report."""
    started = time.monotonic()
    mesh = start()
    workdir = open_workdir(workdir)
    problem = load_problem(config, (config.stage_1, config.stage_2))
    problem.describe()
    networks = train_networks(config, problem, workdir, mesh)
    report(problem, networks, workdir, mesh, time.monotonic() - started)


def train_networks(
    config: RunConfig, problem: Problem, workdir: Path, mesh: Mesh
) -> dict[str, Network]:
    """Teacher, student and the student of labels alone, as far as the settings have them.

    Args:
      config: the settings of the run.
      problem: its data.
      workdir: folder of the run.
      mesh: the devices.

    Returns:
      `teacher`, `distilled`, `hard` -> network, parameters on the host.
    """
    task = {"task": problem.task, "num_labels": problem.num_labels}
    untuned = teacher = open_network(
        config.teacher.weights, pooling=config.teacher.pooling, seed=0, **task
    )
    teacher = problem.align(teacher)
    if (stage := config.teacher.stage) is not None:
        teacher = run_stage(config, stage, problem, workdir / TEACHER, mesh, teacher)
        keep(problem, teacher, workdir / TEACHER_MODEL)
    networks = {"teacher": teacher}
    stages = [(STAGE_1, config.stage_1), (STAGE_2, config.stage_2)]
    seed = next((stage.seed for _, stage in stages if stage is not None), 0)
    begin = make_student(config, untuned if config.student.untuned else teacher, seed=seed)
    student = begin
    varied = augment_problem(config, problem) if any(stage for _, stage in stages) else problem
    for name, stage in stages:
        if stage is not None:
            student = run_stage(config, stage, varied, workdir / name, mesh, student, teacher)
            networks["distilled"] = student
    if config.hard_stage is not None:
        stage = config.hard_stage
        networks["hard"] = run_stage(config, stage, problem, workdir / HARD, mesh, begin)
    for name, folder in (("distilled", MODEL), ("hard", HARD_MODEL)):
        if name in networks:
            keep(problem, networks[name], workdir / folder)
    return networks


def keep(problem: Problem, network: Network, folder: Path) -> None:
    """Write a network with its vocabulary, once for all processes."""
    if parallel.is_main_process():
        save_network(folder, network, problem)


def run_stage(
    config: NetworksConfig,
    stage: StageConfig,
    problem: Problem,
    workdir: Path,
    mesh: Mesh,
    student: Network,
    teacher: Network | None = None,
) -> Network:
    """Train one stage, or read its result if it has ended before.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      problem: the data.
      workdir: folder of the stage.
      mesh: the devices.
      student: what learns.
      teacher: what it learns from; None for labels alone.

    Returns:
      The student after the stage, on the host.
    """
    stage = stage.with_steps(problem.steps_per_epoch(stage.global_batch_size))
    objective = kd.compile_objective(
        stage.objective,
        student.shape,
        None if teacher is None else teacher.shape,
        task=problem.task,
    )
    teacher = teacher if objective.needs_teacher else None
    make_batches, live = problem.training(stage), teacher
    if teacher is not None and config.cache_teacher:
        make_batches = open_cache(config, stage, problem, objective, teacher, workdir, mesh)
        live = None
    model = make_model(config, student)
    parts = kd.Parts(
        objective,
        kd.make_forward(model, prefix="student_"),
        None if live is None else kd.make_forward(make_model(config, live)),
    )
    tx = training.make_optimizer(stage.resolved_optimizer, stage.num_steps)
    rules = getattr(parallel.ShardingRules, config.sharding)()

    def init(key: jax.Array) -> training.TrainState:
        draw, own = jax.random.split(key)
        params = kd.distillation_params(objective, student.params, draw)
        return training.TrainState.create(params, tx, own)

    def validate(state: training.TrainState) -> dict[str, float]:
        params = kd.exported_params(training.evaluation_params(state))
        found = predict(parts.student, params, problem.batches("validation"), mesh)
        return {f"validation/{n}": v for n, v in score(problem, "validation", found).items()}

    measured = stage.eval_every_steps > 0 or bool(stage.best_metric)
    result = training.train_loop(
        config=stage,
        workdir=workdir,
        init=init,
        step=kd.make_distillation_step(
            parts, tx, stage.num_steps, num_microbatches=stage.num_microbatches
        ),
        make_batches=make_batches,
        frozen={} if live is None else {"teacher": live.params},
        evaluators=[training.Evaluator("validation", validate)] if measured else [],
        mesh=mesh,
        rules=rules,
        run_config=config,
    )
    params = kd.exported_params(training.evaluation_params(result.state))
    return student._replace(params=parallel.to_host(params))


def report(
    problem: Problem,
    networks: dict[str, Network],
    workdir: Path,
    mesh: Mesh,
    seconds: float,
) -> None:
    """Predict the test set with every network, write `results.json`, print the table.

    Args:
      problem: the data.
      networks: what was trained.
      workdir: folder of the run.
      mesh: the devices.
      seconds: since the start of the run.
    """
    part = problem.reported_part if problem.is_scored else "train"
    scores = score_all(problem, networks, part, mesh) if problem.is_scored else last_losses(workdir)
    for name, network in networks.items():
        scores[name] = {**scores.get(name, {}), **sizes(problem, network)}
    results: dict[str, Any] = headline(scores, seconds)
    if parallel.is_main_process():
        training.write_results(workdir, results)
        print_grid(scores, title=f"{workdir}: {problem.name}, {part}, {seconds:.0f} s")


def score_all(
    problem: Problem, networks: dict[str, Network], part: str, mesh: Mesh
) -> dict[str, dict[str, float]]:
    """What every network scores on a part of the data, and how students agree with the teacher.

    Args:
      problem: the data.
      networks: what was trained, and the teacher.
      part: of the data.
      mesh: the devices.
    """
    predictions = {
        name: predict(
            kd.make_forward(kd.TextModel(network.config)),
            network.params,
            problem.batches(part),
            mesh,
        )
        for name, network in networks.items()
    }
    scores = {name: score(problem, part, found) for name, found in predictions.items()}
    for name in networks.keys() - {"teacher"}:
        scores[name] |= compare(problem, part, predictions[name], predictions["teacher"])
    return scores


def last_losses(workdir: Path) -> dict[str, dict[str, float]]:
    """The last losses of the student's last stage: all there is to report of plain text.

    Args:
      workdir: folder of the run.
    """
    folder = next(f for name in (STAGE_2, STAGE_1) if (f := workdir / name).is_dir())
    results = training.read_results(folder)
    return {"distilled": {n: float(v) for n, v in results.items() if n.startswith("train/loss")}}


def sizes(problem: Problem, network: Network) -> dict[str, float]:
    """What a network costs: parameters, and operations for a text of the longest length."""
    flops = kd.flops(network.config, problem.max_length)
    return {"parameters": kd.num_params(network.config), "gflops": flops / 1e9}


if __name__ == "__main__":
    run(main)
