"""Text in the JSON format of LEAF: Shakespeare, Sent140 and Reddit.

References:
  Caldas et al. 2018, arXiv:1812.01097; `federatedscope/nlp/dataset` of FederatedScope 0.3.0.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.federated.client_data import gather_clients
from jaxlab.federated.datasets.characters import SYMBOLS, encode_text
from jaxlab.federated.datasets.federated_data import Arrays, DataInfo, FederatedData
from jaxlab.federated.datasets.leaf import (
    LeafUser,
    LeafUsers,
    choose_users,
    federate_leaf,
    read_leaf,
)

UNKNOWN = "<UNK>"
"""The word for all words that a vocabulary lacks."""

SENT140_MIN_SIZE = 51
"""Users of Sent140 with 50 messages or fewer are left out, as in the original."""

_WORDS = re.compile(r"[\w']+|[.,!?;]")
_CONTENT = 4
"""Place of the text in a row of Sent140: id, date, query, user, text."""


def load_leaf_shakespeare(path: str | Path, *, min_size: int = 3, **options: Any) -> FederatedData:
    """LEAF's Shakespeare: the character after 80 characters, one client a role.

    Args:
      path: see `federate_leaf`.
      min_size: roles with fewer windows are left out.
      **options: `shares`, `subsample`, `seed` of `federate_leaf`.

    Returns:
      `x` (80,) uint8 and `y` int32, 80 classes.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: if the files cannot be read, or windows differ in length.
    """

    def encode(user: LeafUser) -> Arrays:
        lengths = {len(text) for text in user.x}
        targets = {len(text) for text in user.y}
        if len(lengths) != 1 or targets != {1}:
            raise ValueError(
                f"x has texts of {sorted(lengths)[:4]} characters and y of {sorted(targets)[:4]}; "
                "wanted one length, and one character"
            )
        x = encode_text("".join(user.x)).reshape(len(user.x), -1)
        return {"x": x, "y": encode_text("".join(user.y)).astype(np.int32)}

    info = DataInfo("shakespeare", str(path), "public domain", len(SYMBOLS))
    return federate_leaf(path, info, encode, min_size=min_size, **options)


def load_leaf_sent140(
    path: str | Path,
    vocabulary: Sequence[str],
    *,
    min_size: int = SENT140_MIN_SIZE,
    **options: Any,
) -> FederatedData:
    """LEAF's Sent140: whether a message is positive, from its bag of words, one client a user.

    Args:
      path: see `federate_leaf`; inputs are rows of id, date, query, user, text.
      vocabulary: words that count, such as the entry `vocab` of LEAF's `embs.json`.
      min_size: users with fewer messages are left out.
      **options: `shares`, `subsample`, `seed` of `federate_leaf`.

    Returns:
      `x` (words,) float32, how often each occurs, and `y` int32, 2 classes.

    Raises:
      FileNotFoundError: if there are no files.
      ValueError: if the files cannot be read.
    """
    places = {word: place for place, word in enumerate(vocabulary)}

    def encode(user: LeafUser) -> Arrays:
        x = np.zeros((len(user.x), len(places)), np.float32)
        for row, message in enumerate(user.x):
            if not isinstance(message, list) or len(message) <= _CONTENT:
                raise ValueError(
                    f"message {row} is {message!r}; wanted [id, date, query, user, text]"
                )
            for word in _WORDS.findall(str(message[_CONTENT])):
                if word in places:
                    x[row, places[word]] += 1
        return {"x": x, "y": np.array([label == 1 for label in user.y], np.int32)}

    info = DataInfo("sent140", str(path), "", 2)
    return federate_leaf(path, info, encode, min_size=min_size, **options)


def load_leaf_reddit(
    path: str | Path,
    *,
    vocabulary: Sequence[str] | None = None,
    num_words: int = 10_000,
    subsample: float = 1.0,
    seed: int = 0,
) -> FederatedData:
    """LEAF's Reddit: the last word of a stretch of ten after those before it, one client a user.

    The files make the cut: their names begin with `train`, `val` and `test`.

    Args:
      path: the folder with the JSON files.
      vocabulary: the words; the first stands for unknown ones. None takes the `num_words - 1` most
        frequent ones of the training files (LEAF's own list is a pickle, which is not read).
      num_words: size of the vocabulary that is counted.
      subsample: share of the training files' users.
      seed: of the subsample.

    Returns:
      `x` (words,) int32, `y` int32, as many classes as words.

    Raises:
      FileNotFoundError: if there are no training files.
      ValueError: if the files cannot be read.
    """
    parts = {name: _reddit_users(Path(path), name) for name in ("train", "val", "test")}
    users = choose_users(parts["train"], subsample, seed=seed)
    words = vocabulary or _frequent_words(users.values(), num_words)
    places = {word: place for place, word in enumerate(words)}

    def encode(part: LeafUsers) -> tuple[Arrays, list[np.ndarray]]:
        x, y, split = [], [], []
        for name in users:
            start = len(y)
            for sequence, target in _reddit_sequences(part.get(name)):
                x.append([places.get(word, 0) for word in sequence])
                y.append(places.get(target, 0))
            split.append(np.arange(start, len(y)))
        lengths = {len(row) for row in x}
        if len(lengths) > 1:
            raise ValueError(
                f"{path} has sequences of {sorted(lengths)[:4]} words; wanted one length"
            )
        width = lengths.pop() if lengths else 0
        return {
            "x": np.array(x, np.int32).reshape(len(x), width),
            "y": np.array(y, np.int32),
        }, split

    train, val, test = (gather_clients(*encode(part)) for part in parts.values())
    info = DataInfo("reddit", str(path), "", len(places))
    return FederatedData(info, tuple(users), train, val, test)


def _reddit_users(folder: Path, part: str) -> LeafUsers:
    files = sorted(folder.glob(f"{part}*.json"))
    if part == "train" and not files:
        found = "has no train*.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {found}; wanted a folder of LEAF's Reddit files, whose names begin with "
            "train, val and test"
        )
    users: LeafUsers = {}
    for file in files:
        for name, user in read_leaf(file).items():
            old = users.get(name, LeafUser([], []))
            users[name] = LeafUser([*old.x, *user.x], [*old.y, *user.y])
    return users


def _reddit_sequences(user: LeafUser | None) -> Iterable[tuple[list[str], str]]:
    """The stretches of words of a user, and the word that comes after each."""
    for comment, targets in zip(*(user or LeafUser((), ())), strict=True):
        if not isinstance(targets, dict) or "target_tokens" not in targets:
            raise ValueError(f"y has {targets!r}; wanted an object with target_tokens")
        for sequence, following in zip(comment, targets["target_tokens"], strict=True):
            yield sequence, following[-1]


def _frequent_words(users: Iterable[LeafUser], number: int) -> list[str]:
    counts = collections.Counter(
        word for user in users for comment in user.x for sequence in comment for word in sequence
    )
    counts.pop(UNKNOWN, None)
    return [UNKNOWN, *(word for word, _ in counts.most_common(number - 1))]
