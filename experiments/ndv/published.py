"""Numbers that others have published, quoted beside ours.

* `PROFILES`: what a 1 % sample of the six data sets of Li et al. holds, from their generator.
* `STORED`: results that the authors keep with their code: exact counts by two passes of Spark, and
  what their two sketches per machine of 65,536 registers made of them (Spark 3.1, 15 executors of
  8 cores, seconds).
* `RATIOS`: what the formulas give on the expected profiles, computed apart from this library.

References:
  Li, Wei, Ding, Dai, Lu, Zhou 2022, "Sampling-based estimation of the number of distinct values in
  distributed environment", KDD, arXiv:2206.05476, and its code.
"""

from typing import NamedTuple

from jaxlab.ndv.populations import Population, poisson_population, zipf_population


class Published(NamedTuple):
    """A data set of 1e11 rows and its sample at 1 %.

    Attributes:
      num_rows: N.
      num_distinct: D.
      n: rows of the sample.
      d: its distinct values.
      f1: values that it holds once.
      f2: values that it holds twice.
    """

    num_rows: float
    num_distinct: float
    n: float
    d: float
    f1: float
    f2: float


class Stored(NamedTuple):
    """A stored run of the authors; None where they store nothing.

    Attributes:
      exact_d: distinct values of the sample, counted.
      exact_f1: its singletons, counted.
      exact_seconds: time of counting them.
      sketch_d: distinct values by their sketches.
      sketch_f1: singletons by their sketches.
      sketch_seconds: time of collecting the sketches and reading them.
    """

    exact_d: int | None
    exact_f1: int | None
    exact_seconds: float
    sketch_d: int
    sketch_f1: int
    sketch_seconds: float


PROFILES = {
    "poi-50": Published(9.999998e10, 2.041704e9, 1.00000e9, 7.90570e8, 6.12657e8, 1.50070e8),
    "poi-100": Published(9.999994e10, 1.010206e9, 9.99999e8, 6.34779e8, 3.71595e8, 1.83921e8),
    "poi-200": Published(9.999984e10, 5.025246e8, 9.99998e8, 4.33825e8, 1.36702e8, 1.36012e8),
    "zipf-1.2": Published(8.655496e10, 2.665670e10, 8.65550e8, 6.58025e8, 5.92373e8, 3.84564e7),
    "zipf-1.5": Published(9.897083e10, 5.135117e10, 9.89708e8, 9.16630e8, 8.78360e8, 2.72418e7),
    "zipf-2": Published(9.995927e10, 7.307628e10, 9.99593e8, 9.86282e8, 9.75523e8, 9.35487e6),
}

STORED = {
    ("poi-50", 10): Stored(790590819, 612667138, 364.5, 787267196, 605086523, 42.3),
    ("poi-50", 50): Stored(3952932444, 3063369232, 1394.2, 3971129021, 3104075343, 142.5),
    ("poi-50", 100): Stored(7905658820, 6126498226, 2765.0, 7925433568, 6156811769, 263.7),
    ("zipf-2", 10): Stored(986279579, 975521131, 372.6, 982111666, 970160533, 44.6),
    ("zipf-2", 50): Stored(4931490397, 4877698039, 1265.2, 4932968018, 4846064640, 151.4),
    ("zipf-2", 100): Stored(9795156810, 9688837990, 2124.3, 9819772637, 9730099134, 262.3),
    ("poi-100", 10): Stored(None, None, 496.8, 630873465, 362534116, 49.8),
    ("poi-200", 10): Stored(None, None, 324.2, 431816663, 131990409, 50.3),
    ("zipf-1.2", 10): Stored(None, None, 318.0, 655250148, 585514759, 39.7),
    ("zipf-1.5", 10): Stored(None, None, 384.7, 910896607, 868141319, 45.1),
}
"""By data set and number of repeated blocks of 1e10 rows."""

STORED_ESTIMATES = {
    ("poi-50", 10): {
        "exact/GEE": 6.3046e9,
        "exact/CHAO": 2.0411e9,
        "exact/SHL": 4.8850e10,
        "exact/CL1_AUTHORS_CPP": 3.6228e9,
        "paper/GEE": 6.2330e9,
        "paper/CHAO3": 1.7921e9,
        "paper/SHL": 4.8052e10,
        "paper/CL1_AUTHORS_NB": 1.9934e9,
    }
}
"""Estimates of the authors, from exact counts and from their sketches, under the names of ours."""

RATIOS = {
    "poi-50": (3.088, 0.9997, 0.904, 0.984, 0.988, 0.9997, 1.774, 23.9, 19.1),
    "poi-100": (3.939, 1.000, 0.888, 0.994, 0.997, 1.000, 1.585, 23.8, 15.5),
    "poi-200": (3.312, 1.000, 0.926, 0.998, 1.000, 1.000, 1.315, 12.6, 6.05),
    "zipf-1.2": (0.225, 0.196, 0.125, 0.077, 0.872, 0.913, 0.983, 1.76, 1.43),
    "zipf-1.5": (0.172, 0.294, 0.214, 0.147, 0.637, 0.732, 0.884, 1.59, 1.49),
    "zipf-2": (0.134, 0.710, 0.619, 0.399, 0.559, 0.877, 1.431, 1.32, 1.30),
}
"""Estimate / D from the expected profiles, by a program of its own, in the order below."""

RATIO_ESTIMATORS = (
    "GEE", "CHAO", "CHAO3", "DUJ1", "DUJ2", "CL1", "CL1_AUTHORS_CPP", "SHL", "SH3",
)  # fmt: skip


def make_population(name: str, num_rows: float = 1e10, repeats: int = 10) -> Population:
    """A data set by its name.

    Args:
      name: `poi-MEAN` or `zipf-EXPONENT`.
      num_rows: rows of a block; 1e10 in the paper.
      repeats: blocks.

    Raises:
      ValueError: if the name is none of these.
    """
    kind, _, text = name.partition("-")
    makers = {"poi": poisson_population, "zipf": zipf_population}
    try:
        return makers[kind](float(text), num_rows, repeats)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"data set {name!r} cannot be made ({error}); wanted poi-MEAN or zipf-EXPONENT with an "
            "exponent above 1, such as poi-50 or zipf-1.2"
        ) from error


def stored_errors(name: str, repeats: int) -> tuple[float, float] | None:
    """Relative errors of d and f1 that the authors' sketches had, or None if nothing is stored.

    Where no exact counts are stored, the expected ones stand for them.
    """
    stored = STORED.get((name, repeats))
    if stored is None:
        return None
    exact_d = stored.exact_d or PROFILES[name].d * repeats / 10
    exact_f1 = stored.exact_f1 or PROFILES[name].f1 * repeats / 10
    return stored.sketch_d / exact_d - 1, stored.sketch_f1 / exact_f1 - 1
