"""The tasks of GLUE and its diagnostic set, from the official files that the user has placed.

What is handed in is written, too.

References:
  Wang et al. 2019, arXiv:1804.07461.
"""

import dataclasses
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlab.data.texts.examples import (
    TextData,
    TextExample,
    TextInfo,
    check_classes,
    count_parts,
    text_data,
)
from jaxlab.data.texts.files import Row, check_columns, checksums, find_files, read_tsv
from jaxlab.data.texts.labels import make_examples

_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
_PARTS = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
_MNLI_PARTS = {
    "train": ("train.tsv",),
    "validation": ("dev_matched.tsv",),
    "test": ("test_matched.tsv",),
    "validation_mismatched": ("dev_mismatched.tsv",),
    "test_mismatched": ("test_mismatched.tsv",),
}
DIAGNOSTIC = "test_diagnostic"
_AX = ("diagnostic.tsv", "../AX/diagnostic.tsv", "../diagnostic/diagnostic.tsv")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """How a task of GLUE is stored.

    Attributes:
      folder: of its files, inside the folder of GLUE.
      text: column of the text, or of the first of a pair.
      pair: column of the second, or None.
      label: column of the label.
      label_names: of the classes; empty for a regression.
      columns: of files without a head line (train and dev of CoLA).
      parts: part -> file.
      optional: part -> places that its file may have beside the others; such parts may lack.
      submission: part -> file that is handed in.
      skip_malformed: leave broken rows out, which the official files of QQP have; never of a test
        part, whose predictions are handed in by the number of the row.
    """

    folder: str
    text: str
    pair: str | None
    label: str
    label_names: tuple[str, ...] = _BINARY
    columns: tuple[str, ...] | None = None
    parts: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: types.MappingProxyType(_PARTS)
    )
    optional: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    submission: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skip_malformed: bool = False


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA", "sentence", None, "label", columns=("source", "label", "star", "sentence"),
        submission={"test": "CoLA.tsv"},
    ),
    "sst2": GlueTask("SST-2", "sentence", None, "label", submission={"test": "SST-2.tsv"}),
    "mrpc": GlueTask(
        "MRPC", "#1 String", "#2 String", "Quality", submission={"test": "MRPC.tsv"}
    ),
    "stsb": GlueTask(
        "STS-B", "sentence1", "sentence2", "score", (), submission={"test": "STS-B.tsv"}
    ),
    "qqp": GlueTask(
        "QQP", "question1", "question2", "is_duplicate", submission={"test": "QQP.tsv"},
        skip_malformed=True,
    ),
    "mnli": GlueTask(
        "MNLI", "sentence1", "sentence2", "gold_label", ("contradiction", "entailment", "neutral"),
        parts=types.MappingProxyType(_MNLI_PARTS), optional={DIAGNOSTIC: _AX},
        submission={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", DIAGNOSTIC: "AX.tsv"},
    ),
    "qnli": GlueTask(
        "QNLI", "question", "sentence", "label", _ENTAILMENT, submission={"test": "QNLI.tsv"}
    ),
    "rte": GlueTask(
        "RTE", "sentence1", "sentence2", "label", _ENTAILMENT, submission={"test": "RTE.tsv"}
    ),
    "wnli": GlueTask(
        "WNLI", "sentence1", "sentence2", "label", submission={"test": "WNLI.tsv"}
    ),
}  # fmt: skip
"""Name -> task. The order of a model's labels is another matter: map them by name."""


