"""The devices of a simulation: on a CPU one for every core, else those that there are."""

import os

import jax
from jax.sharding import Mesh

from experiments.common import start
from jaxlab.federated import use_cpu_cores

_UNSET = -1


def start_devices() -> Mesh:
    """Makes a CPU device of every core, and the mesh over all devices.

    Clients are shared out among devices; several small programs side by side use cores better than
    one that is cut into threads. A number of CPU devices that was set before is left alone, and so
    are accelerators.

    Raises:
      ValueError: if the run has several processes, over which clients are not shared out.
    """
    if getattr(jax.config, "jax_num_cpu_devices", _UNSET) == _UNSET and not _is_forced():
        use_cpu_cores()
    mesh = start()
    if jax.process_count() > 1:
        raise ValueError(
            f"num_processes={jax.process_count()}: a course is simulated by one process, with all "
            "devices that it has; leave --num_processes and --coordinator out"
        )
    return mesh


def _is_forced() -> bool:
    """Whether XLA is told a number of CPU devices by the environment, which goes with no other."""
    return "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
