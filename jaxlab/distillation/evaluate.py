"""What a network says of every example of a set, and how two networks agree.

Rows of a batch that are padding are dropped, so that every example counts once, in the order of the
batches, on any mesh.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int64, PyTree

from jaxlab.distillation.compared import top_features
from jaxlab.distillation.train import Forward
from jaxlab.parallel import make_mesh, place, shard_batch, split_host_fields, to_host

DEVICE_FIELDS = ("ids", "mask", "types", "student_ids", "student_mask", "student_types")


class Predictions(NamedTuple):
    """The outputs of a network for the examples of a set.

    Attributes:
      example_ids: of the examples.
      logits: for every example; of models that label tokens padded to one length.
    """

    example_ids: Int64[np.ndarray, " examples"]
    logits: Float[np.ndarray, "examples *outputs"]


def predict(
    forward: Forward,
    params: PyTree,
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh | None = None,
) -> Predictions:
    """The logits of a network for every example of the batches.

    Args:
      forward: how it runs, see `make_forward`.
      params: its parameters.
      batches: this process's rows; padding has `mask` false everywhere.
      mesh: devices; all by default.

    Returns:
      What it says of every example once, in every process.

    Raises:
      ValueError: if the network has no head, there is no example, or a logit is not finite: then
        with the ids of its examples.
    """
    mesh = make_mesh() if mesh is None else mesh
    params = place(mesh, params)
    run = _compiled(forward)
    ids, logits = [], []
    for batch in batches:
        fields, _ = split_host_fields({n: batch[n] for n in DEVICE_FIELDS if n in batch})
        found = run(params, shard_batch(mesh, fields))
        if found is None:
            raise ValueError("the network has no head to predict with; give it that of a task")
        found, real = to_host((found, shard_batch(mesh, {"real": fields["mask"].any(axis=1)})))
        own = _all_ids(np.asarray(batch["example_id"], np.int64), mesh)
        ids.append(own[real["real"]])
        logits.append(np.asarray(found, np.float32)[real["real"]])
    if not ids:
        raise ValueError("there is no batch to predict; the set is empty")
    predictions = Predictions(np.concatenate(ids), _joined(logits))
    check_finite(predictions)
    return predictions


@functools.lru_cache(maxsize=8)
def _compiled(forward: Forward) -> Callable[..., Any]:
    """The logits of a network as one program a shape, for all evaluations of a run."""
    return jax.jit(lambda params, batch: top_features(forward(params, batch)).logits)


def check_finite(predictions: Predictions) -> None:
    """Refuse logits that are not finite.

    Args:
      predictions: of a network.

    Raises:
      ValueError: with the ids of the examples that have them.
    """
    rows = predictions.logits.reshape(len(predictions.logits), -1)
    if (broken := ~np.isfinite(rows).all(axis=1)).any():
        listed = predictions.example_ids[broken][:10].tolist()
        raise ValueError(
            f"the network gives NaN or infinite logits for {int(broken.sum())} examples, ids "
            f"{', '.join(map(str, listed))}; check its weights, or compute in float32"
        )


def in_order(predictions: Predictions, example_ids: Int64[np.ndarray, " examples"]) -> Predictions:
    """The predictions of examples in another order.

    Args:
      predictions: of at least these examples.
      example_ids: in the order that is wanted.

    Raises:
      ValueError: naming examples that have no prediction.
    """
    places = {int(i): place for place, i in enumerate(predictions.example_ids)}
    missing = [int(i) for i in example_ids if int(i) not in places]
    if missing:
        raise ValueError(f"{len(missing)} examples have no prediction, such as {missing[:5]}")
    order = [places[int(i)] for i in example_ids]
    return Predictions(np.asarray(example_ids, np.int64), predictions.logits[order])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all batches; outputs of tokens are padded to the longest batch."""
    if parts[0].ndim == 2:
        return np.concatenate(parts)
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0))) for part in parts]
    )


def _all_ids(ids: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The ids of the rows of all processes: 64 bits go over a device as two halves."""
    halves = ids.view(np.int32).reshape(-1, 2)
    found = to_host(shard_batch(mesh, {"halves": halves}))["halves"]
    return np.ascontiguousarray(found).view(np.int64).reshape(-1)