def load_glue(name: str, folder: str | Path) -> TextData:
    """A task of GLUE from its official files.

    Quotes are ordinary characters. The labels of the test parts are not public.

    Args:
      name: one of `GLUE`.
      folder: of the task, or the one above it.

    Returns:
      The data set; ids count the rows of all files. MNLI has the mismatched parts in `others`, and
      the diagnostic set, which is handed in as AX, where its file is there: `diagnostic.tsv` beside
      MNLI's files, or in the folder `AX` or `diagnostic` beside theirs.

    Raises:
      FileNotFoundError: naming all files that are missing.
      ValueError: naming all tasks, or file and line of what is wrong.
    """
    if name not in GLUE:
        raise ValueError(f"no task {name!r} of GLUE; there are {', '.join(GLUE)}")
    task = GLUE[name]
    folder = Path(folder).expanduser()
    inner = folder / task.folder
    own = inner if inner.is_dir() else folder
    paths = find_files(own, task.parts)
    for part, names in task.optional.items():
        if found := [own / name for name in names if (own / name).is_file()]:
            paths[part] = found[0]
    parts: dict[str, tuple[TextExample, ...]] = {}
    first_id = 0
    for part, path in paths.items():
        rows = _read_rows(task, part, path)
        label = None if part.startswith("test") else task.label
        parts[part] = make_examples(
            rows, text=task.text, pair=task.pair, label=label, label_names=task.label_names,
            first_id=first_id,
        )  # fmt: skip
        first_id += len(rows)
    if task.label_names:
        check_classes(parts["train"], task.label_names, str(paths["train"]))
    info = TextInfo(
        str(folder), "see the data sets of GLUE", checksums(paths.values()), count_parts(parts)
    )
    kind = "classification" if task.label_names else "regression"
    return text_data(name, kind, parts, task.label_names, info)


def _read_rows(task: GlueTask, part: str, path: Path) -> list[Row]:
    is_test = part.startswith("test")
    columns = None if is_test else task.columns
    rows = read_tsv(path, columns, skip_malformed=task.skip_malformed and not is_test)
    names = [task.text, *([task.pair] if task.pair else []), *([] if is_test else [task.label])]
    check_columns(rows, names, path)
    return rows


def write_glue_submission(
    name: str,
    folder: str | Path,
    predictions: Mapping[str, Sequence[int | float]],
    label_names: Sequence[str] | None = None,
) -> tuple[Path, ...]:
    """Write the files that the server of GLUE takes.

    Args:
      name: of the task.
      folder: to write to; it is made.
      predictions: part (`test`, for MNLI also `test_mismatched` and `test_diagnostic`) -> one
        prediction for every row of the official file, in its order: the place of a class, or the
        number of a regression.
      label_names: what the places mean; None takes the task's own names.

    Returns:
      The files: a head line `index<TAB>prediction`, names of classes where GLUE has names, numbers
      with three decimals, kept within 0 to 5, for STS-B.

    Raises:
      ValueError: if a part has no file, a name is none of the task's, or a place is out of range.
    """
    task = GLUE.get(name)
    if task is None:
        raise ValueError(f"no task {name!r} of GLUE; there are {', '.join(GLUE)}")
    if unknown := sorted(set(predictions) - set(task.submission)):
        raise ValueError(f"{name} hands in {sorted(task.submission)}; got parts {unknown}")
    names = list(task.label_names if label_names is None else label_names)
    if sorted(names) != sorted(task.label_names):
        raise ValueError(f"label_names={names}; wanted {list(task.label_names)} in any order")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part, values in predictions.items():
        texts = [_prediction(value, names, place) for place, value in enumerate(values)]
        lines = "".join(f"{place}\t{text}\n" for place, text in enumerate(texts))
        path = folder / task.submission[part]
        path.write_text(f"index\tprediction\n{lines}", "utf-8")
        written.append(path)
    if missing := sorted(set(task.submission) - set(predictions)):
        warnings.warn(f"{name} also hands in {missing}; no predictions were given", stacklevel=2)
    return tuple(written)


def _prediction(value: int | float, names: Sequence[str], place: int) -> str:
    if not names:
        return f"{min(max(float(value), 0.0), 5.0):.3f}"
    if not 0 <= value < len(names) or int(value) != value:
        raise ValueError(f"prediction {value} of row {place} is not one of {len(names)} classes")
    return names[int(value)]
