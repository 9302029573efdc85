"""Settings of what is made of the updates."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, refuse

AggregatorName = Literal[
    "mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bounding",
    "geometric_median", "centered_clipping", "fl_trust",
]  # fmt: skip

# Setting -> the rules that read it; with others it is refused.
AGGREGATOR_USES: dict[str, tuple[str, ...]] = {
    "ignore_weight": ("mean",),
    "num_byzantine": ("krum", "multi_krum", "bulyan"),
    "num_selected": ("multi_krum",),
    "ratio": ("trimmed_mean",),
    "bound": ("norm_bounding",),
    "radius": ("centered_clipping",),
    "server_examples": ("fl_trust",),
    "compat": ("krum", "multi_krum", "bulyan"),
}


@dataclasses.dataclass(frozen=True)
class AggregatorConfig:
    """What is made of the updates.

    Attributes:
      name: the weighted `mean`, or a rule that a minority cannot take over: of every number by
        itself the `median` or the `trimmed_mean`; `krum`, the update nearest to the others,
        `multi_krum`, the mean of several such, `bulyan`, both together; `norm_bounding`, long
        updates are cut; `geometric_median`; `centered_clipping`, differences to a moving centre are
        cut; `fl_trust`, what points as the update of the server's own examples does.
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
        problems = misplaced(self, "name", AGGREGATOR_USES)
        problems += below(self, bound=0, radius=0, num_selected=1, server_examples=1)
        problems += negative(self, "num_byzantine")
        if not 0 <= self.ratio < 0.5:
            problems.append(f"ratio={self.ratio} must be in [0, 0.5)")
        refuse(problems)
