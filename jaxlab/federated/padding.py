"""Where the clients of a cohort stand in the program that computes them, and what that wastes.

A program has places for `devices * width` clients at once, as often as is needed. Clients that are
mapped together wait for the longest of them, and devices for the slowest of them; so clients of
about the same number of steps go together, and devices get about the same number of steps. Cohorts
are padded to a few sizes with places that take no steps, so that few programs are compiled.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Grid(NamedTuple):
    """The places of a program.

    Attributes:
      num_devices: devices that compute at the same time.
      width: clients of a device that are computed at once.
    """

    num_devices: int
    width: int


class StepCount(NamedTuple):
    """What a course has computed.

    Attributes:
      taken: steps that clients have taken.
      spent: steps that the places could have taken meanwhile.
    """

    taken: int = 0
    spent: int = 0

    @property
    def waste(self) -> float:
        """Share of the steps that were waited and not taken, in [0, 1)."""
        return 1.0 - self.taken / self.spent if self.spent else 0.0

    def __add__(self, other: object) -> "StepCount":
        """Both together."""
        if not isinstance(other, StepCount):
            return NotImplemented
        return StepCount(self.taken + other.taken, self.spent + other.spent)


def count_places(num_clients: int, grid: Grid, regular: int = 0) -> int:
    """Places of the program for some clients: a multiple of devices times width.

    The multiple is 2 ** k or 3 * 2 ** k, or that of the regular size of a cohort: at most a third
    of the places is empty, and few programs are compiled however sizes vary.

    Args:
      num_clients: how many there are.
      grid: the places that are computed at once.
      regular: size that most cohorts have.

    Example:
      >>> [count_places(n, Grid(2, 1), regular=50) for n in (1, 5, 9, 33, 50, 51)]
      [2, 6, 12, 48, 50, 64]
    """
    unit = grid.num_devices * grid.width
    wanted = max(1, -(-num_clients // unit))
    power = 1 << (wanted - 1).bit_length()
    sizes = [power, 3 * power // 4 if power >= 4 else power, -(-regular // unit)]
    return unit * min(size for size in sizes if size >= wanted)


def find_places(
    steps: Int[np.ndarray, " clients"], num_places: int, grid: Grid
) -> Int[np.ndarray, " clients"]:
    """A place for every client: those with about as many steps together, spread over the devices.

    Args:
      steps: of every client.
      num_places: of the program, see `count_places`.
      grid: the places that are computed at once.

    Returns:
      Numbers of places, none twice. A device has consecutive places, and consecutive `width` of
      them are computed at once.

    Example:
      >>> find_places(np.array([1, 9, 8, 2]), 4, Grid(2, 1))
      array([1, 0, 2, 3])
    """
    places = np.arange(num_places).reshape(grid.num_devices, -1, grid.width)
    # One chunk of every device, then the next one; every second time in the other order.
    rounds = places.transpose(1, 0, 2).copy()
    rounds[1::2] = rounds[1::2, ::-1].copy()
    found = np.empty(len(steps), np.int64)
    found[np.argsort(-steps, kind="stable")] = rounds.reshape(-1)[: len(steps)]
    return found


def count_steps(
    steps: Int[np.ndarray, " clients"],
    places: Int[np.ndarray, " clients"],
    num_places: int,
    grid: Grid,
) -> StepCount:
    """Steps that clients take, and that all places could have taken until the last is done.

    Args:
      steps: of every client.
      places: of every client.
      num_places: of the program.
      grid: the places that are computed at once.
    """
    all_steps = np.zeros(num_places, np.int64)
    all_steps[places] = steps
    chunks = all_steps.reshape(grid.num_devices, -1, grid.width).max(axis=2)
    spent = int(chunks.sum(axis=1).max()) * grid.num_devices * grid.width
    return StepCount(int(all_steps.sum()), spent)
