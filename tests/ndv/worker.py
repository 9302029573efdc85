"""Sketches of rows that lie in several processes; a script that runs as one of two of them."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxlab import parallel
from jaxlab.ndv import bottom_k, count_sketch, hll, leave_one_out, registers
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import Lanes
from jaxlab.ndv.sketch import on_mesh
from jaxlab.parallel import DATA_AXIS

LOCAL_DEVICES = 2
PROCESSES = 2
PADDED_ROWS = 600  # of a process, whatever it holds
ROWS = (600, 431)
# One of each kind of collective; `mask_sketch` gathers as `bottom_k` does and compiles as long.
ROOMS = {
    "hll": hll, "registers": registers, "bottom_k": bottom_k, "count_sketch": count_sketch,
}  # fmt: skip


def rows_of(process):
    """What a process holds: as many rows as no other, many values of which others hold too."""
    return np.random.default_rng(process).zipf(1.3, ROWS[process]).astype(np.int64) % 900


def padded(values):
    """Hashes and mask of a process's rows, as many as everywhere."""
    rows = np.zeros(PADDED_ROWS, np.int64)
    rows[: len(values)] = values
    return {"lanes": hash_column(rows).lanes, "valid": np.arange(PADDED_ROWS) < len(values)}


def sketches(lanes, valid):
    """The sketches of some rows."""
    return {
        "hll": hll.update(hll.empty(5), lanes, valid),
        "registers": registers.update(registers.empty(6, count_bits=16), lanes, valid),
        "bottom_k": bottom_k.update(bottom_k.empty(64), lanes, valid, block=64),
        "count_sketch": count_sketch.update(count_sketch.empty(3, 64), lanes, None, valid),
    }


def machines_of(process):
    """Registers of the paper's method, a machine for every device of a process."""
    made = []
    for part in np.array_split(rows_of(process), LOCAL_DEVICES):
        words, counts = leave_one_out.count_hashes(hash_column(part).lanes)
        made.append(leave_one_out.sketch_machine(words, counts, 6))
    return {
        "distinct": np.stack([own.distinct for own in made]),
        "once": np.stack([own.by_count[0] for own in made]),
    }


def flat(trees):
    """Arrays by path, NumPy."""
    leaves = jax.tree.leaves_with_path(trees)
    return {parallel.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def run_on_mesh(mesh):
    """What one of the processes finds with the others, its own rows being all that it has read."""
    me = jax.process_index()

    def merged(hi, lo, valid):
        own = sketches(Lanes(hi, lo), valid)
        return {name: ROOMS[name].merge_over_axis(own[name], DATA_AXIS) for name in ROOMS}

    def paper(distinct, once):
        others = leave_one_out.without_own_over_axis(distinct, DATA_AXIS)
        f1 = leave_one_out.singletons_over_axis(distinct, once, hll.raw_estimate, DATA_AXIS)
        return others, f1

    rows = parallel.shard_batch(mesh, padded(rows_of(me)))
    machines = parallel.shard_batch(mesh, machines_of(me))
    by_device = parallel.shard_map(
        paper, mesh=mesh, in_specs=(P(DATA_AXIS), P(DATA_AXIS)), out_specs=(P(DATA_AXIS), P())
    )
    others, f1 = jax.jit(by_device)(machines["distinct"], machines["once"])
    found = jax.jit(on_mesh(merged, mesh))(*rows["lanes"], rows["valid"])
    return flat({"sketches": found, "others": parallel.to_host(others), "f1": f1})


def run_alone():
    """The same from all rows at once, without a mesh."""
    values = np.concatenate([rows_of(process) for process in range(PROCESSES)])
    found = jax.jit(sketches)(hash_column(values).lanes, np.ones(len(values), bool))
    parts = [machines_of(process) for process in range(PROCESSES)]
    distinct, once = (
        jnp.asarray(np.concatenate([part[name] for part in parts])) for name in ("distinct", "once")
    )
    others = leave_one_out.without_own_direct(distinct)
    f1 = leave_one_out.singletons(distinct, once, hll.raw_estimate)
    return flat({"sketches": found, "others": others, "f1": f1})


def main(out):
    """Run as one of the processes that the environment names; each writes what it has found."""
    jax.config.update("jax_num_cpu_devices", LOCAL_DEVICES)
    mesh = parallel.start_processes(parallel.ProcessConfig(start_timeout_s=60))
    np.savez(Path(out) / f"{jax.process_index()}.npz", **run_on_mesh(mesh))
    parallel.barrier("end")


if __name__ == "__main__":
    main(sys.argv[1])
