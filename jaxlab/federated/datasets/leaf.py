"""Data in the JSON format of LEAF: every user's examples under the user's name.

A file holds `users`, `num_samples` and `user_data`, an object from user to `x` and `y`. What LEAF
writes is one folder of such files (`all_data`), or one with the folders `train` and `test`.

References:
  Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab.federated.client_data import gather_clients
from jaxlab.federated.datasets.federated_data import (
    DEFAULT_SHARES,
    Arrays,
    CentralData,
    DataInfo,
    FederatedData,
    Shares,
    federate,
)
from jaxlab.federated.strategy import ConfigError

FEMNIST_MEAN, FEMNIST_STD = 0.9637, 0.1592
"""Of FEMNIST's pixels between 0 and 1: black on white."""

_KEYS = ("users", "num_samples", "user_data")
_MAX_NAMED = 10


class LeafUser(NamedTuple):
    """The examples of a user as the file has them.

    Attributes:
      x: inputs.
      y: targets.
    """

    x: Sequence[Any]
    y: Sequence[Any]


LeafUsers = dict[str, LeafUser]
Encode = Callable[[LeafUser], Arrays]
"""From a user's examples to arrays."""


def read_leaf(path: str | Path) -> LeafUsers:
    """All users of a LEAF file, or of the JSON files in a folder.

    Returns:
      User -> examples, in the order of the sorted files and of the users in them.

    Raises:
      FileNotFoundError: if there is no such file, or no JSON file in the folder.
      ValueError: if a file is no LEAF file, with all that is wrong in it.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        found = "has no JSON files" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{path} {found}; wanted a LEAF file or a folder of them, which LEAF writes into "
            "data/NAME/data/all_data"
        )
    users: LeafUsers = {}
    for file in files:
        for name, user in _read_file(file).items():
            if name in users:
                raise ValueError(f"{file}: user {name!r} is in another file of the folder, too")
            users[name] = user
    return users


def choose_users(users: Mapping[str, LeafUser], share: float, *, seed: int) -> LeafUsers:
    """A random share of the users, rounded up, in their order.

    Raises:
      ConfigError: (a ValueError) if the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"subsample={share} must be above 0 and at most 1")
    number = math.ceil(share * len(users))
    chosen = set(np.random.default_rng(seed).permutation(len(users))[:number].tolist())
    return {name: users[name] for place, name in enumerate(users) if place in chosen}


def federate_leaf(
    path: str | Path,
    info: DataInfo,
    encode: Encode,
    *,
    shares: Shares = DEFAULT_SHARES,
    subsample: float = 1.0,
    min_size: int = 1,
    seed: int = 0,
) -> FederatedData:
    """LEAF data with one client a user.

    Args:
      path: a file, a folder of files, or a folder with `train` and `test` in it, whose cut is then
        kept and clients have no validation examples.
      info: what the data is.
      encode: from a user's examples to arrays.
      shares: of training, validation and test, where the files do not make the cut.
      subsample: share of the users.
      min_size: users with fewer examples (all in all) are left out.
      seed: of shares and subsample.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: if the files cannot be read, or no user has enough examples.
    """
    path = Path(path)
    if not (path / "train").is_dir():
        users = _large_enough(read_leaf(path), min_size, path)
        users = choose_users(users, subsample, seed=seed)
        arrays, split = _join(users, list(users), encode)
        data = CentralData(info, arrays)
        return federate(data, split, shares=shares, names=list(users), seed=seed)
    train, test = read_leaf(path / "train"), read_leaf(path / "test")
    users = choose_users(_large_enough(train, min_size, path), subsample, seed=seed)
    parts = [gather_clients(*_join(part, list(users), encode)) for part in (train, test)]
    none = dataclasses.replace(parts[0], sizes=np.zeros(len(users), np.int32))
    return FederatedData(info, tuple(users), parts[0], none, parts[1])


