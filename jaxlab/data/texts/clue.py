"""Chinese tasks of CLUE from JSON lines: AFQMC, TNEWS, IFLYTEK, CMNLI, OCNLI, CLUEWSC2020, CSL.

References:
  Xu et al. 2020, arXiv:2004.05986; Hu et al. 2020, arXiv:2010.05444; the markers of WSC are those
  of CLUE's own baselines.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlab.data.texts.examples import TextData, TextInfo, check_classes, count_parts, text_data
from jaxlab.data.texts.files import (
    Row,
    check_columns,
    checksums,
    find_files,
    raise_problems,
    read_jsonl,
)
from jaxlab.data.texts.labels import make_examples, to_text

_PARTS = {"validation": ("dev.json",), "test": ("test.json",)}


@dataclasses.dataclass(frozen=True)
class ClueTask:
    """How a task of CLUE is stored.

    Attributes:
      folder: of its files, inside the folder of CLUE.
      columns: that its rows need, without the label.
      label_names: as they stand in the files.
      submission: name of the file that is handed in, of CLUE 1.1.
      has_pair: it has two texts.
      to_texts: fields of a row -> its text and, if it has one, the second; None takes the columns.
      train: names that the training file may have.
    """

    folder: str
    columns: tuple[str, ...]
    label_names: tuple[str, ...]
    submission: str
    has_pair: bool = False
    to_texts: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    train: tuple[str, ...] = ("train.json",)


def mark_spans(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The text of a row of WSC with `_` around the noun and `[ ]` around the pronoun.

    Args:
      fields: `text`, and `target` with the texts and places of both spans.
    """
    text, target = fields["text"], fields["target"]
    noun, pronoun = (
        (target[f"span{i}_index"], target[f"span{i}_index"] + len(target[f"span{i}_text"]))
        for i in (1, 2)
    )
    # Closing marks come before opening ones at one place: spans do not overlap.
    marks = [(noun[0], 1, "_"), (noun[1], 0, "_"), (pronoun[0], 1, "["), (pronoun[1], 0, "]")]
    for place, _, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return (text,)


def _keywords_and_abstract(fields: Mapping[str, Any]) -> tuple[str, ...]:
    return " ".join(fields["keyword"]), fields["abst"]


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("contradiction", "entailment", "neutral")

CLUE: dict[str, ClueTask] = {
    "afqmc": ClueTask("afqmc", _SENTENCES, ("0", "1"), "afqmc_predict.json", has_pair=True),
    "tnews": ClueTask(
        "tnews", ("sentence",), tuple(str(n) for n in range(100, 117) if n not in (105, 111)),
        "tnews11_predict.json",
    ),
    "iflytek": ClueTask(
        "iflytek", ("sentence",), tuple(map(str, range(119))), "iflytek_predict.json"
    ),
    "cmnli": ClueTask("cmnli", _SENTENCES, _ENTAILMENT, "cmnli_predict.json", has_pair=True),
    "ocnli": ClueTask(
        "ocnli", _SENTENCES, _ENTAILMENT, "ocnli_50k_predict.json", has_pair=True,
        train=("train.50k.json", "train.json"),
    ),
    "wsc": ClueTask(
        "cluewsc2020", ("text", "target"), ("false", "true"), "cluewsc11_predict.json",
        to_texts=mark_spans,
    ),
    "csl": ClueTask(
        "csl", ("keyword", "abst"), ("0", "1"), "csl_predict.json", has_pair=True,
        to_texts=_keywords_and_abstract,
    ),
}  # fmt: skip
"""Name -> task. Labels are the texts of the files; TNEWS and IFLYTEK name them by numbers."""


def load_clue(name: str, folder: str | Path) -> TextData:
    """A task of CLUE from its official files.

    Rows without a label that counts (`-` in CMNLI and OCNLI) are left out and counted. Test parts
    have no labels.

    Args:
      name: one of `CLUE`.
      folder: of the task, or the one above it.

    Returns:
      The data set; ids count the rows of all files.

    Raises:
      FileNotFoundError: naming all files that are missing.
      ValueError: naming all tasks, or file and line of what is wrong.
    """
    if name not in CLUE:
        raise ValueError(f"no task {name!r} of CLUE; there are {', '.join(CLUE)}")
    task = CLUE[name]
    folder = Path(folder).expanduser()
    inner = folder / task.folder
    paths = find_files(inner if inner.is_dir() else folder, {"train": task.train, **_PARTS})
    parts, first_id, unlabelled = {}, 0, 0
    for part, path in paths.items():
        read = read_jsonl(path)
        is_test = part == "test"
        check_columns(read, [*task.columns, *([] if is_test else ["label"])], path)
        rows = read if is_test else [row for row in read if row.fields["label"] != "-"]
        unlabelled += len(read) - len(rows)
        parts[part] = make_examples(
            _with_texts(rows, task), text="a", pair="b" if task.has_pair else None,
            label=None if is_test else "label", label_names=task.label_names, first_id=first_id,
        )  # fmt: skip
        first_id += len(rows)
    check_classes(parts["train"], task.label_names, str(paths["train"]))
    counts = count_parts(parts, unlabelled=unlabelled)
    info = TextInfo(str(folder), "see the data sets of CLUE", checksums(paths.values()), counts)
    return text_data(name, "classification", parts, task.label_names, info)


def _with_texts(rows: Sequence[Row], task: ClueTask) -> list[Row]:
    """Rows with the columns `a`, `b` and `label`."""
    made, problems = [], []
    for row in rows:
        try:
            if task.to_texts is None:
                texts = tuple(to_text(row.fields[column]) for column in task.columns)
            else:
                texts = task.to_texts(row.fields)
        except (KeyError, TypeError) as error:
            problems.append(f"{row.place}: {type(error).__name__} {error}")
            continue
        label = row.fields.get("label")
        named = dict(zip("ab", texts, strict=False))
        made.append(Row(row.place, {**named, "label": str(label)}))
    raise_problems(problems, f"wanted the fields of CLUE's {task.folder}")
    return made


def write_clue_submission(
    name: str,
    path: str | Path,
    predictions: Sequence[int],
    label_names: Sequence[str] | None = None,
) -> Path:
    """Write predictions as CLUE takes them: a line `{"id": 0, "label": "1"}` for every row.

    Args:
      name: of the task.
      path: of the file, officially named as in `CLUE`; its folder is made.
      predictions: the place of a class for every row of the test file, in its order.
      label_names: what the places mean; None takes the task's own names.

    Returns:
      The path.

    Raises:
      ValueError: if a name is none of the task's, or a place is out of range.
    """
    if name not in CLUE:
        raise ValueError(f"no task {name!r} of CLUE; there are {', '.join(CLUE)}")
    names = list(CLUE[name].label_names if label_names is None else label_names)
    if sorted(names) != sorted(CLUE[name].label_names):
        raise ValueError(f"label_names={names}; wanted {list(CLUE[name].label_names)}")
    wrong = [f"row {i}: {p}" for i, p in enumerate(predictions) if not 0 <= p < len(names)]
    raise_problems(wrong, f"wanted places of {len(names)} classes")
    if not predictions:
        warnings.warn(f"no predictions for {name}: {path} will be empty", stacklevel=2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"id": i, "label": names[p]}) for i, p in enumerate(predictions))
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path
