"""Tables that map the names of a foreign checkpoint to ours and back.

A table is a list of rules. A rule names one or more foreign tensors, one or more of ours, and a
`Transform` between them; `{i}` in a name stands for an integer, `{part:q|k}` for a regular
expression, and carries over to the other side::

    NameTable((
        Rule("text_projection", "params/text_projection"),
        Rule("blocks.{i}.fc.weight", "params/layer_{i}/fc/kernel", TRANSPOSE),
        Rule("blocks.{i}.qkv", tuple(f"params/layer_{{i}}/{n}" for n in "qkv"), split_rows(3)),
    ))

Our names are paths of a nested dict, joined by `/`. Transforms give views wherever NumPy can, so
that a mapped checkpoint stays on disk until its arrays are placed on a device.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Transform:
    """How the foreign arrays of a rule become ours, and back.

    Attributes:
      to_ours: foreign arrays -> ours, in the order of the rule's names.
      to_foreign: the inverse.
    """

    to_ours: Callable[[Arrays], Arrays]
    to_foreign: Callable[[Arrays], Arrays]


def permute(*axes: int) -> Transform:
    """Each array with its axes in the order `axes`; back, in the inverse order."""
    inverse = tuple(int(a) for a in np.argsort(axes))
    return Transform(
        lambda arrays: [a.transpose(axes) for a in arrays],
        lambda arrays: [a.transpose(inverse) for a in arrays],
    )


def split_rows(parts: int, each: Transform | None = None) -> Transform:
    """One array cut into `parts` equal blocks of rows, each of which then goes through `each`."""
    each = each or IDENTITY
    return Transform(
        lambda arrays: each.to_ours(np.split(arrays[0], parts)),
        lambda arrays: [np.concatenate(each.to_foreign(arrays))],
    )


IDENTITY = Transform(lambda arrays: arrays, lambda arrays: arrays)
TRANSPOSE = permute(1, 0)
"""A torch linear weight (out, in) <-> a kernel (in, out)."""
CONVOLUTION = permute(2, 3, 1, 0)
"""A torch 2-D convolution weight (out, in, height, width) <-> (height, width, in, out)."""


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      foreign: foreign name or names, with `{i}` for integers.
      ours: our path or paths.
      transform: between the two.
      load_only: another spelling of tensors that an earlier rule also maps: read, never written.
    """

    foreign: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    transform: Transform = IDENTITY
    load_only: bool = False

    @property
    def foreign_names(self) -> tuple[str, ...]:
        """The foreign names as a tuple."""
        return (self.foreign,) if isinstance(self.foreign, str) else self.foreign

    @property
    def our_names(self) -> tuple[str, ...]:
        """Our paths as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Problems:
    """What does not fit between a checkpoint and a table.

    Attributes:
      missing: names that should be there and are not.
      unexpected: names that no rule knows, or that the model has no place for.
      misshaped: name -> (shape found, shape wanted).
      clashing: names that map to something another name maps to as well.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    clashing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.clashing)

    def __str__(self) -> str:
        shapes = [f"{n}: got {got}, want {want}" for n, (got, want) in self.misshaped.items()]
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", shapes),
            ("given twice under different names", self.clashing),
        )
        return "\n".join(
            f"  {len(names)} {kind}:\n" + "\n".join(f"    {name}" for name in names)
            for kind, names in kinds
            if names
        )


