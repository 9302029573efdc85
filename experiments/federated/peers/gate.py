"""A round at a time: what a measured process and the benchmark say to each other.

Needs nothing but NumPy, so that it runs in the environment of every peer. The process calls
`Gate.wait` before every round, in whatever loop or hook of the peer lies between two rounds; the
benchmark lets one process at a time through.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Gate:
    """The end of the measured process."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        """Open the pipes.

        Args:
          read_fd: where commands come from.
          write_fd: where answers go.
        """
        self._read = os.fdopen(read_fd, "r")
        self._write = os.fdopen(write_fd, "w")
        self._begin: tuple[float, float] | None = None

    def wait(self, weights: Callable[[], Sequence[Any]]) -> bool:
        """Tell that a round is over, if one was, and wait for what comes next.

        Args:
          weights: the layers of the global model as arrays: kernel (in, out), bias, kernel, ...

        Returns:
          Whether there is another round.
        """
        if self._begin is None:
            self._answer({"ready": True})
        else:
            wall, cpu = self._begin
            self._answer(
                {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            )
        while True:
            command = json.loads(self._read.readline() or '{"do": "end"}')
            if command["do"] == "weights":
                self._answer({"weights": [layer.tolist() for layer in weights()]})
                continue
            self._begin = time.perf_counter(), time.process_time()
            return command["do"] == "round"

    def _answer(self, content: dict[str, Any]) -> None:
        self._write.write(json.dumps(content) + "\n")
        self._write.flush()


def open_gate() -> tuple[str, Gate]:
    """The file of the work and the gate, from the command line `FILE READ_FD WRITE_FD`."""
    path, read_fd, write_fd = sys.argv[1:4]
    return path, Gate(int(read_fd), int(write_fd))


def read_work(path: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray, list[np.ndarray]]:
    """What there is to do.

    Args:
      path: the file of `experiments.federated.benchmark_work.write_work`.

    Returns:
      The fields of `Work`, inputs (clients, examples, 784), labels (clients, examples), and the
      layers at the start: kernel (in, out), bias, kernel, ...
    """
    with np.load(path) as file:
        names = sorted(name for name in file.files if name.startswith("layer_"))
        return json.loads(str(file["settings"])), file["x"], file["y"], [file[n] for n in names]
