"""The automatic choice: every case by hand, guards, bounds, intervals that hold the truth."""

import dataclasses

import numpy as np
import pytest

from jaxlab.ndv.choice import (
    Choice,
    Sample,
    choose,
    estimate_columns,
    estimate_ndv,
    start_rule,
)
from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.mixed_rates import MixedEstimate
from jaxlab.ndv.profile import profile_from_counts, profile_from_frequencies

DRAWS = 32


def sample(i, f, population, **options):
    rate = options.pop("rate", None)
    return Sample(profile_from_frequencies(i, f, population=population, rate=rate), **options)


CASES = {
    "empty": (sample([], [], 100, rate=0.1), "EMPTY", 0, "empty"),
    "unique key": (sample([1], [5], 90, is_unique_key=True), "UNIQUE_KEY", 90, "unique_key"),
    "full scan": (sample([1, 3], [4, 2], 10), "EXACT", 6, "full_scan"),
    "full scan, sketch": (
        sample([1, 3], [400, 200], 1000, num_retained=150), "SKETCH", 600, "full_scan",
    ),
    "nothing once": (sample([2, 9], [4, 2], 2600), "COMPLETE", 6, "all_repeated"),
    "all unique": (sample([1], [50], 5000), "ALL_UNIQUE", 5000, "all_unique"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases_without_an_estimator(name):
    given, method, value, status = CASES[name]
    found = estimate_ndv(given)
    assert (found.method, found.estimate, found.status) == (method, value, status)
    assert found.low <= found.estimate <= found.high and found.reason


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (sample([1, 2], [50, 10], 7000, rate=0.01), "HS"),
        (sample([1, 2], [50, 10], 3500, rate=0.02), "HS"),
        (sample([1, 2], [50, 10], 700, rate=0.1), "DUJ2A"),
        (sample([1, 3], [50, 10], 800, rate=0.1), "CHAO_BC"),
        (sample([1, 3], [50, 10], 800, rate=0.1, is_block_sample=True), "COLLAPSE+DUJ1"),
        (sample([3], [10], 300, rate=0.1, is_block_sample=True), "COLLAPSE+DUJ1"),
        (sample([1], [50], 5000, is_block_sample=True), "COLLAPSE+DUJ1"),
        (sample([1], [50], 800, rate=0.1, is_unique_key=True), "UNIQUE_KEY"),
        (sample([1, 3], [50, 10], 800, rate=0.1, is_unique_key=True), "CHAO_BC"),
    ],
)
def test_the_start_rule(given, method):
    assert choose(given, start_rule).method == method


@pytest.mark.parametrize(
    ("given", "method", "reason"),
    [
        (sample([1, 3], [50, 10], 800, rate=0.1), "CHAO_BC", "20 of 80 sampled rows repeat a v"),
        (sample([1, 3], [40, 20], 100), "EXACT", "40 of 100 sampled rows repeat a value: remove"),
        (sample([2], [20], 400), "COMPLETE", "20 of 40 sampled rows repeat a value: remove it"),
        (
            sample([1, 2], [1500, 10], 10**5, num_retained=800), "HS",
            "about 10 of about 1,520 sampled rows repeat a value",
        ),
        (
            sample([1, 3], [50, 10], 800, rate=0.1, is_block_sample=True), "COLLAPSE+DUJ1",
            "20 of 80 collapsed rows of blocks repeat a value",
        ),
    ],
)  # fmt: skip
def test_a_column_that_repeats_values_is_not_believed_to_be_unique(given, method, reason):
    plain = choose(given, start_rule)
    found = choose(dataclasses.replace(given, is_unique_key=True), start_rule)
    assert found.method == plain.method == method
    assert found.reason.startswith(f"declared unique, but {reason}")
    assert found.reason.endswith(f"remove it from the unique columns; {plain.reason}")


def test_a_rule_may_not_take_ae_where_it_runs_away():
    def always_ae(profile):
        return Choice("AE", "always")

    assert choose(sample([1, 2], [50, 10], 7000), always_ae) == Choice("AE", "always")
    runaway = sample([1, 900, 1100], [3, 4, 4], 800_300)
    assert float(estimate(runaway.profile, "AE").value) > 100_000
    guarded = choose(runaway, always_ae)
    assert guarded.method == "CHAO_BC" and "f2 = 0" in guarded.reason
    assert float(estimate(runaway.profile, "CHAO_BC").value) == 14


def test_where_nothing_was_read_everything_is_possible():
    found = estimate_ndv(CASES["empty"][0])
    assert (found.low, found.high) == (0, 100)


def test_unique_rows_exclude_few_values_by_the_birthday_problem():
    # 50 rows all different: D with exp(-50^2 / 2 (1 / D - 1 / N)) = 0.05.
    found = estimate_ndv(CASES["all unique"][0])
    assert np.exp(-1250 * (1 / found.low - 1 / 5000)) == pytest.approx(0.05)
    assert 50 < found.low < 500 and found.high == 5000
    two = estimate_ndv(sample([1], [1], 9))
    assert (two.low, two.estimate, two.high) == (1, 9, 9)


