"""The training loop: the only one. Systems hand it a step, batches and evaluators.

What is particular to a system (its loss, its game, its cohort of clients) is in the step; when to
log, evaluate, save, stop and continue is here.
"""

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.parallel import (
    DATA_AXIS,
    ShardingRules,
    any_process,
    data_process,
    is_main_process,
    make_mesh,
    replicated,
    shard_batch,
    split_host_fields,
)
from jaxlab.training.config import TrainConfig
from jaxlab.training.metric_log import MetricLog, read_metrics
from jaxlab.training.progress import Progress
from jaxlab.training.resume import CHECKPOINTS, Init, find_start, place_frozen
from jaxlab.training.step import TrainStep
from jaxlab.training.stopping import Patience, StopSignals, StopVote, TrainingInterrupted
from jaxlab.training.workdir import (
    RESULTS,
    lock_workdir,
    open_workdir,
    read_results,
    save_config,
    write_json,
)

logger = logging.getLogger(__name__)

MakeBatches = Callable[[int], Iterator[Mapping[str, Any]]]

_IDS_SHOWN = 64


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Something that is measured on the state now and then.

    Attributes:
      name: what log lines call it.
      evaluate: from the state to metrics, name -> number. Names are used as they are, and must not
        be another evaluator's; every process must get the same numbers. The state's buffers are
        given to the next step: keep none of them.
      every_steps: updates between two calls; 0 only calls it at the end, None takes
        `TrainConfig.eval_every_steps`. The last step always calls it.
    """

    name: str
    evaluate: Callable[[Any], Mapping[str, float | int]]
    every_steps: int | None = None


class TrainResult(NamedTuple):
    """What a finished run leaves.

    Attributes:
      state: after the last step, on the mesh.
      metrics: content of `results.json`.
    """

    state: Any
    metrics: dict[str, float | int]


def train_loop(
    *,
    config: TrainConfig,
    workdir: str | Path,
    init: Init | Any,
    step: TrainStep,
    make_batches: MakeBatches,
    frozen: PyTree | None = None,
    evaluators: Sequence[Evaluator] = (),
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    run_config: Any = None,
    flops_per_example: float = 0.0,
) -> TrainResult:
    """Trains to `config.num_steps`, or as long as `config.patience` allows.

    Started again after it was killed, the run goes on from its last checkpoint and ends with the
    same numbers: the batch of a step and its key are functions of the step. A run that has ended
    gives its final state at once, so that stages are calls one after the other, each with a folder
    of its own (`DIR/stage1`, `DIR/stage2`). In a run of several processes all of them call this
    with the same arguments and one shared workdir.

    The workdir gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and at the end
    `results.json`: `step`, the last metrics (of training as `train/loss`, ...), `best/step` and the
    best metric as `best/<name>` if the best are kept, `train/examples_per_s`, `train/tflops_per_s`
    if `flops_per_example` is given, and `stopped_early` (1) if patience ended the run; evaluators
    that are not due at that step are not called there.

    Args:
      config: how long, how often.
      workdir: folder of the run, locked while it goes on.
      init: `init(key) -> state`, jittable, or a ready state such as one made from loaded weights
        (copied). A state is a `TrainState`, or another pytree with attributes `step` (which a step
        adds 1 to), `key` and `params`.
      step: `step(state, frozen, batch, key) -> (state, metrics)`, pure, its metrics scalars with
        `loss` among them. The state is donated; key is `fold_in(state.key, state.step)`.
      make_batches: from the number of updates done to an endless iterator of batches from there on:
        dictionaries of arrays, this process's rows first. `example_id` and other 64-bit fields stay
        on the host.
      frozen: arrays that the step reads and that never change; not donated, not saved.
      evaluators: what to measure on the way and at the end.
      mesh: devices of the run, all by default.
      rules: how parameters lie on them, replicated by default.
      run_config: what to write as `config.json` (dataclass or mapping); `config` by default.
      flops_per_example: floating-point operations that a step needs for one example, to show how
        many are done in a second; 0 if it is not known.

    Returns:
      The final state and metrics.

    Raises:
      TrainingInterrupted: after SIGTERM or SIGINT, when the state is saved.
      FloatingPointError: if a loss or gradient is not finite, naming step and examples.
      BlockingIOError: if another run has the workdir.
      OSError: if a checkpoint cannot be written or read.
      ValueError: if arguments do not fit each other, the batches or the checkpoint.
    """
    mesh = make_mesh() if mesh is None else mesh
    rules = ShardingRules.replicated() if rules is None else rules
    _check_sizes(config, mesh)
    workdir = open_workdir(workdir)
    with ExitStack() as stack:
        stack.enter_context(lock_workdir(workdir))
        signals = stack.enter_context(StopSignals())
        checkpoints = stack.enter_context(
            RunCheckpoints(
                workdir / CHECKPOINTS,
                keep_last=config.keep_last,
                keep_best=config.keep_best,
                best_metric=config.best_metric,
                best_mode="min" if config.best_mode == "min" else "max",
            )
        )
        start = find_start(init, config, workdir, checkpoints, mesh, rules)
        if start.finished:
            logger.info("the run in %s has ended: nothing to train", workdir)
            return TrainResult(start.state, read_results(workdir))
        if is_main_process():
            save_config(workdir, config if run_config is None else run_config)
        run = _Run(
            config=config,
            workdir=workdir,
            mesh=mesh,
            step_fn=_jit_step(step, start.shardings, mesh),
            frozen=place_frozen(mesh, {} if frozen is None else frozen, rules),
            evaluators=tuple(evaluators),
            checkpoints=checkpoints,
            log=stack.enter_context(MetricLog(workdir, start.step)),
            progress=stack.enter_context(
                Progress(config.num_steps, start.step, config.global_batch_size, flops_per_example)
            ),
            signals=signals,
            vote=StopVote(mesh),
            patience=_patience_of(config, workdir, start.step),
            state=start.state,
        )
        return run.train(make_batches, start.step)


class _Pending(NamedTuple):
    """A step that was started and whose loss has not been read."""

    step: int
    metrics: dict[str, jax.Array]
    host_fields: dict[str, Any]
    stop: Any


@dataclasses.dataclass
class _Run:
    """A run in progress: what it was given, and the state, which is replaced at every step."""

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    step_fn: Callable[[Any, PyTree, PyTree], tuple[Any, dict[str, jax.Array]]]
    frozen: PyTree
    evaluators: tuple[Evaluator, ...]
    checkpoints: RunCheckpoints
    log: MetricLog
    progress: Progress
    signals: StopSignals
    vote: StopVote
    patience: Patience
    state: Any
    pending: deque[_Pending] = dataclasses.field(default_factory=deque)
    must_stop: bool = False

    def train(self, make_batches: MakeBatches, start: int) -> TrainResult:
        """All steps after `start`, then the results."""
        batches = make_batches(start)
        record: dict[str, float] = {}
        last = self.config.num_steps
        if start == last or self.patience.is_over:  # killed between last checkpoint and results
            return self._finish(start, self._record_of(start) or self._evaluate(start))
        self.progress.say(f"compiling the first step, number {start + 1}")
        for step in range(start + 1, last + 1):
            self._dispatch(step, batches)
            # The device works on this step while the loss of the one before is read.
            is_boundary = self._is_boundary(step)
            record = self._drain(step, keep=0 if is_boundary else 1)
            if is_boundary:
                record |= self._evaluate(step)
                self.log.write(step, record)
                if self.config.best_metric in record:
                    self.patience.note(record[self.config.best_metric])
                self._save_if_due(step, record)
                self.progress.pause()
            if self.patience.is_over:
                last = step
                break
            if self.must_stop and step < last:
                self._stop(step)
        return self._finish(last, record)

    def _dispatch(self, step: int, batches: Iterator[Mapping[str, Any]]) -> None:
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError(
                f"the batches ended before step {step} of num_steps={self.config.num_steps}; "
                "make_batches must give an iterator that repeats its data"
            ) from None
        device_fields, host_fields = split_host_fields(batch)
        _check_rows(device_fields, self.config.global_batch_size, self.mesh)
        arrays = shard_batch(self.mesh, device_fields)
        self.state, metrics = self.step_fn(self.state, self.frozen, arrays)
        stop = self.vote.cast(self.signals.requested)
        self.pending.append(_Pending(step, metrics, host_fields, stop))

    def _is_boundary(self, step: int) -> bool:
        """Whether the state after this step is wanted on the host's side: all losses are read."""
        return step == self.config.num_steps or self._saves_at(step) or bool(self._due(step))

    def _saves_at(self, step: int) -> bool:
        every = self.config.save_every_steps
        return step == self.config.num_steps or (every > 0 and step % every == 0)

    def _due(self, step: int) -> list[Evaluator]:
        def is_due(evaluator: Evaluator) -> bool:
            every = evaluator.every_steps
            every = self.config.eval_every_steps if every is None else every
            return step == self.config.num_steps or (every > 0 and step % every == 0)

        return [evaluator for evaluator in self.evaluators if is_due(evaluator)]

    def _drain(self, step: int, keep: int) -> dict[str, float]:
        """Reads all pending steps but `keep`; the record of `step`, not yet written, if read."""
        record: dict[str, float] = {}
        while len(self.pending) > keep:
            done = self.pending.popleft()
            values = self._read(done)
            if done.step == step:
                record = values
            else:
                self.log.write(done.step, values)
        return record

    def _read(self, done: _Pending) -> dict[str, float]:
        """Waits for a step; its metrics if they are to be logged."""
        if "loss" not in done.metrics:
            raise ValueError(f"the step's metrics {sorted(done.metrics)} have no loss; add it")
        checked = {
            name: float(np.asarray(done.metrics[name]))
            for name in ("loss", "grad_norm")
            if name in done.metrics
        }
        if not all(math.isfinite(value) for value in checked.values()):
            self._fail(done, checked)
        self.must_stop |= bool(np.asarray(done.stop))
        self.progress.update(done.step, checked["loss"])
        is_last = done.step == self.config.num_steps
        if done.step % self.config.log_every_steps and not is_last:
            return {}
        self.checkpoints.check()
        self.log.write_board(done.step, self.progress.rates)
        metrics = jax.device_get(done.metrics)
        return {f"train/{name}": float(value) for name, value in metrics.items()}

    def _fail(self, done: _Pending, checked: Mapping[str, float]) -> None:
        self.checkpoints.wait()
        saved = self.checkpoints.latest_step()
        values = ", ".join(f"{name} {value:g}" for name, value in checked.items())
        rate = done.metrics.get("learning_rate")
        rate = "" if rate is None else f" ({float(np.asarray(rate)):g} at this step)"
        raise FloatingPointError(
            f"step {done.step} of {self.config.num_steps} is not finite: {values}. "
            f"Its batch had {self._name_examples(done)}. "
            + (
                f"The last good checkpoint is step {saved} in {self.checkpoints.directory}. "
                if saved is not None
                else "No checkpoint was saved before. "
            )
            + "What to try: look at these examples for empty or broken input; lower learning_rate"
            f"{rate} or raise warmup_steps; set clip_norm=1; if the model computes in bfloat16, "
            "try float32. JAX_DEBUG_NANS=1 finds the operation"
        )

    def _name_examples(self, done: _Pending) -> str:
        ids = done.host_fields.get("example_id")
        if ids is None:
            return f"no example_id (position {done.step - 1} of the input)"
        ids = np.asarray(ids).tolist()
        if len(ids) <= _IDS_SHOWN:
            return f"example_id {ids}"
        path = self.workdir / f"not_finite_step_{done.step}_process_{jax.process_index()}.json"
        write_json(path, {"step": done.step, "example_id": ids})
        shown = ", ".join(map(str, ids[:_IDS_SHOWN]))
        return f"{len(ids)} examples, all in {path.name}, example_id [{shown}, ...]"

    def _evaluate(self, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for evaluator in self._due(step):
            found = {name: float(v) for name, v in evaluator.evaluate(self.state).items()}
            if twice := sorted(found.keys() & metrics.keys()):
                raise ValueError(
                    f"evaluator {evaluator.name!r} gives {twice}, which another one gave before; "
                    "give every metric a name of its own"
                )
            metrics |= found
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            self.progress.say(f"step {step}, {evaluator.name}: {shown}")
        best = self.config.best_metric
        if step == self.config.num_steps and best and best not in metrics:
            raise ValueError(
                f"best_metric={best!r} was given by no evaluator; they gave {sorted(metrics)}"
            )
        return metrics

    def _save_if_due(self, step: int, record: Mapping[str, float]) -> None:
        is_due = self._saves_at(step) or self.patience.is_over
        if not is_due and self.config.best_metric in record:
            self.checkpoints.wait()
            is_due = self.checkpoints.would_keep(record[self.config.best_metric])
        if is_due:
            self._save(step, record)

    def _save(self, step: int, record: Mapping[str, float]) -> None:
        counted = int(np.asarray(self.state.step))
        if counted != step:
            raise ValueError(
                f"state.step is {counted} after {step} updates; the step function must return a "
                "state with step one higher"
            )
        self.checkpoints.save(step, self.state, record)

    def _stop(self, step: int) -> None:
        self.log.write(step, self._drain(step, keep=0))
        self.checkpoints.wait()
        self._save(step, {})
        self.checkpoints.wait()
        interrupted = TrainingInterrupted(step, str(self.workdir))
        self.progress.say(str(interrupted))
        raise interrupted

    def _record_of(self, step: int) -> dict[str, float]:
        """The record of a step as the log has it, in process 0's file; empty if it has none."""
        found = [r for r in read_metrics(self.workdir) if r["step"] == step]
        if any_process(not found):
            return {}
        record = {name: value for name, value in found[-1].items() if name != "step"}
        return {name: math.nan if value is None else value for name, value in record.items()}

    def _finish(self, step: int, record: Mapping[str, float]) -> TrainResult:
        self.checkpoints.wait()
        results: dict[str, float | int] = {"step": step, **record}
        if step < self.config.num_steps:
            name = self.config.best_metric
            self.progress.say(f"step {step}: {name} has stopped improving, the run ends here")
            results["stopped_early"] = 1
        results |= self.progress.rates
        best = self.checkpoints.best_step() if self.config.keep_best else None
        if best is not None:
            name = self.config.best_metric
            results |= {"best/step": best, f"best/{name}": self.checkpoints.metrics(best)[name]}
        if is_main_process():
            write_json(self.workdir / RESULTS, results)
        return TrainResult(self.state, results)


def _patience_of(config: TrainConfig, workdir: Path, step: int) -> Patience:
    """The patience of a run that goes on from a step, with what it has measured up to there."""
    records = read_metrics(workdir) if config.patience else []
    values = [
        math.nan if record[config.best_metric] is None else record[config.best_metric]
        for record in records
        if record["step"] <= step and config.best_metric in record
    ]
    return Patience(config.patience, config.best_mode, values)


def _jit_step(step: TrainStep, shardings: PyTree, mesh: Mesh) -> Callable[..., Any]:
    def train_step(state: Any, frozen: PyTree, batch: PyTree) -> tuple[Any, dict[str, jax.Array]]:
        return step(state, frozen, batch, jax.random.fold_in(state.key, state.step))

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _check_sizes(config: TrainConfig, mesh: Mesh) -> None:
    devices = mesh.shape[DATA_AXIS]
    sizes = {"global_batch_size": config.global_batch_size}
    if config.microbatch_size is not None:
        sizes["microbatch_size"] = config.microbatch_size
    for name, size in sizes.items():
        if size % devices:
            low = size // devices * devices
            raise ValueError(
                f"{name}={size} does not divide over the {devices} devices of the data axis; "
                f"nearest valid: {' and '.join(str(n) for n in (low, low + devices) if n)}"
            )


def _check_rows(batch: Mapping[str, Any], global_batch_size: int, mesh: Mesh) -> None:
    _, num_shares = data_process(mesh)
    wanted = global_batch_size // num_shares
    wrong = {
        name: np.shape(leaf)
        for name, leaf in batch.items()
        if not np.shape(leaf) or np.shape(leaf)[0] != wanted
    }
    if wrong or not batch:
        raise ValueError(
            f"a batch must be a dictionary of arrays of {wanted} rows (global_batch_size="
            f"{global_batch_size} over {num_shares} processes); got {wrong or 'no arrays'}"
        )
