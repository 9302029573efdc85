"""Match probabilities: logistic fit, percentiles, thresholds, and their error on real features."""

import json
import math

import jax
import numpy as np
import pytest

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.calibration import (
    MatchCalibration,
    background_percentile,
    expected_calibration_error,
    fit_calibration,
    split_cosines,
    threshold_for_precision,
)
from jaxlab.data.emoji import load_emoji
from jaxlab.parallel import make_mesh


def draw_cosines(matching=4000, other=20_000):
    """Two normal distributions of one width: their log odds are linear in the cosine."""
    rng = np.random.default_rng(0)
    return rng.normal(0.45, 0.05, matching), rng.normal(0.25, 0.05, other)


def test_the_fit_finds_the_log_odds_of_two_normals():
    calibration = fit_calibration(*draw_cosines(), prior=0.5)
    # log N(x; .45, .05) - log N(x; .25, .05) = (.2 x - .07) / .0025
    assert calibration.slope == pytest.approx(0.2 / 0.0025, rel=0.05)
    assert -calibration.intercept / calibration.slope == pytest.approx(0.35, abs=0.003)
    assert calibration.probability(0.35) == pytest.approx(0.5, abs=0.05)


def test_the_fit_is_a_stationary_point_of_the_likelihood():
    matching, other = draw_cosines(40, 300)
    found = fit_calibration(matching, other, prior=0.5)

    def loss(slope, intercept):
        total = 0.0
        for values, target in ((matching, 41 / 42), (other, 1 / 302)):
            p = 1 / (1 + np.exp(-(slope * values + intercept)))
            total -= np.mean(target * np.log(p) + (1 - target) * np.log1p(-p))
        return total

    best = loss(found.slope, found.intercept)
    for slope, intercept in ((1.001, 1), (0.999, 1), (1, 1.001), (1, 0.999)):
        assert loss(found.slope * slope, found.intercept * intercept) >= best - 1e-12


def test_the_prior_moves_the_odds_and_nothing_else():
    calibration = fit_calibration(*draw_cosines(), prior=0.5)
    rare = calibration.with_prior(0.001)

    def odds(p):
        return p / (1 - p)

    x = np.linspace(0.2, 0.5, 7)
    moved = odds(rare.probability(x)) / odds(calibration.probability(x))
    np.testing.assert_allclose(moved, 0.001 / 0.999, rtol=1e-6)
    back = rare.with_prior(0.5)
    assert back.intercept == pytest.approx(calibration.intercept)
    assert rare.cosine(0.5) > calibration.cosine(0.5)
    assert rare.probability(rare.cosine(0.9)) == pytest.approx(0.9)


def test_separable_pairs_give_a_finite_slope_and_reversed_ones_none():
    low, high = np.linspace(0.0, 0.1, 50), np.linspace(0.8, 0.9, 50)
    assert 0 < fit_calibration(high, low).slope < 1e3
    silent = fit_calibration(low, high, prior=0.2)
    assert silent.slope == 0 and silent.probability(0.5) == pytest.approx(0.2, abs=1e-6)
    assert silent.cosine(0.9) == math.inf


def test_percentiles_are_shares_of_the_background():
    matching, other = draw_cosines(100, 5000)
    calibration = fit_calibration(matching, other)
    for x in (0.1, 0.2, 0.25, 0.3, 0.5):
        assert calibration.percentile(x) == pytest.approx(np.mean(other < x), abs=0.002)
    assert background_percentile([[0.2]], calibration.background).shape == (1, 1)


def test_threshold_is_the_lowest_that_reaches_the_precision():
    rng = np.random.default_rng(1)
    matching, other = rng.normal(0.4, 0.1, 60), rng.normal(0.25, 0.1, 400)

    def precision(threshold, prior):
        found, wrong = np.mean(matching >= threshold), np.mean(other >= threshold)
        return prior * found / (prior * found + (1 - prior) * wrong)

    for prior, wanted in ((60 / 460, 0.8), (0.5, 0.95), (0.01, 0.5)):
        given = None if prior == 60 / 460 else prior
        threshold = threshold_for_precision(matching, other, wanted, prior=given)
        assert precision(threshold, prior) >= wanted - 1e-9
        values = np.concatenate([matching, other])
        for lower in values[values < threshold]:
            assert precision(lower, prior) < wanted
    assert threshold_for_precision(other[:5] - 9, matching, 0.9) == math.inf


def test_calibration_error_by_hand():
    p = np.array([0.05, 0.05, 0.95, 0.95])
    assert expected_calibration_error(p, np.array([False, False, True, True])) == pytest.approx(
        0.05
    )
    weights = np.array([1.0, 1.0, 2.0, 0.0])
    error = expected_calibration_error(p, np.array([False, True, True, True]), weights=weights)
    assert error == pytest.approx((abs(0.1 - 1) + abs(1.9 - 2)) / 4)


