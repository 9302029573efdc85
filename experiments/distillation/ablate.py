r"""Compare ways to distil: students of one shape beside one teacher, over several seeds.

    python -m experiments.distillation.ablate --config=configs/distillation/ablation.py \
        --workdir=DIR

The teacher learns the task, then all variants train side by side in one program, once for every
seed (a seed is an order of the texts, a new head and a dropout; variants of one seed share all
three, so that their differences are paired). DIR gets `runs.jsonl`, a line for every student,
`table.md` with means, deviations and tests against the baseline, `ablation.png` and `results.json`.
Run again, it goes on behind the last seed that is complete; further seeds may be asked for then.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.common import run, start
from experiments.distillation.ablation_report import write_report
from experiments.distillation.augmentation import augment_problem
from experiments.distillation.checks import check_stage
from experiments.distillation.courses import fit_principal_components, make_optimizer
from experiments.distillation.models import Network, make_model, make_student
from experiments.distillation.own_vocabulary import student_vocabulary, with_student_vocabulary
from experiments.distillation.scores import compare, score
from experiments.distillation.settings import AblationConfig
from experiments.distillation.tasks import Problem, load_problem
from experiments.distillation.teachers import Teachers, open_teachers
from experiments.distillation.train import STUDENT_PREFIX, TEACHER, run_stage
from experiments.distillation.variants import Compiled, Variant, compile_variants, parse_variant
from jaxlab import distillation as kd
from jaxlab import parallel, training
from jaxlab.distillation.compared import top_features
from jaxlab.distillation.evaluate import Predictions, predict
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.train import PRINCIPAL, STUDENT
from jaxlab.training.resume import CHECKPOINTS
from jaxlab.training.workdir import CONFIG, check_config, open_workdir, read_json, save_config

logger = logging.getLogger(__name__)

RUNS = "runs.jsonl"


def main(config: AblationConfig, workdir: Path) -> None:
    """Load, teach, train all students of all seeds, report."""
    started = time.monotonic()
    mesh = start()
    workdir = open_workdir(workdir)
    with training.lock_workdir(workdir):
        check_config(workdir, with_free_settings(config, workdir))
        if parallel.is_main_process():
            save_config(workdir, config)
    problem = with_student_vocabulary(load_problem(config), config.student)
    problem.describe()
    variants = [parse_variant(line) for line in config.variants]
    (untuned,) = open_teachers(config, problem)
    compiled = compile_students(config, problem, variants, untuned)  # tells what is wrong
    teacher = teach(config, problem, untuned, workdir, mesh)
    theirs = predictions_of(problem, teacher, mesh)
    varied = augment_problem(config, problem, workdir)
    rows = read_runs(workdir / RUNS)
    for seed in config.seeds:
        if sum(row["seed"] == seed for row in rows) < len(variants):
            begin = untuned if config.student.untuned else teacher
            found = run_seed(
                config, varied, variants, compiled, seed, teacher, begin, workdir, mesh
            )
            rows = [row for row in rows if row["seed"] != seed]
            rows += measure(problem, variants, seed, found, theirs)
            if parallel.is_main_process():
                write_runs(workdir / RUNS, rows)
    scores = {part: score(problem, part, found) for part, found in theirs.items()}
    rows = [row for row in rows if row["seed"] in config.seeds]
    if parallel.is_main_process():
        write_report(workdir, config, rows, scores, time.monotonic() - started)


def with_free_settings(config: AblationConfig, workdir: Path) -> AblationConfig:
    """The settings with what may change as a folder was begun with it: seeds, students at once.

    Args:
      config: the settings of the ablation.
      workdir: its folder.
    """
    kept = read_json(workdir / CONFIG)
    if kept is None:
        return config
    return dataclasses.replace(config, seeds=tuple(kept["seeds"]), at_once=kept["at_once"])


def teach(
    config: AblationConfig, problem: Problem, untuned: Network, workdir: Path, mesh: Mesh
) -> Network:
    """The teacher that knows the task.

    Args:
      config: the settings of the ablation.
      problem: its data.
      untuned: the teacher before it learns, if it does.
      workdir: folder of the ablation.
      mesh: the devices.
    """
    if config.teacher.stage is None:
        return untuned
    taught = problem.with_fraction(config.teacher.fraction)
    return run_stage(config, config.teacher.stage, taught, workdir / TEACHER, mesh, untuned)


def compile_students(
    config: AblationConfig, problem: Problem, variants: Sequence[Variant], teacher: Network
) -> Compiled:
    """One objective for the students of every seed.

    Args:
      config: the settings of the ablation.
      problem: its data.
      variants: what the students learn.
      teacher: what they learn from and are cut from.

    Raises:
      ValueError: if variants, data and networks do not go together.
    """
    vocabulary = student_vocabulary(config, problem)
    student = make_student(config, teacher, seed=0, vocabulary=vocabulary)
    sizes = student.shape, teacher.shape
    compiled = compile_variants(variants, config.stage.objective, *sizes, problem.task)
    if config.teacher.stage is not None:
        teacher = teacher._replace(drawn=())  # it learns the task first
    check_stage(problem, config.stage, compiled.objective, student, Teachers((teacher,)))
    return compiled


def run_seed(
    config: AblationConfig,
    problem: Problem,
    variants: Sequence[Variant],
    compiled: Compiled,
    seed: int,
    teacher: Network,
    begin: Network,
    workdir: Path,
    mesh: Mesh,
) -> tuple[Network, Any]:
    """Train all variants of one seed.

    Args:
      config: the settings of the ablation.
      problem: its data.
      variants: what the students learn.
      compiled: the same as one objective.
      seed: of order, head and dropout.
      teacher: what they learn from.
      begin: what they are cut from.
      workdir: folder of the ablation.
      mesh: the devices.

    Returns:
      One of the students at its start, and the parameters of all after the training, stacked.
    """
    stage = dataclasses.replace(config.stage, seed=seed)
    stage = stage.with_steps(problem.steps_per_epoch(stage.global_batch_size))
    vocabulary = student_vocabulary(config, problem)
    students = [
        problem.align(make_student(with_start(config, v), begin, seed=seed, vocabulary=vocabulary))
        for v in variants
    ]
    names = [variant.name for variant in variants]
    parts = kd.Parts(
        compiled.objective,
        kd.make_forward(make_model(config, students[0]), prefix=STUDENT_PREFIX),
        kd.make_forward(make_model(config, teacher)),
        is_aligned=True,  # as check_stage has seen
    )
    taught = Teachers((teacher,))
    principal = fit_principal_components(
        config, compiled.objective, students[0], taught, problem.training(stage)(0), mesh
    )
    tx = make_optimizer(stage, students[0])
    folder = workdir / f"seed_{seed}"
    state = sweep_state(compiled, students, tx, seed)
    result = training.train_loop(
        config=stage,
        workdir=folder,
        init=state,
        step=kd.make_sweep_step(
            parts, tx, stage.num_steps, sweep_variants(compiled, len(names)), names,
            at_once=config.at_once,
        ),
        make_batches=problem.training(stage),
        frozen={"teacher": teacher.params, PRINCIPAL: principal},
        mesh=mesh,
        rules=getattr(parallel.ShardingRules, config.sharding)(),
        run_config=config,
    )  # fmt: skip
    params = parallel.to_host(result.state.params[STUDENT])
    if parallel.is_main_process():  # all students, with their moments
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return students[0], params


def with_start(config: AblationConfig, variant: Variant) -> AblationConfig:
    """The settings, with the layers of the teacher that a variant starts from.

    Args:
      config: the settings of the ablation.
      variant: may name layers of its own.
    """
    if not variant.start:
        return config
    student = dataclasses.replace(config.student, layers=variant.start)
    return dataclasses.replace(config, student=student)


def sweep_variants(compiled: Compiled, number: int) -> kd.Variants:
    """The arrays by which the students differ; they share one dropout.

    Args:
      compiled: all variants.
      number: of them.
    """
    return kd.make_variants(
        compiled.objective,
        compiled.factors,
        temperatures=compiled.temperatures,
        seeds=[0] * number,
    )


def sweep_state(
    compiled: Compiled, students: Sequence[Network], tx: Any, seed: int
) -> training.TrainState:
    """The state before the first step, on the host.

    Args:
      compiled: all variants.
      students: at their start.
      tx: the optimizer of each.
      seed: of projections and dropout.
    """
    params = [student.params for student in students]
    fitted = students[0].fit_dense
    return kd.init_sweep(compiled.objective, params, tx, jax.random.key(seed), fitted=fitted)


def measure(
    problem: Problem,
    variants: Sequence[Variant],
    seed: int,
    trained: tuple[Network, Any],
    teacher: dict[str, Predictions],
) -> list[dict[str, Any]]:
    """A line of numbers for every student.

    Args:
      problem: the data.
      variants: what the students learnt.
      seed: of this run.
      trained: from `run_seed`.
      teacher: the teacher's predictions by part.
    """
    network, params = trained
    forward = kd.make_forward(kd.TextModel(network.config), prefix=STUDENT_PREFIX)

    def all_students(params: Any, batch: Any) -> Features:
        logits: Any = jax.vmap(lambda p: top_features(forward(p, batch)).logits)(params)
        return Features(logits=jnp.moveaxis(logits, 0, 1))

    rows: list[dict[str, Any]] = [{"variant": v.name, "seed": seed} for v in variants]
    for part, theirs in teacher.items():
        found = predict(all_students, params, problem.batches(part))
        for i, row in enumerate(rows):
            own = Predictions(found.example_ids, np.ascontiguousarray(found.logits[:, i]))
            numbers = {**score(problem, part, own), **compare(problem, part, own, theirs)}
            row |= {f"{part}/{name}": value for name, value in numbers.items()}
    return rows


def predictions_of(problem: Problem, network: Network, mesh: Mesh) -> dict[str, Predictions]:
    """What a network says of the validation and of the reported part.

    Args:
      problem: the data.
      network: with parameters on the host.
      mesh: the devices.
    """
    forward = kd.make_forward(kd.TextModel(network.config))
    parts = dict.fromkeys(("validation", problem.reported_part))
    return {part: predict(forward, network.params, problem.batches(part), mesh) for part in parts}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of runs; none where there is no file.

    Args:
      path: of the file.

    Raises:
      ValueError: naming the line that cannot be read.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: no line of JSON ({error}); remove it, and its seed runs again"
            ) from error
    return rows


def write_runs(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all lines, and then put the file in its place.

    Args:
      path: of the file.
      rows: of all students.
    """
    scratch = path.with_suffix(".new")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    run(main)
