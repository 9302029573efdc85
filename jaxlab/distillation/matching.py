"""Which layer of the teacher a layer of the student learns from.

Pairs are (teacher layer, student layer), from 0. Layer i is entry i of attention maps and of
queries, keys and values, and entry i + 1 of hidden states, whose entry 0 is the embeddings.

References:
  `matches_generator` of OFA-Compress; Sun et al. 2019, arXiv:1908.09355 (PKD); Jiao et al. 2020,
  arXiv:1909.10351 (TinyBERT).
"""

import difflib
import re
from collections.abc import Callable, Sequence

Pairs = tuple[tuple[int, int], ...]

_COUNTED = re.compile(r"(first|last)(\d+)(_reversed)?")


def match_layers(
    strategy: str,
    num_teacher_layers: int,
    num_student_layers: int,
    *,
    others: Sequence[str] = (),
) -> Pairs:
    """The pairs of a strategy.

    | strategy | pairs |
    |---|---|
    | `first` | (i, i) |
    | `first3` | the lowest three of them |
    | `last` | (i + N_T - N_S, i): the top layers of the teacher |
    | `last3` | the highest three layers of both |
    | `last3_reversed` | as the original pairs them: the highest with the lowest of the three |
    | `gap` | ((i + 1) f - 1, i), f = N_T // N_S; top layers stay unused if f does not divide |
    | `uniform_top` | evenly spread, always ending at the two last layers |
    | `pkd_skip`, `pkd_last` | those of PKD, which leaves the last layer of both out |
    | `reverse` | the top of the teacher to the bottom of the student, to compare with |

    Args:
      strategy: one of them.
      num_teacher_layers: layers of the teacher.
      num_student_layers: layers of the student.
      others: names that the caller knows beside these, for the message of an unknown one.

    Raises:
      ValueError: if there is no such strategy, naming the nearest, or it needs more layers than
        there are.

    Example:
      >>> match_layers("gap", 12, 4)
      ((2, 0), (5, 1), (8, 2), (11, 3))
      >>> match_layers("last2", 12, 4)
      ((10, 2), (11, 3))
    """
    teacher, student = num_teacher_layers, num_student_layers
    if min(teacher, student) < 1:
        raise ValueError(
            f"a teacher of {teacher} and a student of {student} layers: give 1 or more"
        )
    if counted := _COUNTED.fullmatch(strategy):
        return _counted(strategy, counted, teacher, student)
    if strategy not in STRATEGIES:
        names = [*STRATEGIES, *others]
        close = difflib.get_close_matches(strategy.lower(), names, n=1)
        nearest = f"the nearest is {close[0]!r}, of " if close else "there are "
        raise ValueError(
            f"{strategy!r} is no strategy for layers; {nearest}{', '.join(names)}, firstK and "
            "lastK with a number for K"
        )
    if student > teacher:
        raise ValueError(
            f"{strategy!r} gives every layer of the student one of the teacher, which has "
            f"{teacher} for {student}; use firstK or lastK with K up to {teacher}"
        )
    return STRATEGIES[strategy](teacher, student)


def _counted(strategy: str, found: re.Match[str], teacher: int, student: int) -> Pairs:
    count = int(found[2])
    if not 1 <= count <= min(teacher, student):
        raise ValueError(
            f"{strategy!r} matches {count} layers; the teacher has {teacher} and the student "
            f"{student}: use 1 to {min(teacher, student)}"
        )
    if found[1] == "first":
        if found[3]:
            raise ValueError(f"{strategy!r} is no strategy of matching; lastK_reversed is one")
        return tuple((i, i) for i in range(count))
    if found[3]:
        return tuple((teacher - count + i, student - 1 - i) for i in range(count))
    return tuple((teacher - count + i, student - count + i) for i in range(count))


def _gap(teacher: int, student: int) -> Pairs:
    step = teacher // student
    return tuple(((i + 1) * step - 1, i) for i in range(student))


def _uniform_top(teacher: int, student: int) -> Pairs:
    return tuple(
        ((2 * (i + 1) * teacher + student) // (2 * student) - 1, i) for i in range(student)
    )


def _pkd_skip(teacher: int, student: int) -> Pairs:
    return _gap(teacher, student)[:-1]


def _pkd_last(teacher: int, student: int) -> Pairs:
    return tuple((teacher - student + i, i) for i in range(student - 1))


STRATEGIES: dict[str, Callable[[int, int], Pairs]] = {
    "first": lambda teacher, student: tuple((i, i) for i in range(student)),
    "last": lambda teacher, student: tuple((i + teacher - student, i) for i in range(student)),
    "gap": _gap,
    "uniform_top": _uniform_top,
    "pkd_skip": _pkd_skip,
    "pkd_last": _pkd_last,
    "reverse": lambda teacher, student: tuple(
        (teacher - 1 - i * (teacher // student), i) for i in range(student)
    ),
}
"""Name -> (layers of the teacher, layers of the student) -> pairs."""