@pytest.fixture(scope="module")
def emoji_cosines():
    """Cosines of a real image tower: Google's drawings look for Twitter's of the same emoji."""
    emoji, mesh = load_emoji(), make_mesh(devices=jax.devices()[:1])
    chosen = np.random.default_rng(0).choice(np.flatnonzero(emoji.is_base), 256, replace=False)
    model = clip.load(clip.load_english_tower(), towers="image", mesh=mesh)
    data = [emoji.encoded_images(style) for style in ("google", "twitter")]
    google, twitter = (model.encode_image([style[i] for i in chosen]) for style in data)
    return google @ twitter.T


def test_the_calibration_error_falls_on_real_features_that_were_held_out(emoji_cosines):
    # Pairs are fitted on the first half of the emoji and read on the second.
    half = len(emoji_cosines) // 2
    fit = split_cosines(emoji_cosines[:half, :half], [[i] for i in range(half)])
    test = split_cosines(emoji_cosines[half:, half:], [[i] for i in range(half)])
    calibration = fit_calibration(*fit)
    cosines = np.concatenate(test)
    matches = np.arange(len(cosines)) < len(test.matching)
    naive = expected_calibration_error(np.clip(cosines, 0, 1), matches)
    calibrated = expected_calibration_error(calibration.probability(cosines), matches)
    assert calibrated < 0.02 < 0.1 < naive
    # As many matching as other pairs: rare ones do not decide this.
    weights = np.where(matches, 0.5 / len(test.matching), 0.5 / len(test.other))
    even = calibration.with_prior(0.5)
    naive = expected_calibration_error(np.clip(cosines, 0, 1), matches, weights=weights)
    calibrated = expected_calibration_error(even.probability(cosines), matches, weights=weights)
    assert calibrated < 0.5 * naive
    # A threshold that was chosen on one half keeps most of its precision on the other.
    threshold = threshold_for_precision(*fit, 0.9, prior=0.5)
    found, wrong = np.mean(test.matching >= threshold), np.mean(test.other >= threshold)
    assert found / (found + wrong) > 0.8 and found > 0.1


def test_calibrations_round_trip_through_json(tmp_path):
    calibration = fit_calibration(*draw_cosines(100, 300))
    calibration.save(tmp_path / "calibration.json")
    assert MatchCalibration.load(tmp_path / "calibration.json") == calibration
    assert json.loads((tmp_path / "calibration.json").read_text())["slope"] == calibration.slope


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "calibration.json: "),
        ("[]", "no calibration; wanted format="),
        ('{"format": "x"}', "no calibration"),
        (
            '{"format": "jaxlab.chinese_clip.calibration", "slope": -1, "intercept": 0, '
            '"prior": 0.5, "background": [0, 1]}',
            "slope=-1.0",
        ),
        (
            '{"format": "jaxlab.chinese_clip.calibration", "slope": 1, "intercept": 0, '
            '"prior": 2, "background": [0, 1]}',
            "prior=2.0 is not between 0 and 1",
        ),
        (
            '{"format": "jaxlab.chinese_clip.calibration", "slope": 1, "intercept": 0, '
            '"prior": 0.5, "background": [1, 0]}',
            "in rising order",
        ),
        (
            '{"format": "jaxlab.chinese_clip.calibration", "slope": [], "intercept": 0, '
            '"prior": 0.5, "background": [1, 0]}',
            "is no number",
        ),
    ],
)
def test_damaged_calibrations_are_refused(tmp_path, text, message):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        MatchCalibration.load(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    ("matching", "other", "message"),
    [
        ([0.5], [0.1, 0.2], "matching holds 1 cosines; give at least two"),
        ([0.5, 0.6], [], "other holds 0 cosines"),
        ([0.5, np.nan], [0.1, 0.2], "matching holds NaN or infinity"),
    ],
)
def test_too_few_or_broken_pairs_are_refused(matching, other, message):
    for call in (fit_calibration, lambda *groups: threshold_for_precision(*groups, 0.9)):
        with pytest.raises(ValueError, match=message):
            call(np.array(matching), np.array(other))


def test_groups_are_taken_apart_by_the_positives():
    cosines = np.arange(6.0).reshape(2, 3)
    groups = split_cosines(cosines, [[0, 2], []])
    assert groups.matching.tolist() == [0, 2] and groups.other.tolist() == [1, 3, 4, 5]
    with pytest.raises(ValueError, match="positives of 1 queries for 2 rows"):
        split_cosines(cosines, [[0]])
