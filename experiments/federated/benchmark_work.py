"""The work that simulators are measured by, and the processes that do it in turns.

MNIST's first 50,000 training digits after one permutation (NumPy's `default_rng(0)`), cut into
1,000 clients of 50; 50 clients a round, one epoch each in batches of 10, SGD with rate 0.1; a
network 784-200-200-10 with ReLU (199,210 parameters) that begins at the same numbers everywhere;
pixels in [0, 1]. The server takes the weighted mean. Nothing is evaluated while the time runs.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = (784, 200, 200, 10)
NUM_PARAMETERS = sum((a + 1) * b for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
CHECKOUT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Work:
    """What every simulator is given.

    Attributes:
      num_clients: clients in all.
      cohort_size: clients of a round.
      batch_size: examples of a step.
      client_size: examples of a client.
      rate: of SGD.
      num_rounds: rounds that are asked for at most.
    """

    num_clients: int = 1000
    cohort_size: int = 50
    batch_size: int = 10
    client_size: int = 50
    rate: float = 0.1
    num_rounds: int = 1000


CHECK = Work(num_clients=50, batch_size=50)
"""All clients take one step over all that they have: neither draws nor orders make a difference."""


def draw_weights(seed: int = 0) -> list[np.ndarray]:
    """Kernels (in, out) as Glorot and Bengio draw them, uniform, and biases of zero.

    Args:
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        bound = (6 / (inputs + outputs)) ** 0.5
        layers.append(rng.uniform(-bound, bound, (inputs, outputs)).astype(np.float32))
        layers.append(np.zeros(outputs, np.float32))
    return layers


def load_digits() -> tuple[Any, Any]:
    """MNIST's training and test digits, `x` (28, 28, 1) uint8 and `y`."""
    from jaxlab.federated import datasets

    mnist = datasets.load_mnist()
    return mnist.train, mnist.test


def write_work(path: Path, work: Work) -> None:
    """Write what a simulator reads: `x` (clients, examples, 784), `y`, the weights, the numbers.

    Args:
      path: the `.npz` file.
      work: what is to be done.
    """
    train, _ = load_digits()
    count = work.num_clients * work.client_size
    rows = np.random.default_rng(0).permutation(len(train["y"]))[:count]
    shape = (work.num_clients, work.client_size)
    layers = {f"layer_{number}": layer for number, layer in enumerate(draw_weights())}
    arrays: dict[str, Any] = dict(
        x=(train["x"][rows].reshape(*shape, -1) / np.float32(255)).astype(np.float32),
        y=train["y"][rows].reshape(shape).astype(np.int64),
        settings=json.dumps(dataclasses.asdict(work)),
        **layers,
    )
    np.savez(path, **arrays)


def accuracy(layers: Iterable[np.ndarray]) -> float:
    """Share of MNIST's 10,000 test digits that a network names rightly.

    Args:
      layers: kernel (in, out), bias, kernel, ...
    """
    _, test = load_digits()
    hidden = test["x"].reshape(len(test["y"]), -1) / np.float32(255)
    values = [np.asarray(layer, np.float32) for layer in layers]
    for kernel, bias in zip(values[0:-2:2], values[1:-2:2], strict=True):
        hidden = np.maximum(hidden @ kernel + bias, 0)
    found = (hidden @ values[-2] + values[-1]).argmax(axis=1)
    return float((found == test["y"]).mean())


class Simulator:
    """A process that does the work, a round at a time. A context manager.

    Between its rounds it is stopped, with all processes that it has started: threads that wait for
    work by spinning, and what looks after actors, would take time from the others.
    """

    def __init__(self, name: str, python: str, module: str, work: Path, log: Path) -> None:
        """Describe the process.

        Args:
          name: how tables and errors call it.
          python: the interpreter of its environment.
          module: what it runs, with the gate of `experiments.federated.peers.gate`.
          work: the file of `write_work`.
          log: where it writes what it prints.
        """
        self.name, self._log = name, log
        self._command = [python, "-m", module, str(work)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Simulator":
        child_read, write = os.pipe()
        read, child_write = os.pipe()
        paths = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, str(child_read), str(child_write)],
                pass_fds=(child_read, child_write), cwd=CHECKOUT, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)},
            )  # fmt: skip
        os.close(child_read)
        os.close(child_write)
        self._read, self._write = os.fdopen(read, "r"), os.fdopen(write, "w")
        try:
            self._receive()
        except RuntimeError:
            self.__exit__()
            raise
        self._send(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None, "entered"
        self._send(signal.SIGCONT)
        self._write.close()
        self._read.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def round(self) -> tuple[float, float]:
        """Let it do one round: seconds of the clock, and of the processors of its own process."""
        answer = self._ask("round")
        return answer["seconds"], answer["cpu_seconds"]

    def weights(self) -> list[np.ndarray]:
        """The global model: kernel (in, out), bias, kernel, ..."""
        return [np.asarray(layer, np.float32) for layer in self._ask("weights")["weights"]]

    def _ask(self, action: str) -> dict[str, Any]:
        self._send(signal.SIGCONT)
        try:
            self._write.write(json.dumps({"do": action}) + "\n")
            self._write.flush()
        except BrokenPipeError:
            pass  # its last words are in the log
        answer = self._receive()
        self._send(signal.SIGSTOP)
        return answer

    def _send(self, number: signal.Signals) -> None:
        """Signals the process and all that it has started, which share its session."""
        assert self._process is not None, "entered"
        for pid in _members_of(self._process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(pid, number)

    def _receive(self) -> dict[str, Any]:
        line = self._read.readline()
        if line:
            return json.loads(line)
        assert self._process is not None, "entered"
        code = self._process.wait()
        last = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(
            f"the process of {self.name} ended (exit code {code}) before its round was over. It "
            f"ran {' '.join(self._command)}; the last lines that it printed:\n{last}"
        )


def _members_of(session: int) -> Iterator[int]:
    """Processes of a session; where the system does not tell, its first one."""
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    if not stats:
        yield session
    for path in stats:
        with contextlib.suppress(OSError):  # it has ended
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:  # after the name: state, parent, group, session
                yield int(path.parent.name)
