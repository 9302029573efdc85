"""Distil a teacher into a student on a task of texts, and report both.

    python -m experiments.distillation.train --config=configs/distillation/tiny.py --workdir=DIR

The teacher learns the task first, where the settings say so; the student learns from it in one or
two stages; a second student of the same start learns from labels alone, to compare with. DIR gets a
folder a stage (checkpoints, `metrics.jsonl`, TensorBoard), `teacher_model/` and `model/` in the
form of Hugging Face with their vocabulary, and `results.json`. Run again, it goes on where it was.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.common import print_grid, run, start
from experiments.common.stages import chosen_state
from experiments.distillation.augmentation import augment_problem
from experiments.distillation.caching import open_cache
from experiments.distillation.checks import check_stage
from experiments.distillation.courses import fit_principal_components, make_course
from experiments.distillation.models import Network, make_student
from experiments.distillation.own_vocabulary import (
    in_student_words,
    student_vocabulary,
    with_student_vocabulary,
)
from experiments.distillation.scores import compare, headline, score
from experiments.distillation.settings import NetworksConfig, RunConfig, StageConfig
from experiments.distillation.tasks import Problem, load_problem, save_network
from experiments.distillation.teachers import Teachers, open_teachers
from jaxlab import distillation as kd
from jaxlab import parallel, training
from jaxlab.distillation.api import MODEL
from jaxlab.distillation.evaluate import Predictions, predict
from jaxlab.distillation.train import Forward
from jaxlab.training.workdir import open_workdir, warn_of_other_settings

logger = logging.getLogger(__name__)

TEACHER, STAGE_1, STAGE_2, HARD = "teacher", "stage_1", "stage_2", "hard"
TEACHER_MODEL, HARD_MODEL = "teacher_model", "hard_model"
STUDENT_PREFIX = "student_"
ELSEWHERE = {
    TEACHER: ("stage_", "hard_stage", "student", "augmentation", "cache_teacher", "seeds"),
    STAGE_1: ("stage_2", "hard_stage"),
    STAGE_2: ("hard_stage",),
    HARD: ("stage_", "augmentation", "cache_teacher"),
}
"""Folder of a stage -> settings that do not concern it."""


def main(config: RunConfig, workdir: Path) -> None:
    """Load, teach, distil, report."""
    started = time.monotonic()
    mesh = start()
    workdir = open_workdir(workdir)
    problem = load_problem(config, (config.stage_1, config.stage_2))
    problem = with_student_vocabulary(problem, config.student)
    problem.describe()
    teachers, students = train_networks(config, problem, workdir, mesh)
    seconds = time.monotonic() - started
    report(config, problem, teachers, students, workdir, mesh, seconds)


def train_networks(
    config: RunConfig, problem: Problem, workdir: Path, mesh: Mesh
) -> tuple[Teachers, dict[str, Network]]:
    """Teachers, student and the student of labels alone, as far as the settings have them.

    Args:
      config: the settings of the run.
      problem: its data.
      workdir: folder of the run.
      mesh: the devices.

    Returns:
      What was learnt from; `distilled`, `hard` -> network, parameters on the host.
    """
    untuned = open_teachers(config, problem)
    check_stages(config, problem, untuned)
    stages = [(STAGE_1, config.stage_1), (STAGE_2, config.stage_2)]
    is_varied = any(stage for _, stage in stages)
    varied = augment_problem(config, problem, workdir) if is_varied else problem
    teachers = teach(config, problem, untuned, workdir, mesh)
    seed = next((stage.seed for _, stage in stages if stage is not None), 0)
    source = untuned[0] if config.student.untuned else teachers.first
    vocabulary = student_vocabulary(config, problem)
    begin = problem.align(make_student(config, source, seed=seed, vocabulary=vocabulary))
    students, student = {}, begin
    for name, stage in stages:
        if stage is not None:
            student = run_stage(config, stage, varied, workdir / name, mesh, student, teachers)
            students["distilled"] = student
    if (stage := config.hard_stage) is not None:
        students["hard"] = run_stage(
            config, stage, problem, workdir / HARD, mesh, begin, prefix=STUDENT_PREFIX
        )
    for name, folder in (("distilled", MODEL), ("hard", HARD_MODEL)):
        if name in students:
            keep(in_student_words(problem), students[name], workdir / folder)
    return teachers, students


def check_stages(config: RunConfig, problem: Problem, untuned: tuple[Network, ...]) -> None:
    """Tell what does not go together in any of the stages, before the first one trains.

    Args:
      config: the settings of the run.
      problem: its data.
      untuned: the teachers before they learn.

    Raises:
      ValueError: if settings, data and networks do not go together.
    """
    if config.teacher.stage is not None:
        _check_stage("teacher.stage", config, config.teacher.stage, problem, untuned[0])
    stages = {"stage_1": config.stage_1, "stage_2": config.stage_2, "hard_stage": config.hard_stage}
    if not any(stages.values()):
        return
    taught = (
        untuned if config.teacher.stage is None else tuple(n._replace(drawn=()) for n in untuned)
    )
    teachers = Teachers(taught, config.teacher.mixing)
    vocabulary = student_vocabulary(config, problem)
    student = problem.align(make_student(config, untuned[0], seed=0, vocabulary=vocabulary))
    for name, stage in stages.items():
        if stage is not None:
            teacher = None if name == "hard_stage" else teachers
            _check_stage(name, config, stage, problem, student, teacher)


def _check_stage(name: str, config: RunConfig, *checked: Any) -> None:
    try:
        compile_stage(config, *checked)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def compile_stage(
    config: NetworksConfig,
    stage: StageConfig,
    problem: Problem,
    student: Network,
    teacher: Teachers | None = None,
) -> kd.Objective:
    """The objective of a stage, checked against data and networks.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      problem: the data.
      student: what learns.
      teacher: what it learns from; None for labels alone.

    Raises:
      ValueError: if they do not go together.
    """
    shape = None if teacher is None else teacher.shape
    objective = kd.compile_objective(stage.objective, student.shape, shape, task=problem.task)
    check_stage(problem, stage, objective, student, teacher, is_cached=config.cache_teacher)
    return objective


def teach(
    config: RunConfig, problem: Problem, untuned: tuple[Network, ...], workdir: Path, mesh: Mesh
) -> Teachers:
    """The teachers after their stage, each of a seed of its own.

    Args:
      config: the settings of the run.
      problem: its data.
      untuned: the teachers before it.
      workdir: folder of the run.
      mesh: the devices.
    """
    if (stage := config.teacher.stage) is None:
        return Teachers(untuned, config.teacher.mixing)
    taught, problem = [], problem.with_fraction(config.teacher.fraction)
    for i, network in enumerate(untuned):
        own = dataclasses.replace(stage, seed=stage.seed + i)
        network = run_stage(config, own, problem, workdir / numbered(TEACHER, i), mesh, network)
        keep(problem, network, workdir / numbered(TEACHER_MODEL, i))
        taught.append(network)
    return Teachers(tuple(taught), config.teacher.mixing)


def numbered(name: str, i: int) -> str:
    """The folder of one of several teachers: the first has no number.

    Args:
      name: of the first.
      i: which of them, from 0.
    """
    return f"{name}_{i + 1}" if i else name


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
    teacher: Teachers | None = None,
    *,
    prefix: str = "",
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
      prefix: of its own tokens in a batch; with a teacher that of students.

    Returns:
      The student after the stage, on the host.

    Raises:
      ValueError: if settings, data and networks do not go together.
    """
    stage = stage.with_steps(problem.steps_per_epoch(stage.global_batch_size))
    objective = compile_stage(config, stage, problem, student, teacher)
    if results := training.read_results(workdir):
        if results["step"] != stage.num_steps and not results.get("stopped_early"):
            raise ValueError(
                f"{workdir} has ended after {results['step']} steps, and the settings have "
                f"{stage.num_steps} now: its schedule was for the former; give another --workdir"
            )
        ignored = ELSEWHERE.get(workdir.name, ELSEWHERE[TEACHER])  # a further teacher
        warn_of_other_settings(workdir, config, ignored=ignored)
    make_batches = problem.training(stage)
    principal = None
    if teacher is not None:
        principal = fit_principal_components(
            config, objective, student, teacher, make_batches(0), mesh
        )
    is_cached = config.cache_teacher and objective.needs_teacher
    if is_cached:
        assert teacher is not None, "checked when the objective was compiled"
        make_batches = open_cache(config, stage, problem, objective, teacher, workdir, mesh)
    course = make_course(
        config,
        stage,
        objective,
        student,
        teacher,
        prefix=prefix if teacher is None else STUDENT_PREFIX,
        is_cached=is_cached,
        principal=principal,
    )

    def validate(state: training.TrainState) -> dict[str, float]:
        params = course.export(training.evaluation_params(state))
        found = predict(course.forward, params, problem.batches("validation"), mesh)
        return {f"validation/{n}": v for n, v in score(problem, "validation", found).items()}

    measured = stage.eval_every_steps > 0 or bool(stage.best_metric)
    result = training.train_loop(
        config=stage,
        workdir=workdir,
        init=course.init,
        step=course.step,
        make_batches=make_batches,
        frozen=course.frozen,
        evaluators=[training.Evaluator("validation", validate)] if measured else [],
        mesh=mesh,
        rules=getattr(parallel.ShardingRules, config.sharding)(),
        run_config=config,
    )
    state = chosen_state(stage, workdir, result.state)
    params = course.export(parallel.to_host(training.evaluation_params(state)))
    return student._replace(params=jax.device_get(params), drawn=())


