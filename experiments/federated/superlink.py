"""A SuperLink of Flower as a process, and what is told to it by Flower's own commands."""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.flags import CHECKOUT
from experiments.federated.deployed import SETTINGS
from experiments.federated.make_keys import CA, CERTIFICATE, KEY

NAME, START_S, COMMAND_S = "course", 120.0, 300.0
APP = Path(__file__).parent / "flower_app"
_REGISTERED = "registered.json"


class SuperLink(NamedTuple):
    """A SuperLink that runs.

    Attributes:
      process: of it.
      workdir: folder of the run.
      environment: of Flower's commands.
    """

    process: subprocess.Popen[bytes]
    workdir: Path
    environment: Mapping[str, str]


def split_address(flag: str, text: str) -> tuple[str, int]:
    """Host and port of an address.

    Args:
      flag: that it comes from.
      text: `host:port`.

    Raises:
      ValueError: if it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise ValueError(f"--{flag}={text} is no host:port, such as fl.example.org:9092")
    return host, int(port)


def program(name: str) -> str:
    """Path of one of Flower's programs.

    Raises:
      FileNotFoundError: saying how to install Flower.
    """
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f'{name} is not installed: pip install "jaxlab[flower]"')
    return found


def flower_environment(workdir: Path, **more: str) -> dict[str, str]:
    """The environment of Flower's programs: what they keep lies in the folder of the run.

    Flower neither reports that it is used nor asks for newer versions, unless the variables that
    say so are set.

    Args:
      workdir: the folder.
      more: further variables.
    """
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    scripts = sysconfig.get_path("scripts")
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "FLWR_HOME": str(workdir / "flower"),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return quiet | dict(os.environ) | own | more


def end_leftovers(workdir: Path) -> None:
    """Ends programs of Flower that outlived those that had started them.

    A ClientApp whose SuperNode is gone asks for it for ever if it had not reached it before.
    Programs are known by the folder in their environment; where there is no /proc they stay.

    Args:
      workdir: folder of the run or node.
    """
    home = f"FLWR_HOME={workdir / 'flower'}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if home in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def check_keys(keys: Path) -> None:
    """Raises FileNotFoundError naming the first of the server's files that a folder lacks."""
    for path in (keys / CA, keys / CERTIFICATE, keys / KEY):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; make_keys makes certificates and keys, --keys names their "
                "folder"
            )


def check_count(keys: Path, num_clients: int) -> None:
    """Raises ValueError if so few clients have keys that the course would wait for ever."""
    if (count := len(list(keys.glob("client_*.pub")))) < num_clients:
        raise ValueError(
            f"--keys={keys} has the keys of {count} clients (client_N.pub) and the course "
            f"{num_clients}: run make_keys with --clients={num_clients}, it keeps those there are"
        )


@contextlib.contextmanager
def start_superlink(
    workdir: Path, keys: Path, host: str, port: int, **more: str
) -> Iterator[SuperLink]:
    """Runs a SuperLink that speaks TLS and knows its nodes by their keys.

    Args:
      workdir: folder of the run; what the SuperLink knows lies in it, too.
      keys: folder of certificates and public keys.
      host: address to listen at.
      port: port to listen at.
      more: environment variables of the ServerApp.

    Raises:
      RuntimeError: if it does not start.
    """
    environment = flower_environment(workdir, **more)
    home = Path(environment["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\n'
        f'address = "{reached}:{port}"\nroot-certificates = {json.dumps(str(keys / CA))}\n',
        "utf-8",
    )
    command = [
        program("flower-superlink"), "--host", host, "--port", str(port),
        "--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE),
        "--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth",
        "--database", str(home / "superlink.db"), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with open(workdir / "superlink.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            wait_for_port(process, keys / CA, reached, port, workdir)
            yield SuperLink(process, workdir, environment)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_port(
    process: subprocess.Popen[bytes], authority: Path, host: str, port: int, workdir: Path
) -> None:
    """Waits until a SuperLink answers with a certificate that is trusted."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    end = time.monotonic() + START_S
    while True:
        try:
            with socket.create_connection((host, port), 2) as plain, context.wrap_socket(plain):
                return
        except OSError as error:
            reason = str(error)
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(
                f"the SuperLink does not answer at {host}:{port} ({reason}); see "
                f"{workdir / 'superlink.log'}"
            )
        time.sleep(0.5)


def register_nodes(superlink: SuperLink, keys: Path) -> int:
    """Tells a SuperLink the public keys of the nodes that may join; gives how many there are.

    Args:
      superlink: one that runs.
      keys: folder of their keys, `client_N.pub`.

    Raises:
      RuntimeError: if Flower refuses one.
    """
    known = Path(superlink.environment["FLWR_HOME"]) / _REGISTERED
    registered = json.loads(known.read_text("utf-8")) if known.exists() else []
    found = sorted(keys.glob("client_*.pub"))
    for path in found:
        key = path.read_text("utf-8").strip()
        if key not in registered:
            command(superlink, "supernode", "register", str(path), NAME, "--name", path.stem)
            registered.append(key)
            known.write_text(json.dumps(registered), "utf-8")
    return len(found)


def run_app(superlink: SuperLink, settings: str) -> str:
    """Starts the course on a SuperLink; gives Flower's number of the run.

    Args:
      superlink: one that runs.
      settings: what server and nodes make the course of.

    Raises:
      RuntimeError: if Flower refuses it.
    """
    folder = superlink.workdir / "flower" / "app"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "__init__.py")
    shutil.copytree(APP, folder, ignore=ignored)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "jaxlab-course"\nversion = "1.0.0"\nlicense = "Apache-2.0"\n'
        'description = "A federated course of jaxlab"\ndependencies = []\n\n'
        '[tool.flwr.app]\npublisher = "jaxlab"\n\n'
        '[tool.flwr.app.components]\nserverapp = "server_app:app"\nclientapp = "client_app:app"\n\n'
        f"[tool.flwr.app.config]\n{SETTINGS} = {json.dumps(settings)}\n",
        "utf-8",
    )
    return str(command(superlink, "run", str(folder), NAME)["run-id"])


def run_status(superlink: SuperLink, run: str) -> str:
    """What Flower says of a run, such as `running` or `finished:failed`."""
    found = command(superlink, "list", NAME, "--run-id", run)
    runs = found.get("runs") or [{}]
    return str(runs[0].get("status", "unknown"))


def command(superlink: SuperLink, *arguments: str) -> dict[str, Any]:
    """What one of Flower's commands answers.

    Raises:
      RuntimeError: with its own words if it fails.
    """
    done = subprocess.run(
        [program("flwr"), *arguments, "--format", "json"], env=dict(superlink.environment),
        capture_output=True, text=True, timeout=COMMAND_S,
    )  # fmt: skip
    start = done.stdout.find("{")
    found: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    if done.returncode or not found.get("success"):
        said = found.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"flwr {' '.join(arguments[:2])} has failed: {said}")
    return found
