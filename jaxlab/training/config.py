"""Settings of the loop: how long, how many rows a step, how often to look and to save."""

import dataclasses

from jaxlab.checkpoints.run import check_retention


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a run goes, whatever it trains.

    Attributes:
      num_steps: updates of the whole run; it stops exactly there.
      global_batch_size: examples of one update, over all devices and processes.
      microbatch_size: examples that go through the model at once, over all devices; must divide
        global_batch_size. None takes the whole batch.
      seed: seed of the run: initial parameters and the key of every step.
      log_every_steps: updates between two records of the training metrics.
      eval_every_steps: updates between two rounds of evaluators that name no interval of their
        own; 0 evaluates at the end only.
      save_every_steps: updates between two checkpoints; 0 saves at the end only. A run that is told
        to stop saves as well.
      keep_last: newest checkpoints that are kept.
      keep_best: checkpoints kept beside them, those with the best `best_metric`; 0 keeps none.
        Where an evaluation finds one of the best, it is saved there.
      best_metric: name of the evaluated metric that ranks checkpoints.
      best_mode: "max" if larger is better, "min" if smaller is.
      patience: evaluations of `best_metric` in a row that find nothing better, after which the run
        ends before num_steps; 0 never ends it early.
      continue_from: workdir of another run whose newest checkpoint (parameters, optimizer, step) a
        fresh workdir starts from; "" for none.
    """

    num_steps: int
    global_batch_size: int
    microbatch_size: int | None = None
    seed: int = 0
    log_every_steps: int = 10
    eval_every_steps: int = 0
    save_every_steps: int = 0
    keep_last: int = 2
    keep_best: int = 0
    best_metric: str = ""
    best_mode: str = "max"
    patience: int = 0
    continue_from: str = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: listing every field that is out of range.
        """
        errors = [
            f"{name}={getattr(self, name)} must be at least {least}"
            for name, least in (
                ("num_steps", 1),
                ("global_batch_size", 1),
                ("log_every_steps", 1),
                ("eval_every_steps", 0),
                ("save_every_steps", 0),
                ("patience", 0),
            )
            if getattr(self, name) < least
        ]
        if self.patience and not self.best_metric:
            errors.append(
                f"patience={self.patience} needs best_metric, the metric that is to improve"
            )
        size = self.microbatch_size
        if size is not None and (size < 1 or self.global_batch_size % size):
            errors.append(
                f"microbatch_size={size} does not divide global_batch_size="
                f"{self.global_batch_size}; use a divisor, or None for the whole batch"
            )
        try:
            check_retention(self.keep_last, self.keep_best, self.best_metric, self.best_mode)
        except ValueError as error:
            errors.append(str(error))
        if errors:
            raise ValueError("TrainConfig: " + "; ".join(errors))

    @property
    def num_microbatches(self) -> int:
        """Parts that a batch goes through the model in."""
        return self.global_batch_size // (self.microbatch_size or self.global_batch_size)
