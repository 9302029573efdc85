"""Both ends of a deployed course, without Flower: settings, own data, and the node's program."""

import contextlib
import dataclasses
import datetime
import importlib
import importlib.util
import json
import logging
import os
import runpy
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.federated import certificates, deployed, join, program_logs
from experiments.federated.flower_app import pipe
from experiments.federated.join import Resident, serve
from experiments.federated.settings import (
    BesideConfig,
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    LocalConfig,
    RunConfig,
    StrategyConfig,
)
from experiments.federated.superlink import (
    check_count,
    end_leftovers,
    flower_environment,
    own_address,
)
from jaxlab.federated import ConfigError
from jaxlab.federated.deployment import (
    Delivery,
    LiveConfig,
    LiveState,
    Memory,
    answer,
    flower,
    run_live,
)
from jaxlab.federated.deployment.codec import Packer, unpack
from jaxlab.federated.messages import ASK_INFO, EVALUATE, INFO, JOIN, METRICS, SERVER, Message
from jaxlab.federated.server import NUM_SAMPLE

CHECKOUT = Path(__file__).parents[2]
EXAMPLE_APP = CHECKOUT / "experiments/federated/example_app"
SETTINGS = deployed.Settings(
    RunConfig(
        num_rounds=2,
        data=DataConfig(name="synthetic", num_clients=3, num_held_out=30),
        local=LocalConfig(batch_size=20, amount=2, unit="step"),
        strategy=StrategyConfig(cohort_size=3),
    ),
    LiveConfig(poll_s=0.25),
    30.0,
)


@pytest.fixture(scope="module")
def course():
    return deployed.make_course(SETTINGS)


def test_settings_cross_the_wire_and_are_checked():
    text = deployed.write_settings(SETTINGS)
    assert deployed.read_settings(text) == SETTINGS
    with pytest.raises(ValueError, match="num_rond does not exist; the nearest valid key is"):
        deployed.read_settings(text.replace("num_rounds", "num_rond"))


def test_what_only_a_simulation_does_is_left_out_and_told():
    given = dataclasses.replace(
        SETTINGS.config, baselines=("local",), beside=BesideConfig(strategy=StrategyConfig()),
        devices=DevicesConfig(kind="drawn", failure_rate=0.5),
        evaluation=EvaluationConfig(by_server=("test",)),
    )  # fmt: skip
    config, left_out = deployed.deployable(given)
    assert config == dataclasses.replace(
        SETTINGS.config, devices=given.devices, evaluation=EvaluationConfig()
    )
    assert [clause.split()[0].split("=")[0] for clause in left_out] == [
        "devices.kind", "devices.failure_rate", "beside", "baselines", "evaluation.by_server"
    ]  # fmt: skip
    assert deployed.deployable(SETTINGS.config) == (SETTINGS.config, [])
    by_server = EvaluationConfig(splits=(), by_server=("test",))
    with pytest.raises(ConfigError, match=r"evaluation.splits=\(\) and the server of a deployed"):
        deployed.deployable(dataclasses.replace(given, evaluation=by_server))


def test_every_client_has_its_own_part(course):
    data = course.problem.data.train
    parts = [deployed.part_of(data, client) for client in (1, 2, 3)]
    assert [len(part["y"]) for part in parts] == data.sizes.tolist()
    joined = np.concatenate([part["x"] for part in parts])
    np.testing.assert_array_equal(joined, data.examples["x"])
    with pytest.raises(ValueError, match="client=4: the course has the clients 1 to 3"):
        deployed.make_own_node(course, 4, None)


def test_a_node_reads_its_own_file(course, tmp_path):
    path = tmp_path / "own.npz"
    part = deployed.part_of(course.problem.data.train, 1)
    np.savez(path, **part, **{f"test_{name}": values[:4] for name, values in part.items()})
    example = course.agreement.example
    train, splits = deployed.read_own(path, ("val", "test"), example)
    assert train.keys() == part.keys() and splits.keys() == {"train", "test"}
    assert len(splits["test"]["y"]) == 4
    deployed.make_own_node(course, 1, path)
    wide = {"x": part["x"].astype(np.float64), "y": part["y"].astype(np.int64)}
    np.savez(path, **wide, x_test=wide["x"][:4], y_test=wide["y"][:4])
    again, others = deployed.read_own(path, ("test",), example)
    for name in part:
        np.testing.assert_array_equal(again[name], part[name], strict=True)
        np.testing.assert_array_equal(others["test"][name], splits["test"][name], strict=True)
    np.savez(path, z=np.zeros(3))
    with pytest.raises(ValueError, match="train examples .* 'x' is missing.*'z' is unknown"):
        deployed.make_own_node(course, 1, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"own.npz is a text file; .*wanted an NPZ"):
        deployed.read_own(path, (), example)


