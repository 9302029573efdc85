"""Partial results of a column: merging them, and what they say of the sample.

A partial result is a `Record` of a bottom-k sketch as `bottom_k.from_held` makes it: the values
whose hashes are below a threshold, with their rows, or all values (a dictionary) if there is no
threshold. A record lists the heavy values too, with the rows that those partitions saw that found
them heavy; where a profile is read they count once each and are not scaled.

Merging keeps the union of the values below the smallest threshold. The messages of many partitions
of different values make a sample as large as all of them together, up to `MAX_VALUES`; dictionaries
stay exact up to there. So a merged record may be far larger than the message of a partition.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from jaxlab.ndv import bottom_k
from jaxlab.ndv.bottom_k import MAX_COUNT, BottomK
from jaxlab.ndv.formats import MAX_HEAVY, Record, merge_records
from jaxlab.ndv.profile import Profile, dense_profile, profile_from_counts
from jaxlab.ndv.sketch import count_profile

PROFILE_LENGTH = 256
"""Frequencies kept apart in the profile of a sketch."""
MAX_VALUES = 2**22
"""Values that a merged record keeps, at most, by default: 12 bytes each in memory."""


class ReadProfile(NamedTuple):
    """What a partial result says of its column.

    Attributes:
      profile: of the sample, on the host.
      num_retained: values that the threshold chose; None if the profile is exact.
    """

    profile: Profile
    num_retained: int | None


def is_dictionary(record: Record) -> bool:
    """Whether a partial result holds every value with its exact count."""
    return isinstance(record.sketch, BottomK) and not record.sketch.count[-1]


def merge_columns(a: Record, b: Record, max_values: int = MAX_VALUES) -> Record:
    """The partial result of the rows of both; associative and commutative.

    The bits do not depend on the order of merging if `max_values` is the same throughout.

    Args:
      a: a partial result.
      b: of other rows.
      max_values: values to keep, at most.

    Raises:
      ValueError: if they were built with other hashers, a partition is in both, only one of them
        tracks partitions, their sampling rates differ and they have no weights, or `max_values` is
        out of range.
    """
    if len(a.heavy_hashes) + len(b.heavy_hashes) > MAX_HEAVY:
        a, b = _drop_lightest(a), _drop_lightest(b)
    return _with_plain_threshold(
        merge_records(a, b, functools.partial(bottom_k.union, most=max_values))
    )


def cut_column(record: Record, max_values: int) -> Record:
    """The partial result with the values of the smallest hashes alone, at most `max_values`."""
    sketch = record.sketch
    assert isinstance(sketch, BottomK)
    values = bottom_k.held(sketch)
    if len(values.words) <= max_values:
        return record
    kept = bottom_k.from_held(bottom_k.cut(values, max_values), sketch.hasher)
    weights = None if record.weights is None else record.weights[: max_values + 1]
    return _with_plain_threshold(dataclasses.replace(record, sketch=kept, weights=weights))


def read_profile(record: Record, population: float | int) -> ReadProfile:
    """Profile of the sampled rows of a column.

    The number of rows is the sketch's own estimate, sum of i f_i, with the heavy values exact: f_1
    / n must have numerator and denominator from the same choice of values. The population is exact.

    Args:
      record: a partial result.
      population: rows of the column that are not null.
    """
    assert isinstance(record.sketch, BottomK)
    words, counts, limit = bottom_k.held(record.sketch)
    if limit is None:
        return ReadProfile(
            profile_from_counts(counts, population=population, rate=record.rate), None
        )
    place = np.searchsorted(words, record.heavy_hashes)
    seen = np.append(words, np.uint64(limit))[place] == record.heavy_hashes
    seen &= place < len(words)
    # A list holds what partitions that found the value heavy saw of it, a retained count all rows.
    heavy = record.heavy_counts.astype(np.int64)
    heavy[seen] = np.maximum(heavy[seen], counts[place[seen]])
    light = np.delete(counts, place[seen])
    found = count_profile(light, np.float64(2**64 / limit), PROFILE_LENGTH, MAX_COUNT)
    often = heavy[heavy > PROFILE_LENGTH].astype(np.float64)
    seldom = np.bincount(heavy[heavy <= PROFILE_LENGTH], minlength=PROFILE_LENGTH + 1)[1:]
    profile = dense_profile(
        found.f + seldom,
        n=np.asarray(found.n + heavy.sum()),
        d=np.asarray(found.d + len(heavy)),
        population=np.asarray(population, np.float64),
        rate=np.asarray(record.rate, np.float64),
        n_tail=np.asarray(found.n_tail + often.sum()),
        d_tail=np.asarray(found.d_tail + len(often)),
        s2_tail=np.asarray(found.s2_tail + (often * (often - 1)).sum()),
    )
    return ReadProfile(profile, len(light) + len(heavy))


def _with_plain_threshold(record: Record) -> Record:
    """The record whose threshold has the weight 1, so that weights tell of values below only."""
    if record.weights is None or is_dictionary(record):
        return record
    weights = record.weights.copy()
    weights[-1] = 1
    return dataclasses.replace(record, weights=weights)


def _drop_lightest(record: Record) -> Record:
    """The record with half as many heavy values as it may have."""
    most = MAX_HEAVY // 2
    order = np.lexsort((record.heavy_hashes, -record.heavy_counts.astype(np.float64)))
    kept = np.sort(order[:most])
    return dataclasses.replace(
        record, heavy_hashes=record.heavy_hashes[kept], heavy_counts=record.heavy_counts[kept]
    )
