"""Settings of the pace: when the server aggregates, who is asked, and how slow they are."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, refuse
from jaxlab.federated import Strategy

# Setting -> the samplers, the kinds of devices, that read it; with others it is refused.
SAMPLER_USES: dict[str, tuple[str, ...]] = {"num_groups": ("group",)}
DEVICES_USES: dict[str, tuple[str, ...]] = {
    "path": ("file",),
    "compute_ms": ("drawn",),
    "compute_spread": ("drawn",),
    "bandwidth_kbps": ("drawn",),
    "bandwidth_spread": ("drawn",),
}


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
        refuse(problems + negative(self, "min_updates"))
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
      every_rounds: its rounds between two evaluations; 0 evaluates the last model only.
    """

    strategy: StrategyConfig = StrategyConfig()
    num_rounds: int = 50
    every_rounds: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if a number is out of range."""
        refuse(below(self, num_rounds=1) + negative(self, "every_rounds"))


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
        refuse(misplaced(self, "name", SAMPLER_USES) + below(self, num_groups=1))


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
        problems = misplaced(self, "kind", DEVICES_USES)
        if self.kind == "file" and not self.path:
            problems.append("path is missing: kind='file' needs a file of device profiles")
        problems += below(self, compute_ms=0, bandwidth_kbps=0)
        problems += negative(self, "compute_spread", "bandwidth_spread")
        if not 0 <= self.failure_rate < 1:
            problems.append(f"failure_rate={self.failure_rate} must be in [0, 1)")
        refuse(problems)
