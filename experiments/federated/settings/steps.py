"""Settings of the steps: those of the clients in a round, and that of the server after it."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, refuse
from jaxlab.federated import Schedule

# Setting -> the optimizers that read it; with others it is refused.
LOCAL_USES: dict[str, tuple[str, ...]] = {"momentum": ("sgd",)}
_ADAPTIVE = ("adam", "adagrad", "yogi")
SERVER_USES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("sgd", *_ADAPTIVE),
    "momentum": ("sgd",),
    "b1": _ADAPTIVE,
    "b2": ("adam", "yogi"),
    "tau": _ADAPTIVE,
    "decay_every_rounds": ("sgd",),
    "decay": ("sgd",),
}


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
        problems = misplaced(self, "optimizer", LOCAL_USES)
        problems += below(self, batch_size=1, amount=1, learning_rate=0)
        problems += negative(self, "weight_decay", "clip_norm")
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum={self.momentum} must be in [0, 1)")
        refuse(problems)

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
        problems = misplaced(self, "optimizer", SERVER_USES)
        problems += below(self, learning_rate=0, tau=0, decay=0)
        problems += negative(self, "decay_every_rounds")
        problems += [
            f"{name}={getattr(self, name)} must be in [0, 1)"
            for name in ("momentum", "b1", "b2")
            if not 0 <= getattr(self, name) < 1
        ]
        refuse(problems)
