"""Join a deployed course with a client's own data; stays until the course has ended.

    python -m experiments.federated.join --workdir=node1 --client=1 --keys=keys \
        --server=fl.example.org:9092

The node dials out only. It starts a SuperNode of Flower and starts it again when it fails; the
folder keeps what the client must not forget, and at the end `final.bin`, what was learned. Run
again, it goes on where it was.
"""

import contextlib
import logging
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import run
from experiments.common.program import is_for_user
from experiments.federated import deployed
from experiments.federated.certificates import CA, Trouble, find_trouble
from experiments.federated.flower_app import pipe
from experiments.federated.make_keys import key_file
from experiments.federated.program_logs import Log, Teller, interrupt_on_signals, leave_after
from experiments.federated.superlink import (
    end_leftovers,
    flower_environment,
    program,
    split_address,
    stop,
)
from jaxlab import training
from jaxlab.federated import datasets, deployment
from jaxlab.training.workdir import open_workdir

logger = logging.getLogger(__name__)

_CLIENT = flags.DEFINE_integer("client", None, "Id of the client, from 1.", 1)
_SERVER = flags.DEFINE_string("server", "127.0.0.1:9092", "host:port of the SuperLink.")
_KEYS = flags.DEFINE_string("keys", "keys", "Folder with ca.crt and the key of the client.")
_DATA = flags.DEFINE_string(
    "data", None, "NPZ file with x, y, x_test, y_test; by default a part of the course's data set."
)
_STAY = flags.DEFINE_boolean("stay", False, "Stay for further courses when this one has ended.")

RETRY_S, LAST_ANSWER_S, PROBE_S = 5.0, 5.0, 2.0
JOINED, UNKNOWN, LOST = "SuperNode ID:", "Failed to activate SuperNode", "Connection attempt failed"
"""What Flower's SuperNode writes when it is known to the server, is not, and does not reach it."""


def main(workdir: Path) -> None:
    """Serve until the course has ended."""
    if _CLIENT.value is None:
        raise ValueError("--client is missing; give the id of the client, from 1")
    own, keys = Path(_DATA.value) if _DATA.value else None, Path(_KEYS.value).absolute()
    split_address("server", _SERVER.value)
    for path in (keys / CA, key_file(keys, _CLIENT.value)):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; make_keys makes certificates and keys, --keys names their "
                "folder"
            )
    if own is not None:
        datasets.read_npz(own)  # whether it is one is told now
    workdir = open_workdir(workdir)
    with training.lock_workdir(workdir):
        resident = Resident(workdir, _CLIENT.value, own)
        with serve(resident) as address:
            follow(resident, workdir, address, keys)
    print(f"The course has ended: {workdir}")


