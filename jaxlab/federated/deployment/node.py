"""The client of a deployment: it trains on the data of its node.

The role, the local update and the keys are those of simulations; a client that is asked the same
gives the same numbers, whichever process it lives in.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxlab.federated import wire
from jaxlab.federated.algorithm import Tree
from jaxlab.federated.client import Answer, ClientProgram, Failure, join_message, make_client
from jaxlab.federated.client_data import ClientData
from jaxlab.federated.cohort import Cohort, Stacked, client_keys, make_evaluate, make_stack
from jaxlab.federated.deployment.agreement import (
    Agreement,
    Forms,
    find_forms,
    own_data,
)
from jaxlab.federated.deployment.memory import Memory
from jaxlab.federated.executor import EVALUATE, TRAIN
from jaxlab.federated.local import Limits
from jaxlab.federated.messages import FAILURE, JOIN, UNASSIGNED, Message
from jaxlab.federated.roles import Role
from jaxlab.federated.server import NUM_SAMPLE
from jaxlab.federated.traffic import TREE, answer_content, metrics_content
from jaxlab.parallel import make_mesh

_logger = logging.getLogger(__name__)

Examples = Mapping[str, np.ndarray]


class Node(NamedTuple):
    """A client and its data, ready to answer.

    Attributes:
      agreement: what all agree on.
      forms: of what is exchanged.
      role: the clients'.
      program: what it learns with.
      number: id of the client; -1 if the server shall give it one.
    """

    agreement: Agreement
    forms: Forms
    role: Role
    program: "Learning"
    number: int


def make_node(
    agreement: Agreement,
    train: Examples,
    splits: Mapping[str, Examples] | None = None,
    *,
    number: int = UNASSIGNED,
    device: jax.Device | None = None,
) -> Node:
    """A client with its own data.

    Args:
      agreement: what all agree on.
      train: its training examples, name -> (examples, ...).
      splits: name -> examples that evaluations go over, such as `test`.
      number: id of the client, from 1; -1 lets the server give it one.
      device: what it computes on; None is the first one.

    Raises:
      ConfigError: (a ValueError) if the examples have another form than agreed.
    """
    agreement, forms = agreement.checked(), find_forms(agreement)
    data = own_data(train, agreement, "train")
    held = {name: own_data(part, agreement, name) for name, part in (splits or {}).items()}
    mesh = make_mesh(devices=[device or jax.devices()[0]])
    learning = Learning(agreement, forms, data, held, mesh)
    samples = agreement.schedule.num_samples(int(data.sizes[0]))
    role = make_client(
        ClientProgram(
            train=learning.train,
            evaluate=learning.evaluate,
            info={NUM_SAMPLE: lambda client: samples},
            finish=learning.finish,
        )
    )
    return Node(agreement, forms, role, learning, number)


def answer(node: Node, memory: Memory, messages: Sequence[Message]) -> list[Message]:
    """What a client answers to some messages, which it handles in their order.

    A message that cannot be handled is answered by a failure and leaves the others alone.

    Args:
      node: the client; its role may have other handlers.
      memory: what it has kept.
      messages: what has come; one of the type `join_in` asks the client to join.

    Returns:
      The answers, in order.
    """
    state, answers = memory.client(node.number), []
    for message in messages:
        node.program.open(memory, message)
        if message.type == JOIN:
            answers.append(join_message(state))
            continue
        try:
            state, sent = node.role.react(state, message)
        except Exception as error:
            _logger.exception("client %d: %s failed", state.id, message.type)
            sent = [message.reply(FAILURE, f"{type(error).__name__}: {error}")]
        memory.keep_client(state)
        answers += sent
    return answers


class Learning:
    """What a client learns with: the programs of a simulation, for a cohort of one."""

    def __init__(
        self,
        agreement: Agreement,
        forms: Forms,
        data: ClientData,
        splits: Mapping[str, ClientData],
        mesh: Mesh,
    ) -> None:
        """Compile nothing yet.

        Args:
          agreement: what all agree on.
          forms: of what is exchanged.
          data: the client's training examples.
          splits: what evaluations go over.
          mesh: one device.
        """
        self._agreement, self._forms = agreement, forms
        self._data, self._splits = data, splits
        sizes = np.asarray(data.sizes)
        limits = Limits(max(1, int(sizes[0])), agreement.schedule.max_epochs(sizes))
        self._stack = make_stack(agreement.algorithm, limits, mesh, receive=False)
        self._evaluate = make_evaluate(agreement.algorithm, limits, mesh)
        self._key = jax.random.key(agreement.config.seed)
        self._initial = agreement.algorithm.init_client(agreement.variables)
        self._memory: Memory | None = None
        self._request = 0

    def open(self, memory: Memory, message: Message) -> None:
        """Take over what the client has kept, and which request it answers now."""
        self._memory, self._request = memory, message.request

    def train(self, client: int, content: Any, number: int) -> Answer | Failure:
        """Train in a round, and keep the state that it leaves."""
        received = self._received(content, self._forms.broadcast)
        training = (number, self._request)
        if number < self._kept.last_round:
            # Left over from a server that is gone; what the client keeps has moved on.
            return Failure(f"it has trained in round {self._kept.last_round} already")
        before = self._kept.state(self._initial, training)
        cohort = self._cohort(client, before, TRAIN, number)
        stacked: Stacked = jax.device_get(self._stack(received, cohort, self._data))
        first = jax.tree.map(lambda leaf: leaf[0], stacked)
        if jax.tree.leaves(self._forms.client):
            self._kept.keep_state(training, before, first.states)
        return Answer(answer_content(_on_host(first.update), np.asarray(first.weight)))

    def evaluate(self, client: int, content: Any, number: int) -> dict[str, Any]:
        """Sums over every split, of the model that the client would use."""
        received = self._received(content, self._forms.evaluation)
        cohort = self._cohort(client, self._kept.state(self._initial), EVALUATE, number)
        sums = {}
        for name, split in self._splits.items():
            found = jax.device_get(self._evaluate(received, cohort, self._data, split))
            sums[name] = {key: np.asarray(value[0]) for key, value in found.items()}
        return metrics_content(sums)

    def finish(self, client: int, content: Any) -> None:
        """Keep what the course has learned."""
        del client
        if isinstance(content, Mapping):
            self._kept.keep_final(content)

    @property
    def _kept(self) -> Memory:
        assert self._memory is not None, "opened before every message"
        return self._memory

    def _received(self, content: Any, form: Tree) -> Tree:
        named = content.get(TREE) if isinstance(content, Mapping) else None
        return wire.restore_leaves(named, form, "what the server has sent")

    def _cohort(self, client: int, kept: Tree, purpose: int, number: int) -> Cohort:
        """The client alone, with the key that it has in any cohort."""
        key = jax.random.fold_in(jax.random.fold_in(self._key, purpose), number)
        keys = client_keys(key, jnp.asarray([client - 1], jnp.int32))
        states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], kept)
        return Cohort(jnp.zeros(1, jnp.int32), jnp.ones(1, bool), keys, states)


def _on_host(tree: Tree) -> Tree:
    return jax.tree.map(np.asarray, tree)
