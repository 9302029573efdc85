"""Feature skew: the inputs of every client are changed in a way of its own.

References:
  Li, Diao, Chen, He 2022, arXiv:2102.02079, section 4.2 (noise); Ghosh, Chung, Yin, Ramchandran
  2020, arXiv:2006.04088, section 6 (rotated images).
"""

import dataclasses

import numpy as np

from jaxlab.federated.client_data import ClientData
from jaxlab.federated.strategy import ConfigError


def add_client_noise(
    data: ClientData, variance: float, *, seed: int, name: str = "x"
) -> ClientData:
    """Gaussian noise that grows with the client's number: client i of N has variance * i / N.

    Args:
      data: examples on the host, floating point.
      variance: of the last client; clients count from 1.
      seed: of the noise; it does not depend on the other clients.
      name: field to change.

    Returns:
      A copy.

    Raises:
      ConfigError: (a ValueError) if the variance is negative or the field is not floating point.
    """
    values = np.array(_field(data, name))
    if variance < 0 or not np.issubdtype(values.dtype, np.floating):
        raise ConfigError(
            f"variance={variance} and {name} of type {values.dtype}; wanted a variance of at least "
            "0 and floating point"
        )
    for client, part in enumerate(_slices(data)):
        rng = np.random.default_rng([seed, client])
        scale = np.sqrt(variance * (client + 1) / data.num_clients)
        values[part] += scale * rng.standard_normal(values[part].shape)
    return dataclasses.replace(data, examples={**data.examples, name: values})


def rotate_client_images(data: ClientData, *, name: str = "x") -> ClientData:
    """Turns the images of client i by i quarter turns, so that there are four kinds of clients.

    Args:
      data: examples on the host, square images with height and width as axes 1 and 2.
      name: field to change.

    Returns:
      A copy.

    Raises:
      ConfigError: (a ValueError) if the images are not square.
    """
    values = np.array(_field(data, name))
    if values.ndim < 3 or values.shape[1] != values.shape[2]:
        raise ConfigError(f"{name} has the shape {values.shape}; wanted (examples, n, n, ...)")
    for client, part in enumerate(_slices(data)):
        values[part] = np.rot90(values[part], client % 4, axes=(1, 2))
    return dataclasses.replace(data, examples={**data.examples, name: values})


def _field(data: ClientData, name: str) -> np.ndarray:
    if name not in data.examples:
        raise ConfigError(f"the examples have no {name!r}; they have {sorted(data.examples)}")
    return np.asarray(data.examples[name])


def _slices(data: ClientData) -> list[slice]:
    starts, sizes = np.asarray(data.offsets), np.asarray(data.sizes)
    return [slice(int(a), int(a) + int(n)) for a, n in zip(starts, sizes, strict=True)]