def test_a_number_that_another_type_cannot_hold_stays_as_it_is():
    example = {"y": jax.ShapeDtypeStruct((), np.int32)}
    big = {"y": np.array([2**40]), "z": np.zeros(1)}
    assert deployed.as_agreed(big, example) == big
    assert deployed.as_agreed({"y": np.array([3])}, example)["y"].dtype == np.int32


DEPLOY = ("federated.deploy", "--config=configs/federated/deployed.py", "--workdir={0}/run")
JOIN_IT = ("federated.join", "--workdir={0}/node", "--client=1", "--keys={0}/all")
MAKE_KEYS = ("federated.make_keys", "--clients=2")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders `all`, with (empty) keys of two clients, and `some`, which lacks the server's."""
    folder = tmp_path_factory.mktemp("places")
    for name, files in {
        "all": ("ca.crt", "server.crt", "server.key", *(f"client_{n}{e}" for n in (1, 2)
                for e in ("", ".pub"))),
        "some": ("ca.crt", "client_1"),
    }.items():  # fmt: skip
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).touch()
    (folder / "rubbish.npz").write_bytes(b"nothing of the kind")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MAKE_KEYS, "--workdir={0}/new", "--host="), "--host=: '' is no name or address"),
        ((*MAKE_KEYS, "--workdir={0}/new", "--host=a,b\u00fccher.de"), "is no name or address"),
        ((*MAKE_KEYS, "--workdir={0}/new", "--days=40000"), "flag --days=40000: 40000 is not"),
        ((*MAKE_KEYS, "--workdir={0}/rubbish.npz"), "is a file; give the name of a folder"),
        (
            (*MAKE_KEYS, "--workdir={0}/some"),
            "has only ca.crt of ca.crt, server.crt and server.key",
        ),
        (("federated.make_keys", "--workdir={0}/new"), "--clients is missing; give the number"),
        (
            (*DEPLOY, "--keys={0}/all", "--listen=0.0.0.0:99999"),
            "--listen=0.0.0.0:99999 is no host:",
        ),
        ((*DEPLOY, "--keys={0}/some"), "some/server.crt does not exist; make_keys makes"),
        ((*DEPLOY, "--keys={0}/none"), "none/ca.crt does not exist; make_keys makes"),
        (("federated.deploy", "--workdir={0}/run"), "--config is missing; give configs/federated/"),
        (
            ("federated.deploy", "--config=configs/federated/deploy.py"),
            "the nearest is configs/fed",
        ),
        ((*JOIN_IT, "--server=fl.example.org"), "--server=fl.example.org is no host:port"),
        ((*JOIN_IT, "--client=3"), "client_3 does not exist; make_keys makes"),
        ((*JOIN_IT, "--data={0}/none.npz"), "none.npz does not exist; make it with numpy.savez"),
        (
            (*JOIN_IT, "--data={0}/rubbish.npz"),
            "rubbish.npz is a text file; load_csv reads CSV; wanted an NPZ",
        ),
        (("federated.join", "--workdir={0}/node"), "--client is missing; give the id"),
    ],
)
def test_a_wrong_path_or_flag_is_one_sentence(run_program, places, arguments, message):
    before = {path.name for path in places.iterdir()}
    code, _, errors = run_program(*(argument.format(places) for argument in arguments))
    assert code == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, errors
    assert message in errors
    assert {path.name for path in places.iterdir()} == before  # nothing was begun


def test_a_course_of_more_clients_than_keys_is_refused_before_it_waits(places):
    check_count(places / "all", 2)
    with pytest.raises(
        ValueError, match=r"the keys of 2 clients .* and the course 3: run make_keys"
    ):
        check_count(places / "all", 3)


def ask(address, head, parts):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rwb") as file:
            pipe.send(file, head, parts)
            return pipe.receive(file)


