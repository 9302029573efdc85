"""What a server does when time passes and clients say nothing, and with several evaluations."""

import dataclasses

import pytest

from jaxlab.federated.messages import EVALUATE, JOIN, METRICS, MODEL, SERVER, Message
from jaxlab.federated.samplers import make_uniform_sampler
from jaxlab.federated.server import init_server, make_server
from jaxlab.federated.server_state import CourseConfig, ServerProgram, TooManyFailuresError
from jaxlab.federated.strategy import ConfigError, Strategy

SECOND = 1_000_000


class Table:
    """A server whose clients are played by the test."""

    def __init__(self, strategy, num_clients=3, **config):
        config.setdefault("answer_timeout_s", 10.0)
        self.config = CourseConfig(num_clients, 3, strategy, **config)
        program = ServerProgram(
            broadcast=lambda model, number: model,
            aggregate=lambda model, updates, number: (model + sum(u.content for u in updates), ()),
            evaluation=lambda model, number: model,
            merge=lambda model, metrics, number: {"sum": sum(metrics.values())},
            final=lambda model: model,
        )
        self.role = make_server(self.config, program, make_uniform_sampler())
        self.state = init_server(self.config, 0, make_uniform_sampler())
        self.asked = {}
        for client in range(1, num_clients + 1):
            self.react(Message(JOIN, client, (SERVER,)))

    def react(self, message):
        self.state, sent = self.role.react(self.state, message)
        self.note(sent)

    def pass_to(self, seconds):
        self.state.clock_us = seconds * SECOND
        self.state, sent = self.role.settle(self.state)
        self.note(sent)
        return [m for m in sent if m.type == MODEL]

    def note(self, sent):
        for message in sent:
            for client in message.receivers:
                self.asked[message.type, client] = dataclasses.replace(message, receivers=(client,))

    def answer(self, client, content=1, kind=MODEL):
        asked = self.asked[EVALUATE if kind == METRICS else MODEL, client]
        reply = asked.reply(kind, content)
        self.react(dataclasses.replace(reply, time_us=self.state.clock_us))


def test_a_silent_client_is_asked_again_and_the_answers_of_the_others_count():
    table = Table(Strategy(cohort_size=3))
    table.answer(1)
    table.answer(2)
    assert table.pass_to(9) == []
    (again,) = table.pass_to(10)
    assert again.receivers == (3,) and again.round == 0
    table.answer(3)
    assert table.state.round == 1 and table.state.model == 3
    assert table.state.counts["timed_out_clients"] == 1
    assert table.state.timeouts_in_a_row == 0


def test_another_client_takes_the_place_of_a_silent_one():
    table = Table(Strategy(cohort_size=2), num_clients=20)
    first, second = sorted(table.state.busy)
    table.answer(first)
    (again,) = table.pass_to(10)
    assert len(again.receivers) == 1 and again.receivers[0] != first
    table.answer(again.receivers[0])
    assert table.state.round == 1


def test_a_late_answer_to_what_was_asked_again_counts_once():
    table = Table(Strategy(cohort_size=3))
    late = table.asked[MODEL, 3]
    table.answer(1)
    table.answer(2)
    table.pass_to(10)
    table.react(dataclasses.replace(late.reply(MODEL, 100), time_us=table.state.clock_us))
    assert table.state.round == 0 and table.state.counts["duplicate_updates"] == 1
    table.answer(3)
    assert table.state.model == 3


@pytest.mark.parametrize("broadcast", ["after_aggregating", "after_receiving"])
def test_an_asynchronous_course_asks_another_client(broadcast):
    strategy = Strategy(
        kind="goal_achieved", cohort_size=2, min_updates=2, broadcast=broadcast, max_staleness=3
    )
    table = Table(strategy, num_clients=20)
    table.answer(sorted(table.state.busy)[0])
    assert sum(len(m.receivers) for m in table.pass_to(11)) in (1, 2)
    assert len(table.state.busy) >= 1
    assert all(request.time_us > 0 for request in table.state.busy.values())


def test_the_course_is_given_up_when_nobody_answers():
    table = Table(Strategy(cohort_size=3))
    table.answer(1)
    for minute in range(1, 5):
        table.pass_to(10 * minute)
    with pytest.raises(TooManyFailuresError, match=r"5 times within .* clients \[2, 3\]"):
        table.pass_to(50)


def test_stragglers_of_earlier_rounds_may_be_asked_again_after_a_while():
    table = Table(Strategy(cohort_size=2, min_updates=1), num_clients=3, eval_every_rounds=0)
    first, second = sorted(table.state.busy)
    table.answer(first)
    assert table.state.round == 1 and second in table.state.busy
    table.pass_to(10)
    assert all(request.round == 1 for request in table.state.busy.values())


def test_an_evaluation_goes_on_without_those_who_do_not_answer():
    table = Table(Strategy(cohort_size=3))
    for client in (1, 2, 3):
        table.answer(client)
    table.answer(1, 10, METRICS)
    table.answer(2, 20, METRICS)
    for client in (1, 2, 3):
        table.answer(client)  # of the next round: the evaluation is still under way
    assert [e.round for e in table.state.evaluating] == [1, 2]
    table.pass_to(10)
    assert [(e.round, dict(e.metrics)) for e in table.state.evaluations] == [
        (1, {"sum": 30}), (2, {"sum": 0}),
    ]  # fmt: skip
    assert table.state.counts["failed_evaluations"] == 4


def test_an_evaluation_is_not_overwritten_by_the_next_one():
    table = Table(Strategy(cohort_size=3))
    for client in (1, 2, 3):
        table.answer(client)
    first = {client: table.asked[EVALUATE, client] for client in (1, 2, 3)}
    for client in (1, 2, 3):
        table.answer(client)
    for client in (1, 2, 3):  # the second one is answered first
        table.answer(client, 1, METRICS)
    assert table.state.evaluations == []
    for asked in first.values():
        table.react(asked.reply(METRICS, 10))
    assert [(e.round, e.metrics["sum"]) for e in table.state.evaluations] == [(1, 30), (2, 3)]


def test_without_a_limit_a_course_waits_for_ever():
    table = Table(Strategy(cohort_size=3), answer_timeout_s=0.0)
    assert table.pass_to(10**9) == [] and len(table.state.busy) == 3


@pytest.mark.parametrize(
    "wrong", [{"answer_timeout_s": -1.0}, {"max_timeouts_in_a_row": 0}], ids=str
)
def test_limits_are_checked(wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=name):
        CourseConfig(3, 3, Strategy(), **wrong)
