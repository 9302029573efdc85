"""Three clients on machines of their own: drawn data, logistic regression, every client in a round.

What `experiments.federated.deploy` is tried with; the simulated course ends with the same model.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    DataConfig,
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
            num_rounds=10,
            data=DataConfig(name="synthetic", num_clients=3, num_held_out=100),
            local=LocalConfig(batch_size=20, amount=10, unit="step", learning_rate=0.5),
            strategy=StrategyConfig(cohort_size=3),
            evaluation=EvaluationConfig(every_rounds=1, splits=("test",)),
        )
    )
