"""Settings of what is put on top of an algorithm: personal parts, compression, averaging."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, negative, refuse


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
        problems = negative(self, "tune_amount", "tune_rate")
        if not self.tune_amount:
            problems += [
                f"{name}={getattr(self, name)!r} needs tune_amount of at least 1"
                for name in ("tune_rate", "tune_entries", "tune_anew")
                if getattr(self, name)
            ]
        refuse(problems)


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
        refuse(problems)


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
        refuse(negative(self, "start_round") + below(self, every_rounds=1))
