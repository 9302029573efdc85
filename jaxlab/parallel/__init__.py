"""Devices and processes: the mesh, where arrays lie on it, and the start of a run on many hosts.

The same program runs on one CPU, on eight virtual ones, on a GPU host and on a TPU pod::

    from jaxlab import parallel

    mesh = parallel.start_processes()            # joins the other hosts, if there are any
    rules = parallel.ShardingRules.fsdp(min_size=2**16)
    params, shardings = parallel.init_sharded(model_init, mesh, rules, jax.random.key(0))
    for batch in batches:                        # this process's rows, NumPy
        device_fields, host_fields = parallel.split_host_fields(batch)
        state, metrics = step(state, parallel.shard_batch(mesh, device_fields))

`mesh.py` makes the mesh (`data`, `model`), `sharding.py` lays parameters out by rule,
`placement.py` moves arrays to and from it, `processes.py` starts and synchronises processes,
`collectives.py` holds the one `shard_map`. Everything else is global-view `jax.jit`.
"""

from jaxlab.parallel.collectives import shard_map
from jaxlab.parallel.mesh import (
    DATA_AXIS,
    MESH_AXES,
    MODEL_AXIS,
    data_process,
    fit_mesh_shape,
    make_mesh,
    share_of_rows,
)
from jaxlab.parallel.placement import (
    HOST_FIELDS,
    batch_sharding,
    init_sharded,
    place,
    replicated,
    shard_batch,
    split_host_fields,
    to_host,
)
from jaxlab.parallel.processes import (
    ProcessConfig,
    any_process,
    barrier,
    broadcast_from_main,
    check_all_reduce,
    describe_processes,
    find_cluster,
    is_main_process,
    resolve_processes,
    start_processes,
)
from jaxlab.parallel.sharding import (
    ShardingRules,
    param_shardings,
    path_name,
    state_shardings,
    with_shardings,
)

__all__ = [
    "DATA_AXIS",
    "HOST_FIELDS",
    "MESH_AXES",
    "MODEL_AXIS",
    "ProcessConfig",
    "ShardingRules",
    "any_process",
    "barrier",
    "batch_sharding",
    "broadcast_from_main",
    "check_all_reduce",
    "data_process",
    "describe_processes",
    "find_cluster",
    "fit_mesh_shape",
    "init_sharded",
    "is_main_process",
    "make_mesh",
    "param_shardings",
    "path_name",
    "place",
    "replicated",
    "resolve_processes",
    "shard_batch",
    "shard_map",
    "share_of_rows",
    "split_host_fields",
    "start_processes",
    "state_shardings",
    "to_host",
    "with_shardings",
]
