"""Whether a celebrity smiles, with two convolutions, as published; one client a celebrity.

    python -m experiments.federated.simulate --config=configs/federated/celeba.py \
        --workdir=runs/celeba --config.data.path=data/celeba/all_data \
        --config.data.images=data/celeba/img_align_celeba

The first folder holds LEAF's JSON files, the second CelebA's pictures. A tenth of the celebrities;
100 rounds of 10 clients, 10 steps of 5 examples at rate 0.001. The original publishes no accuracy
of this setting.

References:
  Xie et al. 2023, arXiv:2204.05011; Caldas et al. 2018, arXiv:1812.01097;
  `federatedscope/cv/baseline/fedavg_convnet2_on_celeba.yaml` of FederatedScope.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    DataConfig,
    EarlyStopConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
)

VERB = "simulate"


def get_config(arg: str = ""):
    del arg
    return to_config_dict(
        RunConfig(
            num_rounds=100,
            data=DataConfig(
                name="celeba",
                path="data/celeba/all_data",
                images="data/celeba/img_align_celeba",
                shares=(0.6, 0.2, 0.2),
                subsample=0.1,
            ),
            model=ModelConfig(name="convnet2", hidden=2048, use_norm=True),
            local=LocalConfig(batch_size=5, amount=10, unit="step", learning_rate=0.001),
            strategy=StrategyConfig(cohort_size=10),
            evaluation=EvaluationConfig(every_rounds=10, splits=("val", "test"), metric="val/loss"),
            early_stop=EarlyStopConfig(patience=10),
        )
    )
