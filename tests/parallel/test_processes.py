import logging
import runpy
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlab.parallel import (
    ProcessConfig,
    any_process,
    barrier,
    broadcast_from_main,
    check_all_reduce,
    find_cluster,
    is_main_process,
    make_mesh,
    processes,
    resolve_processes,
    start_processes,
)

WORKER = Path(__file__).with_name("worker.py")
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}
LAUNCHER = runpy.run_path(str(Path(__file__).with_name("launcher.py")))
free_port, spawn = LAUNCHER["free_port"], LAUNCHER["spawn"]


@pytest.mark.multiprocess
def test_two_processes_train_to_the_numbers_of_one(tmp_path):
    port = free_port()
    runs = [spawn([WORKER, tmp_path], port, i) for i in range(2)]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)

    expected = runpy.run_path(str(WORKER))["run"](
        make_mesh(devices=jax.devices()[:1]), "replicated"
    )
    for i in range(2):
        got = np.load(tmp_path / f"{i}.npz")
        for name, value in expected.items():
            for rules in ("replicated", "model"):
                # Relative for the losses near 6, see test_placement.py.
                np.testing.assert_allclose(got[f"{rules}/{name}"], value, atol=1e-6, rtol=1e-6)
        line = f"process {i} of 2: 2 local and 4 global cpu devices, mesh data=4 model=1"
        assert got["line"] == line
        assert got["share"].tolist() == [i, 2]
        assert got["any"].tolist() == [True, False]  # only process 1 raised its flag
        assert got["broadcast"] == 2**40 + 5  # process 1 offered another number
        assert got["key"].tolist() == [0, 7]
        assert bool(got["main"]) == (i == 0)


@pytest.mark.multiprocess
@pytest.mark.parametrize("process_id", [0, 1])
def test_one_process_of_two_fails_with_a_sentence_in_time(process_id):
    code = (
        "from jaxlab.parallel import ProcessConfig, start_processes\n"
        "start_processes(ProcessConfig(start_timeout_s=2, heartbeat_timeout_s=5))"
    )
    begin = time.monotonic()
    run = spawn(["-c", code], free_port(), process_id)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 1, output
    assert f"TimeoutError: process {process_id} of 2 (coordinator 127.0.0.1:" in output
    assert "waited 2 s (start_timeout_s) and not all the others came" in output
    assert "same command on every host" in output
    assert time.monotonic() - begin < 60


def test_a_process_on_its_own_starts_checks_and_says_so(caplog, monkeypatch):
    for name in [*processes.ENVIRONMENT.values(), *SLURM]:
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.INFO, "jaxlab"):
        mesh = start_processes(model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert caplog.messages == [
        "process 0 of 1: 8 local and 8 global cpu devices, mesh data=4 model=2"
    ]
    assert is_main_process() and any_process(True) and not any_process(False)
    barrier("alone")
    assert broadcast_from_main(np.int64(2**40)) == 2**40


def test_devices_that_never_answer_end_in_a_sentence(monkeypatch):
    release = processes.threading.Event()
    monkeypatch.setattr(processes, "check_all_reduce", lambda mesh: release.wait(30))
    with pytest.raises(TimeoutError, match="did not answer an all-reduce within 1 s"):
        start_processes(ProcessConfig(launcher="single", start_timeout_s=1))
    release.set()


def test_a_wrong_sum_stops_the_run(monkeypatch):
    monkeypatch.setattr(processes.jnp, "sum", lambda x: x[0] + 1)
    with pytest.raises(RuntimeError, match="over 8 devices gave 1 instead of 28"):
        check_all_reduce(make_mesh())


def test_starting_after_other_use_of_jax_says_what_to_do():
    config = ProcessConfig("plain", f"127.0.0.1:{free_port()}", num_processes=2, process_id=0)
    assert jax.device_count() == 8
    with pytest.raises(RuntimeError, match="process 0 of 2 .* could not start: .*before any"):
        start_processes(config)


def test_a_port_in_use_is_refused_before_jax_crashes_on_it():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        config = ProcessConfig("plain", f"127.0.0.1:{port}", num_processes=2, process_id=0)
        with pytest.raises(
            RuntimeError, match=rf"process 0 of 2 .*cannot listen on port {port} of"
        ):
            start_processes(config)


def test_nothing_set_means_one_process():
    assert resolve_processes(ProcessConfig(), {}).launcher == "single"
    assert resolve_processes(ProcessConfig(), {"SLURM_NTASKS": "1"}).launcher == "single"


def test_environment_fills_in_and_fields_win():
    environ = {
        "JAXLAB_COORDINATOR": "a:1",
        "JAXLAB_NUM_PROCESSES": "4",
        "JAXLAB_PROCESS_ID": "3",
    }
    assert resolve_processes(ProcessConfig(), environ) == ProcessConfig("plain", "a:1", 4, 3)
    config = ProcessConfig(coordinator="b:2", process_id=0)
    assert resolve_processes(config, environ | SLURM) == ProcessConfig("plain", "b:2", 4, 0)
    assert resolve_processes(ProcessConfig("single"), environ).launcher == "single"
    assert resolve_processes(ProcessConfig("cluster"), environ).launcher == "cluster"
    environ["JAXLAB_NUM_PROCESSES"] = "1"
    environ["JAXLAB_PROCESS_ID"] = "0"
    assert resolve_processes(ProcessConfig(), environ).launcher == "single"


def test_missing_and_malformed_values_are_named():
    with pytest.raises(ValueError) as error:
        resolve_processes(ProcessConfig(), {"JAXLAB_PROCESS_ID": "1"})
    assert "coordinator (or JAXLAB_COORDINATOR), num_processes (or JAXLAB_NUM" in str(error.value)
    with pytest.raises(ValueError, match="JAXLAB_PROCESS_ID='one' is not a whole number"):
        resolve_processes(ProcessConfig(), {"JAXLAB_PROCESS_ID": "one"})
    with pytest.raises(ValueError, match="process_id=2 with num_processes=2"):
        resolve_processes(ProcessConfig(num_processes=2), {"JAXLAB_PROCESS_ID": "2"})


def test_a_bad_config_lists_everything():
    with pytest.raises(ValueError) as error:
        ProcessConfig("ssh", "host", num_processes=0, process_id=-1, start_timeout_s=3001)
    for words in (
        "launcher='ssh' is not one of auto, single, plain, cluster",
        "coordinator='host' is not host:port",
        "num_processes=0 is not positive",
        "process_id=-1",
        "start_timeout_s=3001 is not from 1 to 3000 s",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "environ, has_tpu, expected",
    [
        (SLURM, False, "slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, False, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"}, False, "ompi"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, "gke"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "gke"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, None),
        ({}, True, "tpu_vm"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({"KUBERNETES_SERVICE_HOST": "a", "JOB_COMPLETION_INDEX": "0"}, False, "kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "a"}, False, None),
        ({}, False, None),
    ],
)
def test_launchers_are_known_by_their_variables(environ, has_tpu, expected):
    assert find_cluster(environ, has_tpu) == expected
    launcher = resolve_processes(ProcessConfig(), environ, has_tpu).launcher
    assert launcher == ("single" if expected is None else "cluster")


def test_launchers_that_hide_the_address_are_refused_or_warned_of(caplog):
    with pytest.raises(ValueError, match="set JAXLAB_COORDINATOR=host:port"):
        find_cluster({"OMPI_COMM_WORLD_SIZE": "2"})
    assert find_cluster({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}) is None
    assert "not started by srun: it runs alone" in caplog.text
