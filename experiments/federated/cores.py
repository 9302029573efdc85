"""The devices of a simulation: on a CPU one for every core, else those that there are."""

import logging
import os

import jax
from jax.sharding import Mesh

from experiments.common import start

logger = logging.getLogger(__name__)

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
        try:
            jax.config.update("jax_num_cpu_devices", num_cores())
        except RuntimeError:
            logger.warning("JAX has been used before: its devices are taken as they are")
    mesh = start()
    if jax.process_count() > 1:
        raise ValueError(
            f"num_processes={jax.process_count()}: a course is simulated by one process, with all "
            "devices that it has; leave --num_processes and --coordinator out"
        )
    return mesh


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_forced() -> bool:
    """Whether XLA is told a number of CPU devices by the environment, which goes with no other."""
    return "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
