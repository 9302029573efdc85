"""Every part of the reproduction in seconds: one data set of each kind, tables of 60,000 rows."""

from experiments.common import to_config_dict
from experiments.ndv.real_columns import ColumnsConfig
from experiments.ndv.settings import (
    BenchmarkConfig,
    BytesConfig,
    ExpectedConfig,
    MachinesConfig,
    RunConfig,
)

VERB = "reproduce"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            expected=ExpectedConfig(populations=("poi-50", "zipf-2")),
            machines=MachinesConfig(
                populations=("poi-50",),
                block_rows=1e6,
                machines=4,
                precision=14,
                budget_bytes=16384,
                chunk_rows=200_000,
            ),
            bytes=BytesConfig(
                populations=("poi-50",),
                block_rows=1e6,
                machines=4,
                trials=4,
                hll_precisions=(8, 10),
                register_precisions=(6, 8, 10),
                bottom_k_sizes=(64, 1024),
                budgets=(1024, 4096),
            ),
            benchmark=BenchmarkConfig(
                columns=ColumnsConfig(
                    tpch_tables=("lineitem",),
                    tpch_scale=0.01,
                    tpcds_tables=(),
                    flights_tables=(),
                    words=("eu",),
                ),
                rates=(0.01, 0.1),
                num_seeds=3,
            ),
        )
    )
