"""What the server and all nodes of a deployment know, and the forms of what they exchange."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxlab.federated import forms
from jaxlab.federated.algorithm import Algorithm, Tree
from jaxlab.federated.client_data import ClientData, Schedule, gather_clients
from jaxlab.federated.server import NUM_SAMPLE
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.strategy import ConfigError


class Agreement(NamedTuple):
    """What the server and all nodes of a course agree on; each makes its own of the same settings.

    Attributes:
      config: length and pace; see `checked`.
      algorithm: what server and clients compute.
      variables: what the course starts from; nodes need the shapes only.
      schedule: how much a client trains; the same that the algorithm was made with.
      example: shape and type of one example, such as `{"x": ..., "y": ...}`.
    """

    config: CourseConfig
    algorithm: Algorithm
    variables: PyTree
    schedule: Schedule
    example: Mapping[str, jax.ShapeDtypeStruct]

    def checked(self) -> "Agreement":
        """The same, where clients tell when they join how many examples they go through.

        Raises:
          ConfigError: (a ValueError) if a course of clients that may fall silent has no limit to
            how long it waits for them.
        """
        if not self.config.answer_timeout_us:
            raise ConfigError(
                f"answer_timeout_s={self.config.answer_timeout_s}: in a deployment clients may "
                "fall silent, and the course would wait for ever; give the seconds that a round "
                "may take, such as 600"
            )
        asked = dict.fromkeys((NUM_SAMPLE, *self.config.ask_on_join))
        config = dataclasses.replace(self.config, ask_on_join=tuple(asked))
        return self._replace(config=config)


class Forms(NamedTuple):
    """The trees of an algorithm as shapes and types.

    Attributes:
      server: what the server holds.
      broadcast: what clients are sent to train.
      evaluation: what they are sent to evaluate.
      update: what they send back.
      client: what they keep.
    """

    server: Tree
    broadcast: Tree
    evaluation: Tree
    update: Tree
    client: Tree


def find_forms(agreement: Agreement) -> Forms:
    """The forms of all trees of a course, without computing any.

    Args:
      agreement: the course.

    Raises:
      ConfigError: (a ValueError) if the algorithm is one that only simulations know.
    """
    algorithm = agreement.algorithm
    if algorithm.exchange is not None or algorithm.for_client is not None:
        what = "whose clients exchange" if algorithm.exchange else "with a model for every client"
        raise ConfigError(
            f"an algorithm {what} cannot be deployed: in a deployment the server sends the same to "
            "all clients of a round, and waits for one answer. Simulate it, or take another one"
        )
    found = forms.find_forms(
        agreement.algorithm, _one_example(agreement), agreement.variables, agreement.schedule, {}
    )
    kept = found.result.client_state
    return Forms(found.server, found.sent, found.evaluation, found.result.update, kept)


def own_data(examples: Mapping[str, np.ndarray], agreement: Agreement, what: str) -> ClientData:
    """The examples of one client, checked.

    Args:
      examples: name -> (examples, ...); none for a client that has none.
      agreement: tells their form.
      what: what they are called in an error, such as `train`.

    Raises:
      ConfigError: (a ValueError) listing arrays that are missing, unknown or of another form.
    """
    given = {name: np.asarray(values) for name, values in examples.items()}
    problems = [f"{name!r} is missing" for name in agreement.example if name not in given]
    for name, values in given.items():
        form = agreement.example.get(name)
        if form is None:
            problems.append(f"{name!r} is unknown")
        elif (values.shape[1:], values.dtype) != (tuple(form.shape), form.dtype):
            problems.append(
                f"{name!r} holds {values.dtype}{list(values.shape[1:])}, wanted "
                f"{np.dtype(form.dtype).name}{list(form.shape)}"
            )
    if problems:
        raise ConfigError(f"the {what} examples of the node do not fit: {'; '.join(problems)}")
    size = len(next(iter(given.values())))
    if size:
        return gather_clients(given, [np.arange(size)])
    # A row that is never read: nothing can be gathered from arrays without rows.
    return dataclasses.replace(_one_example(agreement), sizes=np.zeros(1, np.int32))


def _one_example(agreement: Agreement) -> ClientData:
    """A client with one example, of zeros."""
    zeros = {name: np.zeros((1, *f.shape), f.dtype) for name, f in agreement.example.items()}
    return gather_clients(zeros, [np.zeros(1, int)])
