"""Courses over the devices of several processes; a script that runs as one of two of them."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxlab import federated, parallel

LOCAL_DEVICES = 2
SIZES = (3, 7, 1, 5, 2, 6)
SCHEDULE = federated.Schedule(3, 2)
DEVICES = [federated.Device(float(10 * c), float("inf")) for c in (1, 4, 2, 7, 3, 5)]


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


def make_data():
    rng = np.random.default_rng(0)
    total = sum(SIZES)
    x = rng.normal(size=(total, 4)).astype(np.float32)
    y = rng.normal(size=total).astype(np.float32)
    return federated.gather_clients(
        {"x": x, "y": y}, np.split(np.arange(total), np.cumsum(SIZES)[:-1])
    )


ASYNCHRONOUS = federated.Strategy(
    kind="goal_achieved", cohort_size=5, min_updates=3, max_staleness=4,
    broadcast="after_receiving", staleness_exponent=0.5,
)  # fmt: skip


def run_courses(mesh):
    """What courses end with: variables, metrics and what clients keep, flat and NumPy."""
    task = federated.regression(Linear(), jax.ShapeDtypeStruct((4,), jnp.float32))
    plain = federated.fed_avg(task, optax.sgd(0.05), SCHEDULE)
    stateful = federated.scaffold(task, 0.05, SCHEDULE, len(SIZES))
    start = task.init(jax.random.key(1))
    # Folded; stacked from several versions, with states.
    ends = {
        "synchronous": run_course(mesh, plain, start, federated.Strategy(cohort_size=5)),
        "asynchronous": run_course(mesh, stateful, start, ASYNCHRONOUS),
    }
    leaves = jax.tree.leaves_with_path(ends)
    return {parallel.path_name(path): np.array(leaf) for path, leaf in leaves}


def run_course(mesh, algorithm, variables, strategy):
    """The end of one course."""
    data = make_data()
    store = federated.ClientStore(jax.device_get(algorithm.init_client(variables)), len(SIZES))
    simulation = federated.make_simulation(
        federated.CourseConfig(len(SIZES), 4, strategy, eval_every_rounds=2),
        algorithm, data, variables, SCHEDULE, mesh=mesh, devices=DEVICES,
        splits={"train": data}, store=store,
    )  # fmt: skip
    state = federated.run_course(simulation.course, simulation.start())
    return {
        "variables": parallel.to_host(simulation.variables(state)),
        "metrics": [dict(e.metrics) for e in state.server.evaluations],
        "kept": store.rows(),
    }


def main(out):
    """Run as one of the processes that the environment names; each writes what it has found."""
    jax.config.update("jax_num_cpu_devices", LOCAL_DEVICES)
    mesh = parallel.start_processes(parallel.ProcessConfig(start_timeout_s=60))
    np.savez(Path(out) / f"{jax.process_index()}.npz", **run_courses(mesh))
    parallel.barrier("end")


if __name__ == "__main__":
    main(sys.argv[1])
