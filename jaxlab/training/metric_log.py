"""Metrics of a run over time: `metrics.jsonl` and TensorBoard, each step once."""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.parallel import is_main_process
from jaxlab.training.workdir import METRICS, to_json

logger = logging.getLogger(__name__)


class MetricLog:
    """Writes records of metrics, in process 0; the other processes' calls do nothing.

    `metrics.jsonl` has one line a step, `{"step": 10, "train/loss": ...}`, with nothing in it that
    depends on the clock: a run that was killed and continued leaves the same file as one that was
    not. Records after `step`, which such a run will make again, are removed.

    Args:
      workdir: folder of the run.
      step: number of updates that the run continues from.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._file: Any = None
        self._board: Any = None
        if not is_main_process():
            return
        from tensorboardX import SummaryWriter

        path = workdir / METRICS
        keep = [line for line, number in _read_lines(path) if number <= step]
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(keep), encoding="utf-8")
        partial.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is None:
            return
        # After an error the first one is reported, not what closing a broken file adds to it.
        with contextlib.suppress(OSError) if exception[0] else contextlib.nullcontext():
            self._file.close()
        try:
            self._board.close()
        except OSError as error:
            logger.warning("the TensorBoard files of this run are incomplete: %s", error)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Adds the record of a step to both; an empty record adds nothing.

        Raises:
          OSError: if `metrics.jsonl` cannot be written.
        """
        if self._file is None or not record:
            return
        line = json.dumps(to_json({"step": step, **record}), ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"the metrics of step {step} could not be written to {self._file.name} "
                f"({error.strerror}); free disk space, then run the same command again to "
                "continue from the last checkpoint"
            ) from error
        self.write_board(step, record)

    def write_board(self, step: int, record: Mapping[str, float]) -> None:
        """Adds numbers that depend on the clock, which only TensorBoard shows."""
        if self._board is not None:
            for name, value in record.items():
                self._board.add_scalar(name, value, step)


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, one dictionary a step; empty if there is no such file.

    A last line that a killed run left half written is passed over.
    """
    return [json.loads(line) for line, _ in _read_lines(Path(workdir) / METRICS)]


def _read_lines(path: Path) -> list[tuple[str, int]]:
    """The whole lines of a metrics file with their steps."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), 1):
        try:
            found.append((line, int(json.loads(line)["step"])))
        except (ValueError, KeyError, TypeError):
            logger.warning("%s line %d is no record, left out: %.60r", path, number, line)
    return found