def test_unique_values_of_a_sketch_speak_for_the_retained_ones_only():
    seen = CASES["all unique"][0]
    part = estimate_ndv(dataclasses.replace(seen, num_retained=10))
    # A fifth of the values is looked at; the sketch's own d = 50 +- 62 % says less.
    assert np.exp(-250 * (1 / part.low - 1 / 5000)) == pytest.approx(0.05)
    assert part.low < estimate_ndv(seen).low and part.high == 5000
    assert part.reason == "every one of 10 retained values is unique"


def test_a_full_scan_by_a_sketch_is_as_uncertain_as_its_size_says():
    found = estimate_ndv(CASES["full scan, sketch"][0])
    spread = 1.959964 * 600 / np.sqrt(150)
    assert (found.low, found.high) == pytest.approx((600 - spread, 600 + spread), rel=1e-5)


def test_the_interval_of_mixed_rates_has_the_noise_of_its_sketch():
    given = sample([1, 2], [50, 10], 7000, mixed=MixedEstimate(200.0, 900.0, 40.0))
    exact = estimate_ndv(dataclasses.replace(given, mixed=MixedEstimate(200.0, 900.0)))
    assert (exact.low, exact.estimate, exact.high) == (60, 200, 900)
    found = estimate_ndv(dataclasses.replace(given, num_retained=30), level=0.9)
    ends = (60 - 1.644854 * 60 / np.sqrt(30), 900 + 1.644854 * 40)
    assert found.estimate == 200 and (found.low, found.high) == pytest.approx(ends, rel=1e-6)


def blocks_of(i, f, **options):
    """A hundredth of the blocks of 50,000 rows, collapsed."""
    rows = int(np.dot(i, f))
    options = {"most": 50_000, "rows_read": 500, **options}
    return sample(i, f, rows / 0.01, rate=0.01, is_block_sample=True, **options)


def test_the_interval_of_a_block_sample_leaves_every_row_that_was_not_read_open():
    given = blocks_of([1, 2], [50, 10])
    found = estimate_ndv(given)
    assert found.status == "block"
    assert found.estimate == pytest.approx(float(estimate(given.profile, "DUJ1").value))
    assert (found.low, found.high) == (60, 60 + 50_000 - 500)
    few = estimate_ndv(blocks_of([1, 2], [50, 10], most=3000))
    assert (few.estimate, few.low, few.high) == (min(found.estimate, 3000), 60, 2560)
    # Copies that were collapsed away are not known: at least the collapsed rows were read.
    assert estimate_ndv(blocks_of([1, 2], [50, 10], rows_read=None)).high == 60 + 50_000 - 70


def test_blocks_of_one_value_do_not_prove_that_there_is_no_other():
    found = estimate_ndv(blocks_of([5], [1]))
    assert (found.estimate, found.method, found.status) == (1, "COLLAPSE+DUJ1", "block")
    assert (found.low, found.high) == (1, 49_501)
    mixed = estimate_ndv(blocks_of([5], [1], mixed=MixedEstimate(1.0, 1.0)))
    assert (mixed.estimate, mixed.method, mixed.status) == (1, "GEE_MIXED", "block")
    assert (mixed.low, mixed.high) == (1, 49_501)


def test_both_ends_of_a_block_sample_have_the_noise_of_its_sketch():
    found = estimate_ndv(blocks_of([1, 2], [50, 10], num_retained=20))
    spread = 1.959964 * 60 / np.sqrt(20)
    assert (found.low, found.high) == pytest.approx((60 - spread, 49_560 + spread), rel=1e-6)
    exact = estimate_ndv(blocks_of([1, 2], [50, 10]))
    assert (exact.low, exact.high) == (60, 49_560)


def test_a_part_of_the_blocks_is_not_all_of_them_however_noisy_its_sketch():
    """A sketch may say more rows than the column has; its rate tells that not all were read."""
    given = blocks_of([1, 2], [50, 10], num_retained=20)
    noisy = given.profile._replace(N=np.asarray(65.0))
    assert choose(dataclasses.replace(given, profile=noisy)).method == "COLLAPSE+DUJ1"


def test_a_block_sample_needs_the_rows_of_the_whole_column():
    with pytest.raises(ValueError, match="block sample of 70 collapsed rows has no `most`"):
        estimate_ndv(blocks_of([1, 2], [50, 10], most=None))


def test_blocks_without_a_value_leave_every_row_that_was_not_read_open():
    found = estimate_ndv(blocks_of([], [], rows_read=0, most=49_500))
    assert (found.low, found.estimate, found.high, found.status) == (0, 0, 49_500, "empty")


def sampled_columns(rng):
    """Columns of known sizes, sampled at 5 %: their samples and true numbers of values."""
    for distinct in (300, 2000, 8000):
        sizes = 1 + rng.poisson(25, distinct)
        counts = rng.binomial(sizes, 0.05)
        yield Sample(profile_from_counts(counts, population=int(sizes.sum()), rate=0.05)), distinct


