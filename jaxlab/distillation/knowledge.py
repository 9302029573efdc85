"""What can be matched between a teacher and a student, by name.

A catalogue entry says which features a loss takes, whether they are of one layer or of a pair of
layers, what must be equal on both sides, and the function. `objective` looks nothing else up.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Array, Bool, Float

from jaxlab.distillation import attentions, hidden, relations
from jaxlab.distillation.means import Mean

Feature = Literal["hidden", "scores", "probabilities", "queries", "keys", "values", "pooled"]


class Features(NamedTuple):
    """What a network shows of itself; empty tuples where it was not asked for it.

    Attributes:
      logits: outputs of the head, (batch, classes) or (batch, time, classes).
      hidden: the embeddings, and what every layer puts out: one entry more than there are layers.
      scores: attention scores of every layer before the softmax.
      probabilities: attention probabilities of every layer.
      queries: of every layer, all heads one after the other.
      keys: likewise.
      values: likewise.
      pooled: the one vector that a text was pooled to.
    """

    logits: Float[Array, "batch *time classes"] | None = None
    hidden: tuple[Float[Array, "batch time width"], ...] = ()
    scores: tuple[Float[Array, "batch heads time time"], ...] = ()
    probabilities: tuple[Float[Array, "batch heads time time"], ...] = ()
    queries: tuple[Float[Array, "batch time width"], ...] = ()
    keys: tuple[Float[Array, "batch time width"], ...] = ()
    values: tuple[Float[Array, "batch time width"], ...] = ()
    pooled: Float[Array, "batch width"] | None = None


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """A kind of knowledge.

    Attributes:
      loss: the function: `(student, teacher, mask)`, features of one layer or of a pair of them,
        and for relations the number of their heads.
      features: what it takes: one name, or two where two features of a layer relate.
      num_layers: 1, or 2 where a match is between pairs of layers.
      equal_width: hidden states must be of one width, or be projected.
      equal_heads: as many attention heads on both sides.
      is_relation: takes a number of relation heads.
      with_embeddings: a strategy that matches layers matches the embeddings, too.
      conventions: normalisations that there are of it, see `grammar.Match`.
    """

    loss: Callable[..., Mean]
    features: tuple[Feature, ...]
    num_layers: int = 1
    equal_width: bool = False
    equal_heads: bool = False
    is_relation: bool = False
    with_embeddings: bool = False
    conventions: tuple[str, ...] = ("exact",)

    @property
    def is_pooled(self) -> bool:
        """Of texts as a whole: of the pooled output, not of tokens."""
        return self.features == ("pooled",)


_TEXTBREWER = ("exact", "textbrewer", "textbrewer_unmasked")


def _hidden(
    loss: Callable[..., Mean], num_layers: int = 1, *, equal_width: bool = True, **options: bool
) -> Knowledge:
    return Knowledge(
        loss,
        ("hidden",),
        num_layers,
        equal_width=equal_width,
        conventions=_TEXTBREWER,
        **options,
    )


def _attention(loss: Callable[..., Mean], *, equal_heads: bool = False) -> Knowledge:
    return Knowledge(loss, ("scores",), equal_heads=equal_heads, conventions=_TEXTBREWER)


def _relation(first: Feature, second: Feature) -> Knowledge:
    return Knowledge(
        relations.relation,
        (first, second),
        is_relation=True,
        conventions=("exact", "bertdistiller"),
    )


def _pooled(loss: Callable[..., Mean]) -> Knowledge:
    """A loss of hidden states, of texts of one token each: what they were pooled to."""

    def of_texts(
        student: Float[Array, "batch 1 width"],
        teacher: Float[Array, "batch 1 teacher_width"],
        mask: Bool[Array, "batch time"],
    ) -> Mean:
        return loss(student, teacher, mask.any(axis=1)[:, None])

    return Knowledge(of_texts, ("pooled",), equal_width=True)


_PROJECTIONS: dict[str, Feature] = {"query": "queries", "key": "keys", "value": "values"}

CATALOGUE: dict[str, Knowledge] = {
    "hidden_mse": _hidden(hidden.hidden_mse, with_embeddings=True),
    "cos": _hidden(hidden.hidden_cosine),
    "pkd": _hidden(hidden.hidden_pkd),
    "mean_pkd": Knowledge(hidden.mean_pkd, ("hidden",), equal_width=True),
    "mmd": _hidden(hidden.token_similarity, 2, equal_width=False, with_embeddings=True),
    "gram": _hidden(hidden.feature_gram, 2, with_embeddings=True),
    "attention_mse": _attention(attentions.attention_mse, equal_heads=True),
    "attention_mse_sum": _attention(attentions.attention_mse_sum),
    "attention_mse_mean": Knowledge(attentions.attention_mse_mean, ("scores",)),
    "attention_ce": _attention(attentions.attention_ce, equal_heads=True),
    "attention_ce_mean": _attention(attentions.attention_ce_mean),
    "attention_kl": Knowledge(attentions.attention_kl, ("scores",), equal_heads=True),
    "attention_tinybert": Knowledge(
        attentions.attention_tinybert, ("scores",), equal_heads=True
    ),
    **{
        f"{first}_relation" if first == second else f"{first}_{second}_relation": _relation(
            _PROJECTIONS[first], _PROJECTIONS[second]
        )
        for first in _PROJECTIONS
        for second in _PROJECTIONS
    },
    "example_relation": Knowledge(
        relations.example_relation, ("values", "values"), is_relation=True
    ),
    "pooled_mse": _pooled(hidden.hidden_mse),
    "pooled_cos": _pooled(hidden.hidden_cosine),
}  # fmt: skip
"""Name -> kind of knowledge. `nst` and `fsp` are other names, see `find_knowledge`.

`pooled_mse` and `pooled_cos` are of the pooled output, what the head of a task of texts takes, and
means over texts. They belong to the last layers (`last1:pooled_mse`); other tasks, encoder-decoders
and teachers on disk have none.
"""

OTHER_NAMES = {"nst": "mmd", "fsp": "gram", "hidden_cos": "cos"}


def find_knowledge(name: str) -> Knowledge:
    """The kind of knowledge with a name.

    Args:
      name: of the catalogue, or one of its other names.

    Raises:
      ValueError: listing all names.
    """
    found = CATALOGUE.get(OTHER_NAMES.get(name, name))
    if found is None:
        close = difflib.get_close_matches(name, [*CATALOGUE, *OTHER_NAMES], n=1)
        nearest = f"the nearest is {close[0]!r}, of " if close else "there are "
        raise ValueError(
            f"{name!r} is no knowledge that can be matched; {nearest}{', '.join(CATALOGUE)}"
        )
    return found
