"""Courses over the devices of two real processes: the numbers of one process."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlab.parallel import make_mesh

WORKER = Path(__file__).with_name("worker.py")
LAUNCHER = runpy.run_path(str(WORKER.parents[1] / "parallel" / "launcher.py"))


@pytest.mark.multiprocess
def test_two_processes_end_a_course_with_the_numbers_of_one(tmp_path):
    port = LAUNCHER["free_port"]()
    runs = [LAUNCHER["spawn"]([WORKER, tmp_path], port, i) for i in range(2)]
    expected = runpy.run_path(str(WORKER))["run_courses"](make_mesh(devices=jax.devices()[:1]))
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        assert set(found) == set(expected) and len(expected) == 10
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
