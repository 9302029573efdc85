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

    parts = [  # a table in partitions of Arrow record batches, wherever they lie
        ndv.table.sketch(batches, rate=0.01, partition=i) for i, batches in enumerate(partitions)
    ]
    answers = ndv.estimate_table(ndv.merge_all(parts))  # estimate, interval, method and reason

What to expect: reading n of N rows, every estimator has a column on which it is wrong by a factor
of sqrt((N - n) / (2 n) ln(1 / p)) with probability p (Charikar et al. 2000; `worst_case_ratio`).
GEE meets this up to a constant; the others are better on most columns and worse on some.

Rooms: `profile` (the frequency of frequencies), `populations` (expected profiles), `special`
(functions of sampling without replacement), `terms`, `estimators` (the table, edge cases, clamping)
and `estimators_coverage`, `estimators_jackknife`, `estimators_shlosser`, `estimators_moments`,
`estimators_hybrid` (the formulas), `intervals`, `choice` (which estimator, and why); `fusion` (the
learned choice), `learned`, `estndv`, and what trains it: `synthetic`, `train`; `sampling`,
`blocks`, `mixed_rates`; `hashing`, `columns`, `streams` and, for speed, `fused`; the sketches
`hll`, `registers`, `bottom_k`, `mask_sketch`, `count_sketch`, `leave_one_out` (the paper's method),
what they share (`sketch`) and their bytes (`formats`, `datasketches`); `column_sketch`,
`column_records`, `packing`, `compact`, `table`, `table_bytes`; `spark`. Each is an attribute of the
package; those that nothing else here needs are imported when they are first used.

References:
  Li, Wei, Ding, Dai, Lu, Zhou 2022, "Sampling-based estimation of the number of distinct values in
  distributed environment", KDD, arXiv:2206.05476.
"""

import importlib
from types import ModuleType

from jaxlab.ndv import table
from jaxlab.ndv.blocks import Clustering, clustering, collapse, collapsed_profile, sample_blocks
from jaxlab.ndv.choice import (
    Choice,
    NdvEstimate,
    Sample,
    choose,
    estimate_columns,
    estimate_ndv,
    learned_rule,
    start_rule,
)
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
from jaxlab.ndv.estndv import load_estndv, make_estndv, public_estndv
from jaxlab.ndv.fusion import load_fusion, make_fused
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
from jaxlab.ndv.sampling import (
    Reservoir,
    bernoulli_rows,
    empty_reservoir,
    hypergeometric_sizes,
    merge_reservoirs,
    multinomial_sizes,
    non_null_population,
    rows_with_replacement,
    rows_without_replacement,
    update_reservoir,
)
from jaxlab.ndv.table import (
    ColumnEstimate,
    TableSketch,
    estimate_table,
    merge_all,
    table_from_bytes,
    table_to_bytes,
)

__all__ = [
    "Choice",
    "Clustering",
    "ColumnEstimate",
    "DEVICE_ESTIMATORS",
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Interval",
    "NdvEstimate",
    "Population",
    "Profile",
    "Reservoir",
    "Sample",
    "Status",
    "TableSketch",
    "bernoulli_rows",
    "bootstrap_interval",
    "choose",
    "clustering",
    "collapse",
    "collapsed_profile",
    "dense_profile",
    "device_profile_from_counts",
    "device_profile_from_hashes",
    "empty_reservoir",
    "equal_population",
    "estimate",
    "estimate_columns",
    "estimate_many",
    "estimate_ndv",
    "estimate_table",
    "expected_profile",
    "guaranteed_interval",
    "hypergeometric_sizes",
    "learned_rule",
    "load_estndv",
    "load_fusion",
    "make_estndv",
    "make_fused",
    "merge_all",
    "merge_reservoirs",
    "multinomial_sizes",
    "non_null_population",
    "poisson_population",
    "profile_from_counts",
    "profile_from_frequencies",
    "profile_from_values",
    "public_estndv",
    "ranked_zipf_population",
    "rows_with_replacement",
    "rows_without_replacement",
    "sample_blocks",
    "sample_coverage",
    "stack_profiles",
    "start_rule",
    "table",
    "table_from_bytes",
    "table_to_bytes",
    "to_dense",
    "to_device",
    "update_reservoir",
    "validate_profile",
    "worst_case_ratio",
    "zipf_population",
]

_ROOMS = ("datasketches", "leave_one_out", "spark", "synthetic", "train")
"""Modules that are imported on first use."""


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__dir__()}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
