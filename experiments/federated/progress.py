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
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_rounds, initial=self._round, desc=name, unit="round", dynamic_ncols=True
            )

    def __enter__(self) -> "CourseProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def timed(self) -> tuple[int, float]:
        """Clients and seconds of the second half of the rounds, when programs are compiled."""
        recent = self.rounds[len(self.rounds) // 2 :]
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
        elif now - self._said > PLAIN_EVERY_S or server.round == self.num_rounds:
            self._said = now
            logger.info("%s", self.line(state))

    def pause(self) -> None:
        """Leaves the time until the next update out, as that of a checkpoint."""
        self._last = time.monotonic()

    def line(self, state: CourseState) -> str:
        """`sync: round 40/100, 12,345 virtual s, 2,100 clients/s, test/accuracy 0.912`."""
        return f"{self.name}: round {state.server.round}/{self.num_rounds}, {self._status(state)}"

    def _status(self, state: CourseState) -> str:
        parts = []
        if state.server.clock_us:
            parts.append(f"{state.server.clock_us / 1e6:,.0f} virtual s")
        clients, seconds = self.timed
        parts.append(f"{clients / seconds:,.4g} clients/s" if seconds else "")
        if state.server.evaluations:
            value = state.server.evaluations[-1].metrics.get(self.metric)
            parts.append("" if value is None else f"{self.metric} {value:.4f}")
        return ", ".join(filter(None, parts))
