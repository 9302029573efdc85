"""Processes that are killed, told to stop, or out of disk."""

import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlab import parallel
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.training import read_metrics

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("toy.py")
TOY = runpy.run_path(str(SCRIPT))


def spawn(cache_dir, *arguments, **variables):
    """The toy run as a process with two devices."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JAX")}
    environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, mesh):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, TOY["run"](workdir, mesh)


def test_killed_run_started_again_ends_bit_identical(tmp_path, mesh, unbroken, cache_dir):
    step = int(np.random.default_rng().integers(1, TOY["NUM_STEPS"]))  # any step must do
    process = spawn(cache_dir, tmp_path, step, "SIGKILL", -1)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, output
    assert not (tmp_path / "results.json").exists()
    result = TOY["run"](tmp_path, mesh)
    workdir, expected = unbroken
    jax.tree.map(
        np.testing.assert_array_equal, TOY["params_of"](result), TOY["params_of"](expected)
    )
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert log == (workdir / "metrics.jsonl").read_bytes(), f"killed at {step}"


@pytest.mark.multiprocess
def test_one_of_two_processes_is_told_to_stop_and_one_process_ends_the_run(
    tmp_path, mesh, unbroken, cache_dir
):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    processes = [
        spawn(
            cache_dir, tmp_path, 8, "SIGTERM", 1,
            JAXLAB_COORDINATOR=address, JAXLAB_NUM_PROCESSES="2", JAXLAB_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    with RunCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() in (9, 10)
    result = TOY["run"](tmp_path, mesh)  # 2 processes of 2 devices -> 1 process of 2 devices
    workdir, expected = unbroken
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        TOY["params_of"](result),
        TOY["params_of"](expected),
    )
    got, wanted = read_metrics(tmp_path), read_metrics(workdir)
    assert [r["step"] for r in got] == [r["step"] for r in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(
    "limit, settings, message",
    [
        (1000, {"log_every_steps": 100}, r"(?s)to .*checkpoints.*step [48]\. Free disk space"),
        (100, {"save_every_steps": 0}, "metrics of step 10 could not be written .*metrics.jsonl"),
    ],
)
def test_full_disk_stops_the_run_and_the_last_checkpoint_continues_it(
    tmp_path, mesh, unbroken, limit, settings, message
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(position, batch):
        if position == 9:  # when the checkpoint of step 4 is complete, that of 8 perhaps
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))

    try:
        with pytest.raises(OSError, match=message):
            TOY["run"](tmp_path, mesh, fill_up, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    result = TOY["run"](tmp_path, mesh)
    jax.tree.map(
        np.testing.assert_array_equal, TOY["params_of"](result), TOY["params_of"](unbroken[1])
    )
