"""Messages as records of Flower and back, with stand-ins for Flower's classes and its Grid."""

import types

import pytest

from jaxlab.federated.deployment import extras, flower
from jaxlab.federated.deployment.codec import Packed, Packer, unpack
from jaxlab.federated.messages import JOIN, MODEL, SERVER, Message

MAX_BYTES = 10**6


class FakeMessage:
    def __init__(
        self, content=None, dst_node_id=0, message_type="", *, ttl=None, error=None, to=""
    ):
        self.content, self.node, self.kind, self.ttl = content, dst_node_id, message_type, ttl
        self.error = error
        self.metadata = types.SimpleNamespace(reply_to_message_id=to)

    def has_error(self):
        return self.error is not None


def fake_array(dtype, shape, stype, data):
    assert dtype == "uint8" and shape == (len(data),)
    return flower.RawArray(stype, data)


class FakeGrid:
    """Gives numbers to what is pushed, and replies that the test has put here."""

    def __init__(self):
        self.pushed, self.replies, self.refuses = [], [], False

    def get_node_ids(self):
        return [7, 8]

    def push_messages(self, messages):
        if self.refuses:
            return []
        self.pushed += messages
        return [f"m{len(self.pushed)}"]

    def pull_messages(self, tickets):
        replies, self.replies = self.replies, []
        return [reply for reply in replies if reply.metadata.reply_to_message_id in tickets]


@pytest.fixture
def grid(monkeypatch):
    app = types.SimpleNamespace(
        Message=FakeMessage, Array=fake_array, ArrayRecord=dict, ConfigRecord=dict, RecordDict=dict
    )
    monkeypatch.setattr(flower, "_flower", lambda module: app)
    return FakeGrid()


@pytest.fixture
def transport(grid):
    return flower.FlowerTransport(grid, "course1", 60.0, MAX_BYTES)


def packed(*messages):
    pack = Packer()
    return [pack(message) for message in messages]


def error(code, to="m1", reason="because"):
    return FakeMessage(error=types.SimpleNamespace(code=code, reason=reason), to=to)


def test_a_parcel_goes_there_and_its_answer_comes_back(grid, transport):
    asked = packed(Message(JOIN, SERVER, (-1,)), Message(MODEL, SERVER, (1,), {"tree": {}}))
    assert list(transport.nodes()) == [7, 8] and transport.receive() == []
    assert transport.send(7, "train", asked) == "m1"
    (sent,) = grid.pushed
    assert (sent.node, sent.kind, sent.ttl) == (7, "train", 60.0)
    assert flower.unpack_records(sent.content, MAX_BYTES) == ("course1", asked)
    answer = packed(Message(MODEL, 1, (SERVER,), {"weight": 1.0}))
    grid.replies = [FakeMessage(flower.pack_records("course1", answer), to="m1")]
    (delivery,) = transport.receive()
    assert delivery.ticket == "m1" and unpack(delivery.answers[0], MAX_BYTES).sender == 1
    assert transport.receive() == []


def test_what_flower_says_of_nodes_is_told_apart(grid, transport):
    for code, is_lost in ((3, True), (4, True), (5, True), (2, False), (0, False)):
        ticket = transport.send(7, "train", packed(Message(JOIN, SERVER, (-1,))))
        grid.replies = [error(code, ticket)]
        (delivery,) = transport.receive()
        assert (delivery.is_lost, delivery.failure, delivery.answers) == (is_lost, "because", ())
    grid.refuses = True
    assert transport.send(7, "train", packed(Message(JOIN, SERVER, (-1,)))) is None


def test_an_answer_of_another_course_is_none(grid, transport):
    transport.send(7, "query", packed(Message(JOIN, SERVER, (-1,))))
    grid.replies = [FakeMessage(flower.pack_records("other", []), to="m1")]
    (delivery,) = transport.receive()
    assert "it is of the course 'other'" in delivery.failure and not delivery.is_lost


@pytest.mark.parametrize(
    ("course", "arrays", "problem"),
    [
        (None, {}, "no message of version 1"),
        ({"name": "a", "protocol": 2, "messages": 0}, {}, "no message of version 1"),
        ({"name": "../a", "protocol": 1, "messages": 0}, {}, "is no name of a course"),
        ({"name": 5, "protocol": 1, "messages": 0}, {}, "is no name of a course"),
        ({"name": "a", "protocol": 1, "messages": 1}, {}, "0 arrays for 1 messages"),
        ({"name": "a", "protocol": 1, "messages": "1"}, {}, "0 arrays for 1 messages"),
        (
            {"name": "a", "protocol": 1, "messages": 1},
            {"0/header": flower.RawArray("numpy.ndarray", b""), "x": flower.RawArray("y", b"")},
            "are not of the kind 'jaxlab.wire'",
        ),
        (
            {"name": "a", "protocol": 1, "messages": 1},
            {f"{i}/header": flower.RawArray(flower.KIND, b"") for i in (0, 1)},
            "'0/content' is missing",
        ),
        (
            {"name": "a", "protocol": 1, "messages": 1},
            {
                "0/header": flower.RawArray(flower.KIND, b"x" * MAX_BYTES),
                "0/content": flower.RawArray(flower.KIND, b"x"),
            },
            "1000001 bytes; 1000000 are allowed",
        ),
    ],
)
def test_records_of_another_form_are_refused(course, arrays, problem):
    records = {flower.MESSAGES: arrays} | ({} if course is None else {flower.COURSE: course})
    with pytest.raises(ValueError, match=problem):
        flower.unpack_records(records, MAX_BYTES)


def test_a_content_that_many_get_is_packed_once():
    content, pack = {"tree": {"w": 1.0}}, Packer()
    first, second = (pack(Message(MODEL, SERVER, (client,), content)) for client in (1, 2))
    assert first.content is second.content and first.header != second.header
    with pytest.raises(ValueError, match="allowed"):
        unpack(first, 10)
    with pytest.raises(ValueError, match="begins with"):
        unpack(Packed(b"x" * 40, b""), MAX_BYTES)


def test_without_flower_it_is_said_how_to_install_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"jaxlab\[flower\]\""):
        flower.make_server_app(lambda context: None)
