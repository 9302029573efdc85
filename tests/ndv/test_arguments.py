"""Arguments as users give them: lists for arrays, and what is no number at all.

The types of all calls of these tests are checked; users have no such check, so the calls that must
fail run in a process of their own.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlab import ndv
from jaxlab.ndv import arguments, blocks, columns, mixed_rates

CHECKOUT = Path(__file__).resolve().parents[2]

RATE = "wanted a number in (0, 1]"
BAD = {
    "ndv.profile_from_values(None, population=9)": "values is None; wanted a list or an array",
    "ndv.profile_from_values('abc', population=9)": "values is a str; wanted a list or an array",
    "ndv.profile_from_values([1, None], population=9)": "values has nulls; leave them out",
    "ndv.profile_from_values([[1], [2]], population=9)": "values has shape (2, 1); wanted one col",
    "ndv.profile_from_values([[1], [2, 3]], population=9)": "values is no array of one dimension",
    "ndv.profile_from_values(np.array([1, 'a'], object), population=9)":
        "values has entries of several types",
    "ndv.profile_from_values([1], population=None)": "population is None; wanted N, the rows",
    "ndv.profile_from_values([1], population='9')": "population='9' is a str; wanted N, the rows",
    "ndv.profile_from_counts([1], population=9, rate='0.1')": f"rate='0.1' is a str; {RATE}",
    "ndv.profile_from_counts(['a'], population=9)": "counts holds 'a'; wanted numbers",
    "ndv.profile_from_counts([1.5], population=9)": "counts has the entry 1.5; wanted whole n",
    "ndv.profile_from_counts([float('nan')], population=9)": "counts has the entry nan; wanted",
    "ndv.device_profile_from_counts([1], length=4, population=9, rate=None)":
        f"rate is None; {RATE}",
    "ndv.profile_from_values([1, '1'], population=9)": "values has texts and entries of other typ",
    "ndv.to_dense(profile, '8')": "length='8' is a str; wanted a whole number",
    "ndv.stack_profiles(profile)": "profiles is a single Profile or None; wanted a list",
    "ndv.estimate(None, 'GEE')": "profile is None; wanted a Profile: profile_from_values or",
    "ndv.estimate_many(profile, 'GEE')": "names='GEE' is a single name or None; wanted a list",
    "ndv.guaranteed_interval([1, 2])": "profile is a list; wanted a Profile",
    "ndv.bootstrap_interval(0, profile, 'GEE')": "key=0 is no key; wanted one, such as jax.random",
    "ndv.worst_case_ratio('5', 10)": "num_sampled='5' is a str; wanted n, the rows",
    "ndv.estimate_ndv(profile)": "samples[0] is a Profile; wanted a Sample: Sample(profile)",
    "ndv.estimate_columns(ndv.Sample(profile))": "samples is a single column or None; wanted",
    "ndv.estimate_ndv(ndv.Sample(profile), level='0.9')": "level='0.9' is a str; wanted a prob",
    "ndv.estimate_ndv(ndv.Sample(profile), method=None)": "method None is no estimator; there are",
    "ndv.bernoulli_rows('0.1', seed=0, partition=0, start=0, num_rows=5)":
        f"rate='0.1' is a str; {RATE}; 0.01 reads one row in a hundred",
    "ndv.bernoulli_rows(0.1, seed=None, partition=0, start=0, num_rows=5)": "seed is None; wanted",
    "ndv.hypergeometric_sizes(None, 3, seed=0)": "partition_rows is None; wanted a list",
    "ndv.hypergeometric_sizes([5], '3', seed=0)": "num_samples='3' is a str; wanted a whole num",
    "ndv.empty_reservoir(None)": "capacity is None; wanted how many rows to keep",
    "ndv.update_reservoir(ndv.empty_reservoir(3), None, seed=0, partition=0, start=0)":
        "values is None; wanted a list",
    "ndv.non_null_population('5', 3, 1)": "num_rows='5' is a str; wanted a whole number",
    "ndv.sample_blocks(10, None, seed=0)": f"rate is None; {RATE}",
    "ndv.collapse(None, [0])": "values is None; wanted a list",
    "ndv.collapsed_profile([1], [0], '0.5')": f"rate='0.5' is a str; {RATE}",
    "ndv.clustering([1, 2], ['a', 'b'])": "blocks holds 'a'; wanted numbers",
    "ndv.mixed_rates.singleton_weights([1], '0.5')": f"rate='0.5' is a str; {RATE}",
    "ndv.mixed_rates.gee_mixed_from_counts([[1]], ['a'])": "rates holds 'a'; wanted numbers",
    "ndv.columns.hash_column('abc')": "column is a str; wanted a NumPy array",
    "ndv.table.sketch(None)": "batches is of type NoneType; wanted Arrow record batches",
    "ndv.table.sketch([table], rate='0.1')": f"rate='0.1' is a str; {RATE}",
    "ndv.table.sketch([table], columns='x')": "columns='x' is no list; wanted names, as in ['x']",
    "ndv.table.sketch([table], budget_bytes='64k')": "budget_bytes='64k' is a str; wanted bytes",
    "ndv.table.sketch([table], partition='a')": "partition='a' is a str; wanted the number of",
    "ndv.table.sketch([table], partition=-1)": "partition=-1 is not from 0 to 2^64 - 1",
    "ndv.table.merge(sketch, None)": "b is None; wanted a TableSketch: sketch, merge or",
    "ndv.merge_all(sketch)": "tables is a TableSketch; wanted a list of table sketches",
    "ndv.merge_all([None])": "tables[0] is None; wanted a TableSketch",
    "ndv.estimate_table([sketch])": "table is a list; wanted a TableSketch",
    "ndv.estimate_table(sketch, unique_columns='x')": "unique_columns='x' is no list; wanted",
    "ndv.estimate_table(sketch, partitions=3)": "partitions=3 is no list; wanted ids",
    "ndv.table_to_bytes(None)": "table is None; wanted a TableSketch",
    "ndv.table_from_bytes('JXNT')": "data is a str; wanted the bytes of a message",
    "ndv.expected_profile(None, 0.1)": "population is None; wanted a Population",
    "ndv.expected_profile(ndv.equal_population(5, 3), None)": f"rate is None; {RATE}",
    "ndv.zipf_population('2')": "exponent='2' is a str; wanted a number",
    "ndv.hll.empty('12')": "precision='12' is a str; wanted a whole number from",
    "ndv.bottom_k.empty(None)": "capacity is None; wanted how many values to keep",
}  # fmt: skip

PROGRAM = """
import json, sys, traceback
import numpy as np
import pyarrow as pa
from jaxlab import ndv

