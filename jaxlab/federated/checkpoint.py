"""The whole of a course in a file, so that an interrupted course goes on as if nothing had been.

::

    simulation = make_simulation(...)  # the same arguments as before
    if has_checkpoint(folder):
        state = restore_course(folder, simulation)
    else:
        state = simulation.start()
    run_course(simulation.course, state, on_round=lambda s: save_course(folder, simulation, s))

A checkpoint holds all that the future of a course depends on: round and clock, server and
optimizer, what clients keep, the sampler, updates that wait and those under way, messages that are
not delivered, models that clients still work on, and all counts. Keys and generators follow from
the seed, the round and the client. A course may be saved between any two messages; resumed on the
same number of devices it ends with the same bits.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlab.federated import records
from jaxlab.federated.learning import Simulation
from jaxlab.federated.simulation import CourseState
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.wire import (
    WireError,
    load_tree,
    name_leaves,
    pack,
    restore_leaves,
    save_tree,
)
from jaxlab.parallel import place, replicated

_logger = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"course_(\d{8})\.jaxlab")


def save_course(
    folder: str | os.PathLike[str], simulation: Simulation, state: CourseState, *, keep: int = 2
) -> Path:
    """Saves a course beside its earlier checkpoints; an interrupted write leaves these as they are.

    Args:
      folder: where the checkpoints of the course lie; it is made if need be. One process at a time
        may write to it.
      simulation: what runs the course.
      state: where it stands, between two messages.
      keep: how many of the last checkpoints are kept.

    Returns:
      The file.

    Raises:
      ValueError: if none would be kept.
      TypeError: if metrics, or what else was put into the state, have no bytes.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob(".course_*.partial"):  # of a process that was killed
        partial.unlink()
    older = find_checkpoints(folder)
    path = folder / f"course_{_number(older[-1]) + 1 if older else 1:08d}.jaxlab"
    save_tree(path, _snapshot(simulation, state))
    for old in [*older, path][:-keep]:
        old.unlink()
    return path


def restore_course(
    path: str | os.PathLike[str], simulation: Simulation, *, check_algorithm: bool = True
) -> CourseState:
    """Puts a simulation into the state of a checkpoint.

    Args:
      path: a checkpoint, or a folder of them, whose last one is taken.
      simulation: made with the same arguments as the one that was saved; what it holds is replaced.
      check_algorithm: refuse an algorithm that computes something else, be it another learning
        rate. Without it the course goes on with what the simulation has now.

    Returns:
      The state from which `run_course` goes on.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ConfigError: (a ValueError) naming every setting in which the two differ, or saying that the
        algorithm does.
      WireError: (a ValueError) naming the file, if it is broken, or entries of another shape.
    """
    path = _find(Path(path))
    saved = load_tree(path)
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise WireError(f"{path} is no checkpoint of a course of format {FORMAT}")
    _check_settings(path, saved["settings"], simulation.settings)
    forms = simulation.forms
    try:
        model = restore_leaves(saved["model"], forms.server, "the model of the server")
    except (WireError, LookupError, TypeError, AttributeError) as error:
        raise WireError(f"{path}: {error}") from error
    if check_algorithm:
        _check_algorithm(path, saved.get("algorithm"), simulation)
    try:
        state: CourseState = records.from_tree(saved["course"])
        result = forms.result._replace(update=forms.update)
        simulation.executor.restore(saved["executor"], forms.broadcast, result)
        simulation.evaluations.restore(saved["evaluations"])
        simulation.traffic.restore(saved["traffic"])
    except (WireError, LookupError, TypeError, AttributeError) as error:
        raise WireError(f"{path}: {error}") from error
    state.server.model = place(replicated(simulation.mesh), jax.tree.map(np.array, model))
    return state


def find_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a folder, the last one at the end."""
    found = [path for path in Path(folder).glob("course_*.jaxlab") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder, which need not exist, has a checkpoint of a course."""
    return bool(find_checkpoints(folder))


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, "only checkpoints are asked for"
    return int(match[1])


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = find_checkpoints(path)
    if not found:
        raise FileNotFoundError(f"{path} has no checkpoint of a course, course_*.jaxlab")
    return found[-1]


def _snapshot(simulation: Simulation, state: CourseState) -> dict[str, Any]:
    model = state.server.model
    course = dataclasses.replace(state, server=dataclasses.replace(state.server, model=None))
    return {
        "format": FORMAT,
        "settings": simulation.settings,
        "algorithm": {"jax": jax.__version__, "fingerprint": simulation.fingerprint()},
        "model": name_leaves(jax.device_get(model)),
        "course": records.to_tree(course),
        "executor": simulation.executor.snapshot(),
        "evaluations": simulation.evaluations.snapshot(),
        "traffic": simulation.traffic.snapshot(),
    }


def _check_settings(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    missing = object()
    differing = []
    for name in {**own, **saved}:
        theirs, ours = saved.get(name, missing), own.get(name, missing)
        if theirs is missing or ours is missing:
            differing.append(f"{name} is a setting of {'one' if ours is missing else 'this'} only")
        elif pack(theirs) != pack(ours):
            differing.append(f"{name} was {_shown(theirs)} and is {_shown(ours)}")
    if differing:
        raise ConfigError(
            f"{path} is of another course: {'; '.join(differing)}. Make the simulation with the "
            "same arguments, or start anew in another folder"
        )


def _check_algorithm(path: Path, saved: Mapping[str, str] | None, simulation: Simulation) -> None:
    if saved is None:
        _logger.warning(
            "%s does not tell which algorithm it is of: whether its numbers are the same is not "
            "known", path,
        )  # fmt: skip
    elif saved["jax"] != jax.__version__:
        _logger.warning(
            "%s was saved with jax %s and this is %s: whether the algorithm is the same is not "
            "known", path, saved["jax"], jax.__version__,
        )  # fmt: skip
    elif saved["fingerprint"] != simulation.fingerprint():
        raise ConfigError(
            f"{path} is of another algorithm: its learning rate, another of its numbers, or a "
            "function of it or of its task differs. Make the simulation with the same algorithm, "
            "start anew in another folder, or go on with this one by restore_course(..., "
            "check_algorithm=False)"
        )


def _shown(value: Any) -> str:
    return np.array2string(value, threshold=8) if isinstance(value, np.ndarray) else repr(value)
