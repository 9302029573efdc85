"""The one training loop, and what it is made of.

A system writes a loss function; everything else of a run is here::

    from jaxlab import training

    tx = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-3), num_steps=100)
    step = training.make_train_step(loss_fn, tx)   # loss_fn(params, frozen, extra, batch, key)
    result = training.train_loop(
        config=training.TrainConfig(num_steps=100, global_batch_size=32),
        workdir="runs/first",
        init=lambda key: training.TrainState.create(init_params(key), tx, key),
        step=step,
        make_batches=lambda position: batches_from(position),
        evaluators=[training.Evaluator("test", lambda state: {"test/accuracy": ...})],
    )
    result.metrics["test/accuracy"]

Run again after it was killed, this continues; after it has ended, it gives the result at once.

Rooms: `config` (settings of the loop), `optimizer` (settings, schedule, decay rules, average),
`state` (the state; trained and frozen parameters), `step` (the usual step), `loop` (the loop),
`resume` (where it starts), `stopping` (signals), `workdir`, `metric_log` and `progress` (what a
run writes and shows).
"""

from jaxlab.training.config import TrainConfig
from jaxlab.training.loop import Evaluator, TrainResult, train_loop
from jaxlab.training.metric_log import read_metrics
from jaxlab.training.optimizer import (
    OptimizerConfig,
    at_step,
    decays,
    ema_params,
    evaluation_params,
    learning_rate,
    make_optimizer,
    make_schedule,
)
from jaxlab.training.state import TrainState, merge_params, split_params
from jaxlab.training.step import join_microbatches, make_train_step, split_microbatches
from jaxlab.training.stopping import TrainingInterrupted
from jaxlab.training.workdir import lock_workdir, read_results, write_results

__all__ = [
    "Evaluator",
    "OptimizerConfig",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "TrainingInterrupted",
    "at_step",
    "decays",
    "ema_params",
    "evaluation_params",
    "join_microbatches",
    "learning_rate",
    "lock_workdir",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "merge_params",
    "read_metrics",
    "read_results",
    "split_microbatches",
    "split_params",
    "train_loop",
    "write_results",
]
