"""The teacher's outputs for the training texts, computed once and kept in the folder of a stage."""

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.distillation.settings import NetworksConfig, StageConfig
from experiments.distillation.tasks import Problem
from experiments.distillation.teachers import Teachers
from jaxlab import distillation as kd
from jaxlab import parallel
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.teacher_cache import (
    Kept,
    TeacherCache,
    fill_cache,
    teacher_identity,
)

logger = logging.getLogger(__name__)

FOLDER = "teacher_outputs"


def open_cache(
    config: NetworksConfig,
    stage: StageConfig,
    problem: Problem,
    objective: kd.Objective,
    teacher: Teachers,
    workdir: Path,
    mesh: Mesh,
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches of a stage with the teacher's outputs in them; what is missing is computed first.

    Args:
      config: the settings of the run.
      stage: those of the stage.
      problem: the data.
      objective: what is compared of the teacher.
      teacher: the network, or several.
      workdir: folder of the stage.
      mesh: the devices.

    Returns:
      From the number of updates done to the batches from there on.

    Raises:
      ValueError: if the folder holds the outputs of another teacher, or several processes run.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "cache_teacher=True writes one folder from one process; run it on one host, or set "
            "cache_teacher=False"
        )
    kept = Kept(
        logits="float32" if objective.config.response.is_used else "none",
        features=objective.teacher_entries,
        precision="float32",
    )
    mixed = f"{teacher.mixing} at {objective.config.response.temperature}"
    identity = teacher_identity(
        tokenizer=problem.tokenizer_identity,
        params=teacher.params,
        max_len=problem.max_length,
        compute=config.dtype if len(teacher.networks) == 1 else f"{config.dtype}, {mixed}",
    )
    run = _make_teacher(config, teacher, objective, mesh)
    cache = fill_cache(workdir / FOLDER, identity, kept, problem.batches("train"), run)
    return functools.partial(_attached, problem.training(stage), cache)


def _attached(
    make_batches: Callable[[int], Iterator[dict[str, Any]]], cache: TeacherCache, start_step: int
) -> Iterator[dict[str, Any]]:
    """The batches from a step on, each with what the teacher showed of it."""
    for batch in make_batches(start_step):
        yield cache.attach(batch)


def _make_teacher(
    config: NetworksConfig, teacher: Teachers, objective: kd.Objective, mesh: Mesh
) -> Callable[[Any], Features]:
    """From a batch on the host to what the teacher shows of it."""
    forward = teacher.forward(config, objective.config.response.temperature)
    params = parallel.place(mesh, teacher.params)
    run = jax.jit(functools.partial(forward, taps=objective.teacher_taps))

    def show(batch: Any) -> Features:
        fields, _ = parallel.split_host_fields(batch)
        return run(params, parallel.shard_batch(mesh, fields))

    return show
