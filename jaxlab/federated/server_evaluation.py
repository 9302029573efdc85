"""How the server of a course evaluates: it asks everybody, gathers metrics, and ends the course.

Evaluations go on beside the rounds: one may be under way while clients train on, and they end in
the order in which they were begun, with the last of which the course ends.

References:
  Xie et al. 2023, arXiv:2204.05011, section 3; `federatedscope/core/workers/server.py` of
  FederatedScope 0.3.0.
"""

from jaxlab.federated.messages import CONVERGED, EVALUATE, FINISH, Message
from jaxlab.federated.server_state import (
    CourseConfig,
    Evaluating,
    Evaluation,
    Reaction,
    ServerProgram,
    ServerState,
    is_known,
    make_request,
)


class Examiner:
    """Handlers and actions of evaluations over a `ServerState`; holds nothing that changes."""

    def __init__(self, config: CourseConfig, program: ServerProgram) -> None:
        """Keep what does not change.

        Args:
          config: the course.
          program: what is evaluated, and what is made of the metrics.
        """
        self.config, self.program = config, program
        self._everybody = tuple(range(1, config.num_clients + 1))

    def evaluate(self, state: ServerState) -> Reaction:
        """Ask everybody for metrics of the model as it is now."""
        content = self.program.evaluation(state.model, state.round)
        message = make_request(state, EVALUATE, self._everybody, content)
        state.evaluating.append(Evaluating(state.round, state.clock_us, message.request))
        return state, [message]

    def on_metrics(self, state: ServerState, message: Message) -> Reaction:
        """Note what a client has found, once and only for the evaluation that asked for it."""
        if not is_known(state, message):
            return state, []
        evaluating = _asked_by(state, message)
        if evaluating is None:
            state.counts["late_metrics"] += 1
        elif message.sender in evaluating.metrics or message.sender in evaluating.silent:
            state.counts["duplicate_metrics"] += 1
        else:
            evaluating.metrics[message.sender] = message.content
        return state, []

    def take_failure(self, state: ServerState, message: Message) -> bool:
        """Whether a failure is one to evaluate; the evaluation goes on without its sender then."""
        evaluating = _asked_by(state, message)
        if evaluating is None:
            return False
        if is_known(state, message):
            evaluating.silent.add(message.sender)
            state.counts["failed_evaluations"] += 1
        return True

    def is_overdue(self, state: ServerState, latest_us: int) -> bool:
        """Whether metrics are missing that were asked for by some time."""
        return any(self._waits_for(e) and e.time_us <= latest_us for e in state.evaluating)

    def give_up_waiting(self, state: ServerState, latest_us: int) -> None:
        """Go on without those who have not answered what they were asked by some time."""
        for evaluating in state.evaluating:
            if evaluating.time_us <= latest_us:
                silent = self._waits_for(evaluating)
                evaluating.silent |= silent
                state.counts["failed_evaluations"] += len(silent)

    def has_all_metrics(self, state: ServerState) -> bool:
        """Whether the oldest evaluation is answered; they end in the order of the rounds."""
        return bool(state.evaluating) and not self._waits_for(state.evaluating[0])

    def end_evaluation(self, state: ServerState) -> Reaction:
        """Merge the metrics of the oldest evaluation; the last one, or convergence, is the end."""
        ended = state.evaluating.pop(0)
        merged = self.program.merge(state.model, ended.metrics, ended.round)
        state.evaluations.append(Evaluation(ended.round, ended.time_us, merged))
        is_last = ended.round >= self.config.num_rounds
        sent: list[Message] = []
        if not is_last and self.program.is_converged(state.evaluations):
            is_last = True
            sent.append(make_request(state, CONVERGED, self._everybody, None))
        if is_last:
            state.finished = True
            state.evaluating = []
            final = self.program.final(state.model)
            sent.append(make_request(state, FINISH, self._everybody, final))
        return state, sent

    def _waits_for(self, evaluating: Evaluating) -> set[int]:
        return set(self._everybody) - evaluating.metrics.keys() - evaluating.silent


def _asked_by(state: ServerState, message: Message) -> Evaluating | None:
    """The evaluation under way that a message answers, None if it answers none."""
    return next((e for e in state.evaluating if e.request == message.request), None)
