"""Stages of training whose length is given in passes over the data."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Literal, TypeVar

import jax

from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.training import TrainConfig, TrainState
from jaxlab.training.resume import CHECKPOINTS

logger = logging.getLogger(__name__)

Stage = TypeVar("Stage", bound="EpochConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochConfig(TrainConfig):
    """A stage of training, as long as `num_steps` or `num_epochs` says.

    Attributes:
      num_steps: updates of the stage; it stops exactly there. 0 leaves it to `num_epochs`.
      num_epochs: passes over the data; turned into steps when their number is known, where
        `num_steps` is 0.
      eval_every_epochs: passes between two evaluations, beside `eval_every_steps`; 0 is none.
      save_every_epochs: passes between two checkpoints, in place of `save_every_steps`; 0 leaves it
        to that.
      result: which model the stage ends with: the `last` one, or the `best` by `best_metric`.
    """

    num_steps: int = 0
    num_epochs: float = 0.0
    eval_every_epochs: float = 0.0
    save_every_epochs: float = 0.0
    result: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: listing every field that is out of range, and that the stage has no length.
        """
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))
        if self.num_steps or not self.num_epochs:
            super().__post_init__()
        else:  # the number of steps is not known yet: check all else
            dataclasses.replace(self, num_steps=1)

    def _problems(self) -> list[str]:
        problems = [
            f"{name}={getattr(self, name)} is negative; 0 switches it off"
            for name in ("num_epochs", "eval_every_epochs", "save_every_epochs")
            if not getattr(self, name) >= 0
        ]
        if self.num_steps == 0 and self.num_epochs == 0:
            problems.append("num_steps=0 and num_epochs=0: wanted one of them positive")
        if self.result == "best" and not self.keep_best:
            problems.append("result='best' needs keep_best=1 or more, and best_metric")
        return problems

    def with_steps(self: Stage, steps_per_epoch: int) -> Stage:
        """The stage with epochs turned into steps.

        Args:
          steps_per_epoch: updates of one pass over the data, at least 1.

        Returns:
          The stage with `num_steps`, `eval_every_steps` and `save_every_steps` filled in where they
          were given in epochs; itself where nothing was.
        """
        if self.num_steps and self.num_epochs:
            logger.info(
                "num_steps=%d is the length; num_epochs=%g counts where that is 0",
                self.num_steps, self.num_epochs,
            )  # fmt: skip
        steps = {
            "num_steps": self.num_steps or _steps_of(self.num_epochs, steps_per_epoch),
            "eval_every_steps": self.eval_every_steps
            or _steps_of(self.eval_every_epochs, steps_per_epoch),
            "save_every_steps": _steps_of(self.save_every_epochs, steps_per_epoch)
            or self.save_every_steps,
        }
        return dataclasses.replace(self, **steps)

    @property
    def counts_epochs(self) -> bool:
        """Whether a length or an interval is given in epochs."""
        given = (self.num_epochs and not self.num_steps, self.eval_every_epochs)
        return any((*given, self.save_every_epochs))


def chosen_state(stage: EpochConfig, workdir: Path, last: TrainState) -> TrainState:
    """The state that a stage ends with: the last one, or the best that was kept.

    Args:
      stage: the stage.
      workdir: its folder.
      last: the state after the last step.
    """
    if stage.result == "last":
        return last
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), last
    )
    with RunCheckpoints(
        workdir / CHECKPOINTS,
        keep_best=stage.keep_best,
        best_metric=stage.best_metric,
        best_mode="min" if stage.best_mode == "min" else "max",
        read_only=True,
    ) as checkpoints:
        best = checkpoints.best_step()
        logger.info("%s: taking the model of step %s, the best by %s", workdir, best,
                    stage.best_metric)  # fmt: skip
        return checkpoints.restore_best(target)


def _steps_of(epochs: float, steps_per_epoch: int) -> int:
    return max(1, math.floor(epochs * steps_per_epoch)) if epochs else 0
