"""Parameters that a student starts from: those of its teacher, as far as they fit.

A student's tree, as `init` of the model draws it, is filled with pieces of the teacher's: layers of
a strategy, embeddings, pooler, head. A narrower student gets the leading features, and heads that
stay whole; one of another vocabulary the rows of the pieces that both know. What is not copied
stays as it was drawn. This is bookkeeping of parameter trees on the host, and knows no model.

References:
  Sanh et al. 2019, arXiv:1910.01108 (layers 0, 2, 4, 7, 9, 11); Sun et al. 2019, arXiv:1908.09355
  (the lowest layers); Turc et al. 2019, arXiv:1908.08962 (what a start from pre-training gives).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Int, Int32, PyTree

from jaxlab.distillation.matching import Pairs, match_layers

Part = Literal["embeddings", "pooler", "head", "lm_head"]

DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)
"""Of the twelve layers of BERT-base, those that DistilBERT starts from."""

SPECIAL_PIECES = {
    "[PAD]": "<pad>",
    "[UNK]": "<unk>",
    "[CLS]": "<s>",
    "[SEP]": "</s>",
    "[MASK]": "<mask>",
}
"""Special pieces of BERT's vocabularies, and those of RoBERTa's and MPNet's with the same use."""

_LAYER = re.compile(r"layer_(\d+)")
_QUERY_LIKE = ("query", "key", "value")
_STACKS = ("encoder", "decoder")
_SHARED_BY_STACKS = ("word_embeddings", "logits_bias")
"""What an encoder-decoder has beside its stacks, an entry a piece of the vocabulary."""


class HeadCounts(NamedTuple):
    """Attention heads, which the shapes of parameters do not tell.

    Attributes:
      teacher: heads of the teacher.
      student: heads of the student.
    """

    teacher: int
    student: int


@dataclasses.dataclass(frozen=True)
class StudentStart:
    """What a student takes from its teacher.

    Attributes:
      layers: a strategy of `match_layers`, `bottom` (another name of `first`), `distilbert`, or
        teacher layers of the student's in order; `random` copies none.
      parts: what else is copied.
      cut_heads: where heads differ in size, take the leading features of each; their scores then
        mean something else. Without it such a student is refused.
      decoder_layers: `layers` of an encoder-decoder's decoder; `None` is as in its encoder.
    """

    layers: str | tuple[int, ...] = "uniform_top"
    parts: tuple[Part, ...] = ("embeddings", "pooler")
    cut_heads: bool = False
    decoder_layers: str | tuple[int, ...] | None = None


class Started(NamedTuple):
    """A student's first parameters.

    Attributes:
      params: the tree.
      copied: paths of the parameters that come from the teacher, in part or as a whole.
      drawn: paths of those that stay as they were drawn.
      num_shared_pieces: rows of the word embeddings that come from the teacher.
    """

    params: PyTree
    copied: tuple[str, ...]
    drawn: tuple[str, ...]
    num_shared_pieces: int


