"""What nodes and servers keep on disk."""

import jax
import numpy as np
import optax
import pytest

from jaxlab import federated
from jaxlab.federated.client import ClientState
from jaxlab.federated.deployment.learner import make_learner
from jaxlab.federated.deployment.memory import Memory, write_whole
from jaxlab.federated.deployment.server_checkpoint import ServerCheckpoint
from jaxlab.federated.server_state import Aggregation, Evaluating, Evaluation, Received, Request

FORM = {"w": jax.ShapeDtypeStruct((2,), np.float32)}


def state(number):
    return {"w": np.full(2, number, np.float32)}


def test_a_client_is_found_as_it_was_left(tmp_path):
    assert Memory(tmp_path / "new", {}).client(-1) == ClientState(-1)
    Memory(tmp_path, FORM).keep_client(ClientState(7, True, 3))
    assert Memory(tmp_path, FORM).client(-1) == ClientState(7, True, 3)


def test_the_same_request_starts_from_the_same_state(tmp_path):
    assert Memory(tmp_path, FORM).state(state(0))["w"][0] == 0
    Memory(tmp_path, FORM).keep_state((4, 17), state(0), state(1))
    again = Memory(tmp_path, FORM)
    assert again.state(state(9), (4, 17))["w"][0] == 0
    assert again.state(state(9), (4, 18))["w"][0] == 1
    assert again.state(state(9))["w"][0] == 1


def test_a_damaged_file_is_named(tmp_path):
    Memory(tmp_path, FORM).keep_client(ClientState(1))
    path = tmp_path / "client.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"client.bin: .*truncated.*Remove the file"):
        Memory(tmp_path, FORM)


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_whole(path, b"first")
    monkeypatch.setattr("os.fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first" and len(list(path.parent.iterdir())) == 1


@pytest.fixture
def learner(world):
    algorithm = federated.fed_avg(
        world.task, optax.sgd(0.1), world.schedule, server_tx=federated.fed_adam(0.1)
    )
    return make_learner(world.agreement(algorithm))


def test_a_server_is_found_as_it_was(learner, tmp_path):
    server = learner.start()
    update = {"update": {"w": np.arange(3.0, dtype=np.float32)}, "weight": 2.0}
    server.round, server.clock_us, server.started = 3, 12_345, True
    server.info, server.excluded = {1: {"num_sample": 8}, 3: {}}, {3}
    server.busy = {2: Request(9, 3, 12_000)}
    server.fresh, server.stale = [Received(3, 1, update)], [Received(2, 2, update)]
    server.evaluating = [Evaluating(3, 12_000, 8, {1: {"sums": {}}}, {2})]
    server.evaluations = [Evaluation(2, 9_000, {"test/loss": 0.5})]
    server.aggregations = [Aggregation(2, 9_000, (1, 2), ((1, 3),), 1, (2,))]
    server.counts["failed_clients"] += 2
    server.refused = [True, False]
    checkpoint = ServerCheckpoint(tmp_path, learner)
    assert checkpoint.load() is None
    checkpoint.save("course", server)
    name, found = checkpoint.load()
    assert name == "course"
    for field in vars(server):
        ours, theirs = getattr(found, field), getattr(server, field)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs), field
        assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs))), field
        if field not in ("model", "sampler", "fresh", "stale"):
            assert ours == theirs and type(ours) is type(theirs), field


def test_a_checkpoint_that_does_not_fit_is_refused(world, learner, tmp_path):
    checkpoint = ServerCheckpoint(tmp_path, learner)
    checkpoint.save("course", learner.start())
    plain = federated.fed_avg(world.task, optax.sgd(0.1), world.schedule)
    other = make_learner(world.agreement(plain))
    with pytest.raises(ValueError, match=r"server.bin cannot be continued: .*unexpected"):
        ServerCheckpoint(tmp_path, other).load()
    checkpoint.path.write_bytes(b"jaxlab, but something else")
    with pytest.raises(ValueError, match=r"server.bin cannot be continued"):
        checkpoint.load()
