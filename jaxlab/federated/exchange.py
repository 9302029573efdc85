"""Clients of a round that tell each other something before they answer.

A round has two questions then: to the model a client answers with what it offers the others
(`pred_embedding`), and to what they have offered (`global_loss`) with its update. The server only
waits for all who work and passes on. Both messages are those of FedGC in the original, whose server
computes a loss of the offers and sends that; no gradient flows through a number in a message, so
here clients get the offers, and compute what follows from them by themselves.

In a simulation the clients of a cohort are computed by one program that does both steps; nothing
leaves the devices between them.

References:
  `federatedscope/cl/fedgc` of FederatedScope 0.3.0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Key

from jaxlab.federated.algorithm import Algorithm, Exchange, LocalResult, Others, Tree, is_finite
from jaxlab.federated.client import Answer, ClientState, Failure
from jaxlab.federated.client_data import ClientData, ClientView
from jaxlab.federated.cohort import (
    NUM_PROGRAMS,
    Cohort,
    Stacked,
    Train,
    over_devices,
    scan_clients,
    sent_to,
    stack_result,
    view_of,
)
from jaxlab.federated.local import Limits, like
from jaxlab.federated.messages import FAILURE, MODEL, OFFER, OTHERS, SERVER, Message
from jaxlab.federated.roles import Event, Role
from jaxlab.federated.server_state import Reaction, ServerState, is_known
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.parallel import DATA_AXIS

ALL_OFFERED = "all_offered"
"""The event at the server that ends the wait for offers."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """The training of a client that hears of no others, for `Algorithm.local`.

    Attributes:
      exchange: what it does.
    """

    exchange: Exchange

    def __call__(
        self, received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        """See `Algorithm.local`."""
        kept, offer = self.exchange.offer(received, state, view, limits, key)
        nobody = Others(jax.tree.map(lambda leaf: leaf[None], offer), jnp.zeros(1, bool))
        return self.exchange.answer(received, state, view, kept, nobody)


def check_exchange(algorithm: Algorithm, strategy: Strategy) -> None:
    """Looks whether a course can have the exchange of its algorithm.

    Args:
      algorithm: perhaps one without.
      strategy: the pace.

    Raises:
      ConfigError: (a ValueError) if another function was put around the training, which an exchange
        does not know of, or answers are not all waited for.
    """
    if algorithm.exchange is None:
        return
    problems = []
    if algorithm.local != Alone(algorithm.exchange):
        problems.append(
            "something was put around the training of an algorithm whose clients exchange "
            "(compressed, keep_local, hook_rounds): that would not see the exchange; leave it out"
        )
    if strategy.is_asynchronous or strategy.num_updates < strategy.cohort_size:
        problems.append(
            f"kind={strategy.kind!r} with min_updates={strategy.num_updates} of cohort_size="
            f"{strategy.cohort_size}: clients that exchange wait for each other; use "
            "kind='synchronous', and leave min_updates out"
        )
    if problems:
        raise ConfigError("; ".join(problems))


# Messages.


def exchange_at_client(
    role: Role,
    offer: Callable[[int, Any, int], Answer | Failure],
    answer: Callable[[int, Any, int], Answer | Failure],
) -> Role:
    """The role of clients with another answer to the model, and one to what others have offered.

    Args:
      role: see `make_client`.
      offer: `(client, content of the broadcast, round) -> what the others are told`.
      answer: `(client, what it is told of them, round) -> the update`.
    """

    def respond(
        act: Callable[[int, Any, int], Answer | Failure], kind: str
    ) -> Callable[[ClientState, Message], tuple[ClientState, list[Message]]]:
        def handle(state: ClientState, message: Message) -> tuple[ClientState, list[Message]]:
            found = act(state.id, message.content, message.round)
            if isinstance(found, Failure):
                return state, [message.reply(FAILURE, found.reason, found.duration_us)]
            return state, [message.reply(kind, found.content, found.duration_us)]

        return handle

    role = role.on(MODEL, respond(offer, OFFER), (OFFER, FAILURE))
    return role.on(OTHERS, respond(answer, MODEL), (MODEL, FAILURE))


def exchange_at_server(role: Role, tell: Callable[[int, Mapping[int, Any]], Any]) -> Role:
    """The role of a server that passes on what the clients of a round offer each other.

    Clients that have failed are not waited for, and told nothing.

    Args:
      role: see `make_server`.
      tell: `(client, client -> its offer) -> content` of the message to this client.
    """

    def on_offer(state: ServerState, message: Message) -> Reaction:
        if not is_known(state, message):
            return state, []
        request = state.busy.get(message.sender)
        if request is None or request.number != message.request or message.sender in state.offers:
            state.counts["duplicate_offers"] += 1
            return state, []
        state.clock_us = max(state.clock_us, message.time_us)
        state.offers[message.sender] = message.content
        return state, []

    def has_all(state: ServerState) -> bool:
        workers = _workers(state)
        return bool(state.offers) and bool(workers) and workers <= state.offers.keys()

    def pass_on(state: ServerState) -> Reaction:
        offers = {client: state.offers[client] for client in sorted(_workers(state))}
        state.offers = {}
        return state, [
            Message(
                OTHERS, SERVER, (client,), tell(client, offers), state.round, state.clock_us,
                request=state.busy[client].number,
            )
            for client in offers
        ]  # fmt: skip

    role = role.on(OFFER, on_offer)
    return role.when(Event(ALL_OFFERED, has_all, pass_on, (OTHERS,), (OFFER, FAILURE)))


def _workers(state: ServerState) -> set[int]:
    """Clients that work on the model of this round."""
    return {client for client, asked in state.busy.items() if asked.round == state.round}


# The program.


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_exchange(
    algorithm: Algorithm, limits: Limits, mesh: Mesh, width: int = 1, *, receive: bool = True
) -> Train:
    """A program that trains a cohort whose clients exchange, and keeps every update.

    Args:
      algorithm: what a client does.
      limits: sizes that bound the clients.
      mesh: the devices; the cohort is split over its axis `data`, and every device gets all offers.
      width: clients of a device that are computed at once.
      receive: keep updates as the server reads them; else as they are sent.

    Returns:
      `(broadcast, cohort, data) -> Stacked`, see `cohort.make_stack`. An offer that is not finite
      is told nobody.
    """
    exchange = algorithm.exchange
    assert exchange is not None, "only then this is used"

    def train(received: Tree, cohort: Cohort, data: ClientData) -> Stacked:
        received, data = like(cohort.clients, (received, data))

        def offer(client: Cohort) -> tuple[Tree, Tree, Array]:
            sent, view = sent_to(algorithm, received, client), view_of(client, data)
            kept, offer = exchange.offer(sent, client.states, view, limits, client.keys)
            return kept, offer, is_finite(offer) & client.active

        kept, offers, counts = scan_clients(offer, cohort, width)
        # Zeros, so that what does not count adds nothing that is not finite to a gradient.
        offers = jax.tree.map(functools.partial(_where, counts), offers)
        offers, counts = jax.lax.all_gather((offers, counts), DATA_AXIS, tiled=True)
        number = jnp.arange(len(cohort.clients))
        own = jax.lax.axis_index(DATA_AXIS) * len(cohort.clients) + number

        def answer(given: tuple[Cohort, Tree, Array]) -> Stacked:
            client, kept, place = given
            sent, view = sent_to(algorithm, received, client), view_of(client, data)
            others = Others(offers, counts & (jnp.arange(len(counts)) != place))
            result = exchange.answer(sent, client.states, view, kept, others)
            return stack_result(algorithm, result, client, receive=receive)

        stacked: Stacked = scan_clients(answer, (cohort, kept, own), width)
        return stacked

    return over_devices(train, mesh, P(DATA_AXIS))


def _where(counts: Bool[Array, " clients"], leaf: Array) -> Array:
    return jnp.where(counts.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))
