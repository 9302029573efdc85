"""Settings of the model."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, not_a_factory, refuse

ModelName = Literal[
    "logistic", "linear", "mlp", "convnet2", "convnet5", "vgg11", "lstm", "resnet",
    "matrix_factorization", "simclr", "own",
]  # fmt: skip

# Setting -> the models that read it; with others it is refused.
MODEL_USES: dict[str, tuple[str, ...]] = {
    "widths": ("mlp",),
    "hidden": ("convnet2", "convnet5", "vgg11", "lstm", "simclr"),
    "blocks": ("resnet", "simclr"),
    "stages": ("resnet", "simclr"),
    "dropout": ("mlp", "convnet2", "convnet5", "vgg11", "lstm"),
    "use_norm": ("mlp", "convnet2"),
    "features": ("matrix_factorization",),
    "factory": ("own",),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is learned.

    Attributes:
      name: `logistic` (a linear layer) and `mlp` (hidden layers of `widths`) take any input;
        `convnet2` and `convnet5` (so many convolutions), `vgg11` and `resnet` (ResNet-18) take
        pictures, `lstm` texts, `matrix_factorization` pairs of a user and an item; `linear` is
        least squares for targets that are numbers; `simclr`, a ResNet-18 with a projector of
        `hidden` for `task.name='contrastive'`; `own` is what `factory` makes.
      factory: the function that makes the model `own`, as `package.module:function`; a module of
        the current directory will do. It is called with the `DataInfo` of the data and returns a
        Linen module that is called as `module(x, train=...)`.
      widths: of the hidden layers of `mlp`.
      hidden: width of the hidden linear layers, or of the state of `lstm`; 0 takes the original's.
      blocks: of every stage of `resnet` and `simclr`.
      stages: channels of their stages.
      dropout: rate.
      use_norm: normalise over the batch.
      features: numbers of a user and of an item.
      start: variables to start from, a checkpoint of FederatedScope or `model.safetensors` of a
        run; empty draws them.
    """

    name: ModelName = "logistic"
    factory: str = ""
    widths: tuple[int, ...] = (200, 200)
    hidden: int = 0
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stages: tuple[int, ...] = (64, 128, 256, 512)
    dropout: float = 0.0
    use_norm: bool = False
    features: int = 20
    start: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = misplaced(self, "name", MODEL_USES) + below(self, features=1)
        problems += negative(self, "hidden")
        if self.name == "own":
            problems += not_a_factory("factory", self.factory, "my_package.my_module:make_model")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        problems += [
            f"{name}={getattr(self, name)} must be at least 1 each"
            for name in ("widths", "blocks", "stages")
            if any(number < 1 for number in getattr(self, name))
        ]
        if len(self.blocks) != len(self.stages):
            problems.append(f"blocks={self.blocks} and stages={self.stages} differ in number")
        refuse(problems)
