"""Fixed projections of a teacher's hidden states to the width of its student.

Where a match says `->pca`, the teacher comes down to the student's width by the principal
components of its own hidden states. They are fitted once, before the first step, and do not train.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.objective import Objective
from jaxlab.distillation.projections import Projection, principal_projection


def uses_principal(objective: Objective) -> bool:
    """Whether a match of an objective takes the teacher down by its principal components.

    Args:
      objective: what is learnt.
    """
    return any(term.match.projection == "pca" for term in objective.terms)


def fit_principal(
    objective: Objective,
    show: Callable[[Mapping[str, Any]], Features],
    batches: Iterable[Mapping[str, Any]],
    width: int,
) -> dict[str, Projection]:
    """The principal components that an objective asks for, `frozen["principal"]` of a step.

    Args:
      objective: what is learnt; its matches with `->pca`.
      show: from a batch to what the teacher shows of it, with `objective.teacher_taps`.
      batches: some of the training batches, with `mask`; a few thousand tokens are enough.
      width: of the student's hidden states.

    Returns:
      By name of the projection; those that have one name are fitted to all of their layers.

    Raises:
      ValueError: if there are fewer real tokens than components.
    """
    layers: dict[str, set[int]] = {}
    for term in objective.terms:
        if term.match.projection == "pca":
            layers.setdefault(term.projection, set()).update(term.pair.teacher)
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    for batch in batches:
        hidden, mask = show(batch).hidden, np.asarray(batch["mask"])
        for name, own in layers.items():
            tokens[name] += [np.asarray(hidden[layer + 1])[mask] for layer in sorted(own)]
    return {
        name: principal_projection(jnp.asarray(np.concatenate(found)), width)
        for name, found in tokens.items()
    }