class NameMismatchError(ValueError):
    """A checkpoint does not fit its table; `problems` holds all that is wrong.

    Attributes:
      problems: every missing, unexpected and mis-shaped name.
    """

    def __init__(self, message: str, problems: Problems) -> None:
        super().__init__(message)
        self.problems = problems


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Puts the name of a file before the errors of what is read from it.

    Args:
      path: the file.

    Raises:
      ValueError: those of the block, of the same kind.
    """
    try:
        yield
    except NameMismatchError as error:
        raise NameMismatchError(f"{path}: {error}", error.problems) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass
class _Group:
    """The tensors of one rule for one binding of its placeholders.

    Attributes:
      rule: the rule.
      bound: placeholder -> text.
      found: table name -> (name as given, array).
    """

    rule: Rule
    bound: Mapping[str, str]
    found: dict[str, tuple[str, np.ndarray]]

    def fill(self, templates: tuple[str, ...]) -> list[str]:
        return [_fill(template, self.bound) for template in templates]

    def members(self, templates: tuple[str, ...], problems: Problems) -> list[np.ndarray] | None:
        """The arrays of `templates` in order, or None with the lacking ones noted."""
        names = self.fill(templates)
        lacking = [name for name in names if name not in self.found]
        problems.missing.extend(lacking)
        return None if lacking else [self.found[name][1] for name in names]


_Index = Sequence[tuple[re.Pattern[str], Rule]]


@dataclass(frozen=True)
class NameTable:
    """Foreign names <-> our paths.

    Attributes:
      rules: tried in order; the first whose name fits is taken.
      ignored: regular expressions (full match) of foreign names to drop on loading.
      prefixes: dropped from the front of foreign names, each at most once, in this order.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def load(
        self, foreign: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
    ) -> dict[str, np.ndarray]:
        """Our arrays from a foreign checkpoint.

        Args:
          foreign: foreign name -> array.
          expected: our path -> shape, of everything the model has.

        Returns:
          Our path -> array, for exactly the paths of `expected`, in their order. Views where the
          transform allows it.

        Raises:
          NameMismatchError: (a ValueError) listing every missing, unexpected and mis-shaped name.
        """
        problems = Problems()
        named: dict[str, tuple[str, np.ndarray]] = {}
        for original, array in foreign.items():
            name = self.plain_name(original)
            if name in named:
                problems.clashing.append(original)
            elif name is not None:
                named[name] = (original, array)
        loaded: dict[str, np.ndarray] = {}
        seen: set[str] = set()
        for group in _group(named, self._foreign_index, problems):
            seen.update(group.fill(group.rule.our_names))
            loaded.update(_load_group(group, expected, loaded, problems))
        self._note_missing([path for path in expected if path not in seen], problems)
        _raise(problems, "the checkpoint does not fit the model")
        return {path: loaded[path] for path in expected}

    def save(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The foreign checkpoint from our arrays.

        Args:
          ours: our path -> array.

        Returns:
          Foreign name -> array, in the order of `ours`.

        Raises:
          NameMismatchError: (a ValueError) listing the paths that no rule knows and those that a
            rule needs and `ours` lacks.
        """
        problems = Problems()
        saved: dict[str, np.ndarray] = {}
        named = {path: (path, array) for path, array in ours.items()}
        for group in _group(named, self._our_index, problems):
            arrays = group.members(group.rule.our_names, problems)
            if arrays is not None:
                names = group.fill(group.rule.foreign_names)
                saved.update(zip(names, group.rule.transform.to_foreign(arrays), strict=True))
        _raise(problems, "these parameters have no form in the foreign checkpoint")
        return saved

    def foreign_shapes(self, ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the foreign checkpoint of a model with the shapes `ours`."""
        abstract = {path: _abstract(shape) for path, shape in ours.items()}
        return {name: array.shape for name, array in self.save(abstract).items()}

    def foreign_names_of(self, path: str) -> tuple[str, ...]:
        """The foreign names that one of our paths is stored under; empty if no rule knows it."""
        found = _first_match(path, self._our_index)
        return () if found is None else tuple(_fill(n, found[1]) for n in found[0].foreign_names)

    def our_paths_of(self, name: str) -> tuple[str, ...]:
        """Our paths that a foreign name gives; empty if no rule knows it or it is ignored."""
        plain = self.plain_name(name)
        found = None if plain is None else _first_match(plain, self._foreign_index)
        return () if found is None else tuple(_fill(n, found[1]) for n in found[0].our_names)

    def plain_name(self, name: str) -> str | None:
        """A foreign name without the table's prefixes; None if the table ignores it."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return None if any(re.fullmatch(pattern, name) for pattern in self.ignored) else name

    @cached_property
    def _foreign_index(self) -> _Index:
        return [(_pattern(name), rule) for rule in self.rules for name in rule.foreign_names]

    @cached_property
    def _our_index(self) -> _Index:
        rules = [rule for rule in self.rules if not rule.load_only]
        return [(_pattern(name), rule) for rule in rules for name in rule.our_names]

    def _note_missing(self, paths: Sequence[str], problems: Problems) -> None:
        """Notes the foreign names that our `paths` come from, each once."""
        names: dict[str, None] = {}
        for path in paths:
            found = _first_match(path, self._our_index)
            if found is None:
                names[f"{path} (no rule gives it)"] = None
            else:
                rule, bound = found
                names.update((_fill(name, bound), None) for name in rule.foreign_names)
        problems.missing.extend(names)


def _first_match(name: str, index: _Index) -> tuple[Rule, Mapping[str, str]] | None:
    for pattern, rule in index:
        if found := pattern.fullmatch(name):
            return rule, found.groupdict()
    return None


def _group(
    named: Mapping[str, tuple[str, np.ndarray]], index: _Index, problems: Problems
) -> list[_Group]:
    groups: dict[tuple[int, tuple[tuple[str, str], ...]], _Group] = {}
    for name, (original, array) in named.items():
        match = _first_match(name, index)
        if match is None:
            problems.unexpected.append(original)
            continue
        rule, bound = match
        group = groups.setdefault((id(rule), tuple(bound.items())), _Group(rule, bound, {}))
        group.found[name] = (original, array)
    return list(groups.values())


def _load_group(
    group: _Group,
    expected: Mapping[str, tuple[int, ...]],
    loaded: Mapping[str, np.ndarray],
    problems: Problems,
) -> dict[str, np.ndarray]:
    rule, paths = group.rule, group.fill(group.rule.our_names)
    originals = [original for original, _ in group.found.values()]
    if not all(path in expected for path in paths):
        problems.unexpected.extend(originals)
        return {}
    arrays = group.members(rule.foreign_names, problems)
    if arrays is None:
        return {}
    wanted = rule.transform.to_foreign([_abstract(expected[path]) for path in paths])
    for name, array, want in zip(group.fill(rule.foreign_names), arrays, wanted, strict=True):
        if tuple(array.shape) != want.shape:
            problems.misshaped[group.found[name][0]] = (tuple(array.shape), want.shape)
    if any(original in problems.misshaped for original in originals):
        return {}
    if any(path in loaded for path in paths):
        problems.clashing.extend(originals)
        return {}
    return dict(zip(paths, rule.transform.to_ours(arrays), strict=True))


def _abstract(shape: tuple[int, ...]) -> np.ndarray:
    """An array of the shape that takes one byte of memory."""
    return np.broadcast_to(np.int8(0), shape)


_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


def _pattern(template: str) -> re.Pattern[str]:
    pattern, end = "", 0
    for found in _PLACEHOLDER.finditer(template):
        pattern += re.escape(template[end : found.start()])
        pattern += f"(?P<{found[1]}>{found[2] or '[0-9]+'})"
        end = found.end()
    return re.compile(pattern + re.escape(template[end:]))


def _fill(template: str, bound: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: bound[found[1]], template)


def _raise(problems: Problems, what: str) -> None:
    if problems:
        raise NameMismatchError(f"{what}:\n{problems}", problems)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict whose keys are paths joined by `/`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
