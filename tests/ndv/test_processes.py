"""Sketches over the devices of two real processes: the bits of one process that has all rows."""

import runpy
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("worker.py")
LAUNCHER = runpy.run_path(str(WORKER.parents[1] / "parallel" / "launcher.py"))


@pytest.mark.multiprocess
def test_two_processes_with_their_own_rows_give_the_bits_of_one(tmp_path):
    port = LAUNCHER["free_port"]()
    runs = [LAUNCHER["spawn"]([WORKER, tmp_path], port, i) for i in range(2)]
    expected = runpy.run_path(str(WORKER))["run_alone"]()
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    assert len(expected) == 9 and expected["f1"] > 50
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            if name == "f1":  # a sum of floats, in another order
                assert found[name] == pytest.approx(value, rel=1e-5)
            else:
                np.testing.assert_array_equal(found[name], value, err_msg=name)
