"""Plain text to learn a language from, without labels: what task-agnostic distillation reads."""

from pathlib import Path

from jaxlab.data.texts.examples import TextData, TextExample, TextInfo, hold_out, text_data
from jaxlab.data.texts.files import checksums, read_text

_SUFFIXES = (".txt", ".text")


def load_corpus(folder: str | Path, *, max_words: int = 0) -> TextData:
    """The lines of text files, a text each.

    All texts are held in the memory of every process, about 200 bytes each beside their characters,
    and all their ids when they are tokenised, in lists of Python at first: some 60 bytes a token.
    That is for millions of lines, not for a whole crawl: give larger corpora in parts.

    Args:
      folder: with `.txt` files, read in the order of their names; or one such file.
      max_words: cut longer lines into texts of so many words (separated by white space); 0 leaves
        lines as they are: a tokenizer then cuts them, and what is behind the cut is not learnt.

    Returns:
      A data set without labels, a tenth of it held out for validation and nothing for a test; ids
      count its texts.

    Raises:
      FileNotFoundError: if there is no such folder, or no text file in it.
      ValueError: if there is no text in the files.
    """
    paths = _text_files(Path(folder).expanduser())
    texts = [
        text
        for path in paths
        for line in read_text(path).splitlines()
        for text in _cut(line.split(), max_words)
    ]
    if not texts:
        raise ValueError(f"{folder}: {len(paths)} files and no text in them; wanted a text a line")
    examples = [TextExample(i, text) for i, text in enumerate(texts)]
    train, validation = hold_out(examples)
    info = TextInfo(str(folder), checksums=checksums(paths), counts={"texts": len(texts)})
    parts = {"train": train, "validation": validation, "test": ()}
    return text_data("corpus", "language_modelling", parts, (), info)


def _text_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder and no file; give one with a text a line")
    paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} has no file {' or '.join('*' + s for s in _SUFFIXES)}")
    return paths


def _cut(words: list[str], max_words: int) -> list[str]:
    """The words of a line as texts; nothing of an empty one."""
    size = max_words or max(len(words), 1)
    return [" ".join(words[i : i + size]) for i in range(0, len(words), size)]
