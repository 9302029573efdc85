"""Sentences with a tag a word, in the columns of CoNLL-2003.

References:
  Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task".
"""

from pathlib import Path

from jaxlab.data.texts.examples import TaggedExample, TextData, TextInfo, count_parts, text_data
from jaxlab.data.texts.files import checksums, find_files, raise_problems, read_text

_PARTS = {
    "train": ("train.txt", "eng.train"),
    "validation": ("valid.txt", "dev.txt", "eng.testa"),
    "test": ("test.txt", "eng.testb"),
}

Sentence = tuple[tuple[str, ...], tuple[str, ...]]
"""Words, and their tags."""


def load_conll(folder: str | Path, *, column: int = -1, name: str = "conll2003") -> TextData:
    """A data set of tagged sentences.

    Args:
      folder: with `train.txt`, `valid.txt` and `test.txt`, or the names of the shared task.
      column: of the tags; the last one holds the named entities, 1 the parts of speech.
      name: of the data set.

    Returns:
      The data set; `label_names` are the sorted tags, `O` first.

    Raises:
      FileNotFoundError: naming all files that are missing.
      ValueError: naming file and line of rows without a tag, or if there is only one tag.
    """
    paths = find_files(folder, _PARTS)
    sentences = {part: read_conll(path, column=column) for part, path in paths.items()}
    tags = {tag for part in sentences.values() for _, tags in part for tag in tags}
    label_names = tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
    if len(label_names) < 2:
        raise ValueError(f"{folder}: the only tag is {label_names}; is {column} its column?")
    places = {tag: place for place, tag in enumerate(label_names)}
    parts: dict[str, tuple[TaggedExample, ...]] = {}
    first_id = 0
    for part, found in sentences.items():
        parts[part] = tuple(
            TaggedExample(first_id + i, words, tuple(places[tag] for tag in tags))
            for i, (words, tags) in enumerate(found)
        )
        first_id += len(found)
    info = TextInfo(
        str(folder), "Reuters corpus agreement", checksums(paths.values()), count_parts(parts)
    )
    return text_data(name, "tagging", parts, label_names, info)


def read_conll(path: str | Path, *, column: int = -1) -> tuple[Sentence, ...]:
    """The sentences of a file: a word a line, its columns after white space, empty lines between.

    Args:
      path: the file; lines that begin with `-DOCSTART-` are left out.
      column: of the tags.

    Raises:
      ValueError: naming file and line of rows that have no such column, or if nothing is left.
    """
    path = Path(path)
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    problems = []
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            if words:
                sentences.append((tuple(words), tuple(tags)))
            words, tags = [], []
        elif len(fields) < 2 or not -len(fields) <= column < len(fields):
            problems.append(f"{path}:{number}: {len(fields)} columns")
        else:
            words.append(fields[0])
            tags.append(fields[column])
    raise_problems(problems, f"wanted a word and columns up to {column}, separated by spaces")
    if not sentences:
        raise ValueError(f"{path} has no sentences")
    return tuple(sentences)