def through_the_pipe(address, messages):
    """What Flower's ClientApp does with what has come."""
    pack = Packer()
    packed = [pack(message) for message in messages]
    named = flower.name_arrays(packed)
    head = {
        "settings": deployed.write_settings(SETTINGS),
        "course": flower.describe_course("one", packed),
        "arrays": dict.fromkeys(named, flower.KIND),
    }
    head, parts = ask(address, head, list(named.values()))
    if "error" in head:
        return head["error"]
    arrays = zip(head["arrays"].items(), parts, strict=True)
    records = {
        flower.COURSE: head["course"],
        flower.MESSAGES: {name: flower.RawArray(kind, data) for (name, kind), data in arrays},
    }
    course, answers = flower.unpack_records(records, 10**6)
    assert course == "one"
    return [unpack(answer, 10**6) for answer in answers]


def test_the_program_of_a_node_answers_and_knows_when_the_course_has_ended(course, tmp_path):
    from jaxlab.federated.deployment import make_learner

    learner = make_learner(course.agreement, **course.learner_options)
    server = learner.start()
    resident = Resident(tmp_path, 2, None)
    with serve(resident) as address:
        (join,) = through_the_pipe(address, [Message(JOIN, SERVER, (-1,))])
        assert (join.type, join.sender) == (JOIN, 2)
        content = learner.program.evaluation(server.model, 0)
        told, metrics = through_the_pipe(
            address,
            [
                Message(ASK_INFO, SERVER, (2,), [NUM_SAMPLE], request=1),
                Message(EVALUATE, SERVER, (2,), content, request=2),
            ],
        )
        assert told.type == INFO and told.content[NUM_SAMPLE] == 40
        assert metrics.type == METRICS and metrics.request == 2
        learner.check(metrics)
        error = through_the_pipe(address, [Message("greeting", SERVER, (2,))])
        assert error[0].type == "failure" and "no handler" in error[0].content
        assert not resident.finished.is_set()
        through_the_pipe(
            address, [Message("finish", SERVER, (2,), learner.program.final(server.model))]
        )
        assert resident.finished.is_set() and (tmp_path / "courses/one/final.bin").exists()


def test_programs_that_outlived_their_node_are_ended_and_no_others(tmp_path):
    def start(node):
        environment = flower_environment(tmp_path / node)
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, env=environment)

    with start("node1") as ours, start("node10") as others:
        end_leftovers(tmp_path / "node1")
        assert ours.wait(10) == -signal.SIGKILL
        assert others.poll() is None
        others.kill()


def test_rubbish_is_answered_by_an_error(tmp_path):
    with serve(Resident(tmp_path, 2, None)) as address:
        text = deployed.write_settings(SETTINGS)
        head = {"settings": text, "course": {"name": "../../etc"}, "arrays": {}}
        answer, _ = ask(address, head, [])
        assert "no message of version" in answer["error"]
        head["course"] = {"name": "../../etc", "protocol": 1, "messages": 0}
        answer, _ = ask(address, head, [])
        assert "is no name of a course" in answer["error"]


def test_times_and_limits_reach_the_course(course):
    assert course.agreement.config.answer_timeout_s == 30.0
    assert course.agreement.checked().config.ask_on_join == (NUM_SAMPLE,)
    changed = dataclasses.replace(SETTINGS.live, poll_s=1.0)
    assert deployed.read_settings(deployed.write_settings(SETTINGS._replace(live=changed))).live


# What Flower's programs write, and how they are ended.

SUPERLINK_LOG = """\x1b[92mINFO \x1b[0m:      Starting Flower SuperLink
\x1b[91mERROR \x1b[0m:     [/v1/fleet/activate-node][ApiError:2004] Attempted to register \
SuperNode with public key: b'-----BEGIN', exception: No SuperNode found with the given public key.
2026-11-27T23:22:52.518Z INFO [uvicorn.access] "POST /v1/fleet/activate-node HTTP/1.1" 412
Traceback (most recent call last):
  File "default.py", line 101, in map_httpcore_exceptions
    raise to_exc(exc) from exc
httpcore.ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: IP address \
mismatch, certificate is not valid for '127.0.0.1'. (_ssl.c:1006)
"""


