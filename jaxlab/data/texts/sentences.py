"""Sentence data sets with one `label text` line each, as public collections of them are stored.

References:
  Kim 2014, arXiv:1408.5882, whose data this form is from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlab.data.texts.examples import (
    TextData,
    TextExample,
    TextInfo,
    check_classes,
    count_parts,
    hold_out,
    split_every_tenth,
    text_data,
    unique_texts,
)
from jaxlab.data.texts.files import Row, checksums, find_files, raise_problems, read_text
from jaxlab.data.texts.labels import make_examples

_POLARITY = ("negative", "positive")


class SentenceSet(NamedTuple):
    """How a set is stored.

    Attributes:
      label_names: what its numbers mean.
      parts: part -> file; without a test part every tenth row is one.
    """

    label_names: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]


SENTENCES: dict[str, SentenceSet] = {
    "sentences_sst2": SentenceSet(
        _POLARITY,
        {"train": ("stsa.binary.train",), "validation": ("stsa.binary.dev",),
         "test": ("stsa.binary.test",)},
    ),
    "sentences_sst5": SentenceSet(
        ("very negative", "negative", "neutral", "positive", "very positive"),
        {"train": ("stsa.fine.train",), "validation": ("stsa.fine.dev",),
         "test": ("stsa.fine.test",)},
    ),
    "sentences_trec": SentenceSet(
        ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
        {"train": ("TREC.train.all",), "test": ("TREC.test.all",)},
    ),
    "sentences_mr": SentenceSet(_POLARITY, {"train": ("rt-polarity.all",)}),
    "sentences_subj": SentenceSet(("subjective", "objective"), {"train": ("subj.all",)}),
    "sentences_cr": SentenceSet(_POLARITY, {"train": ("custrev.all",)}),
    "sentences_mpqa": SentenceSet(_POLARITY, {"train": ("mpqa.all",)}),
}  # fmt: skip
"""Name -> set: the Stanford Sentiment Treebank, TREC questions in their official parts, movie
reviews, subjectivity, customer reviews, opinion polarity."""


def load_sentences(name: str, folder: str | Path) -> TextData:
    """A set of sentences.

    Args:
      name: one of `SENTENCES`.
      folder: with its files.

    Returns:
      The data set; ids count the rows of all files that have a text. Where there is no test part
      texts are made unique and every tenth is for the test; where there is no validation part a
      tenth of the training texts is held out.

    Raises:
      FileNotFoundError: naming all files that are missing.
      ValueError: naming all sets, or file and line of what is wrong.
    """
    if name not in SENTENCES:
        raise ValueError(f"no set {name!r} of sentences; there are {', '.join(SENTENCES)}")
    label_names, files = SENTENCES[name]
    paths = find_files(folder, files)
    parts: dict[str, Sequence[TextExample]] = {}
    first_id = copies = left_out = 0
    for part, path in paths.items():
        parts[part] = make_examples(
            _read(path), text="text", pair=None, label="label",
            label_names=tuple(map(str, range(len(label_names)))), first_id=first_id,
        )  # fmt: skip
        first_id += len(parts[part])
    if "test" not in parts:
        unique = unique_texts(parts["train"])
        copies = len(parts["train"]) - len(unique)
        parts["train"], parts["test"], left_out = split_every_tenth(unique)
    if "validation" not in parts:
        parts["train"], parts["validation"] = hold_out(parts["train"])
    check_classes(parts["train"], label_names, str(paths["train"]))
    info = TextInfo(
        str(folder),
        "public research sets",
        checksums(paths.values()),
        count_parts(parts, copies=copies, also_in_test=left_out),
    )
    return text_data(name, "classification", parts, label_names, info)


def _read(path: Path) -> list[Row]:
    """Rows of a label and a text; those without a text are left out."""
    rows, problems = [], []
    text = read_text(path, may_be_latin_1=True)  # the reviews are
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        label, _, sentence = line.strip().partition(" ")
        if sentence:
            rows.append(Row(f"{path}:{number}", {"label": label, "text": sentence}))
        elif label and not label.isdecimal():
            problems.append(f"{path}:{number}: {line[:40]!r}")
    raise_problems(problems, "wanted a label, a space and a text on each line")
    return rows
