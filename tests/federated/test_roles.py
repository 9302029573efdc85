import pytest

from jaxlab.federated.messages import Message
from jaxlab.federated.roles import Event, Role


def add(state, message):
    return state + message.content, [Message("sum", 0, (1,), state + message.content)]


def test_a_message_without_a_handler_names_type_sender_and_receiver():
    with pytest.raises(KeyError) as caught:
        Role("server").on("add", add, ("sum",)).react(0, Message("subtract", 3, (0,)))
    text = str(caught.value)
    assert "'subtract' from 3 to [0]" in text and "handles ['add']" in text


def test_a_second_handler_of_a_type_replaces_the_first_and_the_role_stays_as_it_was():
    role = Role("server").on("add", lambda state, message: (-1, []))
    replaced = role.on("add", add, ("sum",))
    message = Message("add", 1, (0,), 4)
    assert role.react(1, message)[0] == -1
    assert replaced.react(1, message)[0] == 5


def test_events_are_settled_after_every_message_in_order():
    halve = Event(
        "even", lambda s: s > 0 and s % 2 == 0, lambda s: (s // 2, [Message("h", 0, ())]), ("h",)
    )
    role = Role("server").on("add", add, ("sum",)).when(halve)
    state, sent = role.react(0, Message("add", 1, (0,), 12))
    assert state == 3 and [m.type for m in sent] == ["sum", "h", "h"]


def test_an_event_of_the_same_name_replaces():
    stop = Event("e", lambda s: s > 5, lambda s: (5, []))
    role = Role("server").when(Event("e", lambda s: True, lambda s: (s, []))).when(stop)
    assert len(role.events) == 1 and role.settle(9) == (5, [])


def test_an_event_that_does_not_end_its_condition_is_an_error():
    role = Role("server").when(Event("always", lambda s: True, lambda s: (s, [])))
    with pytest.raises(RuntimeError, match=r"server.when\(always\) holds still"):
        role.settle(0)


def test_what_a_handler_or_an_event_does_not_say_that_it_may_send_is_refused_when_it_is_sent():
    role = Role("server").on("add", add, ("total",))
    with pytest.raises(ValueError, match=r"server.on\(add\) sends 'sum' .*\['total'\].*may_send"):
        role.react(0, Message("add", 1, (0,), 1))
    assert role.on("add", add, may_send_peers=("sum",)).react(0, Message("add", 1, (0,), 1))[0] == 1
    loud = Event("loud", lambda s: s > 0, lambda s: (0, [Message("noise", 0, (1,))]))
    with pytest.raises(ValueError, match=r"server.when\(loud\) sends 'noise'"):
        Role("server").when(loud).settle(1)
