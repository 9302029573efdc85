"""Number of distinct values (NDV) of columns, estimated from samples and mergeable sketches.

A sample of a column is summed up by its profile, the number of values seen once, twice, ...;
estimators turn the profile, the sampling rate and the number of rows into the number of distinct
values of the whole column.

Use::

    from jaxlab import ndv

    profile = ndv.profile_from_values(sample, population=num_rows, rate=0.01)
    ndv.estimate(profile, "HS").value  # one column on the host, float64

    columns = ndv.to_device(ndv.stack_profiles(profiles))  # thousands of columns, float32
    by_name = jax.jit(ndv.estimate_many)(columns)
    low, high, coverage = ndv.bootstrap_interval(jax.random.key(0), columns, "DUJ1")

What to expect: reading n of N rows, every estimator has a column on which it is wrong by a factor
of sqrt((N - n) / (2 n) ln(1 / p)) with probability p (Charikar et al. 2000; `worst_case_ratio`).
GEE meets this up to a constant; the others are better on most columns and worse on some.

Rooms: `profile` (the frequency of frequencies), `populations` (expected profiles), `special`
(functions of sampling without replacement), `terms`, `estimators` (the table, edge cases, clamping)
and `estimators_coverage`, `estimators_jackknife`, `estimators_shlosser`, `estimators_moments`,
`estimators_hybrid` (the formulas), `intervals`.

References:
  Li, Wei, Ding, Dai, Lu, Zhou 2022, "Sampling-based estimation of the number of distinct values in
  distributed environment", KDD, arXiv:2206.05476.
"""

from jaxlab.ndv.estimators import (
    DEVICE_ESTIMATORS,
    ESTIMATORS,
    Estimate,
    Estimator,
    Status,
    estimate,
    estimate_many,
    sample_coverage,
)
from jaxlab.ndv.intervals import (
    Interval,
    bootstrap_interval,
    guaranteed_interval,
    worst_case_ratio,
)
from jaxlab.ndv.populations import (
    Population,
    equal_population,
    expected_profile,
    poisson_population,
    ranked_zipf_population,
    zipf_population,
)
from jaxlab.ndv.profile import (
    Profile,
    dense_profile,
    device_profile_from_counts,
    device_profile_from_hashes,
    profile_from_counts,
    profile_from_frequencies,
    profile_from_values,
    stack_profiles,
    to_dense,
    to_device,
    validate_profile,
)

__all__ = [
    "DEVICE_ESTIMATORS",
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Interval",
    "Population",
    "Profile",
    "Status",
    "bootstrap_interval",
    "dense_profile",
    "device_profile_from_counts",
    "device_profile_from_hashes",
    "equal_population",
    "estimate",
    "estimate_many",
    "expected_profile",
    "guaranteed_interval",
    "poisson_population",
    "profile_from_counts",
    "profile_from_frequencies",
    "profile_from_values",
    "ranked_zipf_population",
    "sample_coverage",
    "stack_profiles",
    "to_dense",
    "to_device",
    "validate_profile",
    "worst_case_ratio",
    "zipf_population",
]
