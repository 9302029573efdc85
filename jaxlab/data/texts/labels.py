"""Labels of rows: names to places, texts to numbers."""

import collections
import math
from collections.abc import Sequence

from jaxlab.data.texts.examples import TextExample
from jaxlab.data.texts.files import Row, raise_problems


def make_examples(
    rows: Sequence[Row],
    *,
    text: str,
    pair: str | None,
    label: str | None,
    label_names: Sequence[str],
    first_id: int,
    may_lack_labels: bool = False,
    named_by: str = "",
) -> tuple[TextExample, ...]:
    """Examples of rows.

    Args:
      rows: of one file.
      text: column of the text.
      pair: column of the second text, or None.
      label: column of the label, or None if they are not known.
      label_names: of the classes; empty for a regression.
      first_id: of the first row; the next ones follow.
      may_lack_labels: rows with an empty label are examples whose label is not known.
      named_by: what the names of the classes are from, for the message about others.

    Raises:
      ValueError: listing file and line of labels that are no class or no number, and of texts that
        are lists or objects.
    """
    examples, no_texts, unknown = [], [], collections.defaultdict(list)
    for place, row in enumerate(rows):
        value: int | float | None = None
        if label is not None and not (may_lack_labels and is_blank(row.fields[label])):
            value = to_label(row.fields[label], label_names)
            if value is None:
                unknown[str(row.fields[label])].append(row.place)
        no_texts += [
            f"{row.place}: column {column!r} holds a {type(row.fields[column]).__name__}"
            for column in (text, pair)
            if column is not None and isinstance(row.fields[column], list | dict)
        ]
        second = None if pair is None else to_text(row.fields[pair])
        examples.append(TextExample(first_id + place, to_text(row.fields[text]), second, value))
    raise_problems(no_texts, "wanted a text in every row")
    wanted = f"one of {list(label_names)[:20]}{named_by}" if label_names else "a finite number"
    problems = [_of_label(value, places, label_names) for value, places in unknown.items()]
    raise_problems(problems, f"wanted {wanted} as label")
    return tuple(examples)


def _of_label(value: str, places: Sequence[str], label_names: Sequence[str]) -> str:
    """What is wrong with a label, once for all rows that have it."""
    more = f" and {len(places) - 1} further rows" if len(places) > 1 else ""
    near = [name for name in label_names if name.strip().casefold() == value.strip().casefold()]
    meant = f", perhaps {near[0]!r}" if near else ""
    return f"{places[0]}{more}: label {value!r}{meant}"


def to_text(value: object) -> str:
    """A field as text; the null of JSON is an empty one.

    Args:
      value: as it stands in the file.

    Example:
      >>> to_text(None), to_text(2), to_text("two")
      ('', '2', 'two')
    """
    return "" if value is None else str(value)


def is_blank(value: object) -> bool:
    """Whether a field says nothing: it is empty, spaces alone, or the null of JSON.

    Args:
      value: as it stands in the file.
    """
    return value is None or not str(value).strip()


def to_label(value: object, label_names: Sequence[str]) -> int | float | None:
    """The place of a class, or the number of a regression; None if it is neither.

    Args:
      value: as it stands in the file.
      label_names: of the classes; empty for a regression.

    Example:
      >>> to_label("yes", ("no", "yes")), to_label("2.5", ()), to_label("maybe", ("no", "yes"))
      (1, 2.5, None)
    """
    if label_names:
        return label_names.index(str(value)) if str(value) in label_names else None
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