def start_student(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    start: StudentStart,
    *,
    heads: HeadCounts | None = None,
    vocabulary: Int[np.ndarray, " student_vocabulary"] | None = None,
    skipped_positions: int = 0,
) -> Started:
    """The student's parameters with pieces of the teacher's in them.

    Args:
      student: freshly drawn parameters, `{"encoder": {"layer_0": ...}, "pooler": ...}`; of an
        encoder-decoder also `decoder`, and beside both what they share, which goes with the
        embeddings.
      teacher: parameters of the teacher, a tree of the same names.
      start: what is copied.
      heads: of both; needed where the widths differ.
      vocabulary: the teacher's id of every id of the student, -1 for a piece that the teacher does
        not have (`shared_vocabulary`); `None` if both have one vocabulary.
      skipped_positions: rows of the teacher's position table before the one that is the student's
        first: 2 for a student of BERT's kind and a teacher of RoBERTa's or MPNet's, 0 else.

    Returns:
      The tree, and which of its parameters come from where. No array is shared with either tree.

    Raises:
      ValueError: if layers do not exist, or listing everything that is missing or cannot be cut.
    """
    flat_student, flat_teacher = _flatten(student), _flatten(teacher)
    layers = {
        stack: _layers_of_stack(start, teacher, student, stack)
        for stack in _STACKS
        if stack in student
    }
    if start.decoder_layers is not None and "decoder" not in student:
        raise ValueError(
            f"decoder_layers={start.decoder_layers} are of an encoder-decoder, and the student has "
            f"{', '.join(sorted(student))}; leave them out, or give its decoder"
        )
    widths = _width(flat_teacher), _width(flat_student)
    cut = _Cut(start.cut_heads, heads, vocabulary, skipped_positions, widths)
    params, copied, drawn, problems = {}, [], [], []
    num_shared = 0
    for path, own in flat_student.items():
        name = "/".join(path)
        source = _source(path, layers, start.parts)
        if source is None:
            params[path] = jnp.array(own, copy=True)
            drawn.append(name)
            continue
        if source not in flat_teacher:
            problems.append(f"{name}: the teacher has no {'/'.join(source)}")
            continue
        found = np.asarray(flat_teacher[source])
        try:
            piece, rows = _fit(path, np.asarray(own), found, cut)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        params[path] = jnp.array(piece, dtype=own.dtype, copy=True)
        copied.append(name)
        num_shared = rows if path[-1] == "word_embeddings" else num_shared
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(
            f"{len(problems)} parameters of the student cannot be cut from the teacher's; leave "
            f"their part out of `parts` or change the student's sizes:\n  {listing}"
        )
    return Started(unflatten_dict(params), tuple(copied), tuple(drawn), num_shared)


def start_from_distilled(
    student: Mapping[str, Any], distilled: Mapping[str, Any], *, with_head: bool = True
) -> Started:
    """The parameters of a student that was distilled before, of the same sizes.

    Projections and whatever else it was trained with are left behind.

    Args:
      student: freshly drawn parameters.
      distilled: those of the earlier student.
      with_head: copy pooler and heads, too; a new task draws them.

    Raises:
      ValueError: listing the parameters that are missing or of another shape.
    """
    own, found = _flatten(student), _flatten(distilled)
    bodies = (*_STACKS, *_SHARED_BY_STACKS)
    wanted = [path for path in own if with_head or path[0] in bodies]
    problems = [
        f"{'/'.join(path)}: {found[path].shape if path in found else 'missing'} there, "
        f"{own[path].shape} here"
        for path in wanted
        if path not in found or found[path].shape != own[path].shape
    ]
    for stack in _STACKS:
        if stack in student and stack in distilled:
            there, here = (count_layers(tree, stack) for tree in (distilled, student))
            problems += [f"{stack}: {there} layers there, {here} here"] if there != here else []
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(
            "the earlier student has other sizes; give the same ones, or cut it like a teacher "
            f"(start_student):\n  {listing}"
        )
    parts: tuple[Part, ...] = ("embeddings", "pooler", "head", "lm_head")
    kept = parts if with_head else parts[:1]
    return start_student(student, distilled, StudentStart("first", kept))


def layers_of_start(start: StudentStart, num_teacher_layers: int, num_student_layers: int) -> Pairs:
    """(teacher layer, student layer) of every layer that is copied.

    Args:
      start: names the strategy, or the layers.
      num_teacher_layers: layers of the teacher.
      num_student_layers: layers of the student.

    Raises:
      ValueError: if the strategy is unknown or does not fit, or the layers do not exist.

    Example:
      >>> layers_of_start(StudentStart("distilbert"), 12, 6)
      ((0, 0), (2, 1), (4, 2), (7, 3), (9, 4), (11, 5))
    """
    if start.layers == "random":
        return ()
    if isinstance(start.layers, str) and start.layers != "distilbert":
        strategy = "first" if start.layers == "bottom" else start.layers
        return match_layers(
            strategy,
            num_teacher_layers,
            num_student_layers,
            others=("bottom", "distilbert", "random"),
        )
    chosen = DISTILBERT_LAYERS if start.layers == "distilbert" else start.layers
    missing = [layer for layer in chosen if not 0 <= layer < num_teacher_layers]
    if len(chosen) != num_student_layers or missing:
        raise ValueError(
            f"layers={start.layers} are {len(chosen)} teacher layers for a student of "
            f"{num_student_layers}, and the teacher has {num_teacher_layers} (0 to "
            f"{num_teacher_layers - 1}); not there: {missing or 'none'}. Name one for every layer "
            "of the student"
        )
    return tuple((layer, i) for i, layer in enumerate(chosen))


