"""What a person sees while a course goes on: round, virtual time, clients a second, accuracy."""

import logging
import sys
import time
from typing import Any

from jaxlab.federated import CourseState

logger = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0


class CourseProgress:
    """A bar on a terminal, a log line every ten seconds elsewhere; counts clients and seconds.

    Seconds of rounds and of evaluations are kept apart: clients a second are those whose update was
    aggregated, over the seconds of the rounds.

    Args:
      name: of the course.
      num_rounds: its length.
      state: where it stands.
      metric: what is shown of evaluations.
    """

    def __init__(self, name: str, num_rounds: int, state: CourseState, metric: str) -> None:
        self.name, self.num_rounds, self.metric = name, num_rounds, metric
        self.rounds: list[tuple[int, float]] = []
        self._round = state.server.round
        self._last = self._said = time.monotonic()
        self._first = state
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_rounds, initial=self._round, desc=name, unit="round", dynamic_ncols=True
            )

    def __enter__(self) -> "CourseProgress":
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(self._first))
        else:
            logger.info("%s", self.line(self._first))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def timed(self) -> tuple[int, float]:
        """Clients and seconds of the second half of the rounds, when programs are compiled."""
        recent = self.rounds[(len(self.rounds) + 1) // 2 :] or self.rounds
        return sum(clients for clients, _ in recent), sum(seconds for _, seconds in recent)

    def update(self, state: CourseState) -> None:
        """Notes that the server has aggregated or evaluated."""
        now = time.monotonic()
        server = state.server
        if server.round > self._round:
            last = server.aggregations[-1]
            clients = len(last.fresh) + len(last.stale) - len(last.rejected)
            self.rounds.append((clients, now - self._last))
            self._round = server.round
        self._last = now
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(state), refresh=False)
            self._bar.update(server.round - self._bar.n)
        elif now - self._said > PLAIN_EVERY_S:
            self._said = now
            logger.info("%s", self.line(state))

    def finish(self, state: CourseState) -> None:
        """Tells how the course ended: with the last evaluation, whichever round it ended in."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(state))
        else:
            logger.info("%s", self.line(state))

    def say(self, text: str) -> None:
        """Shows a line without breaking the bar."""
        if self._bar is not None:
            self._bar.clear()
        logger.info("%s", text)

    def pause(self) -> None:
        """Leaves the time until the next update out, as that of a checkpoint."""
        self._last = time.monotonic()

    def line(self, state: CourseState) -> str:
        """`sync: round 42/100, 12,345 virtual s, 2,100 clients/s, test/accuracy 0.912 (round 40)`.

        Rates are told from the second round on: the first one is mostly compilation.
        """
        place = f"{self.name}: round {state.server.round}/{self.num_rounds}"
        return ", ".join(filter(None, (place, self._status(state))))

    def _status(self, state: CourseState) -> str:
        parts = []
        if state.server.clock_us:
            parts.append(f"{state.server.clock_us / 1e6:,.0f} virtual s")
        clients, seconds = self.timed
        if not self.rounds and state.server.round < self.num_rounds:
            parts.append("compiling ...")
        elif len(self.rounds) > 1 and seconds:
            parts.append(f"{clients / seconds:,.4g} clients/s")
        if state.server.evaluations:
            last = state.server.evaluations[-1]
            value = last.metrics.get(self.metric)
            parts.append("" if value is None else f"{self.metric} {value:.4f} (round {last.round})")
        return ", ".join(filter(None, parts))
