"""Ditto: every client has a model of its own, held near the one that is learned together.

References:
  Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
  arXiv:2012.04221, algorithm 1; order and counts as in
  `federatedscope/core/trainers/trainer_Ditto.py` of FederatedScope 0.3.0.
"""

import jax
import optax
from jaxtyping import Array, Key

from jaxlab.federated.algorithm import Algorithm, EvaluationInput, LocalResult, Tree
from jaxlab.federated.checks import check_not_negative, check_optimizer
from jaxlab.federated.client_data import ClientView, Schedule
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.local import Limits, evaluate_client, pull_towards, train_client
from jaxlab.federated.tasks import Sums, Task


def ditto(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    regularisation: float = 0.1,
    personal_tx: optax.GradientTransformation | None = None,
    personal_schedule: Schedule | None = None,
    server_tx: optax.GradientTransformation | None = None,
) -> Algorithm:
    """FedAvg, and beside it a personal model v with the loss `F(v) + lambda / 2 ||v - w||^2`.

    First the personal model goes on from where the client left it, then the copy of the global
    model w is trained and sent; only the latter counts for the weight. Evaluations are of the
    personal model, those of the global one are found under `global/`.

    Args:
      task: the learning problem.
      tx: optimizer of the global model, new in every round.
      schedule: how much a client trains it in a round.
      regularisation: lambda; at 0 the personal model is trained alone.
      personal_tx: optimizer of the personal model; None takes `tx`.
      personal_schedule: how much it is trained; None takes `schedule`.
      server_tx: optimizer of the server, see `fed_avg`.

    Returns:
      The algorithm; a client keeps `personal`, a whole model.

    Raises:
      ConfigError: (a ValueError) if the regularisation is negative, or an optimizer is none.
    """
    check_not_negative("ditto", regularisation=regularisation)
    check_optimizer("tx", tx, "ditto")
    check_optimizer("personal_tx", personal_tx, "ditto", optional=True)
    base = fed_avg(task, tx, schedule, server_tx=server_tx)
    own_tx, own_schedule = personal_tx or tx, personal_schedule or schedule

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        own_key, key = jax.random.split(key)
        own_limits = limits.at_least(own_schedule)
        penalty = pull_towards(received["params"], regularisation)
        own = train_client(
            task, own_tx, own_schedule, state["personal"], view, own_limits, own_key,
            penalty=penalty,
        )  # fmt: skip
        result = base.local(received, {}, view, limits, key)
        return result._replace(client_state={"personal": own.variables})

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        batch_size = given.batch_size or schedule.batch_size
        own = evaluate_client(task, state["personal"], given.view, batch_size)
        shared = evaluate_client(task, received, given.view, batch_size)
        return own | {f"global/{name}": value for name, value in shared.items()}

    return base._replace(
        init_client=lambda variables: {"personal": variables}, local=local, evaluate=evaluate
    )
