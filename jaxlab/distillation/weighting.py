"""The rule by which a step weighs the terms of its objective, see `fusion`.

A rule may have parameters that train along with the student (`uncertainty`), or a state that goes
through the steps (`running_mean`, `gradient_norm`). `Weighting` says which, and gives the loss.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.distillation.fusion import (
    FixedWeights,
    GradientBalance,
    LogVariances,
    RunningMeans,
    RunningState,
    Scalars,
    Terms,
)
from jaxlab.distillation.objective import Losses

HEADS = ("head", "lm_head", "pooler")
"""Parts of a student that some terms do not reach: gradients are balanced on all others."""


class Weighted(NamedTuple):
    """A batch, or a part of one, with its terms weighed.

    Attributes:
      loss: the sum.
      weights: of every term.
      state: of the rule after it.
    """

    loss: Float[Array, ""]
    weights: Scalars
    state: Any


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A rule for the terms of an objective.

    Attributes:
      kind: `fixed`, `running_mean`, `uncertainty` or `gradient_norm`.
      names: of the terms.
      every: updates after which the norms of gradients are taken anew.
    """

    kind: str
    names: tuple[str, ...]
    every: int = 1

    def check_microbatches(self, number: int) -> None:
        """Refuse parts of a batch where a rule needs all of it.

        Args:
          number: of parts.

        Raises:
          ValueError: if there is more than one, and the rule is not exact then.
        """
        if number > 1 and self.kind in ("running_mean", "gradient_norm"):
            raise ValueError(
                f"weighting={self.kind!r} needs the terms of a whole batch, and it goes through in "
                f"{number} microbatches; use one, or weighting='uncertainty' or 'fixed'"
            )

    def init_params(self) -> Scalars:
        """What trains along: `{}` but for `uncertainty`."""
        return LogVariances(self._ones).init() if self.kind == "uncertainty" else {}

    def init_state(self) -> RunningState | None:
        """The state before the first step, if the rule has one."""
        if self.kind == "running_mean":
            return RunningMeans(self._ones).init()
        return GradientBalance(self._ones).init() if self.kind == "gradient_norm" else None

    def weigh(
        self,
        losses: Losses,
        counts: Mapping[str, Array],
        learned: Mapping[str, Array],
        state: RunningState | None,
        share: float = 1.0,
    ) -> Weighted:
        """The weighted sum of the terms.

        Args:
          losses: with the settings' weights at this point of the run.
          counts: what the terms of the whole batch are means over.
          learned: parameters of the rule.
          state: of the rule, before this batch.
          share: of the batch that this is, by which a penalty counts.

        Raises:
          ValueError: if the rule has a state and none is given.
        """
        terms = {n: mean._replace(count=counts[n]) for n, mean in losses.means.items()}
        if self.kind == "uncertainty":
            fused = LogVariances(self._ones).apply(learned, terms, losses.weights, share=share)
        elif self.kind == "fixed":
            fused = self._ones.apply(terms, losses.weights)
        else:
            state = self._known(state)
            if self.kind == "running_mean":
                state, fused = RunningMeans(self._ones).update(state, terms, losses.weights)
            else:
                fused = GradientBalance(self._ones).apply(state, terms, losses.weights)
        return Weighted(fused.loss, jax.lax.stop_gradient(fused.weights), state)

    def measure(
        self,
        state: RunningState | None,
        terms_of: Callable[[PyTree], Terms],
        student: Mapping[str, PyTree],
        step: Int[Array, ""],
    ) -> RunningState | None:
        """The state with the norms of this batch, where it is time for them.

        Args:
          state: before it.
          terms_of: from the student's parameters to the terms of the batch.
          student: its parameters.
          step: updates done.

        Raises:
          ValueError: if the rule has a state and none is given.
        """
        if self.kind != "gradient_norm":
            return state
        rule, before = GradientBalance(self._ones), self._known(state)
        shared = {name: tree for name, tree in student.items() if name not in HEADS}

        def norms() -> RunningState:
            return rule.update(before, rule.norms(lambda p: terms_of({**student, **p}), shared))

        return jax.lax.cond(step % self.every == 0, norms, lambda: before)

    def _known(self, state: RunningState | None) -> RunningState:
        if state is None:
            raise ValueError(
                f"weighting={self.kind!r} keeps a state from step to step, and there is none; "
                "create the TrainState with distillation_extra(objective) as its extra"
            )
        return state

    @property
    def _ones(self) -> FixedWeights:
        return FixedWeights(tuple((name, 1.0) for name in self.names))
