"""What a person sees while a run goes on: loss, examples per second, time left."""

import logging
import sys
import time
from typing import Any

from jaxlab.parallel import is_main_process

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0


class Progress:
    """A bar on a terminal, a log line every ten seconds elsewhere; process 0 alone shows it.

    Args:
      num_steps: updates of the whole run.
      step: updates that are done already.
      examples_per_step: size of the global batch.
      flops_per_example: operations that an example needs; 0 shows no rate of them.
    """

    def __init__(
        self, num_steps: int, step: int, examples_per_step: int, flops_per_example: float = 0.0
    ) -> None:
        self.num_steps = num_steps
        self.examples_per_step = examples_per_step
        self.flops_per_example = flops_per_example
        self._seconds_per_step: float | None = None
        self._last: float | None = None  # when the last step was seen; None after a pause
        self._said = time.monotonic()
        self._bar: Any = None
        if is_main_process() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def examples_per_s(self) -> float:
        """Recent rate, evaluations, saving and the first (compiled) step left out; 0 at first."""
        return self.examples_per_step / self._seconds_per_step if self._seconds_per_step else 0.0

    @property
    def tflops_per_s(self) -> float:
        """Recent rate in 1e12 operations a second, over all devices; 0 if it is not known."""
        return self.examples_per_s * self.flops_per_example / 1e12

    @property
    def rates(self) -> dict[str, float]:
        """The rates that are known, by the names they are logged under."""
        rates = {
            "train/examples_per_s": self.examples_per_s, "train/tflops_per_s": self.tflops_per_s,
        }  # fmt: skip
        return {name: rate for name, rate in rates.items() if rate}

    def update(self, step: int, loss: float) -> None:
        """Notes that a step's loss is known."""
        now = time.monotonic()
        if self._last is not None:
            seconds = max(now - self._last, 1e-9)
            old = self._seconds_per_step
            self._seconds_per_step = seconds if old is None else 0.95 * old + 0.05 * seconds
        self._last = now
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}, {self._rate_text()}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif is_main_process() and (now - self._said > PLAIN_EVERY_S or step == self.num_steps):
            self._said = now
            logger.info("%s", self.line(step, loss))

    def pause(self) -> None:
        """Leaves the time until the next step out of the rate."""
        self._last = None

    def say(self, text: str) -> None:
        """Shows a line without breaking the bar."""
        if self._bar is not None:
            self._bar.clear()
        if is_main_process():
            logger.info("%s", text)
        if self._bar is not None:
            self._bar.refresh()

    def line(self, step: int, loss: float) -> str:
        """`step 40/100 (40 %), loss 1.25, 800 examples/s, 0:01:30 left`."""
        text = f"step {step}/{self.num_steps} ({100 * step // self.num_steps} %), loss {loss:.4g}"
        if self._seconds_per_step:
            left = int(self._seconds_per_step * (self.num_steps - step) + 0.5)
            clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            text += f", {self._rate_text()}, {clock} left"
        return text

    def _rate_text(self) -> str:
        text = f"{self.examples_per_s:.4g} examples/s"
        return f"{text}, {self.tflops_per_s:.3g} TFLOP/s" if self.flops_per_example else text
