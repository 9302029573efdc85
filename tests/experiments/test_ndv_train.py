"""The program that trains the learned choice, end to end on few samples."""

import numpy as np
import pytest

from experiments.ndv import train
from experiments.ndv.real_columns import column_from_counts
from experiments.ndv.train import TrainingConfig, draw_tables, make_batches, thinned
from jaxlab import parallel
from jaxlab.ndv.fusion import load_fusion
from jaxlab.ndv.train import Examples
from jaxlab.training import OptimizerConfig, read_results


def small(**changes):
    settings = {
        "num_random": 150, "num_held_out": 60, "num_steps": 12, "global_batch_size": 32,
        "num_networks": 2, "widths": (16,), "num_processes": 1, "samples_per_column": 8,
        "optimizer": OptimizerConfig(warmup_steps=2),
    }  # fmt: skip
    return TrainingConfig(**{**settings, **changes})


def test_training_leaves_networks_that_load_and_numbers(tmp_path, monkeypatch, capsys):
    counts = np.random.default_rng(0).poisson(20, 3000) + 1
    monkeypatch.setattr(
        train, "load_columns", lambda tables: [column_from_counts("key", "shop.orders", counts)]
    )
    monkeypatch.setattr(train, "start", parallel.make_mesh)
    train.main(small(), tmp_path)
    params = load_fusion(tmp_path / "fusion.npz")
    assert params.networks.kernels[0].shape[0] == 2 and params.networks.kernels[0].shape[2] == 16
    results = read_results(tmp_path)
    assert results["held_out/mean_q_error"] >= 1 and 0 <= results["held_out/coverage"] <= 1
    assert results["examples"] > 100 and "mean_q_error" in capsys.readouterr().out


def test_a_batch_depends_on_the_step_alone():
    rows = np.arange(50, dtype=np.float32)
    examples = Examples(rows[:, None], rows[:, None], rows, rows)
    mesh = parallel.make_mesh()
    batches = make_batches(examples, small(), mesh)(0)
    third = [next(batches) for _ in range(3)][-1]
    again = next(make_batches(examples, small(), mesh)(2))
    for name, leaf in third.items():
        np.testing.assert_array_equal(leaf, again[name])
    np.testing.assert_array_equal(third["target"], rows[third["example_id"]])


def test_thinned_columns_are_samples_of_the_rows():
    column = column_from_counts("key", "t", np.full(20_000, 3))
    small_table = thinned(column, 0.1, np.random.default_rng(1))
    assert small_table.num_rows == pytest.approx(6000, rel=0.06)  # 4.5 standard deviations
    expected = 20_000 * (1 - 0.9**3)
    assert small_table.num_distinct == pytest.approx(expected, rel=0.05)


def test_tables_are_sampled_whole_and_in_part():
    column = column_from_counts("key", "t", np.full(20_000, 3))
    config = small(samples_per_column=40)
    draws = draw_tables([column], config)
    sizes = {float(draw.profile.N) for draw in draws}
    assert 60_000 in sizes and len(sizes) > 3
    assert all(10_000 <= size <= 60_000 for size in sizes)
    assert all(draw.num_distinct <= 20_000 for draw in draws)


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match="num_networks=0"):
        small(num_networks=0)
