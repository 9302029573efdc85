import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxlab.distillation import soft_matching
from jaxlab.distillation.hidden import hidden_mse
from jaxlab.distillation.moving_matches import moving_loss

RNG = np.random.default_rng(0)
MASK = jnp.asarray([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)


def states(count, width=4):
    return tuple(jnp.asarray(RNG.normal(size=(3, 3, width)), jnp.float32) for _ in range(count))


TEACHER, STUDENT = states(4), states(2)


def distances(student):
    """Of every pair of layers."""
    return jnp.stack([jnp.stack([hidden_mse(s, t, MASK).value for s in student]) for t in TEACHER])


def attended_mse(student):
    return moving_loss("alp", hidden_mse, student, TEACHER, MASK, None)[0]


def marginals(rows, columns):
    return softmax(RNG.normal(size=rows)), softmax(RNG.normal(size=columns))


def test_the_exact_flow_is_the_cheapest_assignment():
    costs = RNG.uniform(size=(4, 4))
    found = soft_matching.exact_flow(costs, np.full(4, 0.25), np.full(4, 0.25))
    cheapest = min(
        sum(costs[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4))
    )
    assert (found * costs).sum() == pytest.approx(cheapest / 4, rel=1e-9)


@pytest.mark.parametrize("sizes", [(4, 2), (6, 3), (12, 4)])
def test_the_flow_of_the_device_keeps_its_sums_and_approaches_the_cheapest(sizes):
    costs, (supply, demand) = RNG.uniform(0.5, 3.0, size=sizes), marginals(*sizes)
    exact = soft_matching.exact_flow(costs, supply, demand)
    arrays = [jnp.asarray(x, jnp.float32) for x in (costs, supply, demand)]
    excess = []
    for regularization in (1.0, 0.1, 0.01):
        found = np.asarray(
            soft_matching.entropic_flow(
                *arrays, regularization=regularization, num_iterations=2000
            ),
            np.float64,
        )
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(axis=1), supply, atol=1e-6)
        np.testing.assert_allclose(found.sum(axis=0), demand, atol=1e-6)
        excess.append((found * costs).sum() / (exact * costs).sum() - 1)
    assert excess[0] > excess[1] > excess[2] > -1e-5
    # The entropy of n m places is at most log(n m): so much of the mean cost is the excess.
    assert excess[2] < 0.01 * np.log(sizes[0] * sizes[1]) * costs.mean() / (exact * costs).sum()


def test_layers_that_are_cheap_to_move_weigh_more_next_time():
    matching = soft_matching.EmdMatching(temperature=0.5, regularization=0.05)
    costs = jnp.asarray([[0.1, 1.0], [1.0, 2.0], [3.0, 4.0]])
    state = matching.init(3, 2)
    after, flow = jax.jit(matching.update)(state, costs)
    moved = np.asarray(flow, np.float64) * np.asarray(costs)
    for found, unit in (
        (after.teacher, moved.sum(axis=1) / np.full(3, 1 / 3)),
        (after.student, moved.sum(axis=0) / np.full(2, 1 / 2)),
    ):
        np.testing.assert_allclose(found, softmax(unit.mean() / unit / 0.5), rtol=1e-4)
        assert float(found.sum()) == pytest.approx(1.0, rel=1e-6)
    assert after.teacher[0] > after.teacher[1] > after.teacher[2]
    _, flow = matching.update(after, costs)
    np.testing.assert_allclose(flow.sum(axis=1), after.teacher, atol=1e-6)


