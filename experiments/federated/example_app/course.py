"""What server and nodes agree on: model, algorithm, pace; and how a node reads its examples.

Everything to change for a course of one's own is here.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxlab import federated
from jaxlab.federated import datasets, deployment

NUM_CLIENTS, NUM_INPUTS, NUM_CLASSES = 3, 4, 2
EXAMPLE = {
    "x": jax.ShapeDtypeStruct((NUM_INPUTS,), jnp.float32),
    "y": jax.ShapeDtypeStruct((), jnp.int32),
}


class Classifier(nn.Module):
    """Two layers; any module that takes a batch and `train` does."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, (batch, classes)."""
        return nn.Dense(NUM_CLASSES)(nn.relu(nn.Dense(16)(x)))


def make_agreement() -> deployment.Agreement:
    """The course; the server and every node make the same one."""
    task = federated.classification(Classifier(), EXAMPLE["x"])
    schedule = federated.Schedule(batch_size=16, amount=2)  # two epochs a round
    return deployment.Agreement(
        config=federated.CourseConfig(
            NUM_CLIENTS,
            num_rounds=5,
            strategy=federated.Strategy(cohort_size=NUM_CLIENTS),
            eval_every_rounds=1,
            answer_timeout_s=600.0,
        ),
        algorithm=federated.fed_avg(task, optax.sgd(0.3), schedule),
        variables=task.init(jax.random.key(0)),
        schedule=schedule,
        example=EXAMPLE,
    )


def make_server(folder: Path) -> deployment.ServerPlace:
    """The server.

    Args:
      folder: where its checkpoint lies; a course that is found there goes on.
    """

    def show(state: deployment.LiveState) -> None:
        server = state.server
        metrics = server.evaluations[-1].metrics if server.evaluations else {}
        print(f"round {server.round}", {name: round(value, 4) for name, value in metrics.items()})

    return deployment.ServerPlace(
        deployment.make_learner(make_agreement()), folder, on_progress=show
    )


def make_node(client: int, file: Path, folder: Path) -> deployment.NodePlace:
    """A node.

    Args:
      client: its id, from 1.
      file: its examples, arrays `x`, `y`, `x_test` and `y_test`.
      folder: what it keeps from one message to the next.
    """
    train, parts = datasets.read_npz(file)
    splits = {name: as_agreed(part) for name, part in parts.items()}
    node = deployment.make_node(make_agreement(), as_agreed(train), splits, number=client)
    return deployment.NodePlace(node, folder)


def as_agreed(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays in the number types of `EXAMPLE`: NumPy makes float64 and int64."""
    return {name: values.astype(EXAMPLE[name].dtype) for name, values in part.items()}
