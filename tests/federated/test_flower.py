"""Real processes: a SuperLink and three SuperNodes on loopback, with TLS and known nodes."""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common.configs import run_config
from experiments.federated.learned import save_variables
from experiments.federated.make_keys import make_certificates, make_node_key
from experiments.federated.settings import RunConfig
from experiments.federated.tasks import (
    make_problem,
    make_simulation,
    plan_course,
)
from jaxlab.checkpoints.foreign.safetensors import read_safetensors
from jaxlab.federated import run_course
from jaxlab.parallel import make_mesh

pytest.importorskip("flwr", reason="needs Flower: pip install 'jaxlab[flower]'")
pytestmark = [pytest.mark.flower, pytest.mark.timeout(1800)]

CHECKOUT = Path(__file__).parents[2]
CLIENTS, PATIENCE_S = (1, 2, 3), 900
CONFIG = """
from experiments.common import to_config_dict
from experiments.federated.settings import (
    AlgorithmConfig,
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    LocalConfig,
    RunConfig,
    StrategyConfig,
)


def get_config(arg=""):
    return to_config_dict(
        RunConfig(
            num_rounds={num_rounds},
            data=DataConfig(name="synthetic", num_clients=3, num_held_out=100),
            local=LocalConfig(batch_size=20, amount=10, unit="step", learning_rate=0.2),
            algorithm=AlgorithmConfig(name="scaffold"),
            strategy=StrategyConfig({strategy}),
            devices=DevicesConfig(kind="drawn"),
            evaluation=EvaluationConfig(every_rounds=1, splits=("test",)),
        )
    )
"""
SYNCHRONOUS = "cohort_size=3"
FEDBUFF = (
    "kind='goal_achieved', cohort_size=3, min_updates=2, max_staleness=9, staleness_exponent=0.5, "
    "broadcast='after_receiving'"
)


class Place:
    """The processes of a deployment, each the leader of a group."""

    def __init__(self, folder, strategy, num_rounds):
        self.folder, self.run, self.running = folder, folder / "run", {}
        self.config = folder / "course.py"
        self.config.write_text(CONFIG.format(strategy=strategy, num_rounds=num_rounds), "utf-8")
        self.keys = folder / "keys"
        self.keys.mkdir()
        make_certificates(self.keys, ["localhost", "127.0.0.1"], 1)
        for client in CLIENTS:
            make_node_key(self.keys, client)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, who):
        keys = f"--keys={self.keys}"
        if who == "server":
            arguments = [
                "deploy", f"--config={self.config}", f"--workdir={self.run}", keys,
                f"--listen={self.address}", "--answer_timeout_s=300", "--finish_timeout_s=120",
            ]  # fmt: skip
        else:
            arguments = [
                "join", f"--workdir={self.folder / f'node{who}'}", keys, f"--client={who}",
                f"--server={self.address}",
            ]  # fmt: skip
        module, *flags = arguments
        log = open(self.folder / f"{who}.log", "ab")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        }
        self.running[who] = subprocess.Popen(
            [sys.executable, "-m", f"experiments.federated.{module}", *flags],
            cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()

    def kill(self, who):
        """Without a chance to say goodbye."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running[who].pid, signal.SIGKILL)
        self.running.pop(who).wait()

    def progress(self):
        path = self.run / "progress.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if (
            path.exists()
        ) else []  # fmt: skip

    def wait_for_round(self, number):
        self.wait(lambda: any(line["round"] >= number for line in self.progress()))

    def wait(self, holds):
        end = time.monotonic() + PATIENCE_S
        while not holds():
            ended = [w for w, p in self.running.items() if p.poll() not in (None, 0)]
            if ended or time.monotonic() > end:
                raise AssertionError(f"{ended or 'time is up'}:\n{self.logs()}")
            time.sleep(0.25)

    def wait_for_end(self):
        self.wait(lambda: all(process.poll() == 0 for process in self.running.values()))

    def logs(self):
        paths = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*/*.log"))
        return "\n".join(f"== {p}\n" + p.read_text("utf-8", "replace")[-3000:] for p in paths)

    def left_behind(self):
        """Command lines of processes that know this folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" "))
        return [line for line in found if line.strip()]


@pytest.fixture
def place(tmp_path):
    places = []

    def place(strategy, num_rounds):
        places.append(Place(tmp_path, strategy, num_rounds))
        return places[-1]

    yield place
    for each in places:
        for who in list(each.running):
            each.kill(who)
        end = time.monotonic() + 60  # Flower's own processes look for their parents
        while each.left_behind() and time.monotonic() < end:
            time.sleep(0.25)


def simulate(place):
    """The same course in this process: its model as the deployed one is written, and its state."""
    config = run_config(runpy.run_path(str(place.config))["get_config"](), RunConfig)
    problem = make_problem(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    simulation = make_simulation(problem, plan_course(config, problem), mesh)
    state = run_course(simulation.course, simulation.start())
    path = place.folder / "simulated.safetensors"
    save_variables(path, problem.module, problem.example, simulation.variables(state), 0)
    return read_safetensors(path).tensors


def results(place):
    return json.loads((place.run / "results.json").read_text("utf-8"))


def test_a_course_outlives_its_clients_and_its_server_and_is_the_simulated_one(place):
    place = place(SYNCHRONOUS, num_rounds=3)
    for who in ("server", *CLIENTS):
        place.start(who)
    place.wait_for_round(1)
    place.kill(2)
    place.start(2)
    place.wait_for_round(2)
    place.kill("server")
    place.start("server")
    place.wait_for_end()
    deployed, simulated = read_safetensors(place.run / "model.safetensors").tensors, simulate(place)
    assert deployed.keys() == simulated.keys()
    for name, tensor in simulated.items():
        np.testing.assert_allclose(deployed[name], tensor, rtol=1e-6, atol=1e-6, err_msg=name)
    found = results(place)
    assert found["rounds"] == 3 and found["rejoined_clients"] >= 1 and "test/accuracy" in found
    for client in CLIENTS:
        assert list(place.folder.glob(f"node{client}/courses/*/final.bin"))
    place.wait(lambda: not place.left_behind())


def test_an_asynchronous_course_learns_and_ends_all_processes(place):
    place = place(FEDBUFF, num_rounds=4)
    for who in ("server", *CLIENTS):
        place.start(who)
    place.wait_for_end()
    found = results(place)
    assert found["rounds"] == 4
    assert found["test/accuracy"] > 0.6  # of two classes
    place.wait(lambda: not place.left_behind())
