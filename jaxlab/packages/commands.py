"""Running the package managers, with errors that say what to do."""

import subprocess
from collections.abc import Callable, Sequence

Runner = Callable[[Sequence[str]], None]

TIMEOUT_S = 1800


def run_command(command: Sequence[str]) -> None:
    """Run a command to its end without showing its output.

    Args:
      command: program and arguments.

    Raises:
      RuntimeError: if it is not installed, fails, or takes longer than half an hour; with the last
        lines that it wrote.
    """
    line = " ".join(command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{command[0]} is not installed or not in PATH; needed: {line}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no end after {TIMEOUT_S} s: {line}; check the network") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(
            f"exit status {done.returncode}: {line}\n{tail}\n"
            "Check the network and the package manager's settings, then run it again; set "
            "JAXLAB_OFFLINE=1 to use only what is in the cache"
        )
