"""A cohort of clients as one compiled program.

Clients are an axis: sharded over the devices, scanned in chunks, and mapped (`vmap`) within a chunk
of `width` clients. On a CPU one device a core and width 1 is fastest, since small matrix products
leave no work for more threads; accelerators want wide chunks. The result does not depend on it
beyond the order of float additions.

Two programs share the local update: `make_fold` averages updates as they come, so that memory does
not grow with the cohort; `make_stack` keeps all of them, for robust rules and for courses in which
an update waits for its time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, EvaluationInput, LocalResult, Tree, is_finite
from jaxlab.federated.client_data import ClientData, ClientView, view_client
from jaxlab.federated.local import Limits, like
from jaxlab.federated.tasks import Sums
from jaxlab.parallel import DATA_AXIS, batch_sharding, shard_map

NUM_PROGRAMS = 64
"""Programs of each kind that are kept: another course of the same algorithm compiles none."""


class Cohort(NamedTuple):
    """Clients that train from the same model.

    Attributes:
      clients: their places in the data, from 0, (cohort,).
      active: False for a place that only fills the program, (cohort,).
      keys: one for each, see `client_keys`, (cohort,).
      states: what they keep, every leaf (cohort, ...).
    """

    clients: Int[Array, " cohort"]
    active: Bool[Array, " cohort"]
    keys: Key[Array, " cohort"]
    states: Tree


class Folded(NamedTuple):
    """The mean over a cohort.

    Attributes:
      update: sum of weight times update over the sum of the weights, float32 whatever the updates
        are; 0 if the weights are.
      weight: sum of the weights.
      sums: training metrics.
      finite: whether all numbers of the update are finite.
      rejected: True for a client whose update is not finite and does not count, (cohort,).
      states: what the clients keep, every leaf (cohort, ...).
    """

    update: Tree
    weight: Float[Array, ""]
    sums: Sums
    finite: Bool[Array, ""]
    rejected: Bool[Array, " cohort"]
    states: Tree


class Total(NamedTuple):
    """The part of `Folded` that is added up."""

    update: Tree
    weight: Float[Array, ""]
    sums: Sums


class Stacked(NamedTuple):
    """Every client of a cohort by itself; all arrays begin with the axis (cohort,).

    Attributes:
      update: what they send.
      weight: their weights.
      sums: training metrics.
      finite: whether all numbers of the update are finite.
      states: what they keep.
    """

    update: Tree
    weight: Float[Array, " cohort"]
    sums: dict[str, Float[Array, "... two"]]
    finite: Bool[Array, " cohort"]
    states: Tree


Train = Callable[[Tree, Cohort, ClientData], Any]
StackedSums = dict[str, Float[Array, "cohort two"]]
"""Name -> (sum, count) of every client of a cohort."""


@jax.jit
def client_keys(key: Key[Array, ""], clients: Int[Array, " cohort"]) -> Key[Array, " cohort"]:
    """Keys of clients in a round: each depends on the client, not on its place in the cohort."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, clients)


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_cohort(mesh: Mesh) -> Callable[..., Cohort]:
    """A program that lays a cohort out over the devices, all of it in one call.

    Args:
      mesh: the devices.

    Returns:
      `(key of the course, purpose, number, clients, active) -> Cohort` without states; the keys are
      those of the clients under the purpose (training or evaluation) and the number (of the round).
    """

    def draw(
        key: Key[Array, ""], purpose: Array, number: Array, clients: Array, active: Array
    ) -> Cohort:
        key = jax.random.fold_in(jax.random.fold_in(key, purpose), number)
        return Cohort(clients, active, client_keys(key, clients), {})

    return jax.jit(draw, out_shardings=batch_sharding(mesh))


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_stack(
    algorithm: Algorithm, limits: Limits, mesh: Mesh, width: int = 1, *, receive: bool = True
) -> Train:
    """A program that trains a cohort and keeps every update.

    Args:
      algorithm: what a client does.
      limits: sizes that bound the clients.
      mesh: the devices; the cohort is split over its axis `data`.
      width: clients of a device that are computed at once.
      receive: keep updates as the server reads them; else as they are sent.

    Returns:
      `(broadcast, cohort, data) -> Stacked`, compiled once a cohort size, which must be divisible
      by devices times width, see `count_places`.
    """
    one = _make_one(algorithm, limits, receive=receive)

    def train(received: Tree, cohort: Cohort, data: ClientData) -> Stacked:
        # A gradient with respect to what all devices hold would be summed over them.
        received, data = like(cohort.clients, (received, data))

        stacked: Stacked = scan_clients(lambda c: one(received, c, data), cohort, width)
        return stacked

    return over_devices(train, mesh, P(DATA_AXIS))


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_fold(
    algorithm: Algorithm, limits: Limits, mesh: Mesh, width: int = 1, *, reject: bool = True
) -> Train:
    """A program that trains a cohort and takes the weighted mean of its updates.

    Args:
      algorithm: what a client does.
      limits: sizes that bound the clients.
      mesh: the devices; the cohort is split over its axis `data`.
      width: clients of a device that are computed at once.
      reject: look at every update and leave out those that are not finite. Without it a program
        reads every update once less, and its mean is finite only if all updates are: then both
        programs give the same.

    Returns:
      `(broadcast, cohort, data) -> Folded`, compiled once a cohort size, which must be divisible
      by devices times width, see `count_places`.
    """
    one = _make_one(algorithm, limits, reject=reject)

    def train(received: Tree, cohort: Cohort, data: ClientData) -> Folded:
        received, data = like(cohort.clients, (received, data))

        def chunk(total: Total, part: Cohort) -> tuple[Total, tuple[Array, Tree]]:
            results = _map(lambda c: one(received, c, data), part, width)
            return _add(total, results), (part.active & ~results.finite, results.states)

        shapes = jax.eval_shape(lambda c: one(received, _first(c), data), cohort)
        start = like(cohort.clients, _zero(shapes))
        total, each = jax.lax.scan(chunk, start, _chunks(cohort, width))
        rejected, states = jax.tree.map(_unchunk, each)
        summed: Total = jax.lax.psum(total, DATA_AXIS)
        safe = jnp.where(summed.weight > 0, summed.weight, 1.0)
        mean = jax.tree.map(lambda leaf: leaf / safe, summed.update)
        return Folded(mean, summed.weight, summed.sums, is_finite(mean), rejected, states)

    specs: dict[str, Any] = dict.fromkeys((*Total._fields, "finite"), P())
    each: dict[str, Any] = {"rejected": P(DATA_AXIS), "states": P(DATA_AXIS)}
    return over_devices(train, mesh, Folded(**specs, **each))


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_evaluate(
    algorithm: Algorithm,
    limits: Limits,
    mesh: Mesh,
    width: int = 1,
    batch_size: int | None = None,
    max_size: int | None = None,
) -> Callable[[Tree, Cohort, ClientData, ClientData], StackedSums]:
    """A program that evaluates a cohort.

    Args:
      algorithm: what a client does.
      limits: sizes that bound the training examples of the clients.
      mesh: the devices; the cohort is split over its axis `data`.
      width: clients of a device that are computed at once.
      batch_size: examples of a forward pass; None leaves it to the algorithm.
      max_size: most examples of a client that is evaluated; None knows no bound but all examples.

    Returns:
      `(evaluation tree, cohort, training data, data) -> sums`, every leaf (cohort, 2); zeros for
      places that are not active.
    """

    def one(received: Tree, client: Cohort, train: ClientData, data: ClientData) -> Sums:
        given = EvaluationInput(
            view_of(client, data, max_size), view_of(client, train), limits, client.keys, batch_size
        )
        return algorithm.evaluate(sent_to(algorithm, received, client), client.states, given)

    def evaluate(
        received: Tree, cohort: Cohort, train: ClientData, data: ClientData
    ) -> StackedSums:
        received, train, data = like(cohort.clients, (received, train, data))

        sums: StackedSums = scan_clients(lambda c: one(received, c, train, data), cohort, width)
        return sums

    in_specs = (P(), P(DATA_AXIS), P(), P())
    return jax.jit(shard_map(evaluate, mesh=mesh, in_specs=in_specs, out_specs=P(DATA_AXIS)))


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def make_take_row(mesh: Mesh) -> Callable[..., Tree]:
    """A program that takes one update out of those of a cohort.

    The row lies on one device, and all of them get it.

    Args:
      mesh: the devices that hold the updates, as `make_stack` leaves them.

    Returns:
      `(updates, row, factor, after) -> factor * updates[row]`, float32, once `after` (any tree) has
      been computed: programs in which devices talk to each other must not overtake each other, or
      those of a CPU with few threads wait for ever.
    """

    def take(updates: Tree, row: Array, factor: Array, after: Tree) -> Tree:
        del after

        def one(leaf: Array) -> Array:
            place = row - jax.lax.axis_index(DATA_AXIS) * leaf.shape[0]
            is_here = (place >= 0) & (place < leaf.shape[0])
            found = leaf[jnp.clip(place, 0, leaf.shape[0] - 1)].astype(jnp.float32)
            return jnp.where(is_here, factor * found, 0.0)

        return jax.lax.psum(jax.tree.map(one, updates), DATA_AXIS)

    in_specs = (P(DATA_AXIS), P(), P(), P())
    taken = shard_map(take, mesh=mesh, in_specs=in_specs, out_specs=P())
    return jax.jit(taken, keep_unused=True)


