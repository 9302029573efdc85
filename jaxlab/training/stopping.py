"""Stopping a run: signals from outside, the agreement of all processes on the step, patience."""

import logging
import math
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.parallel import replicated

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingInterrupted(SystemExit):
    """The run was told to stop, has saved, and can be continued by the same command.

    A `SystemExit` with status 0: a program that does not catch it ends cleanly, without traceback.

    Attributes:
      step: updates done, and saved.
      workdir: folder of the run.
    """

    def __init__(self, step: int, workdir: str) -> None:
        super().__init__(0)
        self.step = step
        self.workdir = workdir

    def __str__(self) -> str:
        return f"stopped after step {self.step}, saved in {self.workdir}; run it again to continue"


class StopSignals:
    """While open, the first SIGTERM or SIGINT asks for a stop instead of ending the program.

    The second one acts as usual. Outside the main thread, where Python takes no signals, this does
    nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = True
        self._restore()
        logger.warning("%s: stopping after this step", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopVote:
    """Whether any process wants to stop, as a value that is asked for now and read later.

    One process may get a signal a step before another; all of them must stop after the same step.
    The vote is a tiny computation in the stream of the steps: reading it together with the step's
    metrics costs no further wait.

    Args:
      mesh: a mesh of the devices of all processes.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._alone = jax.process_count() == 1
        self._size = mesh.size
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def cast(self, stop: bool) -> Any:
        """This process's vote; `bool` of the result, in every process, is whether any said stop."""
        if self._alone:
            return stop
        votes = np.full(self._size, stop, np.int32)
        return self._any(
            jax.make_array_from_callback(votes.shape, self._sharding, lambda index: votes[index])
        )


class Patience:
    """Whether a metric has stopped improving.

    Args:
      limit: values in a row without a better one that are waited for; 0 waits for ever.
      mode: "max" if larger is better, "min" if smaller is.
      values: what was measured before, in order.

    Example:
      >>> patience = Patience(2, "max", [50.0, 51.0, 50.5])
      >>> patience.is_over, patience.note(50.9), patience.is_over
      (False, None, True)
    """

    def __init__(self, limit: int, mode: str, values: Iterable[float] = ()) -> None:
        self._limit = limit
        self._sign = 1.0 if mode == "max" else -1.0
        self._best = -math.inf
        self._num_without = 0
        for value in values:
            self.note(value)

    def note(self, value: float) -> None:
        """Takes the next value; one that is not finite counts as no improvement."""
        value = self._sign * value
        if value > self._best:
            self._best, self._num_without = value, 0
        else:
            self._num_without += 1

    @property
    def is_over(self) -> bool:
        """Whether the last `limit` values brought nothing better."""
        return 0 < self._limit <= self._num_without