def test_layers_that_cost_nothing_keep_everything_finite():
    matching = soft_matching.EmdMatching()
    state, flow = matching.update(matching.init(3, 2), jnp.zeros((3, 2)))
    np.testing.assert_allclose(state.teacher, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(flow, 1 / 6, rtol=1e-5)


def test_layers_that_cost_next_to_nothing_do_not_end_the_others():
    matching = soft_matching.EmdMatching()
    state, update = matching.init(4, 3), jax.jit(matching.update)
    mixed = jnp.asarray([[0.0, 0.0, 0.0], [1e-6, 5.0, 1e3], [2.0, 0.0, 7.0], [1e4, 1e4, 1e4]])
    for _ in range(5):
        before = state
        state, flow = update(before, mixed)
        for axis, (weights, used) in enumerate(zip(state, before, strict=True)):
            assert float(weights.min()) > 5e-5
            assert float(weights.sum()) == pytest.approx(1.0, rel=1e-5)
            np.testing.assert_allclose(flow.sum(axis=1 - axis), used, rtol=1e-2)
        assert float(state.teacher[0]) > 0.99
    # Where all layers cost the same, those that had no weight to speak of are back.
    for _ in range(2):
        state, _ = update(state, jnp.full((4, 3), 2.0))
    np.testing.assert_allclose(state.teacher, 1 / 4, rtol=1e-2)
    np.testing.assert_allclose(state.student, 1 / 3, rtol=1e-2)


def test_the_gradient_of_a_transport_is_that_of_its_distances():
    matching = soft_matching.EmdMatching()
    state = matching.init(4, 2)

    def loss(student, flow=None):
        costs = distances(student)
        if flow is None:
            flow = matching.update(state, costs)[1]
        return (flow * costs).sum()

    fixed = matching.update(state, distances(STUDENT))[1]
    for own, wanted in zip(jax.grad(loss)(STUDENT), jax.grad(loss)(STUDENT, fixed), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-6)
        assert np.abs(own).max() > 1e-3


def test_student_layers_follow_what_they_attend_to():
    own, others = (np.asarray([h[:, 0] for h in hs], np.float64) for hs in (STUDENT, TEACHER))
    targets = np.zeros_like(own)
    for row, s in itertools.product(range(3), range(2)):
        weights = softmax([own[s, row] @ others[t, row] for t in range(4)])
        targets[s, row] = sum(w * others[t, row] for t, w in enumerate(weights))
    arrays = [jnp.asarray(x, jnp.float32) for x in (own, others)]
    np.testing.assert_allclose(
        soft_matching.attended_teacher(*arrays), targets, rtol=1e-5, atol=1e-6
    )
    found = attended_mse(STUDENT)
    # The third text is padding.
    wanted = ((own - targets)[:, :2] ** 2).mean()
    assert float(found.value) == pytest.approx(wanted, rel=1e-5)
    assert float(found.count) == 2


def test_no_gradient_goes_through_the_attention():
    first = jnp.stack([h[:, 0] for h in STUDENT])
    others = jnp.stack([h[:, 0] for h in TEACHER])
    target = soft_matching.attended_teacher(first, others)

    def loss(first):
        hidden = tuple(h.at[:, 0].set(first[i]) for i, h in enumerate(STUDENT))
        return attended_mse(hidden).value

    wanted = np.array(2 * (first - target) / (2 * 4 * 2))
    wanted[:, 2] = 0.0
    np.testing.assert_allclose(jax.grad(loss)(first), wanted, atol=1e-6)


def draws(num_steps, every, seed=0, sizes=(12, 4)):
    key = jax.random.key(seed)
    steps = jnp.arange(num_steps)
    return np.asarray(
        jax.vmap(lambda s: soft_matching.random_teacher_layers(key, s, *sizes, every=every))(steps)
    )


def test_random_layers_rise_to_the_top_and_change_every_few_steps():
    found = draws(40, every=10)
    assert (np.diff(found, axis=1) > 0).all()
    assert (found[:, -1] == 11).all() and found.min() >= 0
    blocks = found.reshape(4, 10, 4)
    assert (blocks == blocks[:, :1]).all()
    assert len({tuple(block[0]) for block in blocks}) > 1
    np.testing.assert_array_equal(draws(40, every=10), found)
    assert (draws(40, every=10, seed=1) != found).any()
    np.testing.assert_array_equal(draws(3, 1, sizes=(3, 3)), [[0, 1, 2]] * 3)
    np.testing.assert_array_equal(draws(2, 1, sizes=(3, 1)), [[2]] * 2)


def test_every_lower_layer_is_drawn_as_often():
    found = draws(3000, every=1, sizes=(6, 3))
    counts = np.bincount(found[:, :-1].ravel(), minlength=6)[:5]
    share = 2 / 5
    # Five standard deviations: a correct program misses this once in a million.
    deviation = np.sqrt(3000 * share * (1 - share))
    assert (np.abs(counts - 3000 * share) < 5 * deviation).all()


def test_wrong_numbers_are_told():
    with pytest.raises(ValueError, match="temperature=0.0 must be positive"):
        soft_matching.EmdMatching(temperature=0.0)
    with pytest.raises(ValueError, match="num_iterations=0"):
        soft_matching.EmdMatching(num_iterations=0)
    with pytest.raises(ValueError, match="no flow goes from supply"):
        soft_matching.exact_flow(np.ones((2, 2)), np.array([1.0, 1.0]), np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="4 layers drawn of 3 every 1 steps"):
        draws(1, 1, sizes=(3, 4))
