"""Starting one program on many hosts, and the few things that processes agree on.

Every process runs the same script. `start_processes` finds the others (from the configuration, the
environment, or the cluster's launcher), makes the mesh, and does one all-reduce, so that a run that
is not whole ends with a sentence before it touches any data.
"""

import dataclasses
import importlib.util
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from numpy.typing import ArrayLike

from jaxlab.parallel.mesh import make_mesh
from jaxlab.parallel.placement import replicated

logger = logging.getLogger(__name__)

LAUNCHERS = ("auto", "single", "plain", "cluster")
ENVIRONMENT = {
    "coordinator": "JAXLAB_COORDINATOR",
    "num_processes": "JAXLAB_NUM_PROCESSES",
    "process_id": "JAXLAB_PROCESS_ID",
}
# JAX's service gives up after an hour whatever it is told, and its client then ends the program
# from C++ without an exception: our own limit has to come first.
_JAX_TIMEOUT_S = 3600
MAX_START_TIMEOUT_S = 3000

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """How this process finds the others.

    Attributes:
      launcher: `auto` uses the three fields below or their environment variables if any is set,
        else the cluster that the environment shows (TPU pod, GKE, Slurm, Open MPI), else one
        process; `single` is one process whatever the environment; `plain` demands the three
        fields; `cluster` demands a cluster.
      coordinator: `host:port` of process 0; environment JAXLAB_COORDINATOR.
      num_processes: number of processes of the run; environment JAXLAB_NUM_PROCESSES.
      process_id: number of this process, from 0; environment JAXLAB_PROCESS_ID.
      start_timeout_s: seconds to wait for the other processes before giving up with an error; at
        most 3000, since JAX itself waits no longer than an hour.
      heartbeat_timeout_s: seconds without a sign of life after which a process counts as dead and
        the others stop.
    """

    launcher: str = "auto"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    start_timeout_s: int = 300
    heartbeat_timeout_s: int = 100

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: listing everything that is wrong.
        """
        errors = []
        if self.launcher not in LAUNCHERS:
            errors.append(f"launcher={self.launcher!r} is not one of {', '.join(LAUNCHERS)}")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                errors.append(f"coordinator={self.coordinator!r} is not host:port (10.0.0.1:8476)")
        count, index = self.num_processes, self.process_id
        if count is not None and count < 1:
            errors.append(f"num_processes={count} is not positive")
        if index is not None and not 0 <= index < (count if count is not None else index + 1):
            errors.append(
                f"process_id={index} with num_processes={count}; "
                "processes are numbered from 0 to num_processes - 1"
            )
        if not 1 <= self.start_timeout_s <= MAX_START_TIMEOUT_S:
            errors.append(
                f"start_timeout_s={self.start_timeout_s} is not from 1 to {MAX_START_TIMEOUT_S} s"
            )
        if self.heartbeat_timeout_s < 1:
            errors.append(f"heartbeat_timeout_s={self.heartbeat_timeout_s} s is not positive")
        if errors:
            raise ValueError("ProcessConfig: " + "; ".join(errors))


def resolve_processes(
    config: ProcessConfig, environ: Mapping[str, str], has_tpu: bool = False
) -> ProcessConfig:
    """The configuration with `auto` decided and the three fields filled in from the environment.

    Args:
      config: what the user set; its fields win over the environment.
      environ: the environment variables.
      has_tpu: whether this host has TPU chips that JAX will use.

    Returns:
      A configuration whose launcher is `single`, `plain` (all three fields set) or `cluster`.

    Raises:
      ValueError: if some of the three are missing, or a variable is no number.

    Example:
      >>> resolve_processes(ProcessConfig(), {}).launcher
      'single'
    """
    if config.launcher == "single":
        return config
    filled = _fill_from_environment(config, environ)
    given = {name: getattr(filled, name) for name in ENVIRONMENT}
    wants_plain = config.launcher == "plain" or any(v is not None for v in given.values())
    if wants_plain and config.launcher != "cluster":
        if filled.num_processes == 1:
            return dataclasses.replace(filled, launcher="single")
        if missing := [name for name, value in given.items() if value is None]:
            raise ValueError(
                "several processes need a coordinator, a count and a number each; missing: "
                + ", ".join(f"{name} (or {ENVIRONMENT[name]})" for name in missing)
                + "; set them on every host, or launcher='single' for one process"
            )
        return dataclasses.replace(filled, launcher="plain")
    if config.launcher == "cluster" or find_cluster(environ, has_tpu) is not None:
        return dataclasses.replace(config, launcher="cluster")
    return dataclasses.replace(config, launcher="single")


def find_cluster(environ: Mapping[str, str], has_tpu: bool = False) -> str | None:
    """Name of the launcher that started this process as one of several, by its variables.

    Args:
      environ: the environment variables.
      has_tpu: whether this host has TPU chips that JAX will use.

    Returns:
      `ompi`, `slurm`, `gke`, `tpu_vm` (one or several hosts: only its metadata tell) or
      `kubernetes`; None for a process on its own.

    Raises:
      ValueError: if a launcher has started several processes in a way that hides their address.
    """
    tasks = int(environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    if tasks > 1 and "OMPI_MCA_orte_hnp_uri" not in environ:
        raise ValueError(
            f"Open MPI started {tasks} processes without telling their address (version 5 and "
            "later); set JAXLAB_COORDINATOR=host:port, and JAXLAB_NUM_PROCESSES and "
            "JAXLAB_PROCESS_ID from OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK"
        )
    if tasks > 1:
        return "ompi"
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if int(environ.get("SLURM_NTASKS", "1")) > 1:
        if all(name in environ for name in slurm):
            return "slurm"
        logger.warning(
            "this Slurm job has %s tasks and this process was not started by srun: it runs alone",
            environ["SLURM_NTASKS"],
        )
    workers = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
    num_slices = int(environ.get("MEGASCALE_NUM_SLICES", "1"))
    if has_tpu and workers:
        return "gke" if "," in workers or num_slices > 1 else None
    if has_tpu and "TPU_SKIP_MDS_QUERY" not in environ:
        return "tpu_vm"
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        return "kubernetes"
    return None


def start_processes(config: ProcessConfig | None = None, *, data: int = -1, model: int = 1) -> Mesh:
    """Join the other processes, make the mesh, check it with one all-reduce, log one line.

    Call it first: before any other use of JAX's devices and before reading data. A second call in
    the same program (a notebook) does not join again.

    Args:
      config: how to find the others; by default from the environment alone.
      data: size of the `data` axis of the mesh; -1 takes all that `model` leaves.
      model: size of the `model` axis.

    Returns:
      The mesh over the devices of all processes.

    Raises:
      TimeoutError: if the others do not come, or their devices do not answer, within
        `config.start_timeout_s` each; the program should end then.
      RuntimeError: if joining fails at once (port in use, JAX already used, ...).
      ValueError: if the configuration is incomplete or the mesh does not fit.
    """
    asked = config or ProcessConfig()
    has_tpu = _has_tpu(os.environ)
    config = resolve_processes(asked, os.environ, has_tpu)
    if config.launcher != "single" and not jax.distributed.is_initialized():
        on_tpu_vm = find_cluster(os.environ, has_tpu) == "tpu_vm"
        _join(config, alone_is_fine=asked.launcher == "auto" and on_tpu_vm)
    late = (
        f"{_who(config)}: the devices did not answer an all-reduce within "
        f"{config.start_timeout_s} s; start the same command on every host of the slice or job, "
        "and see the logs of the other processes"
    )
    mesh = _within(config.start_timeout_s, lambda: _checked_mesh(data, model), late)
    logger.info("%s", describe_processes(mesh))
    return mesh


def describe_processes(mesh: Mesh) -> str:
    """One line: this process among the others, its devices, the mesh.

    Example:
      >>> describe_processes(make_mesh(devices=jax.devices("cpu")[:1]))  # doctest: +ELLIPSIS
      'process 0 of 1: ... local and ... global cpu devices, mesh data=1 model=1'
    """
    shape = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return (
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} local "
        f"and {jax.device_count()} global {mesh.devices.flat[0].platform} devices, mesh {shape}"
    )


def check_all_reduce(mesh: Mesh) -> None:
    """Sum the numbers 0, 1, ... held by the devices, one each, and check the sum.

    Collective: every process calls it.

    Args:
      mesh: the mesh to check.

    Raises:
      RuntimeError: if the sum is wrong, so that no result of this mesh can be trusted.
    """
    numbers = np.arange(mesh.size, dtype=np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    spread = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    total = int(jax.jit(jnp.sum, out_shardings=replicated(mesh))(spread))
    if total != numbers.sum():
        raise RuntimeError(
            f"an all-reduce over {mesh.size} devices gave {total} instead of {numbers.sum()}; "
            "check the hardware and the network before training on it"
        )


def is_main_process() -> bool:
    """Whether this is process 0, the one that writes logs and tables."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have come to the barrier of this name.

    Args:
      name: the same in all processes.

    Raises:
      AssertionError: if the processes wait at barriers of different names.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process; the same answer in all of them.

    For decisions that all must take together, such as to save and stop when one has been told to.
    A collective that waits for the devices: every process calls it at the same step, and not at
    every step.

    Args:
      flag: this process's flag.
    """
    if jax.process_count() == 1:
        return bool(flag)
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag, np.uint8))))


def broadcast_from_main(tree: PyTree) -> PyTree[np.ndarray]:
    """The values of process 0, in every process, bit for bit (also 64-bit numbers).

    Collective: every process calls it.

    Args:
      tree: tree of host arrays or numbers, of the same shapes and dtypes in all processes.

    Returns:
      The tree of process 0 as NumPy arrays.
    """

    def send(leaf: ArrayLike) -> np.ndarray:
        value = np.asarray(leaf)
        if jax.process_count() == 1:
            return value
        from jax.experimental import multihost_utils

        bits = multihost_utils.broadcast_one_to_all(np.frombuffer(value.tobytes(), np.uint8))
        return np.frombuffer(np.asarray(bits).tobytes(), value.dtype).reshape(value.shape)

    return jax.tree.map(send, tree)


def _fill_from_environment(config: ProcessConfig, environ: Mapping[str, str]) -> ProcessConfig:
    """The three fields that the user left open, from the environment."""

    def number(field: str, given: int | None) -> int | None:
        text = environ.get(ENVIRONMENT[field], "")
        if given is not None or not text:
            return given
        if not text.isdecimal():
            raise ValueError(f"{ENVIRONMENT[field]}={text!r} is not a whole number")
        return int(text)

    return dataclasses.replace(
        config,
        coordinator=config.coordinator or environ.get(ENVIRONMENT["coordinator"]) or None,
        num_processes=number("num_processes", config.num_processes),
        process_id=number("process_id", config.process_id),
    )


def _has_tpu(environ: Mapping[str, str]) -> bool:
    """Whether TPU chips are attached to this host and JAX may use them."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _who(config: ProcessConfig) -> str:
    """This process in the words of its launcher."""
    if config.launcher == "plain":
        return (
            f"process {config.process_id} of {config.num_processes} "
            f"(coordinator {config.coordinator})"
        )
    return "one process of a cluster" if config.launcher == "cluster" else "a single process"