table = pa.table({"x": [1, 2, 3]})
sketch = ndv.table.sketch([table])
profile = ndv.profile_from_counts([1, 1, 2], population=100)
found = {}
for call in json.load(sys.stdin):
    try:
        eval(call)
    except (TypeError, ValueError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        found[call] = [str(error), place]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refused():
    """What each call says, and the file that says it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(BAD)), capture_output=True, text=True, cwd=CHECKOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", BAD)
def test_what_was_given_and_what_is_wanted_is_told(call, refused):
    message, place = refused[call]
    assert message.startswith(BAD[call])
    assert Path(place).parent == CHECKOUT / "jaxlab" / "ndv"


def assert_same(a, b):
    assert type(a) is type(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


COUNTS, WHERE = [[1, 1, 0], [0, 4, 1]], [0, 0, 1, 1]
VALUES = [3, 1, 3, 3]
SIZES = {"population": 90, "rate": 0.5}
SAME = {
    "profile_from_values": lambda of: ndv.profile_from_values(of(VALUES), **SIZES),
    "texts": lambda of: ndv.profile_from_values(of(["b", "a", "b"]), **SIZES),
    "profile_from_counts": lambda of: ndv.profile_from_counts(of(VALUES), **SIZES),
    "profile_from_frequencies": lambda of: ndv.profile_from_frequencies(of([1, 2]), of([5, 3]),
                                                                        **SIZES),
    "device_profile_from_counts": lambda of: ndv.device_profile_from_counts(
        of(VALUES), length=4, **SIZES
    ),
    "device_profile_from_hashes": lambda of: ndv.device_profile_from_hashes(
        of(VALUES).astype(np.uint32) if of is np.array else VALUES,
        of(VALUES).astype(np.uint32) if of is np.array else VALUES,
        of([True] * 4), length=4, **SIZES
    ),
    "collapse": lambda of: blocks.collapse(of(VALUES), of(WHERE)),
    "collapsed_profile": lambda of: blocks.collapsed_profile(of(VALUES), of(WHERE), 0.5),
    "clustering": lambda of: blocks.clustering(of(VALUES), of(WHERE), row_sample=of([1, 2, 3, 1])),
    "repeated_share": lambda of: blocks.repeated_share(of(VALUES), of(WHERE)),
    "hypergeometric_sizes": lambda of: ndv.hypergeometric_sizes(of([5, 9]), 4, seed=1),
    "update_reservoir": lambda of: ndv.update_reservoir(
        ndv.empty_reservoir(3, np.int64), of(VALUES), seed=0, partition=0, start=0
    ).values,
    "singleton_weights": lambda of: mixed_rates.singleton_weights(of(VALUES), 0.5),
    "gee_mixed": lambda of: mixed_rates.gee_mixed_from_counts(of(COUNTS), of([0.25, 1.0])),
    "hash_column": lambda of: columns.hash_column(of(VALUES)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_lists_are_taken_for_arrays(name):
    assert_same(SAME[name](list), SAME[name](np.array))


def test_lists_of_a_column_may_have_nulls_and_keep_the_types_of_their_values():
    found = columns.hash_column(["a", None, "b"])
    assert found.valid.tolist() == [True, False, True]
    assert_same(columns.hash_column([1.0, 2.5]), columns.hash_column(np.array([1.0, 2.5])))
    with pytest.raises(TypeError, match="have no common type"):
        columns.hash_column([1, "a"])


def test_dense_profiles_take_lists_and_numbers():
    rest = {"n": 5, "d": 4, "population": 10, "rate": 0.5, "n_tail": 0, "d_tail": 0, "s2_tail": 0}
    found = ndv.dense_profile([3.0, 1.0], **rest)
    ndv.validate_profile(found)
    assert_same(found, ndv.to_dense(ndv.profile_from_counts([1, 1, 1, 2], population=10), 2))


def test_python_integers_of_a_reservoir_keep_all_their_bits():
    words = [2**64 - 1, 2**63 + 1, 5]
    found = ndv.update_reservoir(ndv.empty_reservoir(9), words, seed=0, partition=0, start=0)
    assert sorted(found.values.tolist()) == sorted(words)
    near = [2**63 + 1, 2**63 + 2, 5]
    assert float(ndv.profile_from_values(near, population=9).d) == 3


def test_names_are_found_in_any_case_of_letters():
    assert arguments.known_name("duj1", ndv.ESTIMATORS) == "DUJ1"
    assert arguments.known_name("DUJ", ndv.ESTIMATORS) is None
    assert arguments.known_name(None, ndv.ESTIMATORS) is None
    told = arguments.list_names("du2a", ["GEE", "DUJ2A"])
    assert told == "; did you mean DUJ2A? There are GEE, DUJ2A"
    assert arguments.list_names(None, ["GEE"]) == "; there are GEE"
