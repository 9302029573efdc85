"""Robust rules against slow forms in NumPy float64, and against numbers worked out apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated import robust
from jaxlab.federated.strategy import ConfigError


def draws(num_honest, num_hostile=2):
    """Honest updates around 0, hostile ones around 8."""
    rng = np.random.RandomState(0)
    honest = rng.randn(num_honest, 5)
    return np.concatenate([honest, 8 + rng.randn(num_hostile, 5)])


def as_tree(rows):
    """The same updates as leaves of several shapes and types of axes."""
    rows = jnp.asarray(rows, jnp.float32)
    return {"a": rows[:, :1], "b": {"c": rows[:, 1:].reshape(len(rows), 2, 2)}}


def combine(rule, rows, weights=None):
    tree = as_tree(rows)
    weights = np.ones(len(rows)) if weights is None else weights
    out = rule.combine(tree, jnp.asarray(weights, jnp.float32), jnp.zeros(len(rows), jnp.int32))
    return np.concatenate([np.ravel(out["a"]), np.ravel(out["b"]["c"])])


def slow_scores(rows, num_neighbours, leaves=None):
    scores = []
    for i, one in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        if leaves is None:
            distances = [((one - other) ** 2).sum() for other in others]
        else:
            distances = [
                sum(np.linalg.norm((one - other)[leaf]) for leaf in leaves) for other in others
            ]
        scores.append(sum(sorted(distances)[:num_neighbours]))
    return np.array(scores)


def slow_bulyan(rows, f):
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        scores = slow_scores(rows[left], max(1, len(left) - f - 2))
        chosen.append(left.pop(int(np.argmin(scores))))
    values, kept = rows[chosen], len(chosen) - 2 * f
    result = []
    for column in values.T:
        middle = np.median(column)
        result.append(np.mean(sorted(column, key=lambda value: abs(value - middle))[:kept]))
    return chosen, np.array(result)


def slow_geometric_median(rows, weights):
    center = np.average(rows, axis=0, weights=weights)
    for _ in range(2000):
        pulls = weights / np.maximum(np.linalg.norm(rows - center, axis=1), 1e-6)
        center = np.average(rows, axis=0, weights=pulls)
    return center


def test_published_scores_of_krum():
    rows = draws(7)
    expected = [
        83.058899, 24.749356, 32.793950, 41.693144, 67.892181, 46.507711, 60.141653, 1253.011397,
        993.223836,
    ]  # fmt: skip
    np.testing.assert_allclose(slow_scores(rows, 5), expected, atol=1e-5)
    distances = robust._pairwise(as_tree(rows), False)
    scores = robust.krum_scores(distances, jnp.ones(9, bool), 5)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(combine(robust.krum(2), rows), rows[1], atol=1e-6)


@pytest.mark.parametrize(
    "rule, expected",
    [
        (robust.multi_krum(2, 3), [-0.166520, 1.299480, 0.134841, 0.110508, 0.000122]),
        (robust.median(), [0.154947, 0.950088, 0.761038, 0.313068, 1.469359]),
        (robust.trimmed_mean(0.25), [0.283888, 0.990443, 0.453134, 0.821039, 1.292227]),
        (robust.geometric_median(), [-0.035217, 1.202483, 0.491205, 0.421626, 0.740616]),
    ],
    ids=["multi_krum", "median", "trimmed_mean", "geometric_median"],
)
def test_numbers_worked_out_apart(rule, expected):
    np.testing.assert_allclose(combine(rule, draws(7)), expected, atol=2e-6)


def test_bulyan_selects_one_after_another_and_averages_around_the_median():
    rows = draws(9)
    chosen, expected = slow_bulyan(rows, 2)
    assert chosen == [1, 2, 7, 5, 3, 6, 9]
    np.testing.assert_allclose(
        expected, [0.151780, 1.392881, -0.181233, 0.110508, 0.184053], atol=1e-6
    )
    distances = robust._pairwise(as_tree(rows), False)
    assert robust.select_by_krum(distances, 2, 7).tolist() == chosen
    np.testing.assert_allclose(combine(robust.bulyan(2), rows), expected, atol=2e-6)


@pytest.mark.parametrize("num_updates", [4, 7])
def test_rules_are_their_slow_forms_for_even_and_odd_numbers_of_updates(num_updates):
    rng = np.random.default_rng(num_updates)
    rows, weights = rng.normal(size=(num_updates, 5)), rng.uniform(1, 9, num_updates)
    found = combine(robust.median(), rows, weights)
    np.testing.assert_allclose(found, np.median(rows, axis=0), atol=1e-6)
    dropped = int(0.26 * num_updates)
    ordered = np.sort(rows, axis=0)[dropped : num_updates - dropped]
    found = combine(robust.trimmed_mean(0.26), rows, weights)
    np.testing.assert_allclose(found, ordered.mean(axis=0), atol=1e-6)
    found = combine(robust.geometric_median(weighted=True), rows, weights)
    np.testing.assert_allclose(found, slow_geometric_median(rows, weights), atol=1e-4)
    best = np.argsort(slow_scores(rows, num_updates - 2))[:2]
    found = combine(robust.multi_krum(0, 2), rows, weights)
    np.testing.assert_allclose(
        found, np.average(rows[best], axis=0, weights=weights[best]), atol=1e-6
    )
    found = combine(robust.bulyan(0), rows)
    np.testing.assert_allclose(found, rows.mean(axis=0), atol=1e-6)


def test_norms_are_bounded_over_the_whole_update():
    rows, weights = draws(7) * np.array([[0.1]]), np.arange(1.0, 10)
    norms = np.linalg.norm(rows, axis=1)
    scaled = rows * np.minimum(1, 0.2 / norms)[:, None]
    assert (norms < 0.2).any() and (norms > 0.2).any()
    found = combine(robust.norm_bounding(0.2), rows, weights)
    np.testing.assert_allclose(found, np.average(scaled, axis=0, weights=weights), atol=1e-6)
    np.testing.assert_array_equal(combine(robust.norm_bounding(1.0), np.zeros((2, 5))), np.zeros(5))


def test_centred_clipping_moves_its_centre_by_clipped_differences():
    rows, center = draws(7), np.zeros(5)
    for _ in range(4):
        away = rows - center
        scales = np.minimum(1, 1.5 / np.linalg.norm(away, axis=1))
        center = center + (away * scales[:, None]).mean(axis=0)
    found = combine(robust.centered_clipping(1.5, num_steps=4), rows)
    np.testing.assert_allclose(found, center, atol=1e-6)


RULES = {
    "median": robust.median(),
    "trimmed_mean": robust.trimmed_mean(0.3),
    "krum": robust.krum(2),
    "multi_krum": robust.multi_krum(2, 4),
    "bulyan": robust.bulyan(2),
    "geometric_median": robust.geometric_median(),
    "norm_bounding": robust.norm_bounding(5.0),
    "centered_clipping": robust.centered_clipping(5.0),
}


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_are_what_comes_out_and_their_order_does_not_matter(name):
    row = np.array([0.1, -0.2, 0.3, 0.0, 1.0])
    np.testing.assert_allclose(combine(RULES[name], np.tile(row, (11, 1))), row, atol=1e-6)
    rows = draws(9)
    shuffled = np.random.default_rng(1).permutation(rows)
    np.testing.assert_allclose(
        combine(RULES[name], rows), combine(RULES[name], shuffled), atol=3e-6
    )


@pytest.mark.parametrize("name", RULES)
def test_hostile_updates_a_million_times_as_large_move_nothing_far(name):
    rows = draws(9)
    hostile = rows.copy()
    hostile[9:] *= 1e6
    moved = combine(RULES[name], hostile)
    if name in ("norm_bounding", "centered_clipping"):
        assert (np.abs(moved) <= 5.0).all(), moved  # their bound
    else:  # among the honest updates
        honest = rows[:9].astype(np.float32)
        assert (honest.min(axis=0) <= moved).all() and (moved <= honest.max(axis=0)).all(), moved


def test_trimming_counts_in_exact_arithmetic():
    rows = np.tile(np.arange(100.0)[:, None] ** 2, (1, 5))
    assert int(0.29 * 100) == 28
    expected = np.mean(np.arange(29.0, 71) ** 2)
    np.testing.assert_allclose(combine(robust.trimmed_mean(0.29), rows), expected, rtol=1e-6)


def test_compat_measures_leaf_by_leaf_and_trims_once_as_the_original():
    rows, leaves = draws(9), (slice(0, 1), slice(1, 5))
    scores = slow_scores(rows, 7, leaves)
    found = combine(robust.krum(2, compat=True), rows)
    np.testing.assert_allclose(found, rows[np.argmin(scores)], atol=1e-6)
    for rate, kept, dropped in ((1.0, 7, 2), (0.5, 9, 1)):
        chosen = np.sort(rows[np.argsort(scores)[:kept]], axis=0)
        found = combine(robust.bulyan(2, compat=True, sample_rate=rate), rows)
        np.testing.assert_allclose(found, chosen[dropped : kept - dropped].mean(axis=0), atol=1e-6)
    # The definition and the original do not choose the same.
    assert not np.allclose(found, combine(robust.bulyan(2), rows), atol=1e-3)


def test_rules_know_how_many_updates_they_need():
    needs = {name: rule.min_updates for name, rule in RULES.items()}
    assert needs["krum"] == needs["multi_krum"] == 5 and needs["bulyan"] == 11
    assert {needs[name] for name in ("median", "trimmed_mean", "geometric_median")} == {1}


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: robust.trimmed_mean(0.5), r"ratio=0.5 must be in \[0, 0.5\)"),
        (lambda: robust.trimmed_mean(-0.1), "ratio=-0.1"),
        (lambda: robust.krum(-1), "num_byzantine=-1 must not be negative"),
        (lambda: robust.multi_krum(1, 0), "num_selected=0 must be at least 1"),
        (lambda: robust.norm_bounding(0.0), "bound=0.0 must be positive"),
        (lambda: robust.geometric_median(smoothing=0.0), "smoothing=0.0 must be positive"),
        (lambda: robust.centered_clipping(-1.0), "radius=-1.0 must be positive"),
        (lambda: robust.bulyan(1, sample_rate=0.5), "is for compat=True only"),
    ],
)
def test_numbers_out_of_range_are_told(make, wrong):
    with pytest.raises(ConfigError, match=wrong):
        make()


def test_updates_in_half_precision_are_combined_in_float32():
    tree = {"w": jnp.asarray(draws(7), jnp.bfloat16)}
    arguments = tree, jnp.ones(9), jnp.zeros(9, jnp.int32)
    for name in RULES.keys() - {"bulyan"}:
        assert jax.eval_shape(RULES[name].combine, *arguments)["w"].dtype == jnp.float32