class Resident:
    """The node's program: makes the node of the settings that come with the first message."""

    def __init__(self, workdir: Path, client: int, own: Path | None) -> None:
        self.workdir, self.client, self.own = workdir, client, own
        self.finished = threading.Event()
        self._lock = threading.Lock()
        self._text = ""
        self._place: deployment.NodePlace | None = None

    def answer(
        self, head: dict[str, Any], parts: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What the node answers to what the ClientApp hands over."""
        with self._lock:
            place = self._place_of(head["settings"])
            arrays = zip(head["arrays"].items(), parts, strict=True)
            records = {
                deployment.flower.COURSE: head["course"],
                deployment.flower.MESSAGES: {
                    name: deployment.flower.RawArray(kind, data) for (name, kind), data in arrays
                },
            }
            course, answers = deployment.flower.answer_records(place, records)
        named = deployment.flower.name_arrays(answers)
        head = {
            "course": deployment.flower.describe_course(course, answers),
            "arrays": dict.fromkeys(named, deployment.flower.KIND),
        }
        return head, list(named.values())

    def _place_of(self, text: str) -> deployment.NodePlace:
        if self._place is None or text != self._text:
            settings = deployed.read_settings(text)
            node = deployed.make_own_node(deployed.make_course(settings), self.client, self.own)
            limit = settings.live.max_message_bytes
            self._text, self._place = (
                text,
                deployment.NodePlace(
                    node,
                    self.workdir / "courses",
                    limit,
                    on_finish=lambda folder: self.finished.set(),
                ),
            )
        return self._place


@contextlib.contextmanager
def serve(resident: Resident) -> Iterator[str]:
    """Answers on a socket that only this user can reach; gives its path."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head, parts = pipe.receive(self.rfile)
            try:
                head, parts = resident.answer(head, parts)
            except Exception as error:
                trace = None if is_for_user(error) else error
                logger.error("a message cannot be answered: %s", error, exc_info=trace)
                head, parts = {"error": f"{type(error).__name__}: {error}"}, []
            pipe.send(self.wfile, head, parts)

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True  # training that is under way does not hold up the end

    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="jaxlab-") as folder:
        address = str(Path(folder) / "node")
        with Server(address, Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield address
            finally:
                server.shutdown()


def follow(resident: Resident, workdir: Path, address: str, keys: Path) -> None:
    """Keeps a SuperNode running until the course has ended.

    Args:
      resident: the node's program.
      workdir: folder of the node.
      address: where its program answers.
      keys: folder of certificate and key.

    Raises:
      ConnectionError: if the server's certificate is not trusted.
    """
    tell = Teller(logger)
    while not is_done(resident):
        wait_for_server(keys, tell)
        log = Log(workdir / "supernode.log")
        with open(log.path, "ab") as file:
            node = start_node(workdir, address, keys, resident.client, file)
        try:
            tell(
                f"joining {_SERVER.value} as client {resident.client}; Flower writes to {log.path}"
            )
            watch(resident, node, log, keys, tell)
            if is_done(resident):
                time.sleep(LAST_ANSWER_S)  # until Flower has carried the last answer away
        finally:
            stop(node)
            end_leftovers(workdir)


def is_done(resident: Resident) -> bool:
    """Whether the course has ended, and no other one is waited for."""
    return resident.finished.is_set() and not _STAY.value


def call_server(keys: Path) -> Trouble | None:
    """Why the server cannot be called, if so."""
    host, port = split_address("server", _SERVER.value)
    return find_trouble(host.strip("[]"), port, keys / CA)


def wait_for_server(keys: Path, tell: Teller) -> None:
    """Waits until the server answers, and tells why it does not.

    Args:
      keys: folder of the certificate.
      tell: where to.

    Raises:
      ConnectionError: if its certificate is not trusted.
    """
    while trouble := call_server(keys):
        if trouble.is_final:
            raise ConnectionError(trouble.text)
        tell(f"{trouble.text}; trying again")
        time.sleep(PROBE_S)


def watch(
    resident: Resident, node: subprocess.Popen[bytes], log: Log, keys: Path, tell: Teller
) -> None:
    """Tells what a SuperNode does, until it or the course has ended.

    Args:
      resident: the node's program.
      node: the SuperNode.
      log: what it writes.
      keys: folder of the certificate.
      tell: where to.
    """
    has_joined = False
    while node.poll() is None and not is_done(resident):
        news = log.news()
        if JOINED in news:
            has_joined = True
            tell("the server knows this node; waiting for what it asks")
        if LOST in news:
            if trouble := call_server(keys):
                tell(f"{trouble.text}; trying again")
        time.sleep(1.0)
    if is_done(resident):
        return
    if not has_joined and UNKNOWN in log.text():
        tell(
            f"the server does not know the key of client {resident.client} yet; waiting. (deploy "
            f"tells it the keys in its own --keys when it starts: is client_{resident.client}.pub "
            "there, and of this key?)"
        )
    else:
        logger.warning(
            "the SuperNode has ended (%s) and is started again; %s", node.poll(), log.explain()
        )
    time.sleep(RETRY_S)


def start_node(
    workdir: Path, address: str, keys: Path, client: int, log: Any
) -> subprocess.Popen[bytes]:
    """A SuperNode of Flower as a process.

    Args:
      workdir: folder of the node.
      address: where its program answers.
      keys: folder of certificate and key.
      client: id of the client.
      log: where it writes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program("flower-supernode"), "--superlink", _SERVER.value,
        "--root-certificates", str(keys / CA),
        "--auth-supernode-private-key", str(key_file(keys, client)),
        "--host", "127.0.0.1", "--port", str(port), "--node-config", f'socket="{address}"',
    ]  # fmt: skip
    environment = flower_environment(workdir)
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


if __name__ == "__main__":
    interrupt_on_signals()
    leave_after(lambda: run(main))
