"""A SuperLink of Flower as a process, and what is told to it by Flower's own commands."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.flags import CHECKOUT
from experiments.federated.certificates import (
    CA,
    CERTIFICATE,
    KEY,
    check_certificate,
    find_trouble,
)
from experiments.federated.deployed import SETTINGS
from experiments.federated.program_logs import Log

logger = logging.getLogger(__name__)

NAME, START_S, COMMAND_S, STOP_S, TOLD_EVERY_S = "course", 600.0, 600.0, 3.0, 15.0
"""Seconds; Flower ends in one or two, and what it and we keep survives that it is killed."""
APP = Path(__file__).parent / "flower_app"
_REGISTERED = "registered.json"


class SuperLink(NamedTuple):
    """A SuperLink that runs.

    Attributes:
      process: of it.
      workdir: folder of the run.
      environment: of Flower's commands.
      log: what it writes.
      address: host and port by which it is called from its own machine.
      authority: file of the authority that signs its certificate.
    """

    process: subprocess.Popen[bytes]
    workdir: Path
    environment: Mapping[str, str]
    log: Log
    address: tuple[str, int]
    authority: Path

    def explain(self) -> str:
        """Why it cannot be called, if so, and what its log says."""
        trouble = find_trouble(*self.address, self.authority)
        return "\n".join([*([trouble.text] if trouble else []), self.log.explain()])


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


def own_address(host: str) -> str:
    """The address by which a server is called from its own machine.

    Args:
      host: what it listens at.
    """
    plain = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plain, plain)


@contextlib.contextmanager
def start_superlink(
    workdir: Path, keys: Path, host: str, port: int, start_s: float = START_S, **more: str
) -> Iterator[SuperLink]:
    """Runs a SuperLink that speaks TLS and knows its nodes by their keys.

    Args:
      workdir: folder of the run; what the SuperLink knows lies in it, too.
      keys: folder of certificates and public keys.
      host: address to listen at.
      port: port to listen at.
      start_s: seconds that it may take to start.
      more: environment variables of the ServerApp.

    Raises:
      ValueError: if the certificate is for other names or has expired.
      RuntimeError: if it does not start.
    """
    environment = flower_environment(workdir, **more)
    home = Path(environment["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    called = own_address(host)
    if warning := check_certificate(keys / CERTIFICATE, called):
        logger.warning("%s", warning)
    at = f"[{called}]:{port}" if ":" in called else f"{called}:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\n'
        f'address = "{at}"\nroot-certificates = {json.dumps(str(keys / CA))}\n',
        "utf-8",
    )
    command = [
        program("flower-superlink"), "--host", host.strip("[]"), "--port", str(port),
        "--ssl-ca-certfile", str(keys / CA), "--ssl-certfile", str(keys / CERTIFICATE),
        "--ssl-keyfile", str(keys / KEY), "--enable-supernode-auth",
        "--database", str(home / "superlink.db"), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    end_leftovers(workdir)
    log = Log(workdir / "superlink.log")
    with open(log.path, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        superlink = SuperLink(process, workdir, environment, log, (called, port), keys / CA)
        try:
            wait_for_superlink(superlink, start_s)
            yield superlink
        finally:
            stop(process)
            end_leftovers(workdir)


def stop(process: subprocess.Popen[bytes], patience_s: float = STOP_S) -> None:
    """Ends a process, kindly at first.

    Args:
      process: to end.
      patience_s: seconds until it is killed.
    """
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_superlink(superlink: SuperLink, start_s: float) -> None:
    """Waits until a SuperLink answers with a certificate that is trusted, and tells how it goes.

    Args:
      superlink: one that was started.
      start_s: seconds that it may take.

    Raises:
      RuntimeError: if it has ended, is not trusted, or takes longer.
    """
    began = told = time.monotonic()
    while True:
        trouble = find_trouble(*superlink.address, superlink.authority)
        now = time.monotonic()
        code = superlink.process.poll()
        if code is not None:
            # Another program may answer at its port.
            raise RuntimeError(f"the SuperLink has ended ({code}); {superlink.log.explain()}")
        if trouble is None:
            logger.info("the SuperLink answers after %.0f s", now - began)
            return
        if trouble.is_final or now - began > start_s:
            late = "" if trouble.is_final else f" within start_timeout_s={start_s:g}"
            raise RuntimeError(
                f"the SuperLink does not answer{late}: {trouble.text}\n{superlink.log.explain()}"
            )
        if now - told > TOLD_EVERY_S:
            told = now
            logger.info("the SuperLink is starting (%.0f s of %.0f s)", now - began, start_s)
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
    if not found:
        raise ValueError(f"keys={str(keys)!r} holds no client_N.pub; make_keys makes them")
    new = {path: path.read_text("utf-8").strip() for path in found}
    new = {path: key for path, key in new.items() if key not in registered}
    for number, (path, key) in enumerate(new.items(), start=1):
        logger.info("telling it the key of %s (%d of %d)", path.stem, number, len(new))
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
      RuntimeError: if it fails, with its own words and those of the SuperLink's log.
    """
    name = f"flwr {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"], env=dict(superlink.environment),
            capture_output=True, text=True, timeout=COMMAND_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{name} has not answered within {COMMAND_S:g} s\n{superlink.explain()}"
        ) from error
    start = done.stdout.find("{")
    found: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    if done.returncode or not found.get("success"):
        said = found.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"{name} has failed: {said}\n{superlink.explain()}")
    return found
