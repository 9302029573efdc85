# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many different values does each column have?
#
# A table too large to read, spread over many machines: this notebook estimates the number of
# distinct values (NDV) of its columns from a 1 % sample and messages of a few kilobytes, after
# Li et al. 2022, [arXiv:2206.05476](https://arxiv.org/abs/2206.05476). It runs in a minute or two
# on a CPU, a Colab machine or a TPU host.
#
# 1. A table of Parquet files, estimated.
# 2. What the estimators work on: the profile of a sample.
# 3. Sketches that merge: over files, and over the devices of a mesh.
# 4. Error against bytes.
# 5. The same on Spark.

# %% [markdown]
# ## 0. Setup
#
# In the checkout of the project this cell only looks around. Elsewhere, as on Colab, put the git
# address of the project into `SOURCE`: it is fetched and installed.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = ""  # git address of the project, where this notebook does not lie in a checkout of it


def find_checkout() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents, here / "jaxlab-checkout"):
        if (folder / "experiments" / "notebooks").is_dir():
            return folder
    if not SOURCE:
        raise FileNotFoundError(f"{here} is in no checkout: set SOURCE to the git address")
    target = here / "jaxlab-checkout"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", SOURCE, str(target)], check=True)
    return target


checkout = find_checkout()
if any(importlib.util.find_spec(name) is None for name in ("jaxtyping", "flax", "pyarrow")):
    packages = [sys.executable, "-m", "pip", "install", "--quiet", "-e", f"{checkout}[ndv]"]
    subprocess.run(packages, check=True)
sys.path.insert(0, str(checkout))

# %% [markdown]
# On a CPU, JAX is told to make eight devices of it, to show what happens on a mesh. Real
# accelerators are taken as they are.

# %%
import jax

