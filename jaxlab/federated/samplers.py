"""Which of the idle clients are sent the model.

A sampler has the shape of an optimizer: `init(rng) -> state` and `sample(state, rng, idle, count)
-> (state, clients)`; its state is an array of integers, so that a resumed course draws what it
would have drawn.

References:
  `federatedscope/core/sampler.py` of FederatedScope 0.3.0.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxlab.federated.strategy import ConfigError

Ids = Int[np.ndarray, "_"]
SamplerState = Int[np.ndarray, "_"]

NUM_GROUPS = 10
_STATELESS = np.zeros(0, np.int64)


class NotEnoughClientsError(RuntimeError):
    """Fewer clients are idle than are to be sampled."""


class Sampler(NamedTuple):
    """How clients are drawn.

    Attributes:
      init: `rng -> state`.
      sample: `(state, rng, ids of the idle clients, count) -> (state, ids)`; it raises
        NotEnoughClientsError if fewer are idle.
    """

    init: Callable[[np.random.Generator], SamplerState]
    sample: Callable[[SamplerState, np.random.Generator, Ids, int], tuple[SamplerState, Ids]]


def make_uniform_sampler() -> Sampler:
    """Clients drawn with equal probability, without replacement."""

    def sample(
        state: SamplerState, rng: np.random.Generator, idle: Ids, count: int
    ) -> tuple[SamplerState, Ids]:
        _check_count(idle, count)
        return state, rng.choice(idle, count, replace=False)

    return Sampler(lambda rng: _STATELESS, sample)


def make_responsiveness_sampler(slowness: Mapping[int, float]) -> Sampler:
    """Slow clients more often, with probability proportional to the root of their slowness.

    Slow clients answer less often; drawing them more often makes up for some of it.

    Args:
      slowness: seconds of every client, see `jaxlab.federated.devices.slowness`.

    Raises:
      ConfigError: (a ValueError) naming the clients whose slowness is not positive and finite.
    """
    wrong = {c: s for c, s in slowness.items() if not 0 < s < np.inf}
    if wrong:
        raise ConfigError(
            f"the responsiveness sampler got the slowness {_some(wrong)}; it needs positive "
            "seconds: give every client a device that takes time"
        )

    known = np.asarray(sorted(slowness), np.int64)
    roots = np.sqrt([slowness[int(client)] for client in known])

    def sample(
        state: SamplerState, rng: np.random.Generator, idle: Ids, count: int
    ) -> tuple[SamplerState, Ids]:
        _check_count(idle, count)
        _check_known(idle, known)
        weights = roots[np.searchsorted(known, idle)]
        return state, rng.choice(idle, count, replace=False, p=weights / weights.sum())

    return Sampler(lambda rng: _STATELESS, sample)


def make_group_sampler(slowness: Mapping[int, float], num_groups: int = NUM_GROUPS) -> Sampler:
    """Clients of similar slowness together: groups in random order, their members in random order.

    The order is walked to its end over many draws, busy clients are skipped, then a new one is
    drawn: every client gets its turn.

    Args:
      slowness: seconds of every client, see `jaxlab.federated.devices.slowness`.
      num_groups: number of groups, of equal size to within one.
    """
    known = np.asarray(sorted(slowness, key=lambda client: (slowness[client], client)), np.int64)
    groups = [group for group in np.array_split(known, num_groups) if group.size]

    def new_order(rng: np.random.Generator) -> Ids:
        return np.concatenate([rng.permutation(groups[g]) for g in rng.permutation(len(groups))])

    def sample(
        state: SamplerState, rng: np.random.Generator, idle: Ids, count: int
    ) -> tuple[SamplerState, Ids]:
        _check_count(idle, count)
        _check_known(idle, known)
        free, chosen = set(idle.tolist()), []
        while len(chosen) < count:
            if not state.size:
                state = new_order(rng)
            client, state = int(state[0]), state[1:]
            if client in free:
                chosen.append(client)
                free.remove(client)
        return state, np.asarray(chosen, np.int64)

    return Sampler(new_order, sample)


def _check_count(idle: Ids, count: int) -> None:
    if count > len(idle):
        raise NotEnoughClientsError(
            f"{count} clients are to be sampled and {len(idle)} are idle; lower cohort_size, or "
            "raise min_updates"
        )


def _check_known(idle: Ids, known: Ids) -> None:
    unknown = idle[~np.isin(idle, known)]
    if unknown.size:
        raise ConfigError(
            f"the sampler knows no slowness of {_some(dict.fromkeys(unknown.tolist()))}; it was "
            f"made with that of {len(known)} clients: give it one for every client"
        )


def _some(clients: Mapping[int, float | None]) -> str:
    """The first of many clients, for an error."""
    shown = ", ".join(
        f"client {c}" + ("" if s is None else f" ({s} s)") for c, s in list(clients.items())[:5]
    )
    return shown + (f" and {len(clients) - 5} more" if len(clients) > 5 else "")
