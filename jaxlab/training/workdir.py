"""The folder of a run: its lock, and the JSON files that people and scripts read.

A workdir holds `config.json` (what ran; `config.1.json` and so on what it ran with before it was
started again with another config), `metrics.jsonl` and `tensorboard/` (how it went),
`checkpoints/` and, at the end, `results.json`: metric name -> number, flat.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from jaxlab.parallel import any_process, is_main_process

logger = logging.getLogger(__name__)

CONFIG, RESULTS, METRICS = "config.json", "results.json", "metrics.jsonl"
_TOLD = 8  # differences between configs in an error


def open_workdir(workdir: str | Path) -> Path:
    """The folder as an absolute path, made if it was missing.

    Raises:
      ValueError: if it is the address of a bucket.
      NotADirectoryError: if there is a file of that name.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"workdir={str(workdir)!r} is an address; a workdir is a folder. Mount the bucket on "
            "every host (gcsfuse, a network disk) and give the folder"
        )
    path = Path(workdir).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"workdir={str(path)!r} is a file; give the name of a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir while the context is open.

    The lock is the operating system's (`flock` on `.lock`): it ends with the process, however that
    ends, and cannot become stale. Where there is no such lock (Windows, some network disks) the run
    goes on without, and says so. In a run of several processes process 0 holds it for all.

    Raises:
      BlockingIOError: in every process, if another run holds the lock.
    """
    with contextlib.ExitStack() as stack:
        holder = None
        if is_main_process():
            file = stack.enter_context(open(workdir / ".lock", "a+", encoding="utf-8"))
            holder = _try_lock(file)
        if any_process(holder is not None):
            raise BlockingIOError(
                f"workdir {workdir} is in use by another run ({holder or 'seen by process 0'}); "
                "wait for it to end, stop it, or give another workdir"
            )
        yield


def _try_lock(file: Any) -> str | None:
    """Locks an open file; who holds it if that fails."""
    try:
        import fcntl
    except ImportError:
        logger.info("this system has no flock: start no second run in %s", Path(file.name).parent)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().strip() or "unknown process"
    except OSError as error:
        logger.warning("cannot lock %s (%s): start no second run there", file.name, error)
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite become null."""
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_json(value: Any) -> Any:
    """A value in the types of JSON: dataclasses and mappings as objects, paths as text.

    Example:
      >>> to_json({"sizes": (1, 2), "rate": float("nan"), 3: Path("a")})
      {'sizes': [1, 2], 'rate': None, '3': 'a'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def save_config(workdir: Path, config: Any) -> None:
    """Writes `config.json`; one that was there before and differs is kept as `config.1.json`, ...

    The difference is logged: a run that goes on under another config is the user's decision, and
    what its first steps ran with stays on record.
    """
    path, new = workdir / CONFIG, to_json(config)
    old = read_json(path)
    if old is not None and old != new:
        kept = next(
            name
            for name in (workdir / f"config.{i}.json" for i in itertools.count(1))
            if not name.exists()
        )
        write_json(kept, old)
        logger.warning(
            "%s goes on with other settings than before (kept as %s): %s",
            workdir, kept.name, "; ".join(changed_settings(old, new)),
        )  # fmt: skip
    if old != new:
        write_json(path, new)


def check_config(workdir: Path, config: Any) -> None:
    """Refuses a folder in which another config ran, for runs whose numbers must not be mixed.

    Args:
      workdir: folder of the run.
      config: what is to run (dataclass or mapping), as `save_config` writes it.

    Raises:
      ValueError: if its `config.json` differs, naming what does, or it has results without one.
    """
    new, old = to_json(config), read_json(workdir / CONFIG)
    if old is None and not (workdir / RESULTS).exists():
        return
    if old is None:
        raise ValueError(
            f"workdir {workdir} has a {RESULTS} and no {CONFIG} to tell what it is of; give "
            "another workdir, or remove it"
        )
    if changes := changed_settings(old, new):
        more = f"; and {len(changes) - _TOLD} more" if len(changes) > _TOLD else ""
        raise ValueError(
            f"workdir {workdir} has a run of another config (there -> now): "
            f"{'; '.join(changes[:_TOLD])}{more}. Give another workdir, or go on with the "
            f"config in its {CONFIG}"
        )


def warn_of_other_settings(workdir: Path, config: Any, *, ignored: Sequence[str] = ()) -> None:
    """Says what a run that has ended was trained with, where that is not what is asked for now.

    Args:
      workdir: folder of the run, which is not trained again.
      config: what is asked for, as `save_config` takes it.
      ignored: beginnings of names that do not concern this run, such as those of later stages.
    """
    before = read_json(workdir / CONFIG) if is_main_process() else None
    if before is None:
        return
    changed = [
        text for text in changed_settings(before, config) if not text.startswith(tuple(ignored))
    ]
    if changed:
        logger.warning(
            "%s has ended and is not trained again, though settings have changed since: %s; give "
            "another --workdir to train with these",
            workdir, "; ".join(changed),
        )  # fmt: skip


def changed_settings(old: Any, new: Any) -> list[str]:
    """The settings in which two configs differ, each as `name: old -> new`.

    Args:
      old: a config, as a dataclass or as `config.json` has it.
      new: another one.
    """
    before, after = _flatten(to_json(old)), _flatten(to_json(new))
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, "absent") != after.get(name, "absent")
    ]


def write_results(workdir: str | Path, metrics: Mapping[str, SupportsFloat]) -> None:
    """Adds numbers to `results.json`, in process 0.

    Args:
      workdir: folder of the run.
      metrics: name -> number; a name that is there already gets the new number.
    """
    if is_main_process():
        path = Path(workdir) / RESULTS
        write_json(path, {**(read_json(path) or {}), **metrics})


def read_results(workdir: str | Path) -> dict[str, float | int]:
    """The numbers of `results.json`; empty if the run has not ended."""
    found = read_json(Path(workdir) / RESULTS) or {}
    return {name: math.nan if value is None else value for name, value in found.items()}


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is none.

    Raises:
      ValueError: if it is not JSON, with the place.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend or remove it") from error


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