def test_the_lines_of_a_log_that_matter_are_shown_since_a_program_began(tmp_path):
    path = tmp_path / "superlink.log"
    path.write_text("error: of a run before\n", "utf-8")
    log = program_logs.Log(path)
    assert log.explain() == f"see {path}"
    with open(path, "a", encoding="utf-8") as file:
        file.write(SUPERLINK_LOG)
    assert "Starting Flower" in log.news() and not log.news()
    name, *lines = log.explain().splitlines()
    assert name == f"{path} says:" and len(lines) == 1
    assert lines[0].endswith("certificate is not valid for '127.0.0.1'. (_ssl.c:1006)")


def test_what_stays_as_it_is_is_told_once(caplog):
    tell = program_logs.Teller(logging.getLogger("experiments"))
    with caplog.at_level(logging.INFO, "experiments"):
        for text in ("0 of 3", "0 of 3", "1 of 3", "1 of 3"):
            tell(text)
    assert [record.message for record in caplog.records] == ["0 of 3", "1 of 3"]


def test_who_has_joined_and_who_has_not_is_told(tmp_path):
    path = tmp_path / deployed.JOINED
    assert deployed.describe_joined(path, 3) == (
        "0 of 3 clients have joined; waiting for 1, 2, 3",
        True,
    )
    path.write_text(json.dumps({"clients": [3, 1]}), "utf-8")
    assert deployed.describe_joined(path, 3) == ("2 of 3 clients have joined; waiting for 2", True)
    assert deployed.describe_joined(path, 30)[0].endswith(
        "waiting for 2, 4, 5, 6, 7, 8, 9, 10, 11, 12..."
    )
    path.write_text(json.dumps({"clients": [1, 2, 3]}), "utf-8")
    assert deployed.describe_joined(path, 3) == ("all 3 clients have joined", False)


