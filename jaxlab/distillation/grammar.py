"""What is matched, in one line: the grammar of the original toolkit, and what it lacked.

`gap:hidden_mse,last1:value_relation` reads: every layer of the student is to have the hidden states
of the teacher's layer at the end of its share, and the last layers the same relations of values.

::

    objective  := item ("," item)*
    item       := layers ":" knowledge [":" stack] ["[" options "]"] ["@" weight] ["->" projection]
    layers     := strategy | pair ("+" pair)*
    pair       := side "-" side          teacher first, student second
    side       := layer ["/" layer]      two for knowledge of a pair of layers
    layer      := number from 0 | "emb"  the embeddings, for hidden states
    options    := name "=" value ("," name "=" value)*
    projection := ("linear" | "relu" | "tanh" | "pca") ["/" name of a shared one]

`strategy` is one of `matching.STRATEGIES` or of `MOVING`, `knowledge` one of `knowledge.CATALOGUE`;
`stack`, `weight`, options and projection are those of `Match`. The dictionaries that TextBrewer's
users write are read by `from_textbrewer`.

References:
  `matches_generator` of OFA-Compress; `intermediate_matches` of TextBrewer 0.2.1.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.distillation.knowledge import Knowledge, find_knowledge
from jaxlab.distillation.matching import match_layers

EMBEDDINGS = -1
"""The number of the layer below the first: entry 0 of the hidden states."""

STACKS = ("encoder", "decoder", "cross")
CONVENTIONS = ("exact", "textbrewer", "textbrewer_unmasked", "bertdistiller")
PROJECTIONS = ("linear", "relu", "tanh", "pca")
MOVING = ("random", "emd", "alp")
"""Strategies whose pairs change during a run, see `moving_matches`."""

STEPPING = ("random", "emd")
"""Those whose pairs are a state that goes from step to step."""

SCHEDULES = ("constant", "growth", "decay", "progressive")

_ITEM = re.compile(
    r"(?P<layers>[^:\[\]@>]+):(?P<knowledge>\w+)(:(?P<stack>\w+))?"
    r"(\[(?P<options>[^\]]*)\])?(@(?P<weight>-?[^->]+(e-\d+)?))?(->(?P<projection>[\w/]+))?"
)
_PAIR = re.compile(r"(emb|\d+)(/(emb|\d+))?-(emb|\d+)(/(emb|\d+))?")


class LayerPair(NamedTuple):
    """Layers that are matched, from 0, `EMBEDDINGS` for what is below them.

    Attributes:
      teacher: one layer, or two for knowledge of a pair of layers.
      student: as many.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Match:
    """One item of an objective: a knowledge, and the layers that are to agree in it.

    Attributes:
      knowledge: its name in the catalogue.
      strategy: which layers, by name; "" where `pairs` lists them.
      pairs: which layers; empty where a strategy says so.
      stack: `encoder`, or of an encoder-decoder its `decoder` or its `cross` attention.
      weight: factor of the loss of every pair.
      schedule: how the factor changes over a run, one of `SCHEDULES`.
      projection: what takes the student's hidden states to the teacher's width: `linear`, or that
        with `relu` or `tanh` after it; `pca` takes the teacher's to the student's width, by its
        principal components, which stay as they are; "" is nothing.
      shared: name of a projection that pairs have in common; "" gives every pair its own.
      num_relation_heads: pieces that relations cut queries, keys and values into; 0 takes as many
        as the teacher has heads.
      convention: normalisation: `exact`; of TextBrewer's losses that library's, `textbrewer` or,
        as it is where its adaptor gives no `inputs_mask`, `textbrewer_unmasked`; of relations
        `bertdistiller`, a mean over texts of their means.
      probabilities: attention losses compare probabilities, not scores.
      embeddings: match the embeddings, too; None leaves it to the knowledge. `emd` and `alp` match
        layers alone.
      every: updates after which a `random` or `emd` matching changes.
      joined: all layers are one pair: their hidden states, one behind the other, as one wide one.
    """

    knowledge: str
    strategy: str = ""
    pairs: tuple[LayerPair, ...] = ()
    stack: str = "encoder"
    weight: float = 1.0
    schedule: str = "constant"
    projection: str = ""
    shared: str = ""
    num_relation_heads: int = 0
    convention: str = "exact"
    probabilities: bool = False
    embeddings: bool | None = None
    every: int = 1
    joined: bool = False

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
          ValueError: listing all that is wrong.
        """
        kind = find_knowledge(self.knowledge)
        problems = [
            f"{name}={value!r} is not one of {', '.join(filter(None, allowed))}"
            for name, value, allowed in (
                ("stack", self.stack, STACKS),
                ("schedule", self.schedule, SCHEDULES),
                ("convention", self.convention, CONVENTIONS),
                ("projection", self.projection, ("", *PROJECTIONS)),
            )
            if value not in allowed
        ]
        if bool(self.strategy) == bool(self.pairs):
            problems.append("give either a strategy or pairs of layers")
        if self.convention in CONVENTIONS and self.convention not in kind.conventions:
            problems.append(
                f"convention={self.convention!r} is not one that it has: "
                f"{', '.join(kind.conventions)}"
            )
        if not 0.0 <= self.weight < math.inf:
            problems.append(f"weight={self.weight} must be a finite number, 0 or more")
        if self.every < 1:
            problems.append(f"every={self.every} must be 1 or more updates")
        if self.every != 1 and self.strategy not in STEPPING:
            problems.append(f"every={self.every} is of layers that move: {' and '.join(STEPPING)}")
        if self.embeddings and self.pairs:
            problems.append("embeddings are of strategies: add emb-emb to the pairs")
        elif self.embeddings and (self.strategy in ("emd", "alp") or kind.features != ("hidden",)):
            problems.append(
                "embeddings have no place in it: add emb-emb:hidden_mse, a match of its own"
            )
        if self.joined and (kind.features != ("hidden",) or kind.num_layers != 1):
            problems.append("joined=yes is of hidden states of single layers, such as mean_pkd")
        if self.joined and (self.strategy in ("emd", "alp") or self.projection == "pca"):
            problems.append("joined=yes does not go with emd, alp or ->pca; use gap or random")
        if self.joined and self.schedule == "progressive":
            problems.append("joined=yes holds all layers at once: schedule=progressive has no turn")
        if self.num_relation_heads < 0:
            problems.append(f"num_relation_heads={self.num_relation_heads} must not be negative")
        if self.num_relation_heads and not kind.is_relation:
            problems.append(
                f"num_relation_heads={self.num_relation_heads} is of relations, and this is none"
            )
        if problems:
            raise ValueError(f"match of {self.knowledge!r}: " + "; ".join(problems))

    @property
    def kind(self) -> Knowledge:
        """Its entry in the catalogue."""
        return find_knowledge(self.knowledge)

    def layer_pairs(self, num_teacher_layers: int, num_student_layers: int) -> list[LayerPair]:
        """The layers that are matched, for two networks.

        Args:
          num_teacher_layers: layers of the teacher.
          num_student_layers: layers of the student.

        Raises:
          ValueError: if the strategy does not fit them, or a layer does not exist.
        """
        if self.pairs:
            self._check_pairs(num_teacher_layers, num_student_layers)
            return list(self.pairs)
        found = match_layers(self.strategy, num_teacher_layers, num_student_layers, others=MOVING)
        with_embeddings = self.kind.with_embeddings if self.embeddings is None else self.embeddings
        if with_embeddings:
            found = ((EMBEDDINGS, EMBEDDINGS), *found)
        times = self.kind.num_layers
        return [LayerPair((t,) * times, (s,) * times) for t, s in found]

    def _check_pairs(self, num_teacher_layers: int, num_student_layers: int) -> None:
        lowest = EMBEDDINGS if self.kind.features == ("hidden",) else 0
        for pair in self.pairs:
            for layers, number, whose in (
                (pair.teacher, num_teacher_layers, "teacher"),
                (pair.student, num_student_layers, "student"),
            ):
                if len(layers) != self.kind.num_layers:
                    raise ValueError(
                        f"{self.knowledge!r} takes {self.kind.num_layers} layers a side, got "
                        f"{len(layers)} of the {whose}: {_format_side(layers)}"
                    )
                if not all(lowest <= layer < number for layer in layers):
                    raise ValueError(
                        f"{self.knowledge!r} of layer {_format_side(layers)} of the {whose}, which "
                        f"has layers 0 to {number - 1}"
                        + (" and its embeddings (emb)" if lowest < 0 else " of it")
                    )


_OPTIONS: dict[str, tuple[str, type]] = {
    "heads": ("num_relation_heads", int),
    "norm": ("convention", str),
    "schedule": ("schedule", str),
    "of": ("probabilities", bool),
    "emb": ("embeddings", bool),
    "every": ("every", int),
    "joined": ("joined", bool),
}
_WORDS = {"yes": True, "no": False, "probabilities": True, "scores": False}


def parse_matches(text: str) -> tuple[Match, ...]:
    """The matches that a line of the grammar describes.

    Args:
      text: items of the grammar; "" gives none.

    Raises:
      ValueError: naming the item that cannot be read, and how one is written.

    Example:
      >>> [match.strategy for match in parse_matches("gap:hidden_mse@0.5->linear,last1:cos")]
      ['gap', 'last1']
      >>> parse_matches("3-0+7-1:hidden_mse")[0].pairs[1]
      LayerPair(teacher=(7,), student=(1,))
      >>> parse_matches("last1:query_relation[heads=48]")[0].num_relation_heads
      48
    """
    return tuple(_parse_item(item) for item in _split_items(text))


def format_matches(matches: Sequence[Match]) -> str:
    """The line of the grammar that describes matches: the inverse of `parse_matches`.

    Args:
      matches: to be written.

    Example:
      >>> format_matches(parse_matches("gap:hidden_mse@0.5->relu/fit"))
      'gap:hidden_mse@0.5->relu/fit'
    """
    return ",".join(map(_format_item, matches))


def from_textbrewer(
    matches: Sequence[Mapping[str, Any]],
    *,
    probabilities: bool = False,
    masked: bool = True,
    widths: tuple[int, int] | None = None,
) -> tuple[Match, ...]:
    """Matches as TextBrewer's users write them.

    A match is `{"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 1,
    "proj": ["linear", 312, 768]}`; layers of hidden states count from the embeddings, which are 0.
    The normalisation is that library's. A learning rate among the `proj` entries is not taken over:
    projections train at the student's.

    Args:
      matches: `intermediate_matches` of a configuration.
      probabilities: what the adaptors give as `attention` are probabilities, as in transformers'
        models, not scores.
      masked: the adaptors give an `inputs_mask`; without one that library counts padding.
      widths: of the hidden states of student and teacher, which every `proj` must have; `None`
        takes those of the first.

    Raises:
      ValueError: naming what is missing, unknown or of other widths in which match.
    """
    convention = "textbrewer" if masked else "textbrewer_unmasked"
    found = []
    for i, match in enumerate(matches):
        plain = _from_textbrewer(match, i)
        try:
            widths = _check_projection(match.get("proj"), widths)
            of = probabilities and match["feature"] == "attention"
            found.append(Match(**plain, convention=convention, probabilities=of))
        except ValueError as error:
            raise ValueError(f"intermediate_matches[{i}]={dict(match)}: {error}") from error
    return tuple(found)


def _check_projection(
    projection: Sequence[Any] | None, widths: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The widths of student and teacher, those of a `proj` where none were known."""
    if not projection:
        return widths
    own = tuple(projection[1:3])
    if len(own) != 2 or not all(isinstance(width, int) for width in own):
        raise ValueError("wanted proj=[name, width of the student, width of the teacher]")
    if widths is not None and own != tuple(widths):
        raise ValueError(
            f"proj is from {own[0]} to {own[1]}, and the hidden states of student and teacher are "
            f"{widths[0]} and {widths[1]} wide; give these"
        )
    return own[0], own[1]


