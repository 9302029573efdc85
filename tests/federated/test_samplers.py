import numpy as np
import pytest

from jaxlab.federated.samplers import (
    NotEnoughClientsError,
    make_group_sampler,
    make_responsiveness_sampler,
    make_uniform_sampler,
)
from jaxlab.federated.strategy import ConfigError

SLOWNESS = {client: float(client) for client in range(1, 41)}
IDS = np.arange(1, 41)
SAMPLERS = {
    "uniform": make_uniform_sampler(),
    "group": make_group_sampler(SLOWNESS),
    "responsiveness": make_responsiveness_sampler(SLOWNESS),
}


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param]


def test_only_idle_clients_are_drawn_and_none_twice(sampler):
    rng = np.random.default_rng(0)
    state = sampler.init(rng)
    idle = IDS[::3]
    for count in (1, 5, len(idle)):
        state, chosen = sampler.sample(state, rng, idle, count)
        assert len(set(chosen.tolist())) == count and set(chosen) <= set(idle)


def test_asking_for_more_than_are_idle_gives_the_numbers(sampler):
    rng = np.random.default_rng(0)
    with pytest.raises(NotEnoughClientsError, match="3 clients are to be sampled and 2 are idle"):
        sampler.sample(sampler.init(rng), rng, np.array([4, 7]), 3)


def test_the_same_state_and_generator_draw_the_same(sampler):
    state = sampler.init(np.random.default_rng(1))
    first = sampler.sample(state, np.random.default_rng(2), IDS, 7)
    again = sampler.sample(state.copy(), np.random.default_rng(2), IDS, 7)
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0], again[0])


def test_uniform_draws_every_client_equally_often():
    rng, counts = np.random.default_rng(0), np.zeros(40)
    for _ in range(2000):
        counts[SAMPLERS["uniform"].sample(IDS[:0], rng, IDS, 4)[1] - 1] += 1
    # 200 draws each; a binomial's standard deviation is 13.4.
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_responsiveness_favours_slow_clients_by_the_root_of_their_slowness():
    rng, counts = np.random.default_rng(0), np.zeros(40)
    for _ in range(5_000):
        counts[SAMPLERS["responsiveness"].sample(IDS[:0], rng, IDS, 1)[1] - 1] += 1
    expected = np.sqrt(IDS) / np.sqrt(IDS).sum() * 5_000
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_group_walks_one_group_after_another_and_everybody_gets_a_turn():
    sampler, rng = SAMPLERS["group"], np.random.default_rng(0)
    state, drawn = sampler.init(rng), []
    for _ in range(10):
        state, chosen = sampler.sample(state, rng, IDS, 4)
        # Ten groups of four neighbours in slowness.
        assert len({(client - 1) // 4 for client in chosen.tolist()}) == 1
        drawn += chosen.tolist()
    assert sorted(drawn) == IDS.tolist()


def test_group_skips_busy_clients_and_draws_a_new_order_at_the_end():
    sampler, rng = make_group_sampler({1: 1.0, 2: 2.0, 3: 3.0}, 3), np.random.default_rng(0)
    state = sampler.init(rng)
    for _ in range(5):
        state, chosen = sampler.sample(state, rng, np.array([1, 3]), 2)
        assert sorted(chosen.tolist()) == [1, 3]


def test_clients_without_a_slowness_are_named():
    rng = np.random.default_rng(0)
    for name in ("group", "responsiveness"):
        state = SAMPLERS[name].init(rng)
        with pytest.raises(ConfigError, match="no slowness of client 41; .* 40 clients"):
            SAMPLERS[name].sample(state, rng, np.array([1, 41]), 1)
    with pytest.raises(ConfigError, match=r"client 2 \(0.0 s\).* positive seconds"):
        make_responsiveness_sampler({1: 1.0, 2: 0.0})