WAITING = """
import sys, time
from experiments.federated.program_logs import interrupt_on_signals
interrupt_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt as interrupt:
    print(interrupt, flush=True)
    time.sleep(0.5)  # while children are ended, further signals wait
    print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_interrupt_a_program_that_a_script_has_started_in_the_background(number):
    # As `command &` in a script: the shell has SIGINT ignored.
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, WAITING],
        cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(number)
        assert process.stdout.read() == "ended\n"
    assert process.returncode == 0


def test_a_node_tells_why_it_waits_and_ends_with_its_course(tmp_path, monkeypatch, caplog):
    resident, started = Resident(tmp_path, 2, None), []
    troubles = [certificates.Trouble("nothing answers"), None, None]

    def start(workdir, address, keys, client, log):
        said = "Failed to activate SuperNode." if not started else "SuperNode ID: 7"
        rest = "" if not started else "; import time; time.sleep(60)"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", f"print('{said}', flush=True){rest}"], stdout=log
            )
        )
        if len(started) == 2:
            resident.finished.set()
        return started[-1]

    for name in ("RETRY_S", "LAST_ANSWER_S", "PROBE_S"):
        monkeypatch.setattr(join, name, 0.0)
    monkeypatch.setattr(join, "start_node", start)
    monkeypatch.setattr(join, "call_server", lambda keys: troubles.pop(0))
    monkeypatch.setattr(join, "_SERVER", types.SimpleNamespace(value="here:1"))
    monkeypatch.setattr(join, "_STAY", types.SimpleNamespace(value=False))
    with caplog.at_level(logging.INFO, join.logger.name):
        join.follow(resident, tmp_path, "socket", tmp_path)
    told = [record.message for record in caplog.records]
    assert told[0] == "nothing answers; trying again"
    assert told[2].startswith("the server does not know the key of client 2 yet; waiting.")
    assert [process.returncode for process in started] == [0, -signal.SIGTERM]
    troubles.append(certificates.Trouble("for another name", is_final=True))
    resident.finished.clear()
    with pytest.raises(ConnectionError, match="for another name"):
        join.follow(resident, tmp_path, "socket", tmp_path)


# Certificates.


def test_a_server_is_called_from_its_own_machine_by_an_address_that_certificates_hold():
    for host in ("0.0.0.0", "::", "[::]", "localhost", "127.0.0.1"):
        assert own_address(host) in certificates.LOCAL
    assert own_address("192.168.1.5") == "192.168.1.5"


def test_names_are_compared_in_one_form():
    found = certificates.Certificate(
        ("fl.example.org", "*.lab.org", "0:0:0:0:0:0:0:1"),
        datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC),
    )
    asked = ["FL.example.org", "a.lab.org", "::1", "[::1]", "lab.org", "127.0.0.1"]
    assert certificates.missing_names(found, asked) == ["lab.org", "127.0.0.1"]
    for now, said in (
        ("2026-01-01", ""),
        ("2026-02-20", "expires in 9 days, on 2026-03-01"),
        ("2026-03-01", "has expired on 2026-03-01"),
    ):
        at = datetime.datetime.fromisoformat(now).replace(tzinfo=datetime.UTC)
        assert certificates.describe_end(found, at) == said


def test_a_port_where_nobody_listens_is_trouble_that_may_pass(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    authority = tmp_path / "ca.crt"
    authority.write_text("nothing of the kind", "utf-8")
    with pytest.raises(ValueError, match="ca.crt holds no certificate"):
        certificates.find_trouble("127.0.0.1", port, authority)


# One's own app.


def load_course():
    spec = importlib.util.spec_from_file_location("course", EXAMPLE_APP / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Here:
    """Nodes in this process, each of which answers at once."""

    def __init__(self, places):
        self.places, self.answered = places, []

    def nodes(self):
        return list(self.places)

    def send(self, node, kind, messages):
        place, ticket = self.places[node], f"{len(self.answered)}-{node}-{time.monotonic_ns()}"
        memory = Memory(place.folder, place.node.forms.client)
        asked = [unpack(message, place.max_message_bytes) for message in messages]
        pack = Packer()
        answers = tuple(pack(each) for each in answer(place.node, memory, asked))
        self.answered.append(Delivery(ticket, answers))
        return ticket

    def receive(self):
        answered, self.answered = self.answered, []
        return answered


def test_the_example_of_an_app_learns_from_files_of_its_nodes(tmp_path, capsys):
    course = load_course()
    agreement = course.make_agreement()
    course.make_agreement = lambda: agreement  # of which programs are compiled once
    runpy.run_path(str(EXAMPLE_APP / "make_data.py"))["main"](tmp_path)
    places = {
        client: course.make_node(client, tmp_path / f"client_{client}.npz", tmp_path / str(client))
        for client in (1, 2, 3)
    }
    server, joined = course.make_server(tmp_path / "server"), []
    clock = iter(range(10**6))
    state = run_live(
        server.learner, LiveState(server.learner.start()), Here(places), LiveConfig(),
        clock=lambda: next(clock) / 1000, wait=lambda seconds: None,
        on_progress=server.on_progress, on_join=lambda state: joined.append(sorted(state.nodes)),
    )  # fmt: skip
    assert state.server.round == 5 and joined[-1] == [1, 2, 3]
    last = state.server.evaluations[-1].metrics["test/correct"]
    assert last > state.server.evaluations[0].metrics["test/correct"] and last > 0.6
    assert "round 5" in capsys.readouterr().out
    assert all((tmp_path / str(client) / "final.bin").exists() for client in places)


# With the packages that Flower brings.


@pytest.fixture
def keys(tmp_path):
    pytest.importorskip("cryptography", reason="comes with Flower: pip install 'jaxlab[flower]'")
    certificates.make_certificates(tmp_path, ["fl.example.org"], 20)
    return tmp_path


@pytest.fixture
def call(keys):
    """Tries a server that shows a certificate: `(authority, host) -> trouble`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(keys / certificates.CERTIFICATE, keys / certificates.KEY)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve_calls():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                context.wrap_socket(connection, server_side=True).close()

    threading.Thread(target=serve_calls, daemon=True).start()
    port = listening.getsockname()[1]
    yield lambda host, authority=keys / certificates.CA: certificates.find_trouble(
        host, port, authority
    )
    listening.close()


@pytest.mark.flower
def test_a_certificate_that_is_not_trusted_is_explained(keys, call, tmp_path_factory, monkeypatch):
    assert call("127.0.0.1") is None and call("localhost") is None
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda at, s: connect(("127.0.0.1", at[1]), s))
    trouble = call("10.0.0.7")
    assert trouble.is_final and (
        "is for fl.example.org, localhost, 127.0.0.1, ::1, not for 10.0.0.7 "
        "(CERTIFICATE_VERIFY_FAILED: IP address mismatch" in trouble.text
    )
    other = tmp_path_factory.mktemp("other")
    certificates.make_certificates(other, [], 20)
    trouble = call("127.0.0.1", other / certificates.CA)
    assert trouble.is_final and "is not signed by" in trouble.text