jax.config.update("jax_num_cpu_devices", 8)  # before JAX is first used
print(jax.device_count(), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## 1. A table, estimated
#
# 800,000 orders in eight Parquet files. We make them here, so the truth is known: a unique key,
# customers of whom few order much, days, prices, and cities that are sometimes missing.

# %%
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rng = np.random.default_rng(0)
num_rows, num_files = 800_000, 8
customer = np.minimum(rng.zipf(1.3, num_rows), 200_000)
city = np.array(["Ulm", "Rome", "Turku", "Lima", None], object)[rng.integers(0, 5, num_rows)]
orders = pa.table(
    {
        "order_id": rng.permutation(num_rows),
        "customer": customer,
        "day": rng.integers(0, 730, num_rows),
        "price": np.round(rng.lognormal(4.0, 1.0, num_rows), 2),
        "city": city.tolist(),
    }
)
folder = Path(tempfile.mkdtemp())
rows_per_file = num_rows // num_files
for index in range(num_files):
    part = orders.slice(index * rows_per_file, rows_per_file)
    pq.write_table(part, folder / f"orders-{index}.parquet")
truth = {name: len(orders[name].drop_null().unique()) for name in orders.column_names}
print(truth)

# %% [markdown]
# Each file is a partition. Whoever holds it, on whatever machine, samples 1 % of its rows and sends
# one message. `table_to_bytes` is that message.

# %%
from jaxlab import ndv


def message(partition: int) -> bytes:
    file = pq.ParquetFile(folder / f"orders-{partition}.parquet")
    sketch = ndv.table.sketch(file.iter_batches(), rate=0.01, partition=partition)
    return ndv.table_to_bytes(sketch)


messages = [message(partition) for partition in range(num_files)]
print([f"{len(one):,} bytes" for one in messages])

# %% [markdown]
# The coordinator merges the messages in any order, and answers. A message that comes twice is
# refused and a missing one is named; both would be silent mistakes otherwise.

# %%
merged = ndv.merge_all(ndv.table_from_bytes(one) for one in messages)
answers = ndv.estimate_table(merged, unique_columns=["order_id"], partitions=range(num_files))

print(f"{'column':10}{'truth':>10}{'estimate':>10}   {'interval':22}{'method':12}why")
for answer in answers:
    found = answer.result
    interval = f"{found.low:,.0f} to {found.high:,.0f}"
    print(
        f"{answer.column:10}{truth[answer.column]:>10,}{found.estimate:>10,.0f}   "
        f"{interval:22}{found.method:12}{found.reason}"
    )

# %% [markdown]
# The key is exact because the schema says so. Days and cities were all seen. Customers and prices
# have long tails, of which a sample says little: no method can do better than
# `ndv.worst_case_ratio` on every column, and the intervals know the sample's variance, not the
# bias.

# %%
worst = ndv.worst_case_ratio(num_rows // 100, num_rows, 0.5)
print(f"for any method there is a column on which it errs by a factor of {float(worst):.1f}")

# %% [markdown]
# ## 2. The profile of a sample
#
# Estimators see nothing of a sample but how many values occur once, twice, three times, ... in it.

# %%
sample = customer[rng.random(num_rows) < 0.01]
profile = ndv.profile_from_values(sample, population=num_rows, rate=0.01)
for i, f in list(zip(profile.i, profile.f, strict=True))[:5]:
    print(f"{f:6.0f} customers occur {i} x in the sample")
print(f"{float(profile.d):6.0f} customers in {float(profile.n):.0f} rows")

# %% [markdown]
# Whatever can be said about the customers not seen hangs on the first of these numbers. One call
# gives all estimators, for one column or for thousands at once.

# %%
print(f"truth {truth['customer']:,}")
for name in ("GEE", "CHAO", "SHL", "DUJ1", "DUJ2A", "HS"):
    estimate = float(ndv.estimate(profile, name).value)
    print(f"{name:6}{estimate:>9,.0f}   {estimate / truth['customer']:.2f} of the truth")

# %% [markdown]
# ## 3. Sketches that merge
#
# The numbers of values seen once do not add over machines: a value seen once here may have been
# seen there as well. Registers keep, for each of many groups of hashes, the smallest hash and how
# many rows had it. All machines keep the same values, so their counts add exactly. On a mesh,
# merging is one minimum and one sum.

# %%
from jaxlab.ndv import registers
from jaxlab.ndv.hashing import FAST, Lanes, hash_words, split_words
from jaxlab.ndv.sketch import on_mesh
from jaxlab.parallel import DATA_AXIS, make_mesh

PRECISION = 10  # 1,024 registers of six bytes


def sketch_and_merge(hi, lo):
    part = registers.update(registers.empty(PRECISION), Lanes(hi, lo))
    return registers.merge_over_axis(part, DATA_AXIS)


rows = sample[: len(sample) // jax.device_count() * jax.device_count()]
hashes = hash_words(split_words(rows.astype(np.uint64)), FAST)
on_all = jax.jit(on_mesh(sketch_and_merge, make_mesh()))(hashes.hi, hashes.lo)
on_one = registers.update(registers.empty(PRECISION), hashes)
same = all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(on_all), jax.tree.leaves(on_one), strict=True)
)
print(f"{jax.device_count()} devices and one device give the same bits: {same}")

# %%
exact = ndv.profile_from_values(rows, population=num_rows)
read = registers.profile(on_all, length=3)
for name, ours, counted in (
    ("values", read.d, exact.d),
    ("seen once", read.f[0], exact.f[0]),
    ("seen twice", read.f[1], exact.f[1]),
):
    print(f"{name:11}{float(ours):9,.0f} by the registers{float(counted):9,.0f} counted")

# %% [markdown]
# ## 4. Error against bytes
#
# What a sample is worth after it has been sent, on one of the data sets of the paper, cut down:
# dictionaries of all values, the paper's two sketches a machine, and the sketches of this library.
# `HLL of all rows` is what one could do by reading everything.

# %%
from experiments.common.plots import draw_plots
from experiments.ndv import error_bytes
from experiments.ndv.settings import BytesConfig

config = BytesConfig(
    populations=("poi-50",), block_rows=1e6, machines=8, trials=8,
    hll_precisions=(6, 8, 10), register_precisions=(5, 7, 9), bottom_k_sizes=(32, 128, 512),
    budgets=(512, 2048, 8192),
)  # fmt: skip
points = {name: error_bytes.measure(name, config) for name in config.populations}
draw_plots(
    error_bytes.make_plots(points),
    title="Error against bytes",
    subtitle=f"1 % of a million rows on {config.machines} machines, {config.trials} samples",
)

# %% [markdown]
# The long version, with the paper's tables and a benchmark on real columns, is
#
#     python -m experiments.ndv.reproduce --config=configs/ndv/tiny.py --workdir=runs/ndv
#
# ## 5. On Spark
#
# Two functions are all, and Spark (3.3 or newer) runs the first on its executors. Every partition
# gives one row with its message:
#
# ```python
# from pyspark import TaskContext
#
# def messages(batches):
#     import pyarrow as pa
#
#     from jaxlab import ndv
#
#     partition = TaskContext.get().partitionId()
#     sketch = ndv.table.sketch(batches, columns=columns, rate=0.01, partition=partition)
#     yield pa.RecordBatch.from_pydict({"message": [ndv.table_to_bytes(sketch)]})
#
# columns = ["customer", "price"]
# frame = spark.table("orders").select(columns)
# sent = frame.mapInArrow(messages, "message binary").collect()
# merged = ndv.merge_all(ndv.table_from_bytes(bytes(row.message)) for row in sent)
# answers = ndv.estimate_table(merged, partitions=range(frame.rdd.getNumPartitions()))
# ```
#
# Dask (`map_partitions`), Ray Data (`map_batches`) and Beam (a `CombineFn` around
# `table.sketch` and `table.merge`) take the same two functions.
