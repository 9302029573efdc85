"""What a course costs: floating point operations, bytes, time, memory.

References:
  `federatedscope/core/monitors/monitor.py` (`get_sys_metrics`) of FederatedScope 0.3.0, which
  counts operations by hooks in the forward pass.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from jaxlab.federated.client_data import (
    ClientData,
    ClientView,
    Schedule,
    take_batch,
    view_client,
)
from jaxlab.federated.local import StepInput, make_sgd_step, start_carry
from jaxlab.federated.tasks import Task


class ModelCost(NamedTuple):
    """What a model costs.

    Attributes:
      num_parameters: numbers that are trained.
      num_bytes: of all variables.
      step_flops: operations of one local step.
      sample_flops: the same for one example of its batch.
    """

    num_parameters: int
    num_bytes: int
    step_flops: float
    sample_flops: float


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating point operations of a program, as XLA counts them; a loop counts as one pass.

    Args:
      function: what is compiled.
      *args: arrays, or their shapes.

    Returns:
      Operations; 0 where the backend does not count.
    """
    cost = jax.jit(function).lower(*args).compile().cost_analysis()
    return max(0.0, float((cost or {}).get("flops", 0.0)))


def measure_model(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    variables: PyTree,
    data: ClientData,
) -> ModelCost:
    """Size of a model, and operations of a local step: forward, backward and the optimizer.

    Args:
      task: the learning problem.
      tx: optimizer of the clients.
      schedule: tells the size of a batch.
      variables: of the model.
      data: examples of the clients.
    """
    step = make_sgd_step(task, tx)

    def one_step(variables: PyTree, view: ClientView) -> Any:
        batch, mask = take_batch(view, jax.numpy.int32(0), schedule.batch_size)
        given = StepInput(batch, mask, jax.random.key(0), jax.numpy.int32(0))
        return step(start_carry(task, tx, variables, view), given).variables

    leaves = jax.tree.leaves(variables)
    flops = count_flops(one_step, variables, view_client(data, jax.numpy.int32(0)))
    return ModelCost(
        sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"])),
        sum(int(np.size(leaf)) * jax.numpy.asarray(leaf).dtype.itemsize for leaf in leaves),
        flops,
        flops / schedule.batch_size,
    )


def device_memory(devices: Iterable[jax.Device] | None = None) -> dict[str, int]:
    """Bytes of the memory of devices that are and were most in use; nothing where none tells.

    Args:
      devices: None means those of this process.
    """
    stats = [device.memory_stats() for device in devices or jax.local_devices()]
    names = {"bytes_in_use": "device_bytes", "peak_bytes_in_use": "device_peak_bytes"}
    return {
        ours: max(int(each[theirs]) for each in stats if each)
        for theirs, ours in names.items()
        if any(each and theirs in each for each in stats)
    }


def summarize_workers(workers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means and deviations over workers, `sys_avg/name` and `sys_std/name`.

    Args:
      workers: what each has measured, all with the same names.

    Example:
      >>> summarize_workers([{"upload_bytes": 1.0}, {"upload_bytes": 3.0}])
      {'sys_avg/upload_bytes': 2.0, 'sys_std/upload_bytes': 1.0}
    """
    rows = list(workers)
    columns = {name: np.asarray([row[name] for row in rows], np.float64) for name in rows[0]}
    means = {f"sys_avg/{name}": float(values.mean()) for name, values in columns.items()}
    return means | {f"sys_std/{name}": float(values.std()) for name, values in columns.items()}
