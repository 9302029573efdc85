"""What makes a model a client's own: entries that stay with it, and training before evaluation.

Both take an algorithm and give one, and may be combined: `keep_local(fine_tuned(...), ...)`.

References:
  Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
  arXiv:2102.07623; Arivazhagan et al. 2019, "Federated Learning with Personalization Layers",
  arXiv:1912.00818; Wang et al. 2019, "Federated Evaluation of On-device Personalization",
  arXiv:1910.10252; `federatedscope/core/trainers` of FederatedScope 0.3.0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import (
    Algorithm,
    EvaluationInput,
    LocalResult,
    Tree,
    find_schedule,
)
from jaxlab.federated.algorithms.entries import IsEntry, check_named, merge, pick, split
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Sums


def keep_local(algorithm: Algorithm, is_local: IsEntry) -> Algorithm:
    """Some entries of the model stay with the clients: neither sent up nor overwritten.

    With normalisation layers (`is_normalization`) this is FedBN, with the last layers a model with
    personal heads. The server holds the local entries as they were at the start; a client begins
    with these, and so does one that has never trained when it evaluates.

    Args:
      algorithm: one whose update is the difference to what was sent, and which evaluates with a
        tree of the same form: `fed_avg`, `ditto`, `pfedme`, `fed_em`, `fed_rep`, or one made of
        them.
      is_local: which entries, see `named`; of the names of what is sent.

    Returns:
      The algorithm; a client keeps `local`, and what it kept before as `state`.

    Raises:
      ConfigError: (a ValueError) with the first variables, if the algorithm is of another form, or
        the names mean no entries, or all of them.
    """

    def first_local(variables: PyTree) -> PyTree:
        sent = algorithm.broadcast(algorithm.init_server(variables))
        check_named(sent, is_local, "keep_local")
        _check_form(sent, algorithm.evaluation(algorithm.init_server(variables)), "evaluates with")
        return pick(sent, is_local)

    def shared(tree: Tree) -> Tree:
        return split(tree, is_local)[1]

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        whole = merge(received, state["local"])
        result = algorithm.local(whole, state["state"], view, limits, key)
        _check_form(whole, result.update, "sends")
        moved, update = split(result.update, is_local)
        kept = jax.tree.map(lambda old, d: (old + d).astype(old.dtype), state["local"], moved)
        return result._replace(
            update=update, client_state={"local": kept, "state": result.client_state}
        )

    def update_server(server: Tree, mean: Tree, num_updates: Float[Array, ""]) -> Tree:
        still = jax.tree.map(jnp.zeros_like, pick(algorithm.broadcast(server), is_local))
        return algorithm.update_server(server, merge(mean, still), num_updates)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        whole = merge(received, state["local"])
        return algorithm.evaluate(whole, state["state"], given)

    return algorithm._replace(
        init_client=lambda variables: {
            "local": first_local(variables),
            "state": algorithm.init_client(variables),
        },
        broadcast=lambda server: shared(algorithm.broadcast(server)),
        local=local,
        update_server=update_server,
        evaluation=lambda server: shared(algorithm.evaluation(server)),
        evaluate=evaluate,
    )


def fine_tuned(
    algorithm: Algorithm,
    tuner: Algorithm,
    schedule: Schedule | None = None,
    *,
    reinitialised: IsEntry | None = None,
) -> Algorithm:
    """Clients train on their own examples before they evaluate; what they learn there is dropped.

    The metrics of the model before that are found under `untuned/`.

    Args:
      algorithm: what is learned together.
      tuner: says how a client tunes, with its own optimizer and schedule: `fed_avg(task, tx,
        schedule)`, for a part of the model with `train_only(tx, is_trained)`. What it is sent must
        have the form of what the algorithm evaluates with, and so must its update.
      schedule: that of the tuner; None takes it from there.
      reinitialised: entries that begin anew before tuning, uniform in plus or minus
        `1 / sqrt(fan in)`, as linear layers of torch do; biases take the fan in of their kernel.

    Raises:
      ConfigError: (a ValueError) if the schedule is not that of the tuner.
    """
    schedule = find_schedule(tuner, schedule)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        draw_key, tune_key, key = jax.random.split(given.key, 3)
        given = given._replace(key=key)
        start = received
        if reinitialised is not None:
            start = reinitialise(received, reinitialised, draw_key)
        limits = given.limits.at_least(schedule)
        result = tuner.local(start, state, given.train, limits, tune_key)
        _check_form(start, result.update, "tunes with")
        own = jax.tree.map(lambda w, d: (w + d).astype(w.dtype), start, result.update)
        before = algorithm.evaluate(received, state, given)
        return {
            **algorithm.evaluate(own, result.client_state, given),
            **{f"untuned/{name}": value for name, value in before.items()},
        }

    return algorithm._replace(evaluate=evaluate)


def reinitialise(tree: PyTree, is_entry: IsEntry, key: Key[Array, ""]) -> PyTree:
    """Draws some entries anew, uniform in plus or minus `1 / sqrt(fan in)`.

    Args:
      tree: a model; kernels end with the axes (inputs, outputs), after those of a window.
      is_entry: which entries.
      key: every entry makes its own of it.

    Raises:
      ConfigError: (a ValueError) if an entry is a vector that has no kernel beside it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    kernels = {
        path[:-1]: leaf
        for path, leaf in leaves
        if jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
    }

    def draw(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not is_entry(name):
            return leaf
        kernel = leaf if leaf.ndim > 1 else kernels.get(path[:-1])
        if kernel is None:
            raise ConfigError(
                f"{name} has no kernel beside it that tells its range; leave it out of what is "
                "reinitialised"
            )
        number = [p for p, _ in leaves].index(path)
        bound = (kernel.size // kernel.shape[-1]) ** -0.5
        own = jax.random.fold_in(key, number)
        return jax.random.uniform(own, leaf.shape, leaf.dtype, -bound, bound)

    return jax.tree_util.tree_map_with_path(draw, tree)


def _check_form(sent: Tree, other: Tree, what: str) -> None:
    if jax.tree.structure(sent) != jax.tree.structure(other):
        raise ConfigError(
            f"the algorithm is sent {jax.tree.structure(sent)} and {what} "
            f"{jax.tree.structure(other)}; only one whose update is the difference to what it was "
            "sent can be combined so, such as fed_avg"
        )
