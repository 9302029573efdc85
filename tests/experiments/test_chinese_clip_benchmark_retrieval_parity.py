"""The retrieval benchmark on a small gallery (`pytest -m parity`): it checks before it times."""

import pytest

from experiments.chinese_clip import benchmark_retrieval

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]


def test_both_programs_run_and_agree():
    found = benchmark_retrieval.run(40, 300, 16, peer_queries=10, rounds=1)
    (rows,) = found.values()
    assert rows["ratio"]["queries/s"] == pytest.approx(
        rows["ours"]["queries/s"] / rows["the original"]["queries/s"]
    )
