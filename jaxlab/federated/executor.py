"""Clients that are due, computed together.

In a simulation a client that is asked to train only leaves a ticket: whom it is for, and from
which version of the model. When the server needs an update, all tickets of its version are computed
in one compiled program. What an update is does not depend on that: it follows from the version, the
client, its data, its state and its key, so that the course is the same as if clients were trained
one by one.

A version is kept while a ticket needs it, an update until it is aggregated or discarded.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxlab import parallel
from jaxlab.federated.aggregators import Rule, StackAggregator, combine_updates
from jaxlab.federated.algorithm import Algorithm, LocalResult, Tree
from jaxlab.federated.client_data import ClientData
from jaxlab.federated.cohort import (
    Cohort,
    Folded,
    Stacked,
    Train,
    make_cohort,
    make_evaluate,
    make_fold,
    make_stack,
    make_take_row,
)
from jaxlab.federated.exchange import make_exchange
from jaxlab.federated.local import Limits
from jaxlab.federated.padding import Grid, StepCount, count_places, count_steps, find_places
from jaxlab.federated.store import ClientStore
from jaxlab.federated.width import choose_width
from jaxlab.federated.wire import name_leaves, restore_leaves
from jaxlab.parallel import DATA_AXIS, batch_sharding, replicated, to_host

_logger = logging.getLogger(__name__)

Ticket = int
"""Number of a training that was asked for; what a simulated update holds."""

TRAIN, EVALUATE = 0, 1
"""Purposes of keys: a training and an evaluation of the same number draw differently."""

EVALUATION_BYTES = 2**27
"""Of what clients keep: so much goes to the devices at once when all clients are evaluated."""


class Asked(NamedTuple):
    """A training that has not been computed.

    Attributes:
      client: id of the client, from 1.
      version: round of the model that it starts from.
    """

    client: int
    version: int


class Done(NamedTuple):
    """A training that has been computed.

    Attributes:
      batch: number of the program's run that holds it.
      row: its place in it.
    """

    batch: int
    row: int


class Aggregate(NamedTuple):
    """What some updates come to.

    Attributes:
      update: the mean (float32), or what a rule made of them; None if there was nothing to make
        it of.
      weight: sum of the weights that counted.
      num_updates: how many counted.
      sums: training metrics.
      rejected: tickets whose update was not finite.
    """

    update: Tree
    weight: float
    num_updates: int
    sums: Mapping[str, np.ndarray]
    rejected: tuple[Ticket, ...]


class Executor:
    """Trains the clients of a simulation, together where they start from the same model."""

    def __init__(
        self,
        algorithm: Algorithm,
        data: ClientData,
        limits: Limits,
        mesh: Mesh,
        store: ClientStore,
        key: Key[Array, ""],
        num_steps: Int[np.ndarray, " clients"],
        *,
        width: int | str | None = 1,
        cohort_size: int = 0,
        compute_pending: bool = True,
    ) -> None:
        """Compile nothing yet.

        Args:
          algorithm: what clients do.
          data: the examples of all of them, on the devices of the mesh.
          limits: sizes that bound them.
          mesh: the devices.
          store: what they keep.
          key: of the course; a round and a client make their own of it.
          num_steps: that every client takes in a round, (clients,).
          width: clients of a device that are computed at once; None or `auto` finds what is best,
            see `width`.
          cohort_size: clients that most often start together.
          compute_pending: together with an update that is needed, compute all that start from the
            same version: they will be needed soon, unless their time is over by then.
        """
        self._data, self._store, self._mesh = data, store, mesh
        self._key = parallel.place(replicated(mesh), key)
        self._num_steps, self._cohort_size = num_steps, cohort_size
        self._algorithm, self._limits = algorithm, limits
        self._width = choose_width(width, algorithm, limits, mesh, cohort_size)
        self._compute_pending = compute_pending or not store.is_empty
        self._make_cohort = make_cohort(mesh)
        self._take_row = make_take_row(mesh)
        self._num_tickets = 0
        self._num_batches = 0
        self._versions: dict[int, Tree] = {}
        self._asked: dict[Ticket, Asked] = {}
        self._done: dict[Ticket, Done] = {}
        self._unwanted: set[Ticket] = set()
        self._batches: dict[int, Stacked] = {}
        self.step_count = StepCount()

    def publish(self, version: int, tree: Tree) -> None:
        """Makes a version of the model known that clients are asked to start from."""
        self._versions[version] = tree

    def ask(self, client: int, version: int) -> Ticket:
        """A ticket for a client's training from a version that was published."""
        ticket = self._num_tickets
        self._num_tickets += 1
        self._asked[ticket] = Asked(client, version)
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Forget an update; a client that keeps something is still trained."""
        if ticket in self._done:
            self._drop_done([ticket])
        elif self._store.is_empty:
            del self._asked[ticket]
        else:
            self._unwanted.add(ticket)

    def retire(self, current: int) -> None:
        """Forget versions that no ticket needs and that are older than the current one."""
        needed = {asked.version for asked in self._asked.values()} | {current}
        self._versions = {v: tree for v, tree in self._versions.items() if v in needed}

    def aggregate(
        self, tickets: Sequence[Ticket], staleness: Sequence[int], aggregator: Rule
    ) -> Aggregate:
        """One update made of some, computed first if need be; they are forgotten afterwards.

        Args:
          tickets: of the updates.
          staleness: rounds between the model of each and the server's.
          aggregator: what is made of them.
        """
        if self._can_fold(tickets, staleness, aggregator):
            return self._folded_mean(tickets)
        self.compute(tickets)
        rows = [self._done[ticket] for ticket in tickets]
        weights, finite = self._weights(rows)
        counts = finite & (weights > 0)
        sums = self._add_sums(rows, counts)
        kept = np.where(counts, weights, 0.0)
        rejected = tuple(t for t, ok in zip(tickets, finite, strict=True) if not ok)

        def take(place: int, factor: np.float32, after: Tree) -> Tree:
            row = rows[place]
            return self._take_row(self._batches[row.batch].update, np.int32(row.row), factor, after)

        update = combine_updates(aggregator, kept, np.asarray(staleness), take)
        jax.block_until_ready(update)
        self._drop_done(tickets)
        return Aggregate(update, float(kept.sum()), int(counts.sum()), sums, rejected)

    def evaluate(
        self, tree: Tree, clients: Int[np.ndarray, " clients"], data: ClientData, number: int
    ) -> dict[str, Float[np.ndarray, "clients two"]]:
        """Sums of every client over some examples, of the model it would use.

        Args:
          tree: what the server sends for an evaluation.
          clients: ids, from 1; none twice.
          data: the examples of all clients, on the devices of the mesh.
          number: of the evaluation, for the keys.
        """
        if not self._store.is_empty:
            # A client's state is what it is after all that it has been asked for.
            self.compute(tuple(self._asked))
        sizes = np.asarray(data.sizes)
        evaluate = make_evaluate(
            self._algorithm, self._limits, self._mesh, self._width.width,
            max_size=max(1, int(sizes.max(initial=0))),
        )  # fmt: skip
        block = self._block_size(len(clients))
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(clients), block):
            ids = clients[start : start + block]
            num_places = block if block < len(clients) else None
            cohort, places = self._cohort(ids, sizes, EVALUATE, number, num_places)
            sums = to_host(evaluate(tree, cohort, self._data, data))
            found.append({name: value[places] for name, value in sums.items()})
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def compute(self, tickets: Sequence[Ticket]) -> None:
        """Trains what some tickets ask for, and what is best computed with it.

        Args:
          tickets: those that are needed. Where clients keep something, what they were asked for
            before comes first.
        """
        missing = [ticket for ticket in tickets if ticket in self._asked]
        if not missing:
            return
        versions = {self._asked[ticket].version for ticket in missing}
        if not self._store.is_empty:
            versions |= {a.version for a in self._asked.values() if a.version <= max(versions)}
        for version in sorted(versions):
            while batch := self._next_batch(version, missing):
                self._run(version, batch)

    def snapshot(self) -> dict[str, Any]:
        """All that is held, as a tree that has bytes; rows of the store are not copied."""
        return {
            "num_tickets": self._num_tickets,
            "num_batches": self._num_batches,
            "asked": {ticket: list(asked) for ticket, asked in self._asked.items()},
            "done": {ticket: list(done) for ticket, done in self._done.items()},
            "unwanted": sorted(self._unwanted),
            "steps": list(self.step_count),
            "versions": {v: name_leaves(jax.device_get(t)) for v, t in self._versions.items()},
            "batches": {n: name_leaves(jax.device_get(b)) for n, b in self._batches.items()},
            "clients": name_leaves(self._store.rows()),
        }

    def restore(self, saved: Mapping[str, Any], sent: Tree, result: LocalResult) -> None:
        """Goes on from a snapshot, on the devices of this mesh.

        Args:
          saved: the snapshot.
          sent: what a client is sent, arrays or shapes.
          result: what its training gives, as it is aggregated, arrays or shapes.

        Raises:
          WireError: (a ValueError) if trees are of another structure.
        """
        rows = restore_leaves(saved["clients"], self._store.rows(), "what clients keep")
        versions = {
            version: restore_leaves(named, sent, f"the model of round {version}")
            for version, named in saved["versions"].items()
        }
        batches = {n: self._restore_batch(b, result) for n, b in saved["batches"].items()}
        self._store.restore(rows)
        copies = jax.tree.map(np.array, versions)
        self._versions = parallel.place(replicated(self._mesh), copies)
        self._batches = batches
        self._num_tickets, self._num_batches = saved["num_tickets"], saved["num_batches"]
        self._asked = {ticket: Asked(*asked) for ticket, asked in saved["asked"].items()}
        self._done = {ticket: Done(*done) for ticket, done in saved["done"].items()}
        self._unwanted = set(saved["unwanted"])
        self.step_count = StepCount(*saved["steps"])

    def _restore_batch(self, named: Mapping[str, np.ndarray], result: LocalResult) -> Stacked:
        num_rows, parts = len(named["finite"]), self._grid.num_devices
        one = Stacked(result.update, result.weight, result.sums, jnp.asarray(True), {})
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((num_rows, *leaf.shape), leaf.dtype), one
        )

        def fill_up(leaf: np.ndarray) -> np.ndarray:
            # The devices may be others than those that made the rows.
            return np.pad(leaf, [(0, -num_rows % parts), *[(0, 0)] * (leaf.ndim - 1)])

        batch = restore_leaves(named, target, "updates that wait")
        return parallel.place(batch_sharding(self._mesh), jax.tree.map(fill_up, batch))

    def _next_batch(self, version: int, needed: Iterable[Ticket]) -> list[Ticket]:
        """Tickets of a version in the order of asking, no client twice."""
        pending = tuple(self._asked) if self._compute_pending else needed
        chosen: dict[int, Ticket] = {}
        for ticket in pending:
            asked = self._asked.get(ticket)
            if asked is not None and asked.version == version:
                chosen.setdefault(asked.client, ticket)
        return list(chosen.values())

    def _run(self, version: int, tickets: list[Ticket]) -> None:
        ids = np.asarray([self._asked[ticket].client for ticket in tickets])
        stacked: Stacked
        make = make_stack if self._algorithm.exchange is None else make_exchange
        stacked, places = self._train(make, ids, version)
        self._keep_states(ids, places, stacked.states)
        number = self._num_batches
        self._num_batches += 1
        self._batches[number] = stacked._replace(states={})
        for place, ticket in zip(places, tickets, strict=True):
            del self._asked[ticket]
            if ticket not in self._unwanted:
                self._done[ticket] = Done(number, int(place))
        self._unwanted.difference_update(tickets)

    def _can_fold(
        self, tickets: Sequence[Ticket], staleness: Sequence[int], aggregator: Rule
    ) -> bool:
        """Whether the updates are a whole batch of one version that nothing else needs."""
        if isinstance(aggregator, StackAggregator) or not aggregator.weighted:
            return False
        if self._algorithm.exchange is not None:
            return False
        if any(staleness) or not tickets:
            return False
        if any(ticket not in self._asked for ticket in tickets):
            return False
        asked = [self._asked[ticket] for ticket in tickets]
        version = asked[0].version
        if len({a.client for a in asked}) < len(asked) or any(a.version != version for a in asked):
            return False
        others = len(self._asked) - len(asked)
        return not others or (not self._compute_pending and self._store.is_empty)

    def _folded_mean(self, tickets: Sequence[Ticket]) -> Aggregate:
        asked = [self._asked.pop(ticket) for ticket in tickets]
        version = asked[0].version
        ids = np.asarray([a.client for a in asked])
        folded: Folded
        folded, places = self._train(functools.partial(make_fold, reject=False), ids, version)
        weight, finite, sums = jax.device_get((folded.weight, folded.finite, folded.sums))
        wrong: tuple[Ticket, ...] = ()
        if not finite:
            # Rare, and so it may cost twice: the same again, looking at every update.
            folded, places = self._train(make_fold, ids, version)
            rejected = to_host(folded.rejected)[places]
            weight, sums = jax.device_get((folded.weight, folded.sums))
            wrong = tuple(t for t, bad in zip(tickets, rejected, strict=True) if bad)
        self._keep_states(ids, places, folded.states)
        mean = folded.update if weight > 0 else None
        return Aggregate(mean, float(weight), len(tickets) - len(wrong), sums, wrong)

    def _train(
        self, make: Callable[..., Train], ids: np.ndarray, version: int
    ) -> tuple[Any, np.ndarray]:
        """What a program gives for clients that train from a version, and their places."""
        while True:
            width, begin = self._width.width, time.perf_counter()
            cohort, places = self._cohort(ids, self._num_steps, TRAIN, version)
            program = make(self._algorithm, self._limits, self._mesh, width)
            try:
                result = program(self._versions[version], cohort, self._data)
                if not self._width.is_settled:
                    jax.block_until_ready(result)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or not self._width.drop():
                    raise
                _logger.info("there is no memory for %d clients at once on a device", width)
                continue
            num_places = cohort.clients.shape[0]
            self.step_count += count_steps(self._num_steps[ids - 1], places, num_places, self._grid)
            if len(ids) == self._cohort_size:  # others cannot be compared
                self._width.note(time.perf_counter() - begin)
            return result, places

    @property
    def _grid(self) -> Grid:
        return Grid(self._mesh.shape[DATA_AXIS], self._width.width)

    def _block_size(self, num_clients: int) -> int:
        """How many clients are evaluated by one call, so that what they keep stays small."""
        unit = self._grid.num_devices * self._grid.width
        units = max(1, EVALUATION_BYTES // max(1, unit * self._store.row_bytes))
        if self._store.is_empty or units * unit >= num_clients:
            return max(1, num_clients)
        return unit * units

    def _cohort(
        self,
        ids: np.ndarray,
        num_steps: np.ndarray,
        purpose: int,
        number: int,
        num_places: int | None = None,
    ) -> tuple[Cohort, np.ndarray]:
        """A cohort of some clients, filled up to what the program takes, and their places."""
        num_places = num_places or count_places(len(ids), self._grid, self._cohort_size)
        places = find_places(num_steps[ids - 1], num_places, self._grid)
        clients = np.zeros(num_places, np.int32)
        active = np.zeros(num_places, bool)
        clients[places], active[places] = ids - 1, True
        cohort: Cohort
        cohort = self._make_cohort(self._key, purpose, np.uint32(number), clients, active)
        if self._store.is_empty:
            return cohort, places
        states = parallel.place(batch_sharding(self._mesh), self._store.gather(clients))
        return cohort._replace(states=states), places

    def _keep_states(self, ids: np.ndarray, places: np.ndarray, states: Tree) -> None:
        if not self._store.is_empty:
            rows = to_host(states)
            self._store.scatter(ids - 1, jax.tree.map(lambda leaf: leaf[places], rows))

    def _weights(self, rows: Sequence[Done]) -> tuple[np.ndarray, np.ndarray]:
        """Weights of some updates, and whether they are finite."""
        host = {b: to_host(self._batch_weights(b)) for b in {row.batch for row in rows}}
        weights = np.asarray([host[row.batch][0][row.row] for row in rows], np.float64)
        finite = np.asarray([host[row.batch][1][row.row] for row in rows], bool)
        return weights, finite

    def _batch_weights(self, batch: int) -> tuple[Array, Array]:
        return self._batches[batch].weight, self._batches[batch].finite

    def _add_sums(self, rows: Sequence[Done], counts: np.ndarray) -> dict[str, np.ndarray]:
        """Training metrics of the rows that count."""
        sums: dict[str, np.ndarray] = {}
        kept = [row for row, counted in zip(rows, counts, strict=True) if counted]
        for batch in dict.fromkeys(row.batch for row in kept):
            own = [row.row for row in kept if row.batch == batch]
            for name, value in to_host(self._batches[batch].sums).items():
                sums[name] = sums.get(name, 0.0) + value[own].sum(axis=0)
        return sums

    def _drop_done(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._done.pop(ticket, None)
        used = {done.batch for done in self._done.values()}
        self._batches = {number: b for number, b in self._batches.items() if number in used}
