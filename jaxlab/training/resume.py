"""Where a run starts: its own checkpoint, another run's, given weights, or from scratch."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.parallel import (
    ShardingRules,
    any_process,
    init_sharded,
    is_main_process,
    place,
    state_shardings,
    with_shardings,
)
from jaxlab.training.config import TrainConfig
from jaxlab.training.workdir import read_results

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

Init = Callable[[jax.Array], Any]


class Start(NamedTuple):
    """The state that a run goes on from.

    Attributes:
      state: on the mesh, in buffers of its own.
      shardings: tree like `state`.
      step: updates that are done.
      finished: whether the run had ended before, with its results written.
    """

    state: Any
    shardings: Any
    step: int
    finished: bool


def find_start(
    init: Init | Any,
    config: TrainConfig,
    workdir: Path,
    checkpoints: RunCheckpoints,
    mesh: Mesh,
    rules: ShardingRules,
) -> Start:
    """The state to go on from, by the first of these rules that applies; the log names it.

    1. The workdir has a checkpoint: its newest.
    2. `config.continue_from` names another run: its newest checkpoint.
    3. `init` is a state: a copy of it.
    4. From scratch: `init(jax.random.key(config.seed))`, born sharded.

    Args:
      init: function from a key to the state before the first update (jittable), or that state.
      config: how the run goes.
      workdir: folder of the run.
      checkpoints: those in the workdir.
      mesh: devices of the run.
      rules: how parameters are laid out over them.

    Returns:
      The state with its step.

    Raises:
      ValueError: if the checkpoint does not fit the state, or is of a step after the run's end.
      OSError: if the checkpoint is damaged.
      FileNotFoundError: if `continue_from` has no checkpoint.
    """
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(init, key) if callable(init) else init
    shardings = state_shardings(mesh, abstract, _params_of(abstract), rules)
    target = with_shardings(abstract, shardings)
    step = checkpoints.latest_step()
    if step is not None:
        _check_not_after(step, config.num_steps, workdir)
        state = checkpoints.restore(step, target)
        logger.info("%s has a checkpoint of step %d: continuing from it", workdir, step)
        return Start(state, shardings, step, _is_finished(workdir, step, config))
    if config.continue_from:
        other = Path(config.continue_from).expanduser() / CHECKPOINTS
        with RunCheckpoints(other, read_only=True) as theirs:
            state = theirs.restore_latest(target)
            step = theirs.latest_step() or 0
        _check_not_after(step, config.num_steps, other.parent)
        logger.info("continuing the run in %s from its step %d", other.parent, step)
        return Start(state, shardings, step, False)
    if callable(init):
        logger.info("%s is empty: starting from scratch, seed %d", workdir, config.seed)
        state, shardings = init_sharded(init, mesh, rules, key, params_of=_params_of)
        return Start(state, shardings, 0, False)
    step = int(init.step)
    logger.info("%s is empty: starting from the given state, step %d", workdir, step)
    # A copy: the loop gives its buffers away, and those of the caller stay the caller's.
    state = jax.tree.map(jnp.copy, place(shardings, init))
    return Start(state, shardings, step, False)


def place_frozen(mesh: Mesh, frozen: PyTree, rules: ShardingRules) -> PyTree:
    """Frozen trees on the mesh, by the FSDP rule; what lies on the mesh already stays there."""
    rules = ShardingRules(fsdp_min_size=rules.fsdp_min_size)
    shardings = state_shardings(mesh, frozen, {}, rules)

    def choose(leaf: Any, sharding: NamedSharding) -> NamedSharding:
        given = getattr(leaf, "sharding", None)
        return given if isinstance(given, NamedSharding) and given.mesh == mesh else sharding

    return place(jax.tree.map(choose, frozen, shardings), frozen)


def _params_of(state: Any) -> PyTree:
    return getattr(state, "params", state)


def _check_not_after(step: int, num_steps: int, where: Path) -> None:
    if step > num_steps:
        raise ValueError(
            f"the run in {where} is at step {step}, after num_steps={num_steps}; "
            f"set num_steps to {step} or more, or give another workdir"
        )


def _is_finished(workdir: Path, step: int, config: TrainConfig) -> bool:
    """Whether the results of this step are written, and are the last ones."""
    if step != config.num_steps and not config.patience:
        return False
    results = read_results(workdir) if is_main_process() else {}
    is_last = step == config.num_steps or bool(results.get("stopped_early"))
    return any_process(results.get("step") == step and is_last)
