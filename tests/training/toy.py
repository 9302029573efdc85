"""A tiny run with dropout and a changing array, and a script that runs it as a process."""

import os
import signal
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import parallel, training

NUM_STEPS = 12
ROWS = 16


def init_params(key):
    """A two-layer network."""
    up, down = jnp.split(jax.random.uniform(key, (6, 8), minval=-1.0), [4])
    return {"up": {"kernel": up, "bias": jnp.zeros(8)}, "down": {"kernel": down.T}}


def loss_fn(params, frozen, extra, batch, key):
    """Mean square of the error, with dropout; `extra` keeps the mean of the targets."""
    hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None])
    hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape)
    error = hidden @ params["down"]["kernel"] - batch["y"]
    extra = {"mean": 0.9 * extra["mean"] + 0.1 * batch["y"].mean()}
    return jnp.mean(error**2), (extra, {"error": jnp.abs(error).mean()})


def batch_at(position, share=0, num_shares=1):
    """The rows of one process in the batch of a step, in the order of one process's batch."""
    rng = np.random.default_rng(position)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    y = np.stack([x.sum(1), x[:, 0] * x[:, 1]], axis=1)
    ids = (np.int64(position) << 40) + np.arange(ROWS)
    batch = {"x": x, "y": y, "example_id": ids}
    return {name: np.split(value, num_shares)[share] for name, value in batch.items()}


def make_batches(mesh, hook=None):
    """Batches of this process; `hook(position, batch)` sees each before the loop does."""
    share, num_shares = parallel.data_process(mesh)

    def batches(position):
        while True:
            batch = batch_at(position, share, num_shares)
            if hook is not None:
                hook(position, batch)
            yield batch
            position += 1

    return batches


def run(workdir, mesh=None, hook=None, loss=loss_fn, optimizer=None, evaluators=None, **settings):
    """The run's result; `settings` override those of the loop."""
    mesh = parallel.make_mesh() if mesh is None else mesh
    settings = {
        "num_steps": NUM_STEPS,
        "global_batch_size": ROWS,
        "log_every_steps": 2,
        "eval_every_steps": 3,
        "save_every_steps": 4,
    } | settings
    config = training.TrainConfig(**settings)
    optimizer = optimizer or training.OptimizerConfig(learning_rate=0.05, warmup_steps=2)
    tx = training.make_optimizer(optimizer, config.num_steps)

    def init(key):
        first, rest = jax.random.split(key)
        return training.TrainState.create(
            init_params(first), tx, rest, extra={"mean": jnp.zeros(())}
        )

    if evaluators is None:
        evaluators = [training.Evaluator("norm", norm)]
    return training.train_loop(
        config=config,
        workdir=workdir,
        init=init,
        step=training.make_train_step(loss, tx, num_microbatches=config.num_microbatches),
        make_batches=make_batches(mesh, hook),
        evaluators=evaluators,
        mesh=mesh,
    )


def norm(state):
    """A number that depends on every parameter."""
    return {"test/norm": sum(float(jnp.sum(p**2)) for p in jax.tree.leaves(state.params))}


def signal_at(position, number):
    """A hook that sends this process a signal while it loads the batch of a position."""

    def hook(at, batch):
        if at == position:
            os.kill(os.getpid(), number)

    return hook


def params_of(result):
    """Final parameters as NumPy arrays."""
    return jax.tree.map(np.asarray, parallel.to_host(result.state.params))


def main(workdir, position, number, process):
    """Runs until a signal; process -1 sends it to all, another one to that process alone."""
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = parallel.start_processes(parallel.ProcessConfig(start_timeout_s=60))
    mine = int(process) in (-1, jax.process_index())
    hook = signal_at(int(position), signal.Signals[number]) if mine else None
    run(workdir, mesh, hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