def report(
    config: RunConfig,
    problem: Problem,
    teachers: Teachers,
    students: dict[str, Network],
    workdir: Path,
    mesh: Mesh,
    seconds: float,
) -> None:
    """Predict the test set with every network, write `results.json`, print the table.

    Args:
      config: the settings of the run.
      problem: the data.
      teachers: what was learnt from; several are reported one by one, too.
      students: what was trained.
      workdir: folder of the run.
      mesh: the devices.
      seconds: since the start of the run.
    """
    part = problem.reported_part if problem.is_scored else "train"
    if part == "validation" and problem.config.with_validation:
        part = "train"
    single = teachers.networks if len(teachers.networks) > 1 else ()
    singles = {f"{TEACHER}_{i}": network for i, network in enumerate(single, start=1)}
    costs = {TEACHER: sizes(problem, *teachers.networks)}
    costs |= {name: sizes(problem, network) for name, network in {**singles, **students}.items()}
    if part != "train":
        scores = score_all(config, problem, teachers, singles, students, part, mesh)
    else:
        scores = last_losses(workdir)
    scores = {name: {**scores.get(name, {}), **cost} for name, cost in costs.items()}
    results: dict[str, Any] = headline(scores, seconds)
    if parallel.is_main_process():
        training.write_results(workdir, results)
        print_grid(scores, title=f"{workdir}: {problem.name}, {part}, {seconds:.0f} s")


