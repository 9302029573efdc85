"""Fixed projections of a teacher's hidden states to the width of its student.

Where a match says `->pca`, the teacher comes down to the student's width by the principal
components of its own hidden states. They are fitted once, before the first step, and do not train.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.distillation.compared import Stacks
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
    show: Callable[[Mapping[str, Any]], Features | Stacks],
    batches: Iterable[Mapping[str, Any]],
    width: int,
    *,
    num_tokens: int = 16_384,
) -> dict[str, Projection]:
    """The principal components that an objective asks for, `frozen["principal"]` of a step.

    Args:
      objective: what is learnt; its matches with `->pca`.
      show: from a batch to what the teacher shows of it, with `objective.teacher_taps`.
      batches: of the training, with `mask`, and `decoder_mask` for a decoder; read as far as they
        are needed.
      width: of the student's hidden states.
      num_tokens: real tokens that are taken of every layer, the first: all of them are in memory.

    Returns:
      By name of the projection; those that have one name are fitted to all of their layers.

    Raises:
      ValueError: if there are fewer real tokens than components.
    """
    layers: dict[str, set[tuple[str, int]]] = {}
    for term in objective.terms:
        if term.match.projection == "pca":
            own = layers.setdefault(term.projection, set())
            own |= {(term.match.stack, layer) for layer in term.pair.teacher}
    tokens: dict[tuple[str, int], list[np.ndarray]] = {
        layer: [] for own in layers.values() for layer in sorted(own)
    }
    counts = dict.fromkeys(tokens, 0)
    for batch in batches:
        shown = show(batch)
        for (stack, layer), found in tokens.items():
            features = shown if isinstance(shown, Features) else shown[stack]
            mask = np.asarray(batch["decoder_mask" if stack == "decoder" else "mask"])
            left = num_tokens - counts[stack, layer]
            found.append(np.asarray(features.hidden[layer + 1])[mask][:left])
            counts[stack, layer] += len(found[-1])
        if min(counts.values(), default=num_tokens) >= num_tokens:
            break
    if not all(counts.values()):
        raise ValueError("there are no real tokens to take components from; give batches of texts")
    return {
        name: principal_projection(
            jnp.asarray(np.concatenate([part for layer in sorted(own) for part in tokens[layer]])),
            width,
        )
        for name, own in layers.items()
    }