def scan_clients(function: Callable[[Any], Any], clients: PyTree, width: int) -> PyTree:
    """A function of every client, in chunks of clients that are computed at once.

    Args:
      function: from what there is of a client to a tree.
      clients: every leaf (clients, ...).
      width: of a chunk; it divides the number of clients.

    Returns:
      What the function gives, every leaf (clients, ...).
    """

    def chunk(_: None, part: PyTree) -> tuple[None, PyTree]:
        return None, _map(function, part, width)

    _, found = jax.lax.scan(chunk, None, _chunks(clients, width))
    return jax.tree.map(_unchunk, found)


def sent_to(algorithm: Algorithm, tree: Tree, client: Cohort) -> Tree:
    """What one client gets of what is broadcast, or of what is sent to evaluate."""
    if algorithm.for_client is None:
        return tree
    return algorithm.for_client(tree, client.clients)


def _make_one(
    algorithm: Algorithm, limits: Limits, *, reject: bool = True, receive: bool = True
) -> Callable[[Tree, Cohort, ClientData], Stacked]:
    """One client; one that is not active has no examples and so takes no steps."""

    def one(received: Tree, client: Cohort, data: ClientData) -> Stacked:
        sent, view = sent_to(algorithm, received, client), view_of(client, data)
        result: LocalResult = algorithm.local(sent, client.states, view, limits, client.keys)
        return stack_result(algorithm, result, client, reject=reject, receive=receive)

    return one