def score_all(
    config: RunConfig,
    problem: Problem,
    teachers: Teachers,
    singles: dict[str, Network],
    students: dict[str, Network],
    part: str,
    mesh: Mesh,
) -> dict[str, dict[str, float]]:
    """What every network scores on a part of the data, and how students agree with the teacher.

    Args:
      config: the settings of the run.
      problem: the data.
      teachers: what was learnt from.
      singles: each of several teachers.
      students: what was trained.
      part: of the data.
      mesh: the devices.
    """

    def say(forward: Forward, params: PyTree) -> Predictions:
        return predict(forward, params, problem.batches(part), mesh)

    predictions = {TEACHER: say(teachers.forward(config, config.temperature), teachers.params)}
    for named, prefix in ((singles, ""), (students, STUDENT_PREFIX)):
        for name, network in named.items():
            forward = kd.make_forward(kd.TextModel(network.config), prefix=prefix)
            predictions[name] = say(forward, network.params)
    scores = {name: score(problem, part, found) for name, found in predictions.items()}
    for name in students:
        scores[name] |= compare(problem, part, predictions[name], predictions[TEACHER])
    return scores


def last_losses(workdir: Path) -> dict[str, dict[str, float]]:
    """The last losses of the student's last stage: all there is to report of plain text.

    Args:
      workdir: folder of the run.
    """
    folders = (workdir / name for name in (STAGE_2, STAGE_1))
    results = next((found for f in folders if (found := training.read_results(f))), {})
    return {"distilled": {n: float(v) for n, v in results.items() if n.startswith("train/loss")}}


def sizes(problem: Problem, *networks: Network) -> dict[str, float]:
    """What networks cost: parameters, and operations for a text of the longest length."""
    flops = sum(kd.flops(network.config, problem.max_length) for network in networks)
    return {
        "parameters": sum(kd.num_params(network.config) for network in networks),
        "gflops": flops / 1e9,
    }


if __name__ == "__main__":
    run(main)
