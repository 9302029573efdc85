"""MNIST over 500 clients that differ, an asynchronous course beside a synchronous one, in a minute.

python -m experiments.federated.simulate --config=configs/federated/tiny.py --workdir=runs/tiny
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    BesideConfig,
    DataConfig,
    DevicesConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
)

VERB = "simulate"
KINDS = ("synchronous", "over_selected")


def get_config(arg: str = "synchronous"):
    if arg not in KINDS:
        raise ValueError(f"tiny.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    return to_config_dict(
        RunConfig(
            num_rounds=200,
            data=DataConfig(name="mnist", num_clients=500, splitter="dirichlet", alpha=0.3),
            model=ModelConfig(name="mlp"),
            local=LocalConfig(batch_size=10, learning_rate=0.1),
            strategy=StrategyConfig(
                kind="goal_achieved",
                cohort_size=50,
                min_updates=10,
                max_staleness=20,
                staleness_exponent=0.5,
                broadcast="after_receiving",
            ),
            beside=BesideConfig(
                strategy=StrategyConfig(
                    cohort_size=50, min_updates=40 if arg == "over_selected" else 50
                ),
                num_rounds=40,
            ),
            devices=DevicesConfig(kind="drawn"),
            evaluation=EvaluationConfig(every_rounds=5, target=0.92),
        )
    )
