"""The terms of an objective: matches of layers, laid out for networks of known sizes."""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from jaxlab.distillation.grammar import EMBEDDINGS, MOVING, LayerPair, Match
from jaxlab.distillation.knowledge import Feature
from jaxlab.distillation.moving_matches import check_moving
from jaxlab.distillation.relations import check_relation_heads


class Shape(NamedTuple):
    """The sizes of a network that matter to an objective.

    Attributes:
      num_layers: its layers, of an encoder-decoder those of the encoder.
      width: of its hidden states.
      num_heads: attention heads.
      attention_width: of its queries, keys and values; `None` is `width`.
      decoder_layers: layers of a decoder, and of its attention to the encoder; `None` is
        `num_layers`.
    """

    num_layers: int
    width: int
    num_heads: int
    attention_width: int | None = None
    decoder_layers: int | None = None

    def depth(self, stack: str) -> int:
        """The layers of a stack.

        Args:
          stack: `encoder`, `decoder` or `cross`.
        """
        if stack == "encoder" or self.decoder_layers is None:
            return self.num_layers
        return self.decoder_layers


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of a compiled objective: a match of one pair of layers, or of all as one.

    Attributes:
      name: `hidden_mse/7-1` and the like.
      match: the item that it comes from.
      pair: its layers; all of them where they are joined or move.
      num_relation_heads: of relations.
      projection: name of its projection in the tree; "" for none.
    """

    name: str
    match: Match
    pair: LayerPair
    num_relation_heads: int
    projection: str

    @property
    def num_joined(self) -> int:
        """How many layers of a network are one hidden state."""
        return len(self.pair.student) if self.match.joined else 1


def terms_of(match: Match, student: Shape, teacher: Shape) -> list[Term]:
    """The pairs of a match as terms, checked against the sizes.

    Args:
      match: an item of the settings.
      student: sizes of the student.
      teacher: sizes of the teacher.

    Raises:
      ValueError: if the match does not fit the sizes, saying what would.
    """
    kind = match.kind
    depths = teacher.depth(match.stack), student.depth(match.stack)
    _check_pooled(match, student, teacher)
    _check_widths(match, student, teacher)
    if kind.equal_heads and student.num_heads != teacher.num_heads:
        raise ValueError(
            f"{match.knowledge!r} compares head by head, and the student has {student.num_heads} "
            f"heads, the teacher {teacher.num_heads}; use attention_mse_mean, attention_ce_mean or "
            "relations"
        )
    if match.knowledge == "attention_mse_sum" and student.num_heads != teacher.num_heads:
        warnings.warn(
            f"attention_mse_sum adds up the maps of {student.num_heads} heads of the student and "
            f"{teacher.num_heads} of the teacher: of probabilities it never becomes 0; "
            "attention_mse_mean does",
            stacklevel=2,
        )
    heads = (match.num_relation_heads or teacher.num_heads) if kind.is_relation else 0
    if kind.is_relation:
        widths = [shape.attention_width or shape.width for shape in (student, teacher)]
        check_relation_heads(heads, *widths)
    prefix = f"{match.knowledge}/{'' if match.stack == 'encoder' else match.stack + '/'}"

    def term(name: str, pair: LayerPair) -> Term:
        name = prefix + name
        return Term(name, match, pair, heads, (match.shared or name) if match.projection else "")

    joined = "joined_" if match.joined else ""
    if match.strategy in MOVING:
        check_moving(match, *depths)
        every = LayerPair(*(tuple(range(depth)) for depth in depths))
        moving = term(joined + match.strategy, every)
        return [moving, *_fixed_embeddings(match, student, teacher)]
    pairs = match.layer_pairs(*depths)
    if match.joined:
        sides = zip(*pairs, strict=True)
        whole = LayerPair(*(tuple(layer for layers in side for layer in layers) for side in sides))
        return [term(joined + (match.strategy or "pairs"), whole)]
    return [
        term("-".join("/".join(map(_layer_name, side)) for side in pair), pair) for pair in pairs
    ]


def _fixed_embeddings(match: Match, student: Shape, teacher: Shape) -> list[Term]:
    """The pair of embeddings beside layers that are drawn anew."""
    wanted = match.kind.with_embeddings if match.embeddings is None else match.embeddings
    if match.strategy != "random" or not wanted:
        return []
    pair = LayerPair((EMBEDDINGS,), (EMBEDDINGS,))
    fixed = dataclasses.replace(
        match, strategy="", pairs=(pair,), embeddings=None, every=1, joined=False,
        shared="" if match.joined else match.shared,
    )  # fmt: skip
    return terms_of(fixed, student, teacher)


def with_unique_names(terms: Iterable[Term]) -> list[Term]:
    """Terms of which those that are there twice have a number after their name.

    It is after the name of their projection as well, which no two matches have in common unless
    the settings give it a name.

    Args:
      terms: in their order.
    """
    seen: dict[str, int] = {}
    unique = []
    for term in terms:
        seen[term.name] = seen.get(term.name, 0) + 1
        if (times := seen[term.name]) > 1:
            name = f"{term.name}#{times}"
            own = name if term.projection == term.name else term.projection
            term = dataclasses.replace(term, name=name, projection=own)
        unique.append(term)
    return unique


def features_of(match: Match) -> tuple[Feature, ...]:
    """What either network has to show for a match.

    Args:
      match: an item of the settings.
    """
    return ("probabilities",) if match.probabilities else match.kind.features


def _check_widths(match: Match, student: Shape, teacher: Shape) -> None:
    kind = match.kind
    if match.projection and kind.features != ("hidden",) and not kind.is_pooled:
        raise ValueError(f"{match.knowledge!r} is of no hidden states: nothing to project")
    if match.projection == "pca" and student.width > teacher.width:
        raise ValueError(
            f"{match.knowledge}->pca takes {student.width} components of a teacher of width "
            f"{teacher.width}; use ->linear"
        )
    if kind.equal_width and not match.projection and student.width != teacher.width:
        raise ValueError(
            f"{match.knowledge!r} needs one width, and the student has {student.width}, the "
            f"teacher {teacher.width}; add a projection, such as {match.knowledge}->linear, or use "
            "knowledge that knows no width (mmd, relations)"
        )
    if match.probabilities and kind.features != ("scores",):
        raise ValueError(
            f"{match.knowledge!r} is not of attention: [of=probabilities] goes nowhere"
        )


def _check_pooled(match: Match, student: Shape, teacher: Shape) -> None:
    """A text is pooled once, behind the last layer, and that of an encoder."""
    if not match.kind.is_pooled:
        return
    resized = match.kind.equal_width and student.width != teacher.width
    item = f"last1:{match.knowledge}" + ("->linear" if resized else "")
    last = LayerPair((teacher.num_layers - 1,), (student.num_layers - 1,))
    moves = match.strategy in MOVING
    if moves or match.layer_pairs(teacher.num_layers, student.num_layers) != [last]:
        layers = match.strategy or "+".join(
            "-".join("/".join(map(_layer_name, side)) for side in pair) for pair in match.pairs
        )
        raise ValueError(
            f"{match.knowledge!r} is of what comes behind the last layers, not of {layers!r}; "
            f"write {item}"
        )
    if match.stack != "encoder":
        raise ValueError(f"{match.knowledge!r} is of an encoder, and got {match.stack}; use {item}")
    if match.projection == "pca":
        raise ValueError(
            f"{match.knowledge!r}: principal components are of hidden states; use "
            f"last1:{match.knowledge}->linear"
        )


def _layer_name(layer: int) -> str:
    return "emb" if layer == EMBEDDINGS else str(layer)
