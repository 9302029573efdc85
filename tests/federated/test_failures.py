"""Clients that fail, lie, repeat themselves or come late: the course ends and says what it saw."""

import dataclasses

import pytest

from jaxlab.federated.client import Answer, Failure
from jaxlab.federated.messages import JOIN, METRICS, MODEL, Message
from jaxlab.federated.server_state import TooManyFailuresError
from jaxlab.federated.simulation import post
from jaxlab.federated.strategy import ConfigError, Strategy

FEDBUFF = Strategy(
    kind="goal_achieved", cohort_size=4, min_updates=2, max_staleness=8, broadcast="after_receiving"
)
STRATEGIES = [
    Strategy(cohort_size=4),
    Strategy(cohort_size=4, min_updates=2),
    Strategy(kind="goal_achieved", cohort_size=4, min_updates=2, max_staleness=8),
    FEDBUFF,
    Strategy(kind="time_up", cohort_size=4, time_budget_s=0.01, max_staleness=8),
    Strategy(
        kind="time_up", cohort_size=4, time_budget_s=0.01, max_staleness=8,
        broadcast="after_receiving",
    ),
]  # fmt: skip


def failing(clients, answer=lambda client: Answer(1, 1000 * client)):
    def train(client, content, number):
        return Failure("no power", 500) if client in clients else answer(client)

    return train


def repeated(role):
    """Clients whose messages arrive three times, the last time much later."""
    once = role.rules[MODEL]

    def thrice(state, message):
        state, sent = once.handler(state, message)
        late = [dataclasses.replace(m, time_us=m.time_us + 7777) for m in sent]
        return state, [*sent, *sent, *late]

    return role.on(MODEL, thrice, once.may_send)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.kind}-{s.broadcast}")
def test_every_course_ends_though_a_third_of_its_clients_always_fails(play, strategy):
    server = play(strategy, 12, 10, train=failing({2, 5, 8, 11})).server
    assert server.finished and server.round == 10
    assert server.counts["failed_clients"] >= 3
    answered = {client for a in server.aggregations for client in a.fresh}
    assert answered and not answered & {2, 5, 8, 11}


def test_a_synchronous_round_takes_those_who_did_not_fail(play):
    server = play(Strategy(cohort_size=4), 4, 3, train=failing({2})).server
    assert [a.fresh for a in server.aggregations] == [(1, 3, 4)] * 3
    assert server.model == 9 and server.counts == {"failed_clients": 3}


def test_a_synchronous_round_of_which_nobody_is_left_asks_a_new_cohort(play):
    server = play(Strategy(cohort_size=2), 8, 6, train=failing({1, 2, 3, 4, 5})).server
    assert server.finished and server.counts["empty_cohorts"] > 0
    assert all(a.fresh for a in server.aggregations)


def test_an_asynchronous_course_keeps_its_clients_at_work(play):
    working = []

    def aggregate(model, updates, number):
        return model + len(updates), ()

    def watch(role):
        handler = role.rules[MODEL].handler

        def on_update(state, message):
            if state.round < 20:
                working.append(len(state.busy))
            return handler(state, message)

        return role.on(MODEL, on_update)

    play(FEDBUFF, 12, 20, train=failing({2, 5}), aggregate=aggregate, change_server=watch)
    assert set(working) == {4}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.kind}-{s.broadcast}")
def test_a_course_whose_clients_all_fail_is_given_up(play, strategy):
    with pytest.raises(TooManyFailuresError, match="round 0: 20 clients in a row .*'no power'"):
        play(strategy, 12, 3, train=failing(range(1, 13)))
    with pytest.raises(TooManyFailuresError, match="3 clients in a row"):
        play(strategy, 12, 3, train=failing(range(1, 13)), max_failures_in_a_row=3)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.kind}-{s.broadcast}")
def test_repeated_and_late_messages_change_nothing(play, strategy):
    plain = play(strategy, 6, 8).server
    discarded = []
    doubled = play(strategy, 6, 8, change_client=repeated, discarded=discarded).server
    assert doubled.aggregations == plain.aggregations and doubled.model == plain.model
    assert doubled.counts["duplicate_updates"] >= 8
    # What is ignored is not thrown away: the first one has it.
    thrown = ("dropped_updates", "late_updates")
    assert len(discarded) == sum(plain.counts[reason] for reason in thrown)


def test_a_message_of_an_earlier_request_is_no_answer_to_a_later_one(play):
    """With one client that is asked again and again, every repetition finds it at work."""
    strategy = Strategy(kind="goal_achieved", cohort_size=1, broadcast="after_receiving")
    server = play(strategy, 1, 5, change_client=repeated).server
    assert server.model == 5 and [a.fresh for a in server.aggregations] == [(1,)] * 5
    assert server.counts["duplicate_updates"] >= 5


