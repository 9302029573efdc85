"""The classical estimators beside the public package pydistinct, on the same samples.

Not compared, since there the package differs from the literature: Chao and Lee, Horvitz-Thompson,
the third method of moments, Goodman and samples without repeated values. Its smoothed jackknife has
another factor at the skew, and its second method of moments reads class sizes as whole numbers:
both agree to 2 % where classes are even and not small.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxlab.ndv.estimators import estimate
from jaxlab.ndv.profile import profile_from_counts

GOLDEN = Path(__file__).parents[1] / "golden"
maker = runpy.run_path(str(GOLDEN / "make_pydistinct.py"))
NAMES = [name for name, _, _ in maker["populations"]()]
EXACT, NEAR = ("JK1", "BOOT", "MM0", "SHL", "CHAO"), ("SJ", "MM1")


def assert_near(counts, population, theirs, *, is_even):
    profile = profile_from_counts(counts, population=population)
    for name in EXACT:
        assert estimate(profile, name).value == pytest.approx(theirs[name], rel=1e-6), name
    if is_even:
        for name in NEAR:
            assert estimate(profile, name).value == pytest.approx(theirs[name], rel=0.02), name


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN / "pydistinct.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("sample", NAMES)
def test_stored_estimates_are_met(sample, stored):
    counts, population = stored[f"{sample}/counts"], int(stored[f"{sample}/population"])
    theirs = dict(zip(stored["name"].tolist(), stored[f"{sample}/value"], strict=True))
    assert_near(counts, population, theirs, is_even=sample.startswith(maker["EVEN"]))


@pytest.mark.parity
@pytest.mark.parametrize("sample", NAMES)
def test_the_package_gives_what_is_stored(sample, stored):
    counts, population = stored[f"{sample}/counts"], int(stored[f"{sample}/population"])
    theirs = maker["peer_estimates"](counts, population)
    np.testing.assert_allclose(list(theirs.values()), stored[f"{sample}/value"], rtol=1e-9)
    assert_near(counts, population, theirs, is_even=sample.startswith(maker["EVEN"]))