def test_columns_of_one_estimator_share_a_call_and_hold_the_truth():
    samples, truth = zip(*sampled_columns(np.random.default_rng(3)), strict=True)
    given = [*samples, CASES["full scan"][0]]
    found = estimate_columns(given, num_draws=DRAWS, level=0.9, rule=start_rule)
    assert [result.method for result in found] == ["DUJ2A"] * 3 + ["EXACT"]
    for result, distinct, column in zip(found[:3], truth, samples, strict=True):
        assert result.estimate == float(estimate(column.profile, "DUJ2A").value)
        assert result.estimate / distinct == pytest.approx(1, abs=0.1)
        # Draws scatter by a few percent around the estimate.
        assert 0.7 < result.low / distinct < 1.05 and 0.95 < result.high / distinct < 1.3
        assert result.low < result.estimate < result.high
        assert result.status == "ok" and 0 < result.coverage < 1


def test_the_learned_choice_tells_its_weights_and_holds_the_truth():
    samples, truth = zip(*sampled_columns(np.random.default_rng(3)), strict=True)
    found = estimate_columns([*samples, CASES["full scan"][0]])
    assert [result.method for result in found] == ["FUSED"] * 3 + ["EXACT"]
    for result, distinct in zip(found[:3], truth, strict=True):
        assert result.estimate / distinct == pytest.approx(1, abs=0.1)
        assert result.low < distinct < result.high and result.reason.startswith("learned weights")
    wide = estimate_ndv(samples[0], level=0.99)
    assert wide.low < found[0].low and wide.high > found[0].high
    named = estimate_ndv(samples[0], method="FUSED")
    assert (named.estimate, named.reason) == (found[0].estimate, "asked for by name")


def test_the_published_network_can_be_asked_for():
    found = estimate_ndv(sample([1, 2], [50, 10], 7000), method="ESTNDV", num_draws=DRAWS)
    assert found.method == "ESTNDV" and found.low <= found.estimate <= found.high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "BEST"}, "method 'BEST' is no estimator.*here are SCALE"),
        ({"method": "GOODMAN"}, "method 'GOODMAN' is no estimator"),
        ({"method": "DUJ"}, r"method 'DUJ' is no estimator; did you mean DUJ2\? There are SCALE"),
        ({"level": 1.0}, "level=1.0 is not in"),
        ({"rule": lambda _: Choice("MAGIC", "")}, "the rule's method 'MAGIC' is no estimator"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        estimate_ndv(sample([1, 2], [50, 10], 7000), **options)


def test_a_method_by_name_leaves_the_cases_that_need_none_and_says_so():
    blocks = blocks_of([1, 2], [50, 10])
    mixed = sample([1, 2], [50, 10], 7000, mixed=MixedEstimate(200.0, 900.0))
    given = [*(case[0] for case in CASES.values()), blocks, mixed]
    for plain, named in zip(
        estimate_columns(given), estimate_columns(given, method="GEE"), strict=True
    ):
        told = f"{plain.reason}; GEE, asked for by name, is not used"
        assert named == dataclasses.replace(plain, reason=told)
    runaway = estimate_ndv(sample([1, 3], [50, 10], 800), method="AE", num_draws=0)
    assert runaway.method == "CHAO_BC"
    assert runaway.reason.endswith("it runs away; AE, asked for by name, is not used")


def test_intervals_of_single_estimators_say_that_they_leave_out_the_bias():
    given = sample([1, 2], [50, 10], 7000)
    found = estimate_ndv(given, method="GEE", num_draws=DRAWS)
    assert found.method == "GEE"
    assert found.reason == "asked for by name; its interval leaves out its bias"
    assert estimate_ndv(given, method="GEE", num_draws=0).reason == "asked for by name"


def test_an_empty_sample_of_a_column_with_rows_says_that_it_knows_nothing():
    reason = "none of up to 100 rows with a value was read: this says nothing, read more"
    assert estimate_ndv(CASES["empty"][0]).reason == reason
    assert estimate_ndv(sample([], [], 0)).reason == "no row with a value was read"


@pytest.mark.parametrize("name", ["Gee", "duj2a", "estndv", "fused", "AUTO"])
def test_methods_are_found_in_any_case_of_letters(name):
    given = sample([1, 2], [50, 10], 7000)
    usual = "auto" if name == "AUTO" else name.upper()
    found = estimate_ndv(given, method=name, num_draws=0)
    assert found == estimate_ndv(given, method=usual, num_draws=0)
    assert found.method == ("FUSED" if name == "AUTO" else usual)
    if name not in ("AUTO", "fused"):
        by_rule = estimate_ndv(given, rule=lambda _: Choice(name, "mine"), num_draws=0)
        assert (by_rule.method, by_rule.estimate) == (usual, found.estimate)


def test_without_draws_intervals_are_the_estimates_themselves():
    samples = [
        Sample(profile_from_frequencies([1, 2, 3], [60, 20, 5], population=size, rate=rate))
        for size, rate in ((11_500, 0.01), (1150, 0.1))
    ]
    for given, found in zip(
        samples, estimate_columns(samples, num_draws=0, rule=start_rule), strict=True
    ):
        assert found.low == found.estimate == found.high
        assert found.estimate == float(estimate(given.profile, found.method).value)
