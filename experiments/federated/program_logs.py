"""What programs of Flower write, read for those who start them; and how they are ended."""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

MAX_LINES, MAX_CHARACTERS, REPEAT_S = 5, 300, 60.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MATTERS = re.compile(
    r"error|exception|fail|refused|denied|already in use|expired|exit code|invalid|not valid|"
    r"killed|no such|no module",
    re.IGNORECASE,
)
_NOISE = re.compile(
    r"^\s*(Traceback|File |During handling|The above exception|\^+|raise |return |with )"
    r"|with public key|activate-node|Connection attempt failed|sys\.exit|https?://flower"
    r"|: line \d+"
)


class Log:
    """What a program writes into a file from now on."""

    def __init__(self, path: Path) -> None:
        """Begin behind what is there.

        Args:
          path: the file; it may come later.
        """
        self.path = path
        self._start = self._read = path.stat().st_size if path.exists() else 0

    def text(self) -> str:
        """All that was written since the beginning."""
        return self._since(self._start)

    def news(self) -> str:
        """What was written since the last call."""
        found = self._since(self._read)
        self._read += len(found.encode("utf-8", "surrogateescape"))
        return found

    def explain(self) -> str:
        """The last lines that tell of trouble, below the name of the file."""
        lines = lines_that_matter(self.text())
        return "\n".join([f"{self.path} says:", *lines]) if lines else f"see {self.path}"

    def _since(self, place: int) -> str:
        if not self.path.exists():
            return ""
        with open(self.path, "rb") as file:
            file.seek(place)
            return file.read().decode("utf-8", "surrogateescape")


def lines_that_matter(text: str, count: int = MAX_LINES) -> list[str]:
    """The last lines of a log that tell of trouble, each once.

    Args:
      text: of the log.
      count: how many at most.
    """
    plain = _COLOUR.sub("", text).encode("utf-8", "replace").decode("utf-8", "replace")
    lines = [line.strip() for line in plain.splitlines()]
    matter = [line for line in lines if _MATTERS.search(line) and not _NOISE.search(line)]
    newest_first = dict.fromkeys(reversed(matter))
    return [line[:MAX_CHARACTERS] for line in reversed(list(newest_first)[:count])]


class Teller:
    """Logs what has changed at once, and what stays as it is every minute."""

    def __init__(self, logger: logging.Logger) -> None:
        """Tell a logger."""
        self._logger, self._text, self._told_s = logger, "", 0.0

    def __call__(self, text: str) -> None:
        """Tell this, unless it was told within the last minute."""
        now = time.monotonic()
        if text != self._text or now - self._told_s > REPEAT_S:
            self._logger.info("%s", text, stacklevel=2)
            self._text, self._told_s = text, now


def interrupt_on_signals() -> None:
    """Lets the first SIGINT or SIGTERM raise KeyboardInterrupt; while that is handled, others wait.

    A shell that starts a program in the background has SIGINT ignored; this undoes it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)


def leave_after(call: Callable[[], object]) -> NoReturn:
    """Ends the process with the exit code of a call, without waiting for its threads.

    A client that trains in a thread when it is interrupted would hold the end up, or have the
    interpreter abort under it. Whatever must not be lost has been written by then.

    Args:
      call: ends as programs do, by `SystemExit`, or returns.
    """
    code: object = 0
    try:
        call()
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