@pytest.mark.parametrize("kind", ["synchronous", "goal_achieved"])
def test_refused_updates_are_counted_by_client(play, kind):
    def aggregate(model, updates, number):
        refused = [u.client for u in updates if u.client == 3]
        return model + len(updates) - len(refused), refused

    staleness = 5 if kind == "goal_achieved" else 0
    strategy = Strategy(kind=kind, cohort_size=4, max_staleness=staleness)
    server = play(strategy, 4, 6, aggregate=aggregate).server
    rejected = [client for a in server.aggregations for client in a.rejected]
    assert rejected and set(rejected) == {3}
    assert server.counts["rejected_updates"] == len(rejected)


def test_a_course_that_refuses_too_much_is_given_up(play):
    def aggregate(model, updates, number):
        return model, [u.client for u in updates if u.client <= 3]

    with pytest.raises(
        TooManyFailuresError, match=r"round 0: 3 of the last 4 .* clients \[1, 2, 3\].*share=0.5"
    ):
        play(Strategy(cohort_size=4), 4, 3, aggregate=aggregate)
    server = play(Strategy(cohort_size=4), 4, 3, aggregate=aggregate, max_rejected_share=0.75)
    assert server.server.round == 3


def test_clients_without_examples_are_never_asked(play):
    info = {"num_sample": lambda client: 0 if client in (2, 3) else 10}
    server = play(
        Strategy(cohort_size=2), 5, 10, excluded=[5], ask_on_join=("num_sample",), info=info
    ).server
    assert server.excluded == {2, 3, 5}
    assert {client for a in server.aggregations for client in a.fresh} == {1, 4}
    with pytest.raises(ConfigError, match="cohort_size=2 of 1 clients that train"):
        play(Strategy(cohort_size=2), 3, 1, ask_on_join=("num_sample",), info=info)


def test_unseen_clients_are_evaluated_and_never_asked(play):
    server = play(Strategy(cohort_size=2), 5, 10, num_unseen=2).server
    assert {client for a in server.aggregations for client in a.fresh} == {1, 2, 3}
    assert all(e.metrics == {"clients": 5} for e in server.evaluations)


def test_an_evaluation_does_without_clients_that_cannot(play):
    def evaluate(client, content, number):
        return Failure("no data") if client == 2 else {}

    server = play(Strategy(cohort_size=2), 4, 3, evaluate=evaluate).server
    assert [e.metrics for e in server.evaluations] == [{"clients": 3}] * 3
    assert server.counts["failed_evaluations"] == 3


def test_metrics_count_once_and_only_for_their_evaluation(play):
    def repeat(role):
        handler = role.rules["evaluate"].handler

        def twice(state, message):
            state, sent = handler(state, message)
            return state, [*sent, *sent]

        return role.on("evaluate", twice, (METRICS,))

    server = play(Strategy(cohort_size=2), 4, 3, change_client=repeat).server
    assert [e.metrics for e in server.evaluations] == [{"clients": 4}] * 3
    assert server.counts["duplicate_metrics"] + server.counts["late_metrics"] >= 9


def test_a_course_ends_early_when_it_has_converged(play):
    state = play(Strategy(cohort_size=2), 4, 9, is_converged=lambda found: len(found) == 3)
    assert state.server.finished and state.server.round == len(state.server.evaluations) == 3
    assert {client.converged_round for client in state.clients.values()} == {3}
    time_us = state.server.evaluations[-1].time_us
    assert {client.converged_us for client in state.clients.values()} == {time_us}
    assert all(client.finished for client in state.clients.values())


def test_an_answer_from_the_future_is_an_error(play):
    def lie(role):
        def on_model(state, message):
            return state, [dataclasses.replace(message.reply(MODEL, 1), round=7)]

        return role.on(MODEL, on_model, (MODEL,))

    with pytest.raises(ValueError, match="'model_para' of round 7; the server is in round 0"):
        play(Strategy(cohort_size=2), 4, 1, change_client=lie)


def test_strangers_and_second_joins_are_counted_and_ignored(play):
    def join_twice(role):
        def on_model(state, message):
            stranger = dataclasses.replace(message.reply(MODEL, 100), sender=9)
            again, unknown = (Message(JOIN, sender, (0,)) for sender in (state.id, 12))
            return state, [stranger, again, unknown, message.reply(MODEL, 1)]

        return role.on(MODEL, on_model, (MODEL, JOIN))

    server = play(Strategy(cohort_size=2), 4, 2, change_client=join_twice).server
    assert server.model == 4
    assert server.counts["unknown_senders"] >= 3 and server.counts["rejected_joins"] >= 6


def test_a_message_to_nobody_is_an_error(play):
    state = play(Strategy(cohort_size=1), 2, 1)
    with pytest.raises(ValueError, match="is for client 5; there are clients 1 to 2"):
        post(state, [Message(MODEL, 0, (5,))])
    with pytest.raises(TypeError, match="the content of 'model_para' from 0 is a set"):
        post(state, [Message(MODEL, 0, (1,), {1})])


def test_a_question_that_clients_cannot_answer_names_what_they_can(play):
    with pytest.raises(ValueError, match=r"asked for \['battery'\]; it can tell \['num_sample'\]"):
        play(
            Strategy(cohort_size=1), 1, 1, ask_on_join=("battery",),
            info={"num_sample": lambda client: 1},
        )  # fmt: skip