def shared_vocabulary(
    student_pieces: Sequence[str], teacher_pieces: Sequence[str]
) -> Int32[np.ndarray, " student_vocabulary"]:
    """The teacher's id of every piece of the student's vocabulary; -1 where it has none.

    Special pieces are matched by their use: `[CLS]` is `<s>`, also of a teacher that has an entry
    `[CLS]` which no text becomes, as MPNet has.

    Args:
      student_pieces: pieces by id.
      teacher_pieces: pieces by id; of equal ones the first counts.

    Raises:
      ValueError: if no piece is shared.

    Example:
      >>> shared_vocabulary(["[CLS]", "cat", "##s"], ["<s>", "dog", "cat"]).tolist()
      [0, 2, -1]
      >>> shared_vocabulary(["[CLS]", "cat"], ["<s>", "[CLS]", "cat"]).tolist()
      [0, 2]
    """
    ids = {piece: i for i, piece in reversed(list(enumerate(teacher_pieces)))}
    uses = {**SPECIAL_PIECES, **{theirs: ours for ours, theirs in SPECIAL_PIECES.items()}}
    own = set(student_pieces)

    def place(piece: str) -> int:
        other = uses.get(piece, piece)
        names = (piece, other) if other in own else (other, piece)
        return next((ids[name] for name in names if name in ids), -1)

    found = [place(piece) for piece in student_pieces]
    if all(i < 0 for i in found):
        raise ValueError(
            f"none of {len(found)} pieces of the student is one of the teacher's "
            f"{len(teacher_pieces)}; draw the word embeddings (leave embeddings out of `parts`)"
        )
    return np.asarray(found, np.int32)


def count_layers(params: Mapping[str, Any], stack: str = "encoder") -> int:
    """How many layers the encoder of a parameter tree has, or its decoder.

    Args:
      params: with `encoder/layer_0` and so on.
      stack: `encoder` or `decoder`.

    Raises:
      ValueError: if there is no such stack, or a layer between is missing.
    """
    found = {int(match[1]) for name in params.get(stack, {}) if (match := _LAYER.fullmatch(name))}
    if not found or found != set(range(len(found))):
        raise ValueError(
            f"the tree has layers {sorted(found)} under {stack!r} and the entries {sorted(params)};"
            f" expected {stack}/layer_0, layer_1, ... without a gap"
        )
    return len(found)


def _layers_of_stack(
    start: StudentStart, teacher: Mapping[str, Any], student: Mapping[str, Any], stack: str
) -> dict[int, int]:
    """The teacher's layer of every layer of a stack of the student."""
    if stack == "decoder" and start.decoder_layers is not None:
        start = dataclasses.replace(start, layers=start.decoder_layers)
    depths = [count_layers(tree, stack) for tree in (teacher, student)]
    try:
        return {own: theirs for theirs, own in layers_of_start(start, *depths)}
    except ValueError as error:
        raise ValueError(f"{stack}: {error}") from error


