"""Settings of the task: what loss is learned by."""

import dataclasses

from experiments.federated.settings.checks import not_a_factory, refuse


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What clients minimise.

    Attributes:
      factory: a function that makes the task, as `package.module:function`; a module of the current
        directory will do. It is called as `jaxlab.federated.classification` is, with module, shape
        of an input and `prepare`. Empty takes the cross entropy of classes, least squares of
        numbers.
    """

    factory: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) if it names no function."""
        if self.factory:
            refuse(not_a_factory("factory", self.factory, "my_package.my_module:make_task"))
