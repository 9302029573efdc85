"""How long a client takes to answer, in virtual time.

The cost model of FedScale: three times the forward pass for the samples of a round, and the model
down and up. Times are integers of microseconds: a course adds thousands of them, and two answers
that come at the same time must tie on every machine.

References:
  Lai et al. 2022, "FedScale: Benchmarking Model and System Performance of Federated Learning at
  Scale", arXiv:2105.11367; `federatedscope/core/workers/client.py` of FederatedScope 0.3.0.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxlab.federated.strategy import ConfigError

MICROSECONDS = 1_000_000
BACKWARD_FACTOR = 3.0
"""A training pass over a sample costs three forward passes."""
KIBIBIT_BYTES = 128.0


@dataclasses.dataclass(frozen=True)
class Device:
    """What a client runs on.

    Attributes:
      compute_ms: milliseconds of a forward pass over one sample.
      bandwidth_kbps: kibibits per second, down and up; infinite for a device without a network.
    """

    compute_ms: float
    bandwidth_kbps: float = math.inf

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
          ConfigError: (a ValueError) if a time is negative or the bandwidth is not positive.
        """
        if not self.compute_ms >= 0 or not self.bandwidth_kbps > 0:
            raise ConfigError(
                f"Device: compute_ms={self.compute_ms} must not be negative and bandwidth_kbps="
                f"{self.bandwidth_kbps} must be positive"
            )


def answer_time_us(device: Device, num_samples: int, down_bytes: int, up_bytes: int) -> int:
    """Microseconds from the request to the answer.

    Args:
      device: what the client runs on.
      num_samples: samples that it trains on in the round.
      down_bytes: size of the message that asks.
      up_bytes: size of the answer.

    Example:
      >>> answer_time_us(Device(25.0, 200.0), 20, 128_000, 128_000)  # 1.5 s + 10 s
      11500000
    """
    compute_s = BACKWARD_FACTOR * num_samples * device.compute_ms / 1000.0
    network_s = (down_bytes + up_bytes) / KIBIBIT_BYTES / device.bandwidth_kbps
    return round((compute_s + network_s) * MICROSECONDS)


def slowness(device: Device, model_bytes: int) -> float:
    """Seconds that a device needs for one sample and one transfer of the model; more is slower."""
    return model_bytes / KIBIBIT_BYTES / device.bandwidth_kbps + device.compute_ms / 1000.0


def load_devices(path: str | os.PathLike[str]) -> tuple[Device, ...]:
    """Reads a file of device profiles: JSON, `{index: {"computation": ms, "communication": kbps}}`.

    Args:
      path: the file.

    Returns:
      The devices in the order of the file.

    Raises:
      FileNotFoundError: if there is none.
      ConfigError: (a ValueError) naming the first entry that is no profile.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a JSON file of device profiles")
    try:
        entries = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(
            f"{path} holds a {type(entries).__name__} of {len(entries)}; wanted an object of at "
            "least one profile"
        )
    devices = []
    for index, entry in entries.items():
        try:
            devices.append(Device(float(entry["computation"]), float(entry["communication"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}, entry {index!r}: got {entry!r}; wanted numbers 'computation' "
                f"(milliseconds a sample) and 'communication' (kbit/s): {error}"
            ) from error
    return tuple(devices)


def assign_devices(
    devices: Sequence[Device], num_clients: int, rng: np.random.Generator
) -> tuple[Device, ...]:
    """A device for every client, drawn without replacement if there are enough profiles.

    Args:
      devices: profiles to draw from.
      num_clients: how many are wanted.
      rng: what draws.

    Returns:
      One device a client.
    """
    chosen = rng.choice(len(devices), num_clients, replace=len(devices) < num_clients)
    return tuple(devices[int(index)] for index in chosen)
