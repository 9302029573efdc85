"""FedAvg and nothing beside it, to begin with on data and models of one's own.

    python -m experiments.federated.simulate --config=configs/federated/own.py --workdir=runs/mine \
        --config.data.name=csv --config.data.path=mine.csv --config.data.target=bought \
        --config.data.client=shop

All clients train in every one of 20 rounds, an epoch in batches of 10 at rate 0.1. Without settings
of its own the data is drawn.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import DataConfig, RunConfig, StrategyConfig

VERB = "simulate"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            num_rounds=20,
            data=DataConfig(name="synthetic", num_clients=20, num_held_out=100),
            strategy=StrategyConfig(cohort_share=1.0),
        )
    )
