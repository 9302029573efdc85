"""A teacher's outputs from a batch that they were attached to, in the place of the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxlab.distillation.grammar import CONVENTIONS, Match
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.terms import Term
from jaxlab.distillation.top_logits import TopLogits, rebuild_logits

PREFIX = "teacher/"
"""Before the names of arrays that come from a teacher's cache."""

TOP_VALUES, TOP_IDS, LOG_REST = "top_values", "top_ids", "log_rest"
LAYERED = ("hidden", "scores", "probabilities", "queries", "keys", "values")
"""Features that have an entry for every layer."""

_WITH_PADDING = {
    "attention_tinybert": CONVENTIONS,
    "attention_ce": ("textbrewer",),
    "attention_ce_mean": ("textbrewer",),
    "pkd": ("textbrewer",),
}
"""Knowledge -> conventions under which padded tokens or texts of the teacher count."""


def check_cacheable(terms: Sequence[Term]) -> None:
    """Refuse terms whose loss a teacher on disk would change: only real tokens are kept of it.

    Args:
      terms: of an objective.

    Raises:
      ValueError: listing those that count padding, which is zeros in the place of the teacher's, or
        are of its pooled output.
    """
    if pooled := [term.name for term in terms if term.match.kind.is_pooled]:
        raise ValueError(
            f"{', '.join(pooled)} compare the pooled output, which is not kept of a teacher on "
            "disk; let the teacher run (cache_teacher=False), or match last1:pkd"
        )
    padded = dict.fromkeys(_named(term.match) for term in terms if _counts_padding(term.match))
    if padded:
        raise ValueError(
            f"{', '.join(padded)} count padding, and the teacher's outputs are kept of real tokens "
            "only; let the teacher run (cache_teacher=False), or match what leaves padding out, "
            "such as attention_mse, with norm=exact"
        )


def _counts_padding(match: Match) -> bool:
    if match.convention == "textbrewer_unmasked":
        return True
    return match.convention in _WITH_PADDING.get(match.knowledge, ())


def _named(match: Match) -> str:
    return match.knowledge + (f"[norm={match.convention}]" if match.convention != "exact" else "")


def cached_features(
    batch: Mapping[str, Any], num_layers: int, num_classes: int | None = None
) -> Features:
    """What the teacher would have put out, from a batch that its outputs were attached to.

    Entries of layers that were not kept have no features (a width of 0), so that losses on them are
    refused.

    Args:
      batch: of `TeacherCache.attach`, on a device.
      num_layers: layers of the teacher.
      num_classes: of the teacher; needed where only the largest logits were kept.

    Raises:
      ValueError: if that number is needed and missing, nothing is attached, or more layers are than
        the teacher has.
    """
    names = {name[len(PREFIX) :] for name in batch if name.startswith(PREFIX)}
    if not names:
        raise ValueError("the batch has no outputs of a teacher; call TeacherCache.attach first")
    found: dict[str, Any] = {"logits": _cached_logits(batch, names, num_classes)}
    rows, length = batch["ids"].shape
    for feature in LAYERED:
        entries = {
            int(name.partition("/")[2]): jnp.asarray(batch[PREFIX + name], jnp.float32)
            for name in names
            if name.startswith(f"{feature}/")
        }
        is_map = feature in ("scores", "probabilities")
        nothing = jnp.zeros((rows, 0, length, length) if is_map else (rows, length, 0))
        count = num_layers + (feature == "hidden")
        if entries and max(entries) >= count:
            raise ValueError(
                f"{feature} entries {sorted(entries)} are attached, and a teacher of {num_layers} "
                f"layers has 0 to {count - 1}; give the teacher's number of layers"
            )
        found[feature] = tuple(entries.get(i, nothing) for i in range(count)) if entries else ()
    return Features(**found)


def _cached_logits(
    batch: Mapping[str, Any], names: set[str], num_classes: int | None
) -> Array | None:
    if "logits" in names:
        return jnp.asarray(batch[PREFIX + "logits"], jnp.float32)
    if TOP_VALUES not in names:
        return None
    if num_classes is None:
        raise ValueError(
            "only the largest logits of the teacher are attached; give num_classes to rebuild its "
            "distribution"
        )
    top = TopLogits(
        *(jnp.asarray(batch[PREFIX + name]) for name in (TOP_VALUES, TOP_IDS, LOG_REST))
    )
    return rebuild_logits(top, num_classes)
