"""Settings of the model."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, refuse

ModelName = Literal[
    "logistic", "linear", "mlp", "convnet2", "convnet5", "vgg11", "lstm", "resnet",
    "matrix_factorization",
]  # fmt: skip

# Setting -> the models that read it; with others it is refused.
_MODEL_USES: dict[str, tuple[str, ...]] = {
    "widths": ("mlp",),
    "hidden": ("convnet2", "convnet5", "vgg11", "lstm"),
    "dropout": ("mlp", "convnet2", "convnet5", "vgg11", "lstm"),
    "use_norm": ("mlp", "convnet2"),
    "features": ("matrix_factorization",),
}


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
        problems = misplaced(self, "name", _MODEL_USES) + below(self, features=1)
        problems += negative(self, "hidden")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        if any(width < 1 for width in self.widths):
            problems.append(f"widths={self.widths} must be at least 1 each")
        refuse(problems)