def _join(config: ProcessConfig, alone_is_fine: bool) -> None:
    """Connect to the other processes, or say within the time limit why not."""
    if config.launcher == "plain" and config.process_id == 0:
        _check_port_is_free(config)
    late = (
        f"{_who(config)} waited {config.start_timeout_s} s (start_timeout_s) and not all the "
        "others came; start the same command on every host at about the same time and check that "
        "they reach the coordinator; for one process alone set launcher='single'"
    )

    def initialize() -> None:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            cluster_detection_method="deactivate" if config.launcher == "plain" else None,
            initialization_timeout=_JAX_TIMEOUT_S,
            heartbeat_timeout_seconds=config.heartbeat_timeout_s,
        )

    try:
        _within(config.start_timeout_s, initialize, late)
    except TimeoutError:
        raise
    except (RuntimeError, ValueError) as error:
        if alone_is_fine and isinstance(error, ValueError):
            logger.info("TPU chips and no cluster around them: this is the only process")
            return
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"{_who(config)} could not start: {reason} (call start_processes "
            "before any other use of JAX's devices, and check that the launcher's variables are "
            "set; for one process alone set launcher='single')"
        ) from error


def _check_port_is_free(config: ProcessConfig) -> None:
    """Refuse a coordinator's port in use: JAX would crash, or break the run that listens there."""
    if config.coordinator is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return
    port = int(config.coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise RuntimeError(
            f"{_who(config)} cannot listen on port {port} of this host: {error.strerror}; end the "
            "program that does (another process 0 of this run?) or choose another port"
        ) from error


def _checked_mesh(data: int, model: int) -> Mesh:
    """The mesh over all devices, after one all-reduce."""
    mesh = make_mesh(data, model)
    check_all_reduce(mesh)
    return mesh


def _within(limit_s: int, work: Callable[[], Result], late: str) -> Result:
    """Result of `work`, or `TimeoutError(late)` when it takes too long.

    The work runs in a daemon thread: it may hang in C++ code that no exception reaches, and must
    not keep the program from ending.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to the waiting thread
            future.set_exception(error)

    threading.Thread(target=run, name="start_processes", daemon=True).start()
    done, _ = wait([future], timeout=limit_s)
    if not done:
        raise TimeoutError(late)
    return future.result()
