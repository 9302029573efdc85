"""Settings of the task: what loss is learned by."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, not_a_factory, refuse

# Setting -> the tasks that read it; with others it is refused.
TASK_USES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("temperature", "crop", "flip", "color", "gray", "blur", "noise"), ("contrastive",)
)


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What clients minimise.

    Attributes:
      name: `labels`, the cross entropy of classes or least squares of numbers; `contrastive`, two
        views of an input are to be alike, for `model.name='simclr'` or a model of one's own that
        gives projections (FedSimCLR; with `algorithm.name='fed_gc'` FedGC).
      factory: a function that makes the task in place of that, as `package.module:function`; a
        module of the current directory will do. It is called as `jaxlab.federated.classification`
        is, with module, shape of an input and `prepare`.
      temperature: that cosines are divided by.
      crop: least share of a picture in a view of it.
      flip: probability of a mirror image.
      color: largest relative change of brightness, contrast and colours.
      gray: probability of a view without colours.
      blur: probability of a blurred view.
      noise: standard deviation of what is added to inputs that are no pictures.
    """

    factory: str = ""
    name: Literal["labels", "contrastive"] = "labels"
    temperature: float = 0.1
    crop: float = 0.5
    flip: float = 0.5
    color: float = 0.4
    gray: float = 0.2
    blur: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = misplaced(self, "name", TASK_USES) + below(self, temperature=0)
        if self.factory:
            problems += not_a_factory("factory", self.factory, "my_package.my_module:make_task")
        if self.factory and self.name != "labels":
            problems.append(f"factory={self.factory!r} takes the place of name={self.name!r}")
        problems += [
            f"{name}={getattr(self, name)} must be in [0, 1]"
            for name in ("crop", "flip", "color", "gray", "blur")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not self.crop:
            problems.append("crop=0.0 must be above 0")
        if not self.noise >= 0:
            problems.append(f"noise={self.noise} must not be negative")
        refuse(problems)

    @property
    def has_own_scores(self) -> bool:
        """Whether what is measured beside the loss follows from the task, and not from labels."""
        return bool(self.factory) or self.name == "contrastive"
