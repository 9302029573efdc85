"""The benchmark on columns of full tables: TPC-H and TPC-DS at scale 1, flights and weather.

115 columns of at least 10,000 rows, two of them with one value (the years of the flights and of the
weather). Making and counting the tables takes one to two minutes on two cores and is done once.
"""

from experiments.common import to_config_dict
from experiments.ndv.settings import BenchmarkConfig, RunConfig

VERB = "reproduce"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(expected=None, machines=None, bytes=None, benchmark=BenchmarkConfig())
    )
