"""The learned choice: inputs, the network by a second form, bounds, and what it is worth."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import fusion
from jaxlab.ndv.estimators import Status, estimate
from jaxlab.ndv.fusion import (
    BASES,
    MEMBERS,
    NUM_FEATURES,
    FusionParams,
    Scaling,
    fuse,
    load_fusion,
    make_fused,
    make_inputs,
    network_outputs,
    save_fusion,
    shipped_fused,
    shipped_params,
)
from jaxlab.ndv.learned import DENSE_LENGTH, find_estimator, fused_answers
from jaxlab.ndv.profile import (
    profile_from_frequencies,
    stack_profiles,
    to_dense,
    to_device,
)
from jaxlab.ndv.train import init_networks, random_draws

COMPARED = ("GEE", "CHAO", "CHAO_BC", "CL1", "AE", "DUJ1", "DUJ2A", "SHL", "HS", "SJ")


def profile(i, f, population, rate=None):
    return profile_from_frequencies(i, f, population=population, rate=rate)


def random_params(seed=0, networks=2):
    rng = np.random.default_rng(seed)
    scaling = Scaling(
        rng.normal(size=NUM_FEATURES).astype(np.float32),
        rng.uniform(0.5, 2, NUM_FEATURES).astype(np.float32),
    )
    drawn = init_networks(jax.random.key(seed), networks, (16, 8))
    return FusionParams(jax.tree.map(lambda leaf: np.asarray(leaf), drawn), scaling)


@pytest.fixture(scope="module")
def random_samples():
    """Samples of random columns that no training has seen, at rates from 0.1 % to 20 %."""
    rng = np.random.default_rng(20261127)
    draws = random_draws(rng, 900, length=DENSE_LENGTH, log10_rate=(-3.0, -0.7))
    return [draw for draw in draws if 0 < draw.profile.f[0] < draw.profile.n]


def test_the_network_equals_its_definition():
    params = random_params()
    features = np.random.default_rng(1).normal(size=(3, NUM_FEATURES)) * 4
    weights, spread = network_outputs(params.networks, params.scaling, features)
    for row in range(3):
        for member in range(2):
            x = np.clip((features[row] - params.scaling.mean) / params.scaling.scale, -6, 6)
            for layer in range(3):
                x = (
                    x @ params.networks.kernels[layer][member]
                    + params.networks.biases[layer][member]
                )
                if layer < 2:
                    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            scores = np.exp(x[: len(MEMBERS)])
            np.testing.assert_allclose(weights[member, row], scores / scores.sum(), rtol=1e-6)
            np.testing.assert_allclose(spread[member, row], np.log1p(np.exp(x[-2:])), rtol=1e-6)


def test_host_device_batch_and_layout_agree():
    columns = [
        profile([1, 2, 3], [600, 100, 20], 90_000),
        profile([1, 2, 40, 300], [50, 10, 5, 2], 60_000, rate=0.014),
        profile([1, 2, 3, 4], [9000, 4000, 2000, 800], 10**7),
    ]
    params = random_params()
    dense = [to_dense(column, DENSE_LENGTH) for column in columns]
    batch = fuse(params, make_inputs(stack_profiles(dense)))
    device = jax.jit(lambda p: fuse(params, make_inputs(p)))(to_device(stack_profiles(dense)))
    for place, column in enumerate(columns):
        single = fuse(params, make_inputs(column))
        for leaf, many, other in zip(single, batch, device, strict=True):
            np.testing.assert_allclose(leaf, many[place], rtol=1e-9)
            np.testing.assert_allclose(leaf, np.asarray(other)[place], rtol=2e-4, atol=2e-5)


def test_members_are_the_estimates_themselves():
    column = profile([1, 2, 3], [600, 100, 20], 90_000)
    logs = make_inputs(column).logs
    d, bound = 720.0, 720 + 90_000 - 860
    wanted = [np.log(float(estimate(column, name).value) / d) for name in BASES]
    np.testing.assert_allclose(logs, [*wanted, 0.0, np.log(bound / d)], rtol=1e-9, atol=1e-12)


def test_ae_does_not_run_away_where_nothing_was_seen_twice():
    runaway = profile([1, 900, 1100], [3, 4, 4], 800_300)
    assert float(estimate(runaway, "AE").value) > 100_000
    logs = make_inputs(runaway).logs
    calm = np.log(float(estimate(runaway, "CHAO_BC").value) / 11)
    assert logs[BASES.index("AE")] == pytest.approx(calm)
    # Without it, what is fused stays a thousand times below the runaway.
    assert float(estimate(runaway, shipped_fused()).value) < 100


def test_more_of_the_same_rows_change_nothing_once_there_are_many():
    small = profile([1, 2, 3], [4e6, 2e6, 1.5e6], 10**9, rate=0.0125)
    large = profile([1, 2, 3], [4e8, 2e8, 1.5e8], 10**11, rate=0.0125)
    params = shipped_params()
    one, other = (fuse(params, make_inputs(column)) for column in (small, large))
    assert float(one.log_ratio) == pytest.approx(float(other.log_ratio), abs=1e-4)
    assert float(one.high) == pytest.approx(float(other.high), abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(st.integers(1, 400), st.integers(1, 10**6), min_size=1, max_size=12),
    st.floats(1.01, 1e4),
    st.integers(0, 3),
)
def test_answers_and_intervals_lie_between_what_was_seen_and_what_is_left(found, factor, seed):
    i, f = list(found), [float(number) for number in found.values()]
    n = sum(a * b for a, b in zip(i, f, strict=True))
    column = profile(i, f, int(n * factor) + 1)
    fused = fuse(random_params(seed), make_inputs(column))
    room = np.log((float(column.d) + float(column.N) - n) / float(column.d))
    assert np.isfinite([*fused[:3]]).all()
    assert 0 <= fused.low <= fused.log_ratio <= fused.high <= room + 1e-9
    assert fused.weights.sum() == pytest.approx(1)


def test_as_an_estimator_it_obeys_the_edge_cases():
    fused = make_fused(random_params())
    cases = {
        Status.FULL_SCAN: (profile([1, 2], [3, 4], 11), 7.0),
        Status.ALL_REPEATED: (profile([2, 9], [4, 2], 2600), 6.0),
        Status.EMPTY: (profile([], [], 100, rate=0.1), 0.0),
    }
    for status, (column, value) in cases.items():
        found = estimate(column, fused)
        assert (float(found.value), int(found.status)) == (value, status)
    assert find_estimator("FUSED") is shipped_fused()
    with pytest.raises(ValueError, match=r"'BEST'; did you mean ESTNDV\? There are .*ESTNDV"):
        find_estimator("BEST")


def test_shipped_networks_beat_every_estimator_on_columns_they_have_not_seen(random_samples):
    batch = stack_profiles([draw.profile for draw in random_samples])
    truth = np.array([draw.num_distinct for draw in random_samples], np.float64)

    def errors(estimator):
        value = np.maximum(np.asarray(estimate(batch, estimator).value), 1)
        return np.maximum(value / truth, truth / value)

    ours = errors(shipped_fused())
    for name in COMPARED:
        theirs = errors(name)
        assert ours.mean() < theirs.mean() and np.median(ours) < np.median(theirs), name
        assert np.percentile(ours, 90) < np.percentile(theirs, 90), name


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_shipped_intervals_hold_the_truth_as_often_as_they_say(random_samples, level):
    profiles = [draw.profile for draw in random_samples]
    answers = fused_answers(profiles, [None] * len(profiles), level=level)
    truth = [draw.num_distinct for draw in random_samples]
    inside = [
        answer.low * (1 - 1e-6) <= distinct <= answer.high * (1 + 1e-6)
        for answer, distinct in zip(answers, truth, strict=True)
    ]
    # Quantiles are learned at 95 %; errors have heavier tails than a normal distribution, so that
    # shorter intervals hold more than they say.
    assert level - 0.03 < np.mean(inside) < min(level + 0.35, 0.995)


def test_a_sketch_widens_the_interval_by_its_own_noise():
    column = profile([1, 2, 3, 4], [6000, 3000, 1000, 300], 10**6, rate=0.0162)
    exact, fine, coarse = (fused_answers([column], [size])[0] for size in (None, 10_000, 300))
    assert exact.value == fine.value == coarse.value
    widths = [answer.high / answer.low for answer in (exact, fine, coarse)]
    assert widths[0] < widths[1] < widths[2]
    assert coarse.low < exact.value * (1 - 1 / 300**0.5)
    assert "learned weights: " in exact.reason


def test_files_come_back_and_broken_ones_are_named(tmp_path):
    params = random_params()
    save_fusion(tmp_path / "a.npz", params)
    found = load_fusion(tmp_path / "a.npz")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)  # half precision
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"b\.npz holds no learned choice"):
        load_fusion(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", members=np.array(["GEE"]))
    with pytest.raises(ValueError, match=r"c\.npz holds no learned choice"):
        load_fusion(tmp_path / "c.npz")
    wrong = params._replace(scaling=Scaling(*(leaf[:5] for leaf in params.scaling)))
    save_fusion(tmp_path / "d.npz", wrong)
    with pytest.raises(ValueError, match="train it again"):
        load_fusion(tmp_path / "d.npz")


def test_members_have_names_and_weights():
    assert len(MEMBERS) == len(set(MEMBERS)) == len(BASES) + 2
    assert fusion.NUM_OUTPUTS == len(MEMBERS) + 2
