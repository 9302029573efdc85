"""Courses on virtual time, round by round, against those of the original code.

The traces were made with FederatedScope 0.3.0 and again with an independent program: four clients
that work at once, 10 samples an update, 10, 25, 40 and 130 ms a sample, so that an answer takes
0.3, 0.75, 1.2 and 3.9 s, updates up to two rounds old, two of them to aggregate.
"""

import pytest

from jaxlab.federated.client import Answer
from jaxlab.federated.devices import Device, answer_time_us
from jaxlab.federated.strategy import Strategy

DEVICES = (Device(10.0), Device(25.0), Device(40.0), Device(130.0))

# Virtual time in hundredths of a second, fresh clients, stale (round, client), dropped updates.
AFTER_AGGREGATING = [
    (75, [1, 2], [], 0),
    (120, [1], [(0, 3)], 0),
    (150, [1], [(1, 2)], 0),
    (225, [1, 2], [], 0),
    (255, [1], [(2, 3)], 0),
    (300, [1], [(4, 2)], 0),
    (375, [1], [(5, 3)], 0),
    (405, [1], [(6, 2)], 1),
    (480, [1, 2], [], 0),
]
AFTER_RECEIVING = [
    (75, [1, 2], [], 0),
    (120, [], [(0, 1), (0, 3)], 0),
    (150, [], [(1, 1), (1, 2)], 0),
    (180, [1], [(2, 1)], 0),
    (225, [1], [(3, 2)], 0),
    (270, [1], [(4, 1)], 1),
    (300, [1], [(5, 2)], 1),
    (360, [1], [(5, 3)], 1),
    (375, [], [(6, 2), (7, 1)], 1),
]
TIME_UP = [
    (100, [1, 2], [], 0),
    (200, [1, 2], [(0, 3)], 0),
    (300, [1, 2], [], 0),
    (400, [1, 2], [(2, 3)], 1),
    (500, [1, 2], [], 0),
    (600, [1, 2], [(4, 3)], 0),
    (700, [1, 2], [], 0),
    (800, [1, 2], [(6, 3)], 1),
    (900, [1, 2], [], 0),
]
SYNCHRONOUS = [(390 * (number + 1), [1, 2, 3, 4], [], 0) for number in range(9)]


@pytest.fixture(name="run")
def run_fixture(play):
    def train(client, content, number):
        return Answer(0, answer_time_us(DEVICES[client - 1], 10, 0, 0))

    def run(strategy, num_rounds=9):
        """The server's state at the end."""
        state = play(strategy, num_rounds=num_rounds, train=train)
        assert all(client.finished for client in state.clients.values())
        return state.server

    return run


def trace(server):
    return [
        (a.time_us / 10_000, list(a.fresh), sorted(a.stale), a.dropped) for a in server.aggregations
    ]


@pytest.mark.parametrize(
    "strategy, expected",
    [
        ({"kind": "goal_achieved"}, AFTER_AGGREGATING),
        ({"kind": "goal_achieved", "broadcast": "after_receiving"}, AFTER_RECEIVING),
        ({"kind": "time_up", "time_budget_s": 1.0}, TIME_UP),
    ],
    ids=["goal_achieved-after_aggregating", "goal_achieved-after_receiving", "time_up"],
)
def test_asynchronous_courses_run_as_in_the_original(run, strategy, expected):
    server = run(Strategy(cohort_size=4, max_staleness=2, compat=True, **strategy))
    assert trace(server) == expected
    assert [evaluation.round for evaluation in server.evaluations] == list(range(1, 10))


def test_a_synchronous_course_waits_for_the_slowest(run):
    assert trace(run(Strategy(cohort_size=4))) == SYNCHRONOUS


def test_a_second_update_of_a_round_counts_unless_it_replaces_the_first_as_in_the_original(run):
    fedbuff = {"kind": "goal_achieved", "broadcast": "after_receiving", "max_staleness": 2}
    ours = run(Strategy(cohort_size=4, **fedbuff))
    assert trace(ours)[0] == (60, [1, 1], [], 0)
    original = run(Strategy(cohort_size=4, compat=True, **fedbuff))
    assert original.counts["replaced_updates"] == 1


def test_time_up_after_receiving_ends_with_its_last_round(run):
    strategy = Strategy(
        kind="time_up", time_budget_s=1.0, broadcast="after_receiving", cohort_size=4,
        max_staleness=2,
    )  # fmt: skip
    server = run(strategy, num_rounds=5)
    assert server.finished and server.round == 5
    assert [a.time_us for a in server.aggregations] == [1_000_000 * n for n in range(1, 6)]


def test_a_round_in_which_nothing_comes_gets_another_time_budget(run):
    strategy = Strategy(kind="time_up", time_budget_s=0.1, cohort_size=4, max_staleness=2)
    server = run(strategy, num_rounds=3)
    # Nothing has come by 0.1, 0.2 and 0.3 s: a deadline goes before an answer of the same time.
    assert trace(server)[0] == (40, [1], [], 0)


def test_equal_times_tie_however_they_were_added_up():
    # Twelve answers of 0.3 s and three of 1.2 s: their sums differ as doubles.
    assert sum([0.3] * 12) != sum([1.2] * 3)
    assert 12 * answer_time_us(DEVICES[0], 10, 0, 0) == 3 * answer_time_us(DEVICES[2], 10, 0, 0)


def test_over_selection_leaves_the_slower_half_behind(run):
    server = run(Strategy(cohort_size=2, min_updates=1), num_rounds=3)
    assert [len(a.fresh) for a in server.aggregations] == [1, 1, 1]
    assert not any(a.stale for a in server.aggregations)
    # Of 6 clients that were asked (fewer where cohorts were short) 3 counted; none is lost.
    asked = 6 - server.counts["short_cohorts"]
    assert server.counts["dropped_updates"] + len(server.busy) == asked - 3 >= 1
