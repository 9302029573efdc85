"""Both ends of a deployed course, without Flower: settings, own data, and the node's program."""

import dataclasses
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments.federated import deployed
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
from experiments.federated.superlink import check_count, end_leftovers, flower_environment
from jaxlab.federated import ConfigError
from jaxlab.federated.deployment import LiveConfig, flower
from jaxlab.federated.deployment.codec import Packer, unpack
from jaxlab.federated.messages import ASK_INFO, EVALUATE, INFO, JOIN, METRICS, SERVER, Message
from jaxlab.federated.server import NUM_SAMPLE

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
    train, splits = deployed.read_own(path, ("val", "test"))
    assert train.keys() == part.keys() and splits.keys() == {"train", "test"}
    assert len(splits["test"]["y"]) == 4
    deployed.make_own_node(course, 1, path)
    np.savez(path, z=np.zeros(3))
    with pytest.raises(ValueError, match="train examples .* 'x' is missing.*'z' is unknown"):
        deployed.make_own_node(course, 1, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"own.npz is no NPZ file of arrays"):
        deployed.read_own(path, ())


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
        ((*JOIN_IT, "--data={0}/none.npz"), "none.npz does not exist; give an NPZ file with x, y"),
        ((*JOIN_IT, "--data={0}/rubbish.npz"), "rubbish.npz is no NPZ file of arrays"),
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
