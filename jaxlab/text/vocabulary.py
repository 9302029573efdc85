"""Vocabularies of WordPiece tokenizers: one entry per line, the line number is the id."""

import hashlib
from importlib import resources
from pathlib import Path

CHINESE_VOCABULARY_SHA256 = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def load_chinese_vocabulary() -> tuple[str, ...]:
    """The 21,128 entries of Chinese BERT in the order of their ids, from the file that ships here.

    Raises:
      ValueError: if the shipped file was changed (SHA-256 differs).

    Example:
      >>> vocabulary = load_chinese_vocabulary()
      >>> len(vocabulary), vocabulary[101], vocabulary.index("龟")
      (21128, '[CLS]', 7991)
    """
    data = resources.files("jaxlab.text").joinpath("assets", "vocab.txt").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != CHINESE_VOCABULARY_SHA256:
        raise ValueError(
            f"jaxlab/text/assets/vocab.txt has SHA-256 {digest}, expected "
            f"{CHINESE_VOCABULARY_SHA256}; the file was changed, reinstall jaxlab"
        )
    return split_entries(data.decode("utf-8"))


def read_vocabulary(path: str | Path) -> tuple[str, ...]:
    """The entries of a vocabulary file (UTF-8, one entry per line) in the order of their ids.

    Args:
      path: the file; lines end with a newline, with or without a carriage return before it.

    Returns:
      The entries; the position of an entry is its id.

    Raises:
      ValueError: if an entry occurs twice, or a token of `SPECIAL_TOKENS` is missing; the message
        names the file, the line and the entry.
    """
    entries = split_entries(Path(path).read_text(encoding="utf-8"))
    first_line: dict[str, int] = {}
    for line, entry in enumerate(entries, start=1):
        if entry in first_line:
            raise ValueError(
                f"{path}, line {line}: entry {entry!r} is already on line {first_line[entry]}; "
                "an entry has one id, remove one of the two"
            )
        first_line[entry] = line
    missing = [token for token in SPECIAL_TOKENS if token not in first_line]
    if missing:
        raise ValueError(
            f"{path}: {len(entries)} entries without {', '.join(missing)}; a WordPiece vocabulary "
            f"needs {', '.join(SPECIAL_TOKENS)}, one entry per line"
        )
    return entries


def split_entries(content: str) -> tuple[str, ...]:
    """The lines of a vocabulary, split at newlines only.

    `str.splitlines` also splits at U+2028, which two entries of the Chinese vocabulary hold, and
    would shift every id after the first of them.
    """
    lines = content.replace("\r\n", "\n").split("\n")
    return tuple(lines[:-1] if lines[-1] == "" else lines)