def load_leaf_numbers(
    path: str | Path,
    name: str = "leaf",
    *,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> FederatedData:
    """LEAF data whose inputs are lists of numbers and whose targets are classes.

    LEAF's `synthetic`, and one's own data in this format.

    Args:
      path: see `federate_leaf`.
      name: of the data set.
      shape: of an input; None takes it as the list is.
      num_classes: None counts up to the largest class in the data.
      **options: `shares`, `subsample`, `min_size`, `seed` of `federate_leaf`.

    Returns:
      `x` float32 and `y` int32.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: if the files cannot be read, or inputs differ in length.
    """

    def encode(user: LeafUser) -> Arrays:
        x = _numbers(user.x, np.float32)
        return {"x": x if shape is None else _shaped(x, shape), "y": _classes(user.y, num_classes)}

    data = federate_leaf(path, DataInfo(name, str(path), "", num_classes), encode, **options)
    if num_classes is None:
        largest = max(int(np.max(p.examples["y"], initial=-1)) for p in (data.train, data.test))
        info = DataInfo(name, str(path), "", largest + 1)
        return FederatedData(info, data.names, data.train, data.val, data.test)
    return data


def load_leaf_femnist(path: str | Path, *, normalize: bool = True, **options: Any) -> FederatedData:
    """LEAF's FEMNIST: handwritten digits and letters, one client a writer.

    Args:
      path: see `federate_leaf`.
      normalize: subtract the mean of the pixels and divide by their deviation.
      **options: `shares`, `subsample`, `min_size`, `seed` of `federate_leaf`.

    Returns:
      `x` (28, 28, 1) float32 and `y` int32, 62 classes: digits, capitals, small letters.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: if the files cannot be read.
    """
    shift, scale = (FEMNIST_MEAN, FEMNIST_STD) if normalize else (0.0, 1.0)

    def encode(user: LeafUser) -> Arrays:
        x = _shaped(_numbers(user.x, np.float32), (28, 28, 1))
        # LEAF writes shares of 1; files of other makers have bytes.
        x = x / 255.0 if x.max(initial=0) > 1.0 else x
        return {"x": ((x - shift) / scale).astype(np.float32), "y": _classes(user.y, 62)}

    info = DataInfo("femnist", str(path), "NIST Special Database 19, public domain", 62)
    return federate_leaf(path, info, encode, **options)


def load_leaf_celeba(
    path: str | Path, images: str | Path, *, size: int = 84, **options: Any
) -> FederatedData:
    """LEAF's CelebA: whether a celebrity smiles, one client a celebrity.

    Args:
      path: see `federate_leaf`; inputs are names of pictures.
      images: the folder of the pictures (`img_align_celeba`).
      size: height and width to which they are scaled.
      **options: `shares`, `subsample`, `min_size`, `seed` of `federate_leaf`.

    Returns:
      `x` (size, size, 3) uint8, which keeps it small, and `y` int32, 2 classes.

    Raises:
      FileNotFoundError: if there are no files, or a picture is missing.
      ValueError: if the files cannot be read.
    """
    from PIL import Image

    folder = Path(images)

    def picture(name: str) -> np.ndarray:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}, which {path} names; place CelebA's img_align_celeba there"
            )
        with Image.open(folder / name) as image:
            return np.asarray(image.convert("RGB").resize((size, size)))

    def encode(user: LeafUser) -> Arrays:
        x = [picture(str(name)) for name in user.x]
        return {
            "x": np.stack(x) if x else np.zeros((0, size, size, 3), np.uint8),
            "y": _classes(user.y, 2),
        }

    info = DataInfo("celeba", str(path), "CelebA, for research that is not commercial", 2)
    return federate_leaf(path, info, encode, **options)


def _read_file(path: Path) -> LeafUsers:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; it may be truncated") from error
    if not isinstance(content, dict) or not all(key in content for key in _KEYS):
        found = sorted(content)[:_MAX_NAMED] if isinstance(content, dict) else type(content)
        raise ValueError(f"{path} has {found}; a LEAF file has an object with {list(_KEYS)}")
    names, counts, held = (content[key] for key in _KEYS)
    problems = [] if len(names) == len(counts) else [f"{len(names)} users, {len(counts)} counts"]
    users: LeafUsers = {}
    for name, count in zip(names, counts, strict=False):
        user = held.get(name)
        if not isinstance(user, dict) or not {"x", "y"} <= user.keys():
            problems.append(f"user {name!r} has no x and y in user_data")
        elif not len(user["x"]) == len(user["y"]) == count:
            problems.append(
                f"user {name!r} has {len(user['x'])} x and {len(user['y'])} y, and num_samples "
                f"says {count}"
            )
        elif name in users:
            problems.append(f"user {name!r} is listed twice")
        else:
            users[name] = LeafUser(user["x"], user["y"])
    if problems:
        more = len(problems) - _MAX_NAMED
        listed = problems[:_MAX_NAMED] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(f"{path} contradicts itself:\n  " + "\n  ".join(listed))
    return users


def _large_enough(users: LeafUsers, min_size: int, path: Path) -> LeafUsers:
    kept = {name: user for name, user in users.items() if len(user.y) >= min_size}
    if not kept:
        largest = max((len(user.y) for user in users.values()), default=0)
        raise ValueError(
            f"none of {len(users)} users of {path} has min_size={min_size} examples; the most is "
            f"{largest}"
        )
    return kept


def _join(
    users: Mapping[str, LeafUser], names: Sequence[str], encode: Encode
) -> tuple[Arrays, list[np.ndarray]]:
    """The arrays of all users one after another, and the places of each; none who is not there."""
    parts: list[Arrays] = []
    split, start = [], 0
    for name in names:
        user = users.get(name, LeafUser((), ()))
        count = 0
        if len(user.y):
            try:
                parts.append(encode(user))
            except (TypeError, ValueError) as error:
                raise ValueError(f"user {name!r}: {error}") from error
            count = len(parts[-1]["y"])
        split.append(np.arange(start, start + count))
        start += count
    shapes = {tuple(values.shape[1:] for values in part.values()) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"the examples of users have the shapes {sorted(shapes)[:4]}; wanted one")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, split


def _numbers(rows: Sequence[Any], dtype: type) -> np.ndarray:
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"x has rows of {sorted(lengths)[:4]} numbers; wanted one length")
    return np.asarray(rows, dtype)


def _shaped(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(f"x has {math.prod(x.shape[1:])} numbers; wanted {math.prod(shape)}")
    return x.reshape(len(x), *shape)


def _classes(labels: Sequence[Any], num_classes: int | None) -> np.ndarray:
    y = np.asarray(labels)
    whole = y.astype(np.int32) if y.dtype != object else np.zeros(0, np.int32)
    if y.ndim != 1 or len(whole) != len(y) or not np.array_equal(whole, y.astype(float)):
        raise ValueError(f"y has {labels[:3]!r}; wanted whole numbers, one an example")
    if whole.min(initial=0) < 0 or (num_classes and whole.max(initial=0) >= num_classes):
        raise ValueError(
            f"y goes from {whole.min()} to {whole.max()}; wanted classes from 0 to "
            f"{'...' if num_classes is None else num_classes - 1}"
        )
    return whole
