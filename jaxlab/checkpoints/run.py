"""Checkpoints of a run: saved while it trains, kept by age and by quality, restored anywhere.

The one module that knows Orbax. A checkpoint is a folder named by its step, which appears complete
or not at all (written under a temporary name, then renamed): a killed run leaves no half of one::

    DIR/1200/params    the parameters: what search and evaluation commands read
    DIR/1200/state     everything else in the state (extra, opt_state, step, key)
    DIR/1200/meta      the step and the metrics measured at it, JSON

Arrays are addressed by their path, not by the class that held them: empty optimizer states vanish
and named tuples become their field names. A checkpoint written on 8 devices restores on 1 or 2,
each leaf on the sharding of the target it is restored into.
"""

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

logger = logging.getLogger(__name__)

Path_ = tuple[str, ...]
BestMode = Literal["max", "min"]


class RunCheckpoints:
    """The checkpoints in one folder: save, restore, keep the last and the best.

    Saving is asynchronous: `save` returns when the arrays are copied to the host, and an error of
    the writing (a full disk) is raised by the next `save`, `wait` or `close`. In a run of several
    processes every process makes the same calls on one shared folder. Restoring waits for a `save`
    of this object that is still under way.

    Args:
      directory: folder of the checkpoints; made when missing, unless `read_only`.
      keep_last: how many of the newest to keep, at least 1.
      keep_best: how many of the best by `best_metric` to keep beside them; 0 keeps none.
      best_metric: name of the metric, among those given to `save`, that ranks checkpoints.
      best_mode: "max" if a larger value is better, "min" if a smaller one is.
      read_only: look, do not touch: for commands that read a run which may still be training.

    Raises:
      ValueError: if `keep_last` or `keep_best` is out of range, `best_mode` is unknown, or
        `keep_best` has no metric to go by.
      FileNotFoundError: if `read_only` and there is no such folder.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str = "",
        best_mode: BestMode = "max",
        read_only: bool = False,
    ) -> None:
        check_retention(keep_last, keep_best, best_metric, best_mode)
        self.directory = Path(directory).absolute()
        self.keep_last, self.keep_best = keep_last, keep_best
        self.best_metric, self.best_mode = best_metric, best_mode
        self._read_only = read_only
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(
                f"no checkpoints at {self.directory}: the folder does not exist. "
                "Give the workdir of a run that has saved at least once"
            )
        if not read_only and jax.process_index() == 0:
            self._remove_unfinished()
        self._manager = _make_manager(self.directory, self._is_kept, read_only)
        self._metrics: dict[int, dict[str, float]] = {}
        for step in self.steps():
            self._metrics[step] = self._read_metrics(step)

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.close()
            return
        with contextlib.suppress(Exception):  # the first error is the one to report
            self.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are complete on disk, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the best checkpoint that is there; None if none has `best_metric`.

        Of equal ones the earliest counts as best.
        """
        ranked = self._ranked(self.steps())
        return ranked[0] if ranked else None

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics saved with the checkpoint of `step`; empty if none were."""
        return dict(self._metrics.get(step, {}))

    def would_keep(self, value: float) -> bool:
        """Whether a checkpoint with this value of `best_metric` would be among the best kept."""
        if self.keep_best == 0 or math.isnan(value):
            return False
        ranked = self._ranked(self.steps())
        if len(ranked) < self.keep_best:
            return True
        worst = self._metrics[ranked[self.keep_best - 1]][self.best_metric]
        return value > worst if self.best_mode == "max" else value < worst

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts saving `state` as the checkpoint of `step`.

        Args:
          step: number of updates done; a step that is already there is left as it is.
          state: any pytree of arrays; what lies under its `params` can be restored alone.
          metrics: finite numbers measured on this state, kept beside it.

        Raises:
          OSError: if this save, or the one before it, could not be written. The checkpoints that
            were complete before are still there.
        """
        import orbax.checkpoint as ocp

        if step in self.steps():
            return
        finite = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(v)}
        params, rest = _split(tree_to_paths(state))
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(_nest(params)),
            state=ocp.args.StandardSave(_nest(rest)),
            meta=ocp.args.JsonSave({"step": step, "metrics": finite}),
        )
        self._metrics[step] = finite
        with self._write_errors(step):
            self._manager.save(step, args=args, force=True)

    def restore(self, step: int, target: Any, *, skip: Sequence[str] = ()) -> Any:
        """The state of `step`, in the structure, dtypes and shardings of `target`.

        Args:
          step: one of `steps()`.
          target: the state as arrays or `jax.ShapeDtypeStruct`; leaves without a sharding are
            restored on this process's first device.
          skip: parts of the state, such as `opt_state`, that are neither read nor compared; the
            result has the leaves of `target` there.

        Returns:
          A pytree like `target` of `jax.Array`s; the devices need not be those that saved it.

        Raises:
          FileNotFoundError: if there is no checkpoint of `step`.
          OSError: if the checkpoint is damaged, or a save under way could not be written.
          ValueError: if it holds other leaves, shapes or dtypes than `target`: all are listed.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._require(step)
        given = tree_to_paths(target)
        wanted = {p: _abstract(leaf) for p, leaf in given.items() if p[0] not in skip}
        with self._read_errors(step):
            saved = _join(self._saved_leaves(step, "params"), self._saved_leaves(step, "state"))
        saved = {path: leaf for path, leaf in saved.items() if path[0] not in skip}
        _check_same_leaves(saved, wanted, self.directory / str(step))
        params, rest = _split(wanted)
        state_args = ocp.args.StandardRestore(_nest(rest))
        with self._read_errors(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_nest(params)),
                    **({} if skip else {"state": state_args}),
                ),
            )
            state = self._restore_part(step, _nest(rest)) if skip else restored["state"]
        leaves = {**given, **_join(tree_to_paths(restored["params"]), tree_to_paths(state))}
        structure = jax.tree.structure(target)
        return jax.tree.unflatten(structure, [leaves[path] for path in given])

    def restore_latest(self, target: Any) -> Any:
        """`restore` of the newest checkpoint."""
        self.wait()
        return self.restore(self._some(self.latest_step()), target)

    def restore_best(self, target: Any) -> Any:
        """`restore` of the best checkpoint by `best_metric`."""
        self.wait()
        return self.restore(self._some(self.best_step()), target)

    def restore_params(self, step: int | None = None, target: Any = None) -> Any:
        """The parameters alone, without reading the optimizer's state.

        Args:
          step: which checkpoint; the newest if None.
          target: the parameter tree as arrays or `jax.ShapeDtypeStruct`; None takes the names and
            shapes that were saved, as nested dictionaries on this process's first device.

        Returns:
          The parameter tree.

        Raises:
          FileNotFoundError: if there is no checkpoint (of `step`).
          OSError: if the checkpoint is damaged.
          ValueError: if `target` differs from what was saved: all differing leaves are listed.
        """
        import orbax.checkpoint as ocp

        self.wait()
        step = self._some(self.latest_step()) if step is None else step
        self._require(step)
        with self._read_errors(step):
            saved = self._saved_leaves(step, "params")
        if target is None:
            wanted = {path: _abstract(leaf) for path, leaf in saved.items()}
        else:
            wanted = {path: _abstract(leaf) for path, leaf in tree_to_paths(target).items()}
            _check_same_leaves(saved, wanted, self.directory / str(step) / "params")
        with self._read_errors(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(_nest(wanted)))
            )["params"]
        if target is None:
            return restored
        leaves = tree_to_paths(restored)
        return jax.tree.unflatten(jax.tree.structure(target), [leaves[path] for path in wanted])

    def wait(self) -> None:
        """Blocks until the last `save` is on disk.

        Raises:
          OSError: if it could not be written.
        """
        with self._write_errors(None):
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises what `wait` would, if the last `save` has ended already; waits for nothing.

        Several processes must learn of an error together: there, only `save`, `wait` and `close`
        tell.

        Raises:
          OSError: if the last save could not be written.
        """
        if jax.process_count() == 1 and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the last `save` and lets the folder go.

        Raises:
          OSError: if the last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()
            # A thread that was still writing when its save failed may have left files after all.
            if not self._read_only and jax.process_index() == 0:
                self._remove_unfinished()

    def _restore_part(self, step: int, wanted: Any) -> Any:
        """Some leaves of the item `state`."""
        import orbax.checkpoint as ocp

        return ocp.PyTreeCheckpointHandler().restore(
            self._manager.directory / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )

    def _require(self, step: int) -> None:
        if step not in self.steps():
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self.directory}; it has {self.steps()}"
            )

    def _some(self, step: int | None) -> int:
        if step is None:
            raise FileNotFoundError(
                f"no such checkpoint in {self.directory}; it has {self.steps()}. "
                "Give the workdir of a run that has saved at least once"
            )
        return step

    def _saved_leaves(self, step: int, item: str) -> dict[Path_, Any]:
        """Shape and dtype of every leaf of `params` or `state`, by path within it."""
        import orbax.checkpoint as ocp

        path = self._manager.directory / str(step) / item
        if not path.is_dir():
            raise FileNotFoundError(f"its folder {item} is missing")
        # The handler itself: a `Checkpointer` around it warns of metadata that items do not have.
        return tree_to_paths(ocp.StandardCheckpointHandler().metadata(path).tree)

    def _read_metrics(self, step: int) -> dict[str, float]:
        import orbax.checkpoint as ocp

        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            return {str(name): float(value) for name, value in meta["metrics"].items()}
        except Exception as error:  # a damaged checkpoint is reported when it is restored
            logger.warning("checkpoint %d of %s has no metrics: %s", step, self.directory, error)
            return {}

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        sign = -1.0 if self.best_mode == "max" else 1.0
        measured = [s for s in steps if self.best_metric in self._metrics.get(s, {})]
        return sorted(measured, key=lambda s: (sign * self._metrics[s][self.best_metric], s))

    def _is_kept(self, steps: Sequence[int]) -> list[bool]:
        kept = {*sorted(steps)[-self.keep_last :], *self._ranked(steps)[: self.keep_best]}
        return [step in kept for step in steps]

    def _remove_unfinished(self) -> None:
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            logger.info("removing %s, left by a run that ended while saving", path)
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _write_errors(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:
                self._remove_unfinished()
            named = "the last checkpoint" if step is None else f"a checkpoint up to step {step}"
            complete = self.steps()
            raise OSError(
                f"{named} could not be written to {self.directory}: {_reason(error)}. "
                + (
                    f"The last complete one is of step {complete[-1]}. "
                    if complete
                    else "There is no complete one. "
                )
                + f"Free disk space ({_free_space(self.directory)} left) or keep fewer "
                f"(keep_last={self.keep_last}, keep_best={self.keep_best}), then run the same "
                "command again"
            ) from error

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            others = [other for other in self.steps() if other != step]
            raise OSError(
                f"the checkpoint {self.directory / str(step)} is incomplete or damaged: "
                f"{_reason(error)}. Remove that folder "
                + (f"to continue from step {others[-1]}" if others else "to start from scratch")
            ) from error


def check_retention(keep_last: int, keep_best: int, best_metric: str, best_mode: str) -> None:
    """Checks which checkpoints are asked to be kept.

    Raises:
      ValueError: if a number is out of range, the mode unknown, or the metric missing.
    """
    problems = []
    if keep_last < 1:
        problems.append(f"keep_last={keep_last}: must be at least 1, or a run could not continue")
    if keep_best < 0:
        problems.append(f"keep_best={keep_best}: must be 0 (off) or more")
    if keep_best > 0 and not best_metric:
        problems.append(f"keep_best={keep_best} needs best_metric, the metric that ranks them")
    if best_mode not in ("max", "min"):
        problems.append(f'best_mode={best_mode!r}: must be "max" or "min"')
    if problems:
        raise ValueError("; ".join(problems))


def tree_to_paths(tree: Any) -> dict[Path_, Any]:
    """Leaves of a pytree by path, in leaf order.

    Dictionary keys, field names and positions are the components, all as text:
    `state.opt_state[0].mu["text"]` is `("opt_state", "0", "mu", "text")`.

    Example:
      >>> tree_to_paths({"a": [1, {"b": 2}], "c": ()})
      {('a', '0'): 1, ('a', '1', 'b'): 2}
    """
    flat, _ = jax.tree.flatten_with_path(tree)
    return {tuple(_component(entry) for entry in path): leaf for path, leaf in flat}


def _component(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _nest(leaves: Mapping[Path_, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for component in path[:-1]:
            node = node.setdefault(component, {})
        node[path[-1]] = leaf
    return tree


def _split(leaves: Mapping[Path_, Any]) -> tuple[dict[Path_, Any], dict[Path_, Any]]:
    """The leaves under `params`, without that component, and the others."""
    params = {path[1:]: leaf for path, leaf in leaves.items() if path[0] == "params"}
    return params, {path: leaf for path, leaf in leaves.items() if path[0] != "params"}


def _join(params: Mapping[Path_, Any], rest: Mapping[Path_, Any]) -> dict[Path_, Any]:
    """Undoes `_split`."""
    return {**{("params", *path): leaf for path, leaf in params.items()}, **rest}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _signature(leaf: Any) -> str:
    shape, dtype = tuple(leaf.shape), leaf.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):  # saved as its bits
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
        shape, dtype = data.shape, data.dtype
    return f"{jnp.dtype(dtype).name}{list(shape)}"


def _check_same_leaves(
    saved: Mapping[Path_, Any], wanted: Mapping[Path_, Any], where: Path
) -> None:
    have = {"/".join(path): _signature(leaf) for path, leaf in saved.items()}
    want = {"/".join(path): _signature(leaf) for path, leaf in wanted.items()}
    lines = [f"  {name}: missing in the checkpoint, the run has {want[name]}"
             for name in want.keys() - have.keys()]  # fmt: skip
    lines += [f"  {name}: {have[name]} in the checkpoint, unknown to the run"
              for name in have.keys() - want.keys()]  # fmt: skip
    lines += [f"  {name}: {have[name]} in the checkpoint, {want[name]} in the run"
              for name in have.keys() & want.keys() if have[name] != want[name]]  # fmt: skip
    if lines:
        raise ValueError(
            f"the checkpoint {where} does not fit this run, {len(lines)} leaves differ:\n"
            + "\n".join(sorted(lines))
            + "\nUse the config that wrote it (config.json beside it), or another workdir"
        )


def _make_manager(directory: Path, is_kept: Any, read_only: bool) -> Any:
    import orbax.checkpoint as ocp

    class Retention:
        """The policy object that Orbax asks which of its checkpoints stay."""

        def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
            return is_kept([checkpoint.step for checkpoint in checkpoints])

    options = ocp.CheckpointManagerOptions(
        create=not read_only, read_only=read_only, preservation_policy=Retention()
    )
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "state": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _reason(error: Exception) -> str:
    """The first line of an error, without the file specification that tensorstore appends."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"\n| \[(?:tensorstore_spec|source locations)", text)[0].rstrip(". ")


def _free_space(directory: Path) -> str:
    try:
        return f"{shutil.disk_usage(directory).free / 2**30:.2f} GiB"
    except OSError:
        return "unknown space"
