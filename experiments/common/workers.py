"""Processes that take turns, for benchmarks: what else the machine does meets all of them."""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

Actions = Mapping[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Timed:
    """What an action gave, and what it took.

    Attributes:
      value: what it returned.
      seconds: by the clock on the wall.
      cpu_seconds: of all threads of the process; waiting for other programs does not count.
    """

    value: Any
    seconds: float
    cpu_seconds: float


class Worker:
    """A process that makes actions once and then runs those it is asked to.

    A context manager: the process ends with it.
    """

    def __init__(self, name: str, make: Callable[..., Actions], *args: Any, threads: int = 0):
        """Describe the process; it starts on entering.

        Args:
          name: how errors call it.
          make: a function of a module, called in the process: from `args` to actions by name.
          *args: what can be pickled.
          threads: number of processors that the process may use; 0 leaves all.
        """
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        target = (other, threads, make, args)
        self._process = context.Process(target=_serve, args=target, daemon=True)
        self._other = other

    def __enter__(self) -> "Worker":
        self._process.start()
        self._other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.terminate()

    def ask(self, action: str) -> Timed:
        """Run an action in the process.

        Args:
          action: its name.

        Raises:
          RuntimeError: if the process has died; whatever the action raises, too.
        """
        try:
            self._pipe.send(action)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            raise RuntimeError(
                f"the process of {self._name} died (exit code {self._process.exitcode}) before or "
                f"while it ran {action!r}; is there enough memory?"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Any, threads: int, make: Callable[..., Actions], args: tuple[Any, ...]) -> None:
    """Limit the process, make the actions at the first request, answer until the pipe closes."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    actions: Actions | None = None
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            actions = make(*args) if actions is None else actions
            start = time.perf_counter(), time.process_time()
            value = actions[name]()
            end = time.perf_counter(), time.process_time()
            pipe.send(Timed(value, end[0] - start[0], end[1] - start[1]))
        except BrokenPipeError:  # nobody asks any more
            return
        except Exception as error:  # told to the process that asked
            pipe.send(error)