def _flatten(params: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return dict(flatten_dict(params))


def _source(
    path: tuple[str, ...], layers: Mapping[str, Mapping[int, int]], parts: Sequence[Part]
) -> tuple[str, ...] | None:
    """Path of the teacher's parameter that a student's comes from; `None` if it stays."""
    if path[0] in _STACKS and (match := _LAYER.fullmatch(path[1])):
        layer = layers[path[0]].get(int(match[1]))
        return None if layer is None else (path[0], f"layer_{layer}", *path[2:])
    if path[0] in _STACKS or path[0] in _SHARED_BY_STACKS:
        return path if "embeddings" in parts else None
    return path if path[0] in parts else None


class _Cut(NamedTuple):
    """How a teacher's parameters are cut for a student."""

    cut_heads: bool
    heads: HeadCounts | None
    vocabulary: np.ndarray | None
    skipped_positions: int
    widths: tuple[int, int]


def _fit(
    path: tuple[str, ...], own: np.ndarray, found: np.ndarray, cut: _Cut
) -> tuple[np.ndarray, int]:
    """The teacher's array in the shape of the student's, and how many pieces both have."""
    if own.ndim != found.ndim:
        raise ValueError(f"{found.ndim} axes there, {own.ndim} here")
    if _is_vocabulary(path):
        return _fit_vocabulary(path, own, found, cut.vocabulary)
    sizes = found.shape[-1], own.shape[-1]
    if path[0] == "head" and sizes[0] != sizes[1] and sizes != cut.widths:
        raise ValueError(f"the teacher has {sizes[0]} classes and the student {sizes[1]}")
    if path[-1] == "position_embeddings":
        found = found[cut.skipped_positions :]
    axis = _head_axis(path, own.ndim)
    if axis is not None and own.shape != found.shape:
        found = _cut_heads(own.shape[axis], found, axis, cut.heads, cut.cut_heads)
    return _leading(own.shape, found), 0


def _width(flat: Mapping[tuple[str, ...], Any]) -> int:
    """Width of the hidden states of an encoder."""
    return flat["encoder", "layer_0", "output_norm", "scale"].shape[0]


def _is_vocabulary(path: tuple[str, ...]) -> bool:
    """Whether a parameter has an entry for every piece of the vocabulary."""
    if path[0] == "lm_head":
        return path[1:] == ("bias",) or path[1] in ("decoder", "features")
    return path[-1] in _SHARED_BY_STACKS or path[-2:] == ("word_embeddings", "embedding")


def _head_axis(path: tuple[str, ...], num_axes: int) -> int | None:
    """The axis along which the features of all attention heads lie."""
    if path[-1] not in ("kernel", "bias") or not {"attention", "cross_attention"} & {*path}:
        return None
    if path[-2] in _QUERY_LIKE:
        return num_axes - 1
    return 0 if path[-2] == "out" and num_axes == 2 else None


def _leading(shape: tuple[int, ...], found: np.ndarray) -> np.ndarray:
    """The leading entries along every axis."""
    if any(own > there for own, there in zip(shape, found.shape, strict=True)):
        raise ValueError(f"{found.shape} there, {shape} here, which is larger")
    return found[tuple(slice(size) for size in shape)]


def _cut_heads(
    size: int, found: np.ndarray, axis: int, heads: HeadCounts | None, cut_each: bool
) -> np.ndarray:
    """The leading heads along an axis, or the leading features of each."""
    there = found.shape[axis]
    if heads is None:
        raise ValueError(
            f"{there} features of attention there, {size} here: pass `heads`, the numbers of both"
        )
    if there % heads.teacher or size % heads.student:
        raise ValueError(
            f"{heads.teacher} heads do not divide {there}, or {heads.student} do not divide {size}"
        )
    dims = there // heads.teacher, size // heads.student
    if heads.student > heads.teacher:
        raise ValueError(f"{heads.teacher} heads there, {heads.student} here, which are more")
    if dims[1] > dims[0] or (dims[0] != dims[1] and not cut_each):
        raise ValueError(
            f"heads of {dims[0]} features there, of {dims[1]} here: whole heads need equal ones, "
            f"such as {size // dims[0]} heads of {dims[0]}; cut_heads=True takes the leading "
            "features of larger ones"
        )
    moved = np.moveaxis(found, axis, -1)
    split = moved.reshape(*moved.shape[:-1], heads.teacher, dims[0])
    kept = split[..., : heads.student, : dims[1]].reshape(*moved.shape[:-1], size)
    return np.moveaxis(kept, -1, axis)


def _fit_vocabulary(
    path: tuple[str, ...], own: np.ndarray, found: np.ndarray, vocabulary: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """Rows of the pieces that both know; the others stay as they were drawn."""
    axis = own.ndim - 1 if path[0] == "lm_head" else 0
    own, found = (np.moveaxis(array, axis, 0) for array in (own, found))
    if vocabulary is None:
        if len(own) != len(found):
            raise ValueError(
                f"{len(found)} pieces there, {len(own)} here: pass `vocabulary`, the teacher's id "
                "of every piece (shared_vocabulary)"
            )
        vocabulary = np.arange(len(own))
    if len(vocabulary) != len(own) or vocabulary.max() >= len(found):
        raise ValueError(
            f"`vocabulary` maps {len(vocabulary)} pieces to ids up to {vocabulary.max()}; the "
            f"student has {len(own)}, the teacher {len(found)}"
        )
    shared = vocabulary >= 0
    rows = own.copy()
    rows[shared] = _leading((len(found), *own.shape[1:]), found)[vocabulary[shared]]
    return np.moveaxis(rows, 0, axis), int(shared.sum())
