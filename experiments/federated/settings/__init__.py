"""The settings of a federated course; the files in `configs/federated` give their values.

What does not depend on the data is checked here, all mistakes at once; what needs the number of
clients or the shape of the examples is checked when the course is put together (`tasks`).

Rooms: `data`, `model`, `task` (the loss), `steps` (of clients and server), `algorithm`, `additions`
(personal parts, compression, averaging), `aggregator`, `pace` (strategy, sampler, devices, a second
course), `evaluation`, `run` (all of them), `unused` (what a change leaves without a reader), and
the `checks` that they share.
"""

from experiments.federated.settings.additions import (
    AveragingConfig,
    CompressionConfig,
    PersonalConfig,
)
from experiments.federated.settings.aggregator import AggregatorConfig
from experiments.federated.settings.algorithm import AlgorithmConfig
from experiments.federated.settings.data import DataConfig
from experiments.federated.settings.evaluation import EarlyStopConfig, EvaluationConfig
from experiments.federated.settings.model import ModelConfig
from experiments.federated.settings.pace import (
    BesideConfig,
    DevicesConfig,
    SamplerConfig,
    StrategyConfig,
)
from experiments.federated.settings.run import RunConfig
from experiments.federated.settings.steps import LocalConfig, ServerConfig
from experiments.federated.settings.task import TaskConfig

__all__ = [
    "AggregatorConfig",
    "AlgorithmConfig",
    "AveragingConfig",
    "BesideConfig",
    "CompressionConfig",
    "DataConfig",
    "DevicesConfig",
    "EarlyStopConfig",
    "EvaluationConfig",
    "LocalConfig",
    "ModelConfig",
    "PersonalConfig",
    "RunConfig",
    "SamplerConfig",
    "ServerConfig",
    "StrategyConfig",
    "TaskConfig",
]
