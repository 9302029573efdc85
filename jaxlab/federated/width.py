"""How many clients a device computes at once, and how many devices a CPU is.

Small models leave no work for the threads of a processor: a CPU is fastest as one device a core
with one client at a time in each. Accelerators want many clients at once; how many is found out on
the first rounds, from wide to narrow in powers of two, until narrower is slower. What is computed
does not depend on the width but for the order of float additions; give a number where two runs must
be equal to the bit on an accelerator.
"""

import functools
import logging
import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from jaxlab.federated.algorithm import Algorithm
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.parallel import DATA_AXIS

_logger = logging.getLogger(__name__)

AUTO = "auto"
NUM_CHOICES = 64
"""Choices that are kept: another course of the same algorithm and sizes tries nothing."""


class WidthChoice:
    """Tries widths in turn while there is something to compare, then keeps the fastest."""

    def __init__(self, candidates: Sequence[int]) -> None:
        """Begin with the first.

        Args:
          candidates: in the order in which they are tried; one is not tried but taken.
        """
        self._candidates = list(candidates)
        self._seconds: dict[int, float] = {}
        self._is_warm = False

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to try."""
        is_last = len(self._candidates) == 1
        return is_last and (not self._seconds or self._candidates[0] in self._seconds)

    @property
    def width(self) -> int:
        """What to compute with next."""
        return self._candidates[0]

    def note(self, seconds: float) -> None:
        """Tell how long a round of the present width took; its first, which compiles, is left out.

        Args:
          seconds: for a cohort; cohorts of one course are about equal.
        """
        if self.is_settled:
            return
        if not self._is_warm:
            self._is_warm = True
            return
        tried = self._candidates.pop(0)
        self._is_warm = False
        self._seconds[tried] = seconds
        best = min(self._seconds, key=self._seconds.__getitem__)
        # Times are about those of a valley: what is beyond a slower one is slower still.
        if best != tried or not self._candidates:
            self._candidates = [best]
            self._log()

    def drop(self) -> bool:
        """Forget the present width, for which there is not enough memory.

        Returns:
          Whether another one is left.
        """
        if self.is_settled or len(self._candidates) == 1:
            return False
        self._candidates.pop(0)
        self._is_warm = False
        return True

    def _log(self) -> None:
        times = ", ".join(f"{width}: {1e3 * s:.1f} ms" for width, s in self._seconds.items())
        _logger.info("clients at once on a device: %d (a cohort took %s)", self.width, times)


def choose_width(
    width: int | str | None, algorithm: Algorithm, limits: Limits, mesh: Mesh, cohort_size: int
) -> WidthChoice:
    """A choice of one width, or of what is best on the devices.

    Args:
      width: clients of a device at once; None or `auto` finds it.
      algorithm: what clients do.
      limits: sizes that bound them.
      mesh: the devices.
      cohort_size: clients that most often start together.

    Raises:
      ConfigError: (a ValueError) if the width is something else.
    """
    if width is None or width == AUTO:
        device = mesh.devices.flat[0]
        kind = (device.platform, device.device_kind)
        return _shared_choice(algorithm, limits, kind, mesh.shape[DATA_AXIS], cohort_size)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ConfigError(f"width={width!r} must be a positive integer, 'auto' or None")
    return WidthChoice([width])


def candidate_widths(platform: str, clients_per_device: int) -> list[int]:
    """Widths in the order in which they are tried.

    Args:
      platform: of the devices.
      clients_per_device: of a cohort.

    Example:
      >>> candidate_widths("cpu", 25), candidate_widths("gpu", 25)
      ([1], [32, 16, 8, 4, 2, 1])
    """
    if platform == "cpu":
        return [1]
    widest = 1 << (max(1, clients_per_device) - 1).bit_length()
    return [widest >> shift for shift in range(widest.bit_length())]


@functools.lru_cache(maxsize=NUM_CHOICES)
def _shared_choice(
    algorithm: Algorithm, limits: Limits, kind: tuple[str, str], num_devices: int, cohort_size: int
) -> WidthChoice:
    """One choice for all courses of an algorithm (its model and batch), sizes and devices."""
    del algorithm, limits
    return WidthChoice(candidate_widths(kind[0], -(-cohort_size // num_devices)))


def use_cpu_cores(num_cores: int | None = None) -> int:
    """Makes JAX see one CPU device a core; call it before anything else is done with JAX.

    If JAX has started, its devices stay as they are, and the log says what to do.

    Args:
      num_cores: devices that are wanted; None takes the cores that the process may use.

    Returns:
      CPU devices that there are in this process.
    """
    wanted = num_cores or _count_cores()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        found = len(jax.local_devices(backend="cpu"))
        if found < wanted:
            _logger.warning(
                "JAX has started with %d CPU device(s) for %d cores, and courses run on these: "
                "call use_cpu_cores() before the first use of JAX to have one a core",
                found, wanted,
            )  # fmt: skip
        return found
    _logger.info("clients are spread over %d CPU devices, one a core", wanted)
    return wanted


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
