"""A small contrastive training run on any mesh, and a script that runs it as one of two processes.

The loss couples all rows of the global batch, so a wrong collective changes every number.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import parallel

NUM_STEPS = 4
GLOBAL_ROWS = 16
RULES = {
    "replicated": parallel.ShardingRules.replicated(),
    "fsdp": parallel.ShardingRules.fsdp(min_size=64),
    "model": parallel.ShardingRules.from_table(
        {"up/kernel$": (None, "model"), "down/kernel$": ("model", None)}, fsdp_min_size=64
    ),
}
OPTIMIZER = optax.adam(1e-2, eps=1e-3)


def init(key):
    """Parameters and optimizer state of a two-layer tower."""
    up, down = jnp.split(jax.random.uniform(key, (24, 32), minval=-0.5, maxval=0.5), [8])
    params = {
        "up": {"kernel": up, "bias": jnp.zeros(32)},
        "down": {"kernel": down.reshape(32, 16)},
    }
    return {"params": params, "opt_state": OPTIMIZER.init(params), "step": jnp.int32(0)}


def loss_fn(params, batch):
    """Mean cross entropy of each row's pair among all rows of the global batch."""
    hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None])
    out = hidden @ params["down"]["kernel"]
    logits = out @ batch["y"].T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))


def step(state, batch):
    """One Adam step."""
    loss, grads = jax.value_and_grad(loss_fn)(state["params"], batch)
    updates, opt_state = OPTIMIZER.update(grads, state["opt_state"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, loss


def global_batch(index):
    """The batch of a step as host arrays, the same for any number of processes."""
    rng = np.random.default_rng(index)
    x = rng.normal(size=(GLOBAL_ROWS, 8)).astype(np.float32)
    y = rng.normal(size=(GLOBAL_ROWS, 16)).astype(np.float32)
    return {"x": x, "y": y, "example_id": np.arange(GLOBAL_ROWS) + (index << 40)}


def start(mesh, rules):
    """A freshly initialised state on the mesh, with its shardings."""
    return parallel.init_sharded(
        init, mesh, rules, jax.random.key(0), params_of=lambda s: s["params"]
    )


def train(mesh, state, shardings, first=0, last=NUM_STEPS):
    """The state and losses after the steps first .. last-1, each process loading its rows."""
    share, num_shares = parallel.data_process(mesh)
    scalar = parallel.replicated(mesh)
    jitted = jax.jit(step, out_shardings=(shardings, scalar), donate_argnums=0)
    losses = []
    for index in range(first, last):
        mine = {name: value[share::num_shares] for name, value in global_batch(index).items()}
        device, host = parallel.split_host_fields(mine)
        assert host["example_id"].dtype == np.int64
        state, loss = jitted(state, parallel.shard_batch(mesh, device))
        losses.append(float(loss))
    return state, losses


def run(mesh, rules_name):
    """Losses and final parameters (path -> array) of a whole run."""
    state, shardings = start(mesh, RULES[rules_name])
    state, losses = train(mesh, state, shardings)
    params = parallel.to_host(state["params"])
    flat = {parallel.path_name(path): x for path, x in jax.tree.leaves_with_path(params)}
    return {"losses": np.array(losses), **flat}


def main(out):
    """Run as one of the processes that the environment names; each writes what it has seen."""
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = parallel.start_processes(parallel.ProcessConfig(start_timeout_s=60))
    me = jax.process_index()
    found = {
        "line": parallel.describe_processes(mesh),
        "share": parallel.data_process(mesh),
        "any": (parallel.any_process(me == 1), parallel.any_process(False)),
        "broadcast": parallel.broadcast_from_main({"id": np.int64(2**40 + 5 + me)})["id"],
        "main": parallel.is_main_process(),
    }
    moved = parallel.place(mesh, {"key": jax.random.key(7), "w": np.arange(3, dtype=np.float32)})
    found["key"] = np.asarray(jax.random.key_data(moved["key"]))
    runs = {
        "replicated": run(mesh, "replicated"),
        "model": run(parallel.make_mesh(model=2), "model"),
    }
    for rules_name, values in runs.items():
        found |= {f"{rules_name}/{name}": value for name, value in values.items()}
    parallel.barrier("end")
    np.savez(Path(out) / f"{me}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