def stack_result(
    algorithm: Algorithm,
    result: LocalResult,
    client: Cohort,
    *,
    reject: bool = True,
    receive: bool = True,
) -> Stacked:
    """What a training gives, as a row of its cohort.

    A client whose update is not finite keeps the state that it had.

    Args:
      algorithm: tells how the server reads an update.
      result: of the training.
      client: one of a cohort.
      reject: look at the numbers of the update; else it is taken for finite.
      receive: keep the update as the server reads it; else as it is sent.
    """
    update = algorithm.receive(result.update)
    finite = is_finite(update) & client.active if reject else client.active
    states = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), result.client_state, client.states
    )
    kept = update if receive else result.update
    return Stacked(kept, result.weight, result.sums, finite, states)


def view_of(client: Cohort, data: ClientData, max_size: int | None = None) -> ClientView:
    """A client's examples; none if it is not active.

    Args:
      client: one of a cohort.
      data: the examples of all.
      max_size: most examples of a client; None knows no bound but all of them.
    """
    view = view_client(data, client.clients, max_size)
    return view._replace(size=jnp.where(client.active, view.size, 0))


def _map(function: Callable[[Any], Any], part: PyTree, width: int) -> Any:
    """Clients of a chunk at once; a chunk of one is not mapped, which would cost speed."""
    if width > 1:
        return jax.vmap(function)(part)
    single = function(_first(part))
    return jax.tree.map(lambda leaf: leaf[None], single)


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _chunks(tree: PyTree, width: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), tree)


def _unchunk(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def _zero(shapes: Stacked) -> Total:
    def zeros(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tree)

    return Total(zeros(shapes.update), jnp.float32(0.0), zeros(shapes.sums))


def _add(total: Total, part: Stacked) -> Total:
    """Adds the clients of a chunk; those that are not finite do not count."""
    weights = jnp.where(part.finite, part.weight, 0.0)

    def weighted_sum(leaf: Array) -> Array:
        rows = (-1, *[1] * (leaf.ndim - 1))
        kept = jnp.where(part.finite.reshape(rows), leaf.astype(jnp.float32), 0.0)
        return (kept * weights.reshape(rows)).sum(axis=0)

    def kept_sum(leaf: Array) -> Array:
        return jnp.where(part.finite[:, None], leaf, 0.0).sum(axis=0)

    return Total(
        jax.tree.map(lambda t, leaf: t + weighted_sum(leaf), total.update, part.update),
        total.weight + weights.sum(),
        jax.tree.map(lambda t, leaf: t + kept_sum(leaf), total.sums, part.sums),
    )


def over_devices(train: Callable[..., Any], mesh: Mesh, out_specs: Any) -> Train:
    """The program of a function of the clients of one device.

    Args:
      train: `(broadcast, cohort, data) -> what comes out of it`.
      mesh: the devices; the cohort is split over its axis `data`.
      out_specs: how what comes out lies on them.
    """
    in_specs = (P(), P(DATA_AXIS), P())
    return jax.jit(shard_map(train, mesh=mesh, in_specs=in_specs, out_specs=out_specs))