@pytest.mark.flower
def test_a_certificate_is_checked_before_a_server_starts(keys):
    path = keys / certificates.CERTIFICATE
    assert "expires in 19 days" in certificates.check_certificate(path, "127.0.0.1")
    with pytest.raises(ValueError, match=r"called by 10.0.0.7, too. make_keys makes new"):
        certificates.check_certificate(path, "10.0.0.7")
    certificates.make_certificates(keys, ["fl.example.org"], 0)
    with pytest.raises(ValueError, match="server.crt has expired on"):
        certificates.check_certificate(path, "127.0.0.1")
    certificates.make_certificates(keys, ["fl.example.org"], 90)
    assert not certificates.check_certificate(path, "FL.example.org")


@pytest.mark.flower
def test_other_names_are_refused_and_renewed_certificates_have_them(keys):
    def make(*flags):
        command = [sys.executable, "-m", "experiments.federated.make_keys", "--clients=2"]
        done = subprocess.run(
            [*command, f"--workdir={keys}", *flags], cwd=CHECKOUT, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    code, output, _ = make("--host=fl.example.org")
    assert code == 0 and "new: 2 keys" in output
    assert "WARNING: server.crt expires in 19 days" in output
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    code, _, errors = make("--host=other.org,fl.example.org")
    assert code == 2 and (
        "is for fl.example.org, localhost, 127.0.0.1, ::1 and not for other.org. Make new "
        "certificates with --renew --host=other.org,fl.example.org" in errors
    )
    assert before == {path.name: path.read_bytes() for path in keys.iterdir()}
    code, output, _ = make("--host=other.org", "--renew")
    assert code == 0 and "give every node the new ca.crt" in output and "new: 0 keys" in output
    found = certificates.read_certificate(keys / certificates.CERTIFICATE)
    assert found.names == ("other.org", *certificates.LOCAL)
    kept = {name for name, data in before.items() if (keys / name).read_bytes() == data}
    assert kept == {"client_1", "client_1.pub", "client_2", "client_2.pub"}
    make("--renew")  # the names stay, unless others are asked for
    assert certificates.read_certificate(keys / certificates.CERTIFICATE).names == found.names


@pytest.mark.flower
def test_flower_loads_the_example_of_an_app_and_its_node_answers(tmp_path, monkeypatch):
    pytest.importorskip("flwr", reason="needs Flower: pip install 'jaxlab[flower]'")
    monkeypatch.syspath_prepend(str(EXAMPLE_APP))  # as Flower does
    runpy.run_path(str(EXAMPLE_APP / "make_data.py"))["main"](tmp_path)
    server, client = (importlib.import_module(name) for name in ("server_app", "client_app"))
    assert type(server.app).__name__ == "ServerApp" and type(client.app).__name__ == "ClientApp"
    app = tomllib.loads((EXAMPLE_APP / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server_app:app", "clientapp": "client_app:app"}
    learner = server.place(types.SimpleNamespace(run_config=app["config"])).learner
    node = {
        "client": 2, "data": str(tmp_path / "client_2.npz"), "folder": str(tmp_path / "node2")
    }  # fmt: skip
    place = client.place(types.SimpleNamespace(node_config=node))
    content = learner.program.evaluation(learner.start().model, 0)
    packed = Packer()(Message(EVALUATE, SERVER, (2,), content, request=1))
    course, (found,) = flower.answer_records(place, flower.pack_records("one", [packed]))
    metrics = unpack(found, 10**6)
    assert (course, metrics.type, metrics.sender) == ("one", METRICS, 2)
    assert metrics.content["sums"]["test"]["correct"][1] == 50


LEAVE = """
import sys, threading
from experiments.federated.program_logs import leave_after


def call():
    threading.Thread(target=threading.Event().wait).start()  # that nobody ends
    print("told")
    if len(sys.argv) > 1:
        raise SystemExit(int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])


leave_after(call)
"""


@pytest.mark.parametrize(
    ("argument", "code", "said"), [("", 0, ""), ("130", 130, ""), ("wrong flag", 1, "wrong flag")]
)
def test_a_program_leaves_with_its_exit_code_and_waits_for_no_thread(argument, code, said):
    command = [sys.executable, "-c", LEAVE, *([argument] if argument else [])]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (code, "told", said)
