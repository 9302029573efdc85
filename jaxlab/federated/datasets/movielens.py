"""Ratings of films: files of MovieLens and Netflix, and the 100,000 of package `recbole`.

The licence of MovieLens allows no copies to be passed on; the ratings are read where the package is
installed.

References:
  Harper, Konstan 2015, "The MovieLens Datasets", ACM TiiS 5(4);
  `federatedscope/mf/dataset/movielens.py` of FederatedScope 0.3.0 (horizontal: by users; vertical:
  by items).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from jaxlab.federated.datasets.federated_data import (
    CentralData,
    DataInfo,
    FederatedData,
    Shares,
    federate,
)
from jaxlab.federated.datasets.installed import installed_file
from jaxlab.federated.splitters import Split, split_by_key, split_iid

PACKAGE = "recbole"
INSTALL = '--no-deps "recbole>=1.2.1"'
"""Without what it depends on (torch, ray): only its data is read."""

_MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
_SHARES: Shares = (0.9, 0.0, 0.1)
_LICENCE = "GroupLens: research, no redistribution"


class Ratings(NamedTuple):
    """Who rated what, and how.

    Attributes:
      users: number of the user of every rating, from 0.
      items: number of the item.
      ratings: the rating.
      user_ids: the user's name in the file, in the order of the numbers.
      item_ids: the item's.
    """

    users: Int32[np.ndarray, " ratings"]
    items: Int32[np.ndarray, " ratings"]
    ratings: Float32[np.ndarray, " ratings"]
    user_ids: Shaped[np.ndarray, " users"]
    item_ids: Shaped[np.ndarray, " items"]


def load_movielens(
    path: str | Path | None = None,
    *,
    by: Literal["user", "item"] = "user",
    num_clients: int | None = None,
    shares: Shares = _SHARES,
    seed: int = 0,
) -> FederatedData:
    """MovieLens, one client a user, or a group of users or of items.

    Args:
      path: `ratings.dat` (1M, 10M), `u.data` (100K), `ratings.csv` (newer ones), RecBole's
        `.inter` or a file of Netflix; None takes the 100K ratings of the installed package.
      by: what a client has all ratings of.
      num_clients: random groups of equal size; None makes every user (item) a client.
      shares: of training, validation and test, of every client's ratings.
      seed: of groups and shares.

    Returns:
      `x` (2,) int32, numbers of user and item, and `y` float32.

    Raises:
      ModuleNotFoundError: if the package is needed and not installed.
      FileNotFoundError: if there is no file.
      ValueError: if a line cannot be read, or there are more clients than users (items).
    """
    source = str(path)
    if path is None:
        path, version = installed_file(PACKAGE, _MEMBER, INSTALL)
        source = f"{PACKAGE} {version}"
    table = read_ratings(path)
    arrays = {"x": np.stack([table.users, table.items], axis=1), "y": table.ratings}
    owners, ids = (table.users, table.user_ids) if by == "user" else (table.items, table.item_ids)
    split, numbers = split_by_key(owners)
    names = [str(ids[number]) for number in numbers]
    if num_clients is not None:
        split = _group(split, num_clients, seed)
        names = [str(number + 1) for number in range(num_clients)]
    data = CentralData(DataInfo("movielens", source, _LICENCE), arrays)
    return federate(data, split, shares=shares, names=names, seed=seed)


def read_ratings(path: str | Path) -> Ratings:
    """The ratings of a file of MovieLens or of the Netflix prize.

    The form is told by the first line: `::`, tabulators or commas between the fields, with or
    without a head; the first three fields are user, item and rating. In Netflix's files
    (`combined_data_1.txt`, `mv_0000001.txt`) a line `item:` stands before the ratings of an item,
    which begin with user and rating.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the first line that is not of this form.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; place a file of MovieLens ratings there")
    lines = path.read_text("utf-8").splitlines()
    is_netflix = bool(lines) and re.fullmatch(r"\d+:", lines[0]) is not None
    rows = list(_netflix_rows(path, lines) if is_netflix else _movielens_rows(path, lines))
    if not rows:
        raise ValueError(f"{path} has {len(lines)} lines and no ratings; wanted one a line")
    users, items, ratings = zip(*rows, strict=True)
    user_ids, user_numbers = np.unique(users, return_inverse=True)
    item_ids, item_numbers = np.unique(items, return_inverse=True)
    return Ratings(
        user_numbers.astype(np.int32),
        item_numbers.astype(np.int32),
        np.asarray(ratings, np.float32),
        user_ids,
        item_ids,
    )


def _movielens_rows(path: Path, lines: Sequence[str]) -> Iterable[tuple[int, int, float]]:
    head = lines[0] if lines else ""
    mark = next((mark for mark in ("::", "\t", ",") if mark in head), "\t")
    first = 0 if head.split(mark)[0].strip().isdigit() else 1
    for number, line in enumerate(lines[first:], start=first + 1):
        try:
            user, item, rating, *_ = line.split(mark)
            yield int(user), int(item), float(rating)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line!r}; wanted user, item and rating between {mark!r}"
            ) from None


def _netflix_rows(path: Path, lines: Sequence[str]) -> Iterable[tuple[int, int, float]]:
    item = 0
    for number, line in enumerate(lines, start=1):
        try:
            if line.endswith(":"):
                item = int(line[:-1])
                continue
            user, rating, *_ = line.split(",")
            yield int(user), item, float(rating)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line!r}; wanted 'item:', or user and rating between ','"
            ) from None


def _group(split: Split, num_clients: int, seed: int) -> Split:
    groups = split_iid(len(split), num_clients, seed=seed)
    return [np.concatenate([split[owner] for owner in group]) for group in groups]
