"""When the server aggregates, whom it sends the model to, and what a late update is worth.

* `synchronous`: it aggregates when `min_updates` of the current round have come; with fewer than
  `cohort_size` the rest of the cohort is over-selected, and comes too late;
* `goal_achieved`: when fresh and stale updates together are `min_updates`;
* `time_up`: when the time budget of the round is spent, whatever has come.

After an aggregation (`after_aggregating`) it refills the cohort, or it sends the model to one
client whenever one has answered (`after_receiving`). `goal_achieved` with `after_receiving` is
FedBuff.

References:
  Xie et al. 2023, arXiv:2204.05011, section 4; Nguyen et al. 2022, "Federated Learning with
  Buffered Asynchronous Aggregation", arXiv:2106.06639; `federatedscope/core/workers/server.py` of
  FederatedScope 0.3.0.
"""

import dataclasses

KINDS = ("synchronous", "goal_achieved", "time_up")
BROADCASTS = ("after_aggregating", "after_receiving")


class ConfigError(ValueError):
    """Settings that cannot make a course; the message gives the numbers."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a course is paced.

    Attributes:
      kind: what makes the server aggregate: `synchronous`, `goal_achieved` or `time_up`.
      cohort_size: clients that work at once.
      min_updates: updates that are aggregated; None means the whole cohort (`synchronous`) or 2.
        A synchronous course with fewer than the cohort is over-selected.
      time_budget_s: virtual seconds of a round of `time_up`.
      max_staleness: how many rounds old an update may be and still count.
      staleness_exponent: an update of staleness tau is worth (1 + tau) ** -exponent.
      broadcast: `after_aggregating` or `after_receiving`.
      over_select: `after_aggregating` samples a whole cohort again, instead of as many clients as
        have answered.
      compat: as in FederatedScope 0.3.0, a second update of a client in the same round replaces the
        first one, whose work is lost; otherwise both count.
    """

    kind: str = "synchronous"
    cohort_size: int = 1
    min_updates: int | None = None
    time_budget_s: float = 0.0
    max_staleness: int = 0
    staleness_exponent: float = 1.0
    broadcast: str = "after_aggregating"
    over_select: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ConfigError: (a ValueError) listing every field that is out of range.
        """
        problems = [
            f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}"
            for name, allowed in (("kind", KINDS), ("broadcast", BROADCASTS))
            if getattr(self, name) not in allowed
        ]
        if self.cohort_size < 1:
            problems.append(f"cohort_size={self.cohort_size} must be at least 1")
        if not 1 <= self.num_updates <= self.cohort_size:
            problems.append(
                f"min_updates={self.num_updates} must be at least 1 and at most cohort_size="
                f"{self.cohort_size}: more updates than clients that work would never come"
            )
        if self.kind == "time_up" and not self.time_budget_us > 0:
            problems.append(
                f"time_budget_s={self.time_budget_s} must be at least a microsecond for kind="
                "'time_up'"
            )
        if not isinstance(self.max_staleness, int) or self.max_staleness < 0:
            problems.append(f"max_staleness={self.max_staleness!r} must be an integer, 0 or more")
        if not self.staleness_exponent >= 0:
            problems.append(
                f"staleness_exponent={self.staleness_exponent} must not be negative: late updates "
                "would be worth more"
            )
        if self.kind == "synchronous":
            problems += [
                f"{name}={getattr(self, name)!r} is for asynchronous kinds"
                for name, default in (("broadcast", "after_aggregating"), ("max_staleness", 0))
                if getattr(self, name) != default
            ]
        if problems:
            raise ConfigError("Strategy: " + "; ".join(problems))

    @property
    def num_updates(self) -> int:
        """Updates that make the server aggregate, `min_updates` with its default."""
        if self.min_updates is not None:
            return self.min_updates
        return self.cohort_size if self.kind == "synchronous" else min(2, self.cohort_size)

    @property
    def time_budget_us(self) -> int:
        """The time budget in microseconds."""
        return round(self.time_budget_s * 1_000_000)

    @property
    def is_asynchronous(self) -> bool:
        """Whether updates may be based on older models than the server's."""
        return self.kind != "synchronous"


def staleness_weight(staleness: int, exponent: float) -> float:
    """What an update is worth whose model is some rounds old, `(1 + staleness) ** -exponent`.

    Example:
      >>> round(staleness_weight(2, 0.5), 5)
      0.57735
    """
    return float((1.0 + staleness) ** -exponent)


def check_population(strategy: Strategy, num_clients: int) -> None:
    """Checks that there are enough clients for a strategy.

    Args:
      strategy: how the course is paced.
      num_clients: clients that may be trained.

    Raises:
      ConfigError: (a ValueError) with the numbers, if a cohort could not be sampled.
    """
    if strategy.cohort_size > num_clients:
        raise ConfigError(
            f"cohort_size={strategy.cohort_size} of {num_clients} clients that train: a client "
            "works on one model at a time; use fewer"
        )
    left = num_clients - (strategy.cohort_size - strategy.num_updates)
    refills_all = strategy.over_select or strategy.kind == "synchronous"
    if refills_all and strategy.cohort_size > left:
        raise ConfigError(
            f"cohort_size={strategy.cohort_size} with min_updates={strategy.num_updates} leaves "
            f"{left} of {num_clients} clients idle when the next cohort is sampled; over-selection "
            f"needs at least {2 * strategy.cohort_size - strategy.num_updates} clients"
        )
