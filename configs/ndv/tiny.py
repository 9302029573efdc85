"""Every part of the reproduction in minutes on two cores, the tables made on the way included.

The data sets of the paper's experiment are smaller than its own (a block of 1e7 rows instead of
1e10, 16 machines instead of 512); the columns are those of TPC-H at a tenth of its usual size and
the word counts of three languages.
"""

from experiments.common import to_config_dict
from experiments.ndv.real_columns import ColumnsConfig
from experiments.ndv.settings import BenchmarkConfig, BytesConfig, MachinesConfig, RunConfig

VERB = "reproduce"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            machines=MachinesConfig(block_rows=1e7, machines=16, chunk_rows=500_000),
            bytes=BytesConfig(
                populations=("poi-50", "poi-200", "zipf-1.5"),
                block_rows=5e6,
                trials=6,
                register_precisions=(6, 8, 10, 12),
            ),
            benchmark=BenchmarkConfig(
                columns=ColumnsConfig(
                    tpch_scale=0.1,
                    tpcds_tables=(),
                    flights_tables=(),
                    words=("eu", "ar", "ru"),
                ),
            ),
        )
    )
