"""Who holds which examples: splits of one data set among clients.

A split is a list with the indices of every client's examples, as `gather_clients` takes it. All
draws come from NumPy on the host, so a split is the same on every machine; with a `RandomState` as
seed the Dirichlet splits are those that the original makes after `numpy.random.seed`.

References:
  Hsu, Qi, Brown 2019, arXiv:1909.06335 (Dirichlet over labels); McMahan et al. 2017,
  arXiv:1602.05629 (shards of sorted labels); Li, Diao, Chen, He 2022, arXiv:2102.02079 (quantity
  skew, noise as a shift of features); `federatedscope/core/splitters` of FederatedScope 0.3.0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Shaped

from jaxlab.federated.strategy import ConfigError

Split = list[Int64[np.ndarray, "_"]]
Seed = int | np.random.Generator | np.random.RandomState
"""A number, or a generator that is drawn from; a `RandomState` draws as the original does."""

MAX_DRAWS = 1000
"""Dirichlet draws before a split is given up; the original draws for ever."""


def split_iid(num_examples: int, num_clients: int, *, seed: Seed) -> Split:
    """Equal parts of a random order; the first clients get what is left over, one example each.

    Raises:
      ConfigError: (a ValueError) if there are more clients than examples.
    """
    _check_counts(num_examples, num_clients, 1)
    return _arrays(np.array_split(_generator(seed).permutation(num_examples), num_clients))


def split_by_dirichlet(
    labels: Shaped[np.ndarray, "..."],
    num_clients: int,
    alpha: float,
    *,
    seed: Seed,
    min_size: int = 1,
) -> Split:
    """Label skew: the examples of every class are shared out by a draw from Dirichlet(alpha).

    The smaller alpha, the fewer clients hold a class; at 100 a split is nearly even. All classes
    are drawn again until every client has `min_size` examples.

    Args:
      labels: class of every example.
      num_clients: parts.
      alpha: concentration, positive.
      seed: see `Seed`.
      min_size: the least that a client gets; 0 allows clients without examples.

    Raises:
      ConfigError: (a ValueError) if there are too few examples for the clients, or no draw of 1,000
        gives every client enough.

    References:
      `dirichlet_distribution_noniid_slice` in `federatedscope/core/splitters/utils.py`.
    """
    rng = _generator(seed)
    _check_positive("alpha", alpha)
    _check_counts(len(labels), num_clients, min_size)
    classes = _places_of_classes(labels)
    smallest = 0
    for _ in range(MAX_DRAWS):
        parts = _empty_parts(num_clients)
        for places in classes:
            rng.shuffle(places := places.copy())
            shares = rng.dirichlet(np.repeat(alpha, num_clients))
            cuts = (np.cumsum(shares) * len(places)).astype(int)[:-1]
            _deal(parts, np.split(places, cuts))
        split = [np.concatenate(part) for part in parts]
        smallest = min(len(part) for part in split)
        if smallest >= min_size:
            return _shuffle_each(split, rng)
    raise ConfigError(
        f"after {MAX_DRAWS} draws with alpha={alpha} one of {num_clients} clients still has "
        f"{smallest} of {len(labels)} examples, wanted min_size={min_size}; raise alpha, take "
        "fewer clients or min_size=0"
    )


def split_like(
    labels: Shaped[np.ndarray, "..."],
    other_labels: Shaped[np.ndarray, " others"],
    other_split: Sequence[Int64[np.ndarray, "_"]],
    *,
    seed: Seed,
) -> Split:
    """Shares out a test set so that every client has the classes that it trains on.

    Of class k, client j gets ceil(n_jk / n_k * count); then random clients give one back until
    the sum fits. Clients with few examples may get none.

    Args:
      labels: class of every example to share out.
      other_labels: classes of the examples that are shared out already.
      other_split: how they are.
      seed: see `Seed`.

    Raises:
      ConfigError: (a ValueError) if a class is not among those of the other examples.

    References:
      `_split_according_to_prior` in `federatedscope/core/splitters/utils.py`
      (`data.consistent_label_distribution`).
    """
    rng = _generator(seed)
    classes = np.unique(labels)
    held = [other_labels[part] for part in other_split]
    counts = np.stack([_count(part, classes) for part in held]).astype(float)
    totals = counts.sum(axis=0)
    if missing := classes[totals == 0].tolist():
        raise ConfigError(
            f"nobody holds an example of the classes {missing[:10]}, so they cannot be shared out "
            "alike; leave these classes out, or use split_iid"
        )
    parts = _empty_parts(len(other_split))
    for number, places in enumerate(_places_of_classes(labels)):
        rng.shuffle(places := places.copy())
        wanted = np.ceil(counts[:, number] / totals[number] * len(places)).astype(int)
        while wanted.sum() > len(places):
            client = rng.choice(len(wanted))
            wanted[client] -= wanted[client] > 0
        _deal(parts, np.split(places, np.cumsum(wanted)[:-1]))
    return _shuffle_each([np.concatenate(part) for part in parts], rng)


def split_by_shards(
    labels: Shaped[np.ndarray, "..."],
    num_clients: int,
    *,
    seed: Seed,
    shards_per_client: int = 2,
) -> Split:
    """Pathological label skew: every client gets a few shards of the examples sorted by label.

    With two shards most clients see two classes.

    Raises:
      ConfigError: (a ValueError) if there are more shards than examples.
    """
    _check_counts(len(labels), num_clients, 1)
    _check_counts(len(labels), num_clients * shards_per_client, 1, "shards")
    rng = _generator(seed)
    shards = np.array_split(np.argsort(labels, kind="stable"), num_clients * shards_per_client)
    dealt = rng.permutation(len(shards)).reshape(num_clients, shards_per_client)
    split = [np.concatenate([shards[number] for number in numbers]) for numbers in dealt]
    return _shuffle_each(split, rng)


def split_by_quantity(
    num_examples: int, num_clients: int, alpha: float, *, seed: Seed, min_size: int = 1
) -> Split:
    """Quantity skew: the sizes follow Dirichlet(alpha), the examples of a client are IID.

    Every client gets `min_size`; the rest is shared out by one draw, rounded so that it adds up.

    Raises:
      ConfigError: (a ValueError) if there are too few examples for the clients.
    """
    _check_positive("alpha", alpha)
    _check_counts(num_examples, num_clients, min_size)
    rng = _generator(seed)
    order = rng.permutation(num_examples)
    rest = num_examples - num_clients * min_size
    shares = np.cumsum(rng.dirichlet(np.repeat(alpha, num_clients)))[:-1]
    cuts = np.rint(shares * rest).astype(int) + min_size * np.arange(1, num_clients)
    return _arrays(np.split(order, cuts))


def split_by_key(
    keys: Shaped[np.ndarray, " examples"], *, min_size: int = 1
) -> tuple[Split, Shaped[np.ndarray, " clients"]]:
    """The natural split: one client for every user, writer, role, or other value of a column.

    Args:
      keys: of every example.
      min_size: keys with fewer examples are left out.

    Returns:
      The split, in which examples keep their order, and the key of every client, sorted.

    Raises:
      ConfigError: (a ValueError) if no key has enough examples.
    """
    names, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(numbers.reshape(-1), kind="stable")
    parts = np.split(order, np.cumsum(counts)[:-1]) if len(keys) else []
    kept = counts >= min_size
    if not kept.any():
        raise ConfigError(
            f"none of {len(names)} keys has min_size={min_size} examples; the most is "
            f"{counts.max(initial=0)} of {len(keys)}"
        )
    return _arrays([part for part, keep in zip(parts, kept, strict=True) if keep]), names[kept]


def _generator(seed: Seed) -> np.random.Generator | np.random.RandomState:
    return np.random.default_rng(seed) if isinstance(seed, int) else seed


def _arrays(parts: Sequence[np.ndarray]) -> Split:
    return [np.asarray(part, np.int64) for part in parts]


def _places_of_classes(labels: np.ndarray) -> list[np.ndarray]:
    if labels.ndim != 1:
        raise ConfigError(
            f"labels have the shape {labels.shape}; a split by label needs one class an example"
        )
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _count(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How often every one of the sorted `classes` occurs."""
    places = np.searchsorted(classes, labels)
    known = classes[np.minimum(places, len(classes) - 1)] == labels
    return np.bincount(places[known], minlength=len(classes))


def _empty_parts(number: int) -> list[list[np.ndarray]]:
    return [[np.zeros(0, np.int64)] for _ in range(number)]


def _deal(parts: list[list[np.ndarray]], pieces: Sequence[np.ndarray]) -> None:
    for part, piece in zip(parts, pieces, strict=True):
        part.append(piece)


def _shuffle_each(
    split: list[np.ndarray], rng: np.random.Generator | np.random.RandomState
) -> Split:
    for part in split:
        rng.shuffle(part)
    return _arrays(split)


def _check_positive(name: str, value: float) -> None:
    if not (0 < value < np.inf):
        raise ConfigError(f"{name}={value} must be a positive number")


def _check_counts(num_examples: int, num_parts: int, min_size: int, what: str = "clients") -> None:
    if num_parts < 1:
        raise ConfigError(f"{num_parts} {what}; at least one is needed")
    if min_size < 0:
        raise ConfigError(f"min_size={min_size} must not be negative")
    if num_examples < num_parts * min_size:
        raise ConfigError(
            f"{num_examples} examples are too few for {num_parts} {what} of at least {min_size}; "
            f"at most {num_examples // max(min_size, 1)} fit"
        )
