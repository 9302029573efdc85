"""The benchmark on columns of full tables: TPC-H and TPC-DS at scale 1, flights and weather.

115 columns of at least 10,000 rows, two of them with one value (the years of the flights and of the
weather). `real_columns.py:held_out` leaves TPC-DS out, from whose columns the automatic choice has
learned. Making and counting the tables takes one to two minutes on two cores and is done once.
"""

from experiments.common import to_config_dict
from experiments.ndv.real_columns import ColumnsConfig
from experiments.ndv.settings import BenchmarkConfig, RunConfig

VERB = "reproduce"
KINDS = ("all", "held_out")


def get_config(arg: str = "all"):
    if arg not in KINDS:
        raise ValueError(f"real_columns.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    tables = ("store_sales", "web_sales") if arg == "all" else ()
    benchmark = BenchmarkConfig(columns=ColumnsConfig(tpcds_tables=tables))
    return to_config_dict(RunConfig(expected=None, machines=None, bytes=None, benchmark=benchmark))