def _from_textbrewer(match: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What a match is, without its normalisation."""
    wanted = ("layer_T", "layer_S", "feature", "loss")
    missing = [name for name in wanted if name not in match]
    if missing or match["feature"] not in ("hidden", "attention"):
        raise ValueError(
            f"intermediate_matches[{index}]={dict(match)} "
            + (f"has no {', '.join(missing)}" if missing else "has an unknown feature")
            + '; wanted layer_T, layer_S, feature ("hidden" or "attention"), loss and weight'
        )
    lower = 1 if match["feature"] == "hidden" else 0

    def layers(name: str) -> tuple[int, ...]:
        given = match[name]
        given = given if isinstance(given, list | tuple) else [given]
        return tuple(int(layer) - lower for layer in given)

    projection = match.get("proj") or [""]
    return {
        "knowledge": match["loss"],
        "pairs": (LayerPair(layers("layer_T"), layers("layer_S")),),
        "weight": float(match.get("weight", 1.0)),
        "projection": projection[0],
    }


def _split_items(text: str) -> list[str]:
    """Items between commas that do not stand in brackets, without spaces."""
    items = re.split(r",(?![^\[]*\])", re.sub(r"\s", "", text))
    return [item for item in items if item]


def _parse_item(item: str) -> Match:
    found = _ITEM.fullmatch(item)
    if found is None:
        raise ValueError(
            f"{item!r} cannot be read; write layers:knowledge:stack[options]@weight->projection, "
            "where all but the first two may be left out, such as gap:hidden_mse@0.5->linear, "
            "last1:query_relation[heads=48] or 3-0+7-1:cos, with commas between items"
        )
    try:
        projection, _, shared = (found["projection"] or "").partition("/")
        return Match(
            knowledge=found["knowledge"],
            stack=found["stack"] or "encoder",
            weight=_number(found["weight"]),
            projection=projection,
            shared=shared,
            **_parse_layers(found["layers"].strip()),
            **_parse_options(found["options"] or ""),
        )
    except ValueError as error:
        raise ValueError(f"{item!r}: {error}") from error


def _number(text: str | None) -> float:
    if text is None:
        return 1.0
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"weight {text!r} is no number") from None


def _parse_layers(text: str) -> dict[str, Any]:
    parts = text.split("+")
    if not all(_PAIR.fullmatch(part) for part in parts):
        return {"strategy": text}
    return {"pairs": tuple(LayerPair(*map(_parse_side, part.split("-"))) for part in parts)}


def _parse_side(text: str) -> tuple[int, ...]:
    return tuple(EMBEDDINGS if layer == "emb" else int(layer) for layer in text.split("/"))


def _parse_options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for option in filter(None, map(str.strip, text.split(","))):
        name, _, value = option.partition("=")
        if name not in _OPTIONS:
            raise ValueError(f"option {name!r} is not one of {', '.join(_OPTIONS)}")
        field, kind = _OPTIONS[name]
        if (kind is bool and value not in _WORDS) or (kind is int and not value.isdecimal()):
            wanted = "a number" if kind is int else " or ".join(_WORDS)
            raise ValueError(f"option {name}={value!r}: wanted {wanted}")
        options[field] = _WORDS[value] if kind is bool else kind(value)
    return options


def _format_item(match: Match) -> str:
    layers = match.strategy or "+".join(
        f"{_format_side(pair.teacher)}-{_format_side(pair.student)}" for pair in match.pairs
    )
    stack = "" if match.stack == "encoder" else f":{match.stack}"
    options = [
        f"heads={match.num_relation_heads}" if match.num_relation_heads else "",
        f"norm={match.convention}" if match.convention != "exact" else "",
        f"schedule={match.schedule}" if match.schedule != "constant" else "",
        "of=probabilities" if match.probabilities else "",
        "" if match.embeddings is None else f"emb={'yes' if match.embeddings else 'no'}",
        f"every={match.every}" if match.every != 1 else "",
        "joined=yes" if match.joined else "",
    ]
    options = ",".join(filter(None, options))
    projection = f"->{match.projection}" if match.projection else ""
    return (
        f"{layers}:{match.knowledge}{stack}"
        + (f"[{options}]" if options else "")
        + (f"@{repr(match.weight).removesuffix('.0')}" if match.weight != 1.0 else "")
        + projection
        + (f"/{match.shared}" if match.shared else "")
    )


def _format_side(layers: tuple[int, ...]) -> str:
    return "/".join("emb" if layer == EMBEDDINGS else str(layer) for layer in layers)
