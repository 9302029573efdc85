"""How a student trains in a stage: by a distillation, or by taking the place of its teacher."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.distillation.models import Network, make_model
from experiments.distillation.settings import NetworksConfig, StageConfig
from experiments.distillation.teachers import Teachers
from jaxlab import distillation as kd
from jaxlab import parallel, training
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.projections import Projection
from jaxlab.distillation.train import LOG_VARIANCES, PRINCIPAL, STUDENT, Forward
from jaxlab.layers.stacking import LAYER_PREFIX
from jaxlab.parallel import path_name
from jaxlab.training.step import TrainStep

PRINCIPAL_BATCHES = 32
"""Of a stage, that principal components are taken from at most."""


class Course(NamedTuple):
    """A student's way through a stage.

    Attributes:
      init: from a key to the state before the first step.
      step: of the training loop.
      frozen: what a step reads and leaves.
      export: from trained parameters to those of the student.
      forward: how the student runs.
    """

    init: Callable[[jax.Array], training.TrainState]
    step: TrainStep
    frozen: dict[str, PyTree]
    export: Callable[[PyTree], PyTree]
    forward: Forward


def make_course(
    config: NetworksConfig,
    stage: StageConfig,
    objective: kd.Objective,
    student: Network,
    teacher: Teachers | None,
    *,
    prefix: str = "student_",
    is_cached: bool = False,
    principal: PyTree | None = None,
) -> Course:
    """What a stage trains, and how.

    Args:
      config: the settings of the run.
      stage: those of the stage, with its number of steps.
      objective: what is learnt.
      student: the network that learns.
      teacher: what it learns from; None for labels alone.
      prefix: of the student's own tokens in a batch, see `make_forward`.
      is_cached: batches bring what the teacher shows.
      principal: from `fit_principal_components`.
    """
    forward = kd.make_forward(make_model(config, student), prefix=prefix)
    tx = make_optimizer(stage, student)
    options: dict[str, Any] = {"num_microbatches": stage.num_microbatches}
    if stage.method == "theseus":
        assert teacher is not None, "checked"
        first, own = teacher.first, student.params["encoder"]
        trained = {name: own[name] for name in own if name.startswith(LAYER_PREFIX)}
        options["start"] = stage.replacing_start
        model = make_model(config, first)
        step = kd.make_theseus_step(objective, model, tx, stage.num_steps, **options)
        frozen = {"teacher": first.params}

        def export(params: PyTree) -> PyTree:
            return kd.extract_successor(first.params, params[STUDENT])

    else:
        live = None if is_cached or not objective.needs_teacher else teacher
        temperature = objective.config.response.temperature
        taught = None if live is None else live.forward(config, temperature)
        # Tokens that differ are refused by check_stage, which has seen all texts.
        parts = kd.Parts(objective, forward, taught, is_aligned=True)
        step = kd.make_distillation_step(parts, tx, stage.num_steps, **options)
        frozen = {} if live is None else {"teacher": live.params}
        frozen |= {PRINCIPAL: principal} if principal else {}
        trained, export = student.params, kd.exported_params

    def init(key: jax.Array) -> training.TrainState:
        draw, run = jax.random.split(key)
        params = kd.distillation_params(objective, trained, draw, student.fit_dense)
        return training.TrainState.create(params, tx, run, kd.distillation_extra(objective))

    return Course(init, step, frozen, export, forward)


def fit_principal_components(
    config: NetworksConfig,
    objective: kd.Objective,
    student: Network,
    teacher: Teachers,
    batches: Iterator[dict[str, Any]],
    mesh: Mesh,
) -> dict[str, Projection]:
    """What takes the teacher's hidden states down to the student's width, where matches ask for it.

    It is of the first batches of the stage, the same at every start.

    Args:
      config: the settings of the run.
      objective: what is learnt.
      student: the network that learns.
      teacher: what it learns from.
      batches: of the stage, from its first step on.
      mesh: the devices.

    Returns:
      Name -> projection; empty where no match asks for one.

    Raises:
      ValueError: if the batches have fewer tokens than the student has features.
    """
    if not kd.uses_principal(objective):
        return {}
    params = parallel.place(mesh, teacher.params)
    run = jax.jit(functools.partial(teacher.forward(config), taps=objective.teacher_taps))

    def show(batch: Mapping[str, Any]) -> Features:
        return Features(hidden=parallel.to_host(run(params, batch).hidden))

    def placed() -> Iterator[Mapping[str, Any]]:
        for batch in itertools.islice(batches, PRINCIPAL_BATCHES):
            fields = parallel.shard_batch(mesh, parallel.split_host_fields(batch)[0])
            yield {**fields, "mask": parallel.to_host(fields["mask"])}

    return kd.fit_principal(objective, show, placed(), student.shape.width)


def make_optimizer(stage: StageConfig, student: Network) -> optax.GradientTransformation:
    """The optimizer of a stage, in which parts may learn at rates of their own.

    Args:
      stage: with its number of steps.
      student: the network that learns.
    """
    config = stage.resolved_optimizer
    if stage.objective.weighting == "uncertainty":
        spared = (*config.no_decay, f"^{LOG_VARIANCES}/")
        config = dataclasses.replace(config, no_decay=spared)
    tx = training.make_optimizer(config, stage.num_steps)
    for factor, part in (
        (stage.head_factor, in_head),
        (stage.projection_factor, in_projections),
    ):
        if factor != 1.0:
            tx = optax.chain(tx, optax.masked(optax.scale(factor), part))
    if stage.lower_factor == 1.0:
        return tx
    plan = kd.ProgressiveTransfer(
        student.shape.num_layers,
        stage.objective.transfer_share,
        lower_factor=stage.lower_factor,
    )
    slower = kd.scale_layer_updates(plan, stage.num_steps)
    return optax.chain(tx, optax.masked(slower, in_encoder))


def in_encoder(params: PyTree) -> PyTree:
    """Which of the trained parameters are of the student's encoder, a tree of booleans.

    Args:
      params: of a distillation.
    """
    return _under(f"{STUDENT}/encoder/", params)


def in_head(params: PyTree) -> PyTree:
    """Which of the trained parameters are of the student's head, a tree of booleans.

    Args:
      params: of a distillation.
    """
    return _under(f"{STUDENT}/head/", params)


def in_projections(params: PyTree) -> PyTree:
    """Which of the trained parameters are of projections, a tree of booleans.

    Args:
      params: of a distillation.
    """
    return _under("projections/", params)


def _under(prefix: str, params: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, _: path_name(path).startswith(prefix), params)
