"""The whole path in seconds: drawn data, 20 clients, an asynchronous and a synchronous course.

Nothing is fetched or read. Two clients never train.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    BesideConfig,
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    LocalConfig,
    RunConfig,
    StrategyConfig,
)

VERB = "simulate"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            num_rounds=24,
            num_unseen=2,
            data=DataConfig(name="synthetic", num_clients=20, num_held_out=100),
            local=LocalConfig(batch_size=20, amount=10, unit="step", learning_rate=0.5),
            strategy=StrategyConfig(
                kind="goal_achieved",
                cohort_size=4,
                min_updates=2,
                max_staleness=10,
                staleness_exponent=0.5,
                broadcast="after_receiving",
            ),
            beside=BesideConfig(
                strategy=StrategyConfig(cohort_size=4), num_rounds=12, every_rounds=2
            ),
            devices=DevicesConfig(kind="drawn"),
            evaluation=EvaluationConfig(every_rounds=4, splits=("val", "test"), target=0.6),
        )
    )
