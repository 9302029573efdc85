"""A course in real time goes as it does in simulation, whatever nodes do."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from jaxlab.federated.compression import compressed, quantize
from jaxlab.federated.deployment.codec import Packed, Packer, unpack
from jaxlab.federated.deployment.learner import make_learner
from jaxlab.federated.deployment.live import LiveConfig, LiveState, NotJoinedError
from jaxlab.federated.deployment.server_checkpoint import ServerCheckpoint
from jaxlab.federated.devices import Device
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.messages import (
    ASK_INFO,
    EVALUATE,
    FINISH,
    INFO,
    JOIN,
    METRICS,
    MODEL,
    Message,
)
from jaxlab.federated.server_state import TooManyFailuresError
from jaxlab.federated.simulation import run_course
from jaxlab.federated.strategy import ConfigError, Strategy

MAX_BYTES = 10**6
FEDBUFF = Strategy(
    kind="goal_achieved", cohort_size=3, min_updates=2, max_staleness=5, staleness_exponent=0.5,
    broadcast="after_receiving",
)  # fmt: skip


def assert_same(deployed, simulated, tolerance=1e-6):
    ours, theirs = jax.tree.leaves(deployed.model), jax.tree.leaves(simulated.model)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def leaves(server):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(server.model)]


@pytest.fixture(scope="module")
def simulated(world, keeping):
    return world.simulate(world.agreement(keeping))


def test_a_deployed_course_is_the_simulated_one(world, keeping, deploy, simulated):
    deployed = deploy(world.agreement(keeping)).server
    assert deployed.finished and deployed.round == 4
    assert_same(deployed, simulated)
    for ours, theirs in zip(deployed.evaluations, simulated.evaluations, strict=True):
        assert ours.round == theirs.round
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
    assert deployed.counts["bytes_up"] > 0 and deployed.counts["bytes_down"] > 0


def test_a_simulation_counts_the_bytes_that_are_sent(world, keeping, deploy, make_grid):
    agreement = world.agreement(keeping, eval_every_rounds=2)
    grid, contents = make_grid(agreement), collections.defaultdict(list)
    send = grid.send

    def weigh(node, kind, messages):
        for packed in messages:
            message = unpack(packed, MAX_BYTES)
            contents[message.type, message.round, node - 100].append(len(packed.content))
        return send(node, kind, messages)

    def weigh_answers(node, answers):
        for message in answers:
            size = len(Packer()(message).content)
            contents[message.type, message.round, node - 100].append(size)
        return answers

    grid.send, grid.change = weigh, weigh_answers
    deploy(agreement, grid)
    simulation = world.simulation(agreement)
    run_course(simulation.course, simulation.start())
    counted, sizes = simulation.traffic.exchanges, simulation.traffic.sizes
    assert len(counted) == 12
    for number, client, down, up in counted.tolist():
        assert contents.pop((MODEL, number, client)) == [down, up]
    for number, client in itertools.product((2, 4), (1, 2, 3)):
        assert contents.pop((EVALUATE, number, client)) == [sizes.evaluation_down]
        assert contents.pop((METRICS, number, client)) == [sizes.evaluation_up]
    assert {kind for kind, _, _ in contents} == {JOIN, ASK_INFO, INFO, FINISH}


def test_compressed_updates_travel_small_and_are_read_as_in_simulation(world, deploy):
    plain = fed_avg(world.task, optax.sgd(0.05), world.schedule)
    agreement = world.agreement(compressed(plain, up=quantize(8)))
    deployed = deploy(agreement).server
    assert deployed.round == 4 and not deployed.counts["rejected_updates"]
    assert_same(deployed, world.simulate(agreement))
    sent = make_learner(agreement).forms.update
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sent)} == {"int8", "float32"}


@pytest.mark.parametrize(
    "strategy",
    [
        FEDBUFF,
        Strategy(kind="time_up", cohort_size=3, time_budget_s=1.75, max_staleness=5),
    ],
    ids=lambda strategy: strategy.kind,
)
def test_an_asynchronous_course_goes_as_fast_clients_do(world, keeping, deploy, strategy):
    """With clients that take as long as their simulated devices do, all goes in the same order."""
    agreement = world.agreement(keeping, strategy, num_rounds=6)
    seconds = {101: 0.5, 102: 1.25, 103: 2.0}
    samples = [agreement.schedule.num_samples(len(part["y"])) for part in world.train]
    devices = [
        Device(s * 1000 / 3 / n, float("inf"))
        for s, n in zip(seconds.values(), samples, strict=True)
    ]
    theirs = world.simulate(agreement, devices=devices)
    ours = deploy(agreement, seconds=seconds, poll_s=0.25).server

    def order(server):
        return [(a.fresh, a.stale) for a in server.aggregations]

    assert order(ours) == order(theirs)
    assert [a.time_us for a in ours.aggregations] == pytest.approx(
        [a.time_us for a in theirs.aggregations], abs=500_000
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("tell", [True, False], ids=["Flower tells", "nobody tells"])
def test_a_client_that_dies_and_comes_back_goes_on(
    world, keeping, deploy, make_grid, simulated, tell
):
    agreement = world.agreement(keeping)
    grid = make_grid(agreement)
    wait = grid.wait

    def wait_and_see(seconds):
        wait(seconds)
        if grid.now == 1.5:
            grid.stop(102, tell=tell)
        if grid.now == 5.0:
            grid.online.add(102)

    grid.wait = wait_and_see
    server = deploy(agreement, grid).server
    assert_same(server, simulated)
    assert server.counts["rejoined_clients"] == 1
    assert server.counts["timed_out_clients"] == (0 if tell else 1)


def test_a_server_goes_on_from_its_checkpoint(
    world, keeping, deploy, make_grid, simulated, tmp_path
):
    agreement = world.agreement(keeping)
    whole = deploy(agreement, make_grid(agreement)).server

    class Killed(Exception):
        pass

    def kill_in_round_two(state):
        checkpoint.save("course", state.server)
        if state.server.round == 2:
            raise Killed

    checkpoint = ServerCheckpoint(tmp_path / "server", make_learner(agreement))
    folder = tmp_path / "again"
    grid = make_grid(agreement)
    grid.folder = folder
    with pytest.raises(Killed):
        deploy(agreement, grid, on_progress=kill_in_round_two)
    learner = make_learner(agreement)
    name, server = ServerCheckpoint(tmp_path / "server", learner).load()
    assert name == "course" and server.round == 2 and len(server.busy) == 3
    grid = make_grid(agreement)
    grid.folder = folder
    resumed = deploy(agreement, grid, LiveState(server), learner=learner).server
    assert_same(resumed, simulated)
    for ours, theirs in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [e.round for e in resumed.evaluations] == [1, 2, 3, 4]


def test_clients_that_train_when_the_server_dies_do_not_train_twice(
    world, keeping, deploy, make_grid, simulated, tmp_path
):
    """Their answers of round two came when nobody listened; they are asked the same again."""
    agreement = world.agreement(keeping)
    learner = make_learner(agreement)
    checkpoint = ServerCheckpoint(tmp_path / "server", learner)

    class Killed(Exception):
        pass

    def save(state):
        checkpoint.save("course", state.server)

    def kill(node, answers):
        if node == 103 and any(a.type == MODEL and a.round == 2 for a in answers):
            raise Killed
        return answers

    grid = make_grid(agreement, {101: 1.0, 102: 1.0, 103: 1.5})
    grid.change = kill
    with pytest.raises(Killed):
        deploy(agreement, grid, on_progress=save)
    _, server = checkpoint.load()
    resumed = deploy(agreement, make_grid(agreement), LiveState(server)).server
    assert_same(resumed, simulated)


def test_what_is_wrong_is_refused_and_counted(world, keeping, deploy, make_grid):
    """One client of three sends rubbish of all kinds; the course goes on with the others."""
    agreement = world.agreement(keeping, num_rounds=6, eval_every_rounds=0)
    grid = make_grid(agreement)
    rubbish = []

    def spoil(node, answers):
        if node != 102 or not answers or answers[0].type != MODEL:
            return answers
        sound = answers[0]
        update = dict(sound.content["update"])
        first = next(iter(update))
        kinds = [
            [Packed(b"rubbish", b"")],
            [dataclasses.replace(sound, sender=1)],
            [dataclasses.replace(sound, content={**sound.content, "weight": float("nan")})],
            [dataclasses.replace(sound, content={**sound.content, "update": {first: np.zeros(9)}})],
            [dataclasses.replace(sound, round=99)],
            [Packed(b"x" * 2_000_000, b"")],
        ]
        rubbish.append(kinds[len(rubbish)])
        return rubbish[-1]

    grid.change = spoil
    server = deploy(agreement, grid).server
    assert server.finished and len(rubbish) == 6
    assert all(set(a.fresh) == {1, 3} for a in server.aggregations)
    assert server.counts["malformed_messages"] == 5 and server.counts["forged_senders"] == 1
    assert server.counts["failed_clients"] == 6


def test_updates_that_are_no_numbers_do_not_count(world, keeping, deploy, make_grid):
    agreement = world.agreement(keeping, num_rounds=3)
    grid = make_grid(agreement)

    def spoil(node, answers):
        if node != 103:
            return answers
        return [
            dataclasses.replace(a, content={**a.content, "update": broken(a.content["update"])})
            if a.type == MODEL
            else a
            for a in answers
        ]

    def broken(update):
        return {name: leaf * np.float32("nan") for name, leaf in update.items()}

    grid.change = spoil
    server = deploy(agreement, grid).server
    assert [a.rejected for a in server.aggregations] == [(3,)] * 3
    assert server.counts["rejected_updates"] == 3
    assert all(np.isfinite(leaf).all() for leaf in leaves(server))


def test_a_client_that_raises_has_failed_and_is_asked_again(world, keeping, deploy, make_grid):
    agreement = world.agreement(keeping, num_rounds=3)
    grid = make_grid(agreement)

    def broken(state, message):
        raise RuntimeError("no power")

    grid.all[102] = grid.all[102]._replace(role=grid.all[102].role.on(MODEL, broken, (MODEL,)))
    server = deploy(agreement, grid).server
    assert server.finished and server.counts["failed_clients"] == 3


def test_messages_that_come_twice_count_once(world, keeping, deploy, make_grid, simulated):
    agreement = world.agreement(keeping)
    grid = make_grid(agreement)
    grid.change = lambda node, answers: [*answers, *answers]
    server = deploy(agreement, grid).server
    assert_same(server, simulated)
    assert server.counts["duplicate_updates"] > 0


def test_the_course_is_given_up_with_a_reason(world, keeping, deploy, make_grid):
    agreement = world.agreement(keeping)
    grid = make_grid(agreement)
    grid.swallow = lambda node, asked: node == 102 and asked[0].type == MODEL
    with pytest.raises(TooManyFailuresError, match=r"5 times within answer_timeout_s=10.*\[2\]"):
        deploy(agreement, grid)
    grid = make_grid(agreement)
    grid.online.discard(103)
    with pytest.raises(NotJoinedError, match=r"2 of 3 clients have joined .*\[3\] are missing"):
        deploy(agreement, grid, join_timeout_s=20.0)
    with pytest.raises(ConfigError, match="answer_timeout_s=0.0"):
        make_learner(world.agreement(keeping, answer_timeout_s=0.0))
    with pytest.raises(ValueError, match="poll_s=0"):
        LiveConfig(poll_s=0.0)


def test_clients_without_a_number_are_given_one(world, keeping, deploy, make_grid):
    agreement = world.agreement(keeping, num_rounds=2)
    state = deploy(agreement, make_grid(agreement, numbers=(-1, -1, -1)))
    assert sorted(state.nodes) == [1, 2, 3] and sorted(state.nodes.values()) == [101, 102, 103]
    assert state.server.finished


@pytest.mark.parametrize("fixed", [False, True], ids=["any node", "fixed nodes"])
def test_a_client_may_come_back_from_another_node_unless_nodes_are_known(
    world, keeping, deploy, make_grid, fixed
):
    agreement = world.agreement(keeping, num_rounds=3)
    grid = make_grid(agreement)
    grid.all[202], grid.seconds[202], grid.free[202] = grid.all[102], 1.0, 0.0
    (grid.folder / "202").symlink_to(grid.folder / "102")
    wait = grid.wait

    def wait_and_see(seconds):
        wait(seconds)
        if grid.now == 1.0:
            grid.online.add(202)  # while the first one is still there
        if grid.now == 1.5:
            grid.stop(102)
        if grid.now == 30.0:
            grid.online.add(102)

    grid.wait = wait_and_see
    state = deploy(agreement, grid, fixed_nodes=fixed)
    assert state.server.finished and state.server.counts["rejected_joins"] == 1
    assert state.nodes[2] == (102 if fixed else 202)


def test_clients_talk_to_each_other_through_the_server(world, keeping, make_grid, deploy):
    agreement = world.agreement(keeping, num_rounds=1)
    grid, heard = make_grid(agreement), []
    role = grid.all[101].role
    ask = role.rules[EVALUATE].handler

    def tell_others(state, message):
        state, sent = ask(state, message)
        return state, [*sent, Message("greeting", state.id, (2, 3), "hello", message.round)]

    def hear(state, message):
        heard.append((state.id, message.sender, message.content))
        return state, []

    for node in (102, 103):
        grid.all[node] = grid.all[node]._replace(role=grid.all[node].role.on("greeting", hear))
    grid.all[101] = grid.all[101]._replace(
        role=role.on(EVALUATE, tell_others, (METRICS,), ("greeting",))
    )
    deploy(agreement, grid)
    assert sorted(heard) == [(2, 1, "hello"), (3, 1, "hello")]


def test_a_course_ends_early_and_tells_everybody(world, keeping, make_grid, deploy):
    agreement = world.agreement(keeping, num_rounds=50)
    learner = make_learner(agreement, is_converged=lambda evaluations: len(evaluations) == 2)
    grid = make_grid(agreement)
    server = deploy(agreement, grid, learner=learner).server
    assert server.finished and server.round < 5
    for node in (101, 102, 103):
        assert (grid.folder / str(node) / "final.bin").exists()
