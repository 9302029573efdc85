"""Makes pydistinct.npz: estimates of the public package pydistinct on known samples.

    pip install --no-deps pydistinct==0.6.4 numpy scipy
    python tests/golden/make_pydistinct.py

Its estimators need NumPy and SciPy only; the other packages that it asks for are not used by them.
"""

import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

EVEN = "even"
"""Starts the names of samples of classes of nearly equal size, of at least 50 rows."""
CALLS = {
    "JK1": ("jackknife_estimator", False),
    "BOOT": ("bootstrap_estimator", False),
    "MM0": ("method_of_moments_estimator", False),
    "SHL": ("shlossers_estimator", True),
    "CHAO": ("chao_estimator", False),
    "SJ": ("smoothed_jackknife_estimator", True),
    "MM1": ("method_of_moments_v2_estimator", True),
}


def populations():
    """Rows of columns, and the share to sample."""
    rng = np.random.default_rng(0)
    for size, classes, rate in (
        (50, 400, 0.05),
        (50, 400, 0.1),
        (100, 200, 0.02),
        (200, 100, 0.02),
    ):
        yield f"{EVEN} {size} at {rate}", np.repeat(np.arange(classes), size), rate
    for mean, rate in ((50, 0.05), (50, 0.1), (100, 0.05)):
        rows = np.repeat(np.arange(300), rng.poisson(mean, 300))
        yield f"{EVEN} poisson {mean} at {rate}", rows, rate
    yield "small classes", np.repeat(np.arange(2000), 5), 0.1
    yield "zipf 1.5", rng.zipf(1.5, 20_000) % 3_000, 0.1
    yield "zipf 1.2", rng.zipf(1.2, 20_000) % 3_000, 0.05
    yield "geometric", rng.geometric(0.01, 20_000), 0.1
    yield "normal", np.rint(rng.normal(0, 200, 50_000)).astype(int), 0.02
    yield "most read", rng.geometric(0.02, 2_000), 0.8


def peer_estimates(counts, population):
    """Estimates by name, from the sampled rows of each value and the rows of the column."""
    from pydistinct import stats_estimators as peer

    attributes, found = dict(enumerate(counts.tolist())), {}
    with warnings.catch_warnings():
        for name, (function, needs_rows) in CALLS.items():
            options = {"n_pop": population} if needs_rows else {}
            found[name] = float(getattr(peer, function)(attributes=attributes, **options))
    return found


def main():
    arrays = {"name": np.array(list(CALLS)), "version": np.array(version("pydistinct"))}
    rng = np.random.default_rng(1)
    for name, rows, rate in populations():
        sample = rng.choice(rows, int(len(rows) * rate), replace=False)
        counts = np.unique(sample, return_counts=True)[1]
        arrays[f"{name}/counts"] = counts
        arrays[f"{name}/population"] = np.array(len(rows))
        arrays[f"{name}/value"] = np.array(list(peer_estimates(counts, len(rows)).values()))
    np.savez_compressed(Path(__file__).with_name("pydistinct.npz"), **arrays)


if __name__ == "__main__":
    main()
