"""Settings of a run: all others, and what only together contradicts itself."""

import dataclasses
import logging
from collections.abc import Collection
from typing import Any, Literal

from experiments.federated.settings.additions import (
    AveragingConfig,
    CompressionConfig,
    PersonalConfig,
)
from experiments.federated.settings.aggregator import AggregatorConfig
from experiments.federated.settings.algorithm import (
    KEEPS_ENTRIES,
    PERSONAL,
    PLAIN_SGD,
    SYNCHRONOUS,
    WITH_SERVER_OPTIMIZER,
    AlgorithmConfig,
)
from experiments.federated.settings.checks import below, negative, refuse
from experiments.federated.settings.data import DataConfig
from experiments.federated.settings.evaluation import EarlyStopConfig, EvaluationConfig
from experiments.federated.settings.model import ModelConfig
from experiments.federated.settings.pace import (
    BesideConfig,
    DevicesConfig,
    SamplerConfig,
    StrategyConfig,
)
from experiments.federated.settings.steps import LocalConfig, ServerConfig
from experiments.federated.settings.task import TaskConfig
from experiments.federated.settings.unused import reset_unused

logger = logging.getLogger(__name__)

Baseline = Literal["local", "global"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A course, and perhaps a second one beside it, and what they are compared with.

    Attributes:
      num_rounds: aggregations after which the course ends.
      num_unseen: clients, the last ones, that never train and are evaluated under `test_unseen`.
      seed: of model, draws of clients, and training.
      width: clients of a device that are computed at once; 0 chooses what is fastest.
      save_every_rounds: aggregations between two checkpoints; 0 saves at the end only.
      baselines: what is run afterwards on the same data, with the same model and plain steps of
        `local`: `local`, every client alone, and `global`, all training examples in one place.
      baseline_rounds: their length; everybody trains in each. 0 takes num_rounds.
      data: the examples, and who holds them.
      model: what is learned.
      task: the loss.
      local: how clients train.
      server: how the server moves.
      algorithm: what is exchanged and how.
      personal: what differs between clients.
      compression: of updates and models.
      averaging: of the models of several rounds.
      strategy: the pace.
      beside: a second course at another pace; None runs none.
      sampler: who is asked.
      devices: what clients run on.
      aggregator: what is made of updates.
      evaluation: what is measured.
      early_stop: when to end early.
    """

    num_rounds: int = 50
    num_unseen: int = 0
    seed: int = 0
    width: int = 0
    save_every_rounds: int = 10
    baselines: tuple[Baseline, ...] = ()
    baseline_rounds: int = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    local: LocalConfig = LocalConfig()
    server: ServerConfig = ServerConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    personal: PersonalConfig = PersonalConfig()
    compression: CompressionConfig = CompressionConfig()
    averaging: AveragingConfig = AveragingConfig()
    strategy: StrategyConfig = StrategyConfig()
    beside: BesideConfig | None = None
    sampler: SamplerConfig = SamplerConfig()
    devices: DevicesConfig = DevicesConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that contradicts itself."""
        problems = below(self, num_rounds=1) + negative(
            self, "num_unseen", "width", "save_every_rounds", "baseline_rounds"
        )
        problems += self._pace_problems() + self._algorithm_problems()
        problems += self._comparison_problems()
        if self.averaging.start_round >= self.num_rounds:
            problems.append(
                f"averaging.start_round={self.averaging.start_round} must be below num_rounds="
                f"{self.num_rounds}: there would be nothing to average"
            )
        problems += self._task_problems()
        every = {"evaluation.every_rounds": self.evaluation.every_rounds}
        if self.beside is not None:
            every["beside.every_rounds"] = self.beside.every_rounds
        for name, rounds in every.items():
            if not rounds and (self.early_stop.patience or self.early_stop.at_target):
                problems.append(
                    f"early_stop with {name}=0, which evaluates the last model only, changes "
                    f"nothing: set {name} to at least 1"
                )
        if self.early_stop.at_target and not self.evaluation.target:
            problems.append("early_stop.at_target=True needs evaluation.target")
        if self.data.num_clients and self.num_unseen >= self.data.num_clients:
            problems.append(
                f"num_unseen={self.num_unseen} of data.num_clients={self.data.num_clients} leaves "
                "no client that trains"
            )
        refuse(problems)

    @staticmethod
    def adapt(config: Any, given: Collection[str]) -> None:
        """Resets what a config file sets and nothing reads since the command line changed another.

        Args:
          config: the config dict of the file with the changes, which is changed further.
          given: dotted names of the settings that stand on the command line.
        """
        if told := reset_unused(config, given):
            logger.info("nothing reads these settings of the file now: %s", ", ".join(told))

    def _task_problems(self) -> list[str]:
        problems, task = [], self.task
        if task.has_own_scores and self.evaluation.scores:
            which = f"factory={task.factory!r}" if task.factory else f"name={task.name!r}"
            problems.append(
                f"evaluation.scores={self.evaluation.scores} changes nothing with task.{which}, "
                "whose task has scores of its own: leave it at ()"
            )
        is_contrastive = task.name == "contrastive"
        if is_contrastive and self.model.name not in ("simclr", "own"):
            problems.append(
                f"task.name='contrastive' compares projections, and model.name={self.model.name!r} "
                "gives what labels are compared with; use 'simclr', or 'own'"
            )
        if self.model.name == "simclr" and not task.has_own_scores:
            problems.append(
                "model.name='simclr' gives projections: set task.name='contrastive', or use "
                "'resnet'"
            )
        if self.algorithm.name == "fed_gc" and not task.has_own_scores:
            problems.append(
                "algorithm.name='fed_gc' exchanges projections: set task.name='contrastive'"
            )
        if self.algorithm.name == "fed_em" and is_contrastive:
            problems.append(
                "algorithm.name='fed_em' mixes predictions, and task.name='contrastive' has none"
            )
        return problems

    def _comparison_problems(self) -> list[str]:
        problems, by_server, personal = [], self.evaluation.by_server, self.personal
        if len(set(self.baselines)) < len(self.baselines):
            problems.append(f"baselines={self.baselines} names one twice; name each once")
        if self.baseline_rounds and not self.baselines:
            problems.append(
                f"baseline_rounds={self.baseline_rounds} changes nothing without baselines"
            )
        own = {
            f"algorithm.name={self.algorithm.name!r}": self.algorithm.name in PERSONAL,
            "personal.local_norms=True": personal.local_norms,
            f"personal.local_entries={personal.local_entries}": personal.local_entries,
            f"personal.tune_amount={personal.tune_amount}": personal.tune_amount,
        }
        if by_server and (reasons := [name for name, given in own.items() if given]):
            problems.append(
                f"evaluation.by_server={by_server} with {' and '.join(reasons)}: clients evaluate "
                "with models of their own, which the server does not have; set it to ()"
            )
        return problems

    def _pace_problems(self) -> list[str]:
        problems = []
        paces = {"strategy": self.strategy}
        if self.beside is not None:
            paces["beside.strategy"] = self.beside.strategy
        for name, strategy in paces.items():
            if strategy.kind != "synchronous" and self.devices.kind == "none":
                problems.append(
                    f"{name}.kind={strategy.kind!r} needs devices.kind='drawn' or 'file': without "
                    "them every answer comes at once, nothing is late and no time budget is spent"
                )
            reason = SYNCHRONOUS.get(self.algorithm.name)
            if strategy.kind != "synchronous" and reason:
                problems.append(
                    f"algorithm.name={self.algorithm.name!r} needs {name}.kind='synchronous', got "
                    f"{strategy.kind!r}: {reason}"
                )
        if self.sampler.name != "uniform" and self.devices.kind == "none":
            problems.append(
                f"sampler.name={self.sampler.name!r} needs devices.kind='drawn' or 'file': it goes "
                "by how slow they are"
            )
        return problems

    def _algorithm_problems(self) -> list[str]:
        name, local, problems = self.algorithm.name, self.local, []
        given = local.optimizer != "sgd" or local.weight_decay or local.clip_norm
        given = given or (local.momentum and name != "fed_nova")
        if name in PLAIN_SGD and given:
            problems.append(
                f"algorithm.name={name!r} takes plain gradient steps; got local.optimizer="
                f"{local.optimizer!r}, local.momentum={local.momentum}, local.weight_decay="
                f"{local.weight_decay}, local.clip_norm={local.clip_norm}: leave them at 'sgd' and "
                "0"
            )
        if self.server.optimizer != "none" and name not in WITH_SERVER_OPTIMIZER:
            problems.append(
                f"server.optimizer={self.server.optimizer!r} with algorithm.name={name!r}: only "
                f"{', '.join(WITH_SERVER_OPTIMIZER)} have an optimizer of the server"
            )
        if self.averaging.start_round and name == "local_entropy":
            problems.append(
                "averaging.start_round with algorithm.name='local_entropy', whose server keeps more"
                " than a model, cannot be combined; set it to 0"
            )
        if name == "fed_gc" and self.compression != CompressionConfig():
            problems.append(
                "compression with algorithm.name='fed_gc' would not see what clients exchange; "
                "leave it out"
            )
        if name == "atc" and self.num_unseen:
            problems.append(
                f"num_unseen={self.num_unseen} with algorithm.name='atc': a client that never "
                "trains would have the model that the course starts from; set it to 0"
            )
        if name == "atc" and self.aggregator != AggregatorConfig():
            problems.append("aggregator with algorithm.name='atc', which has a rule of its own")
        kept = self.personal.local_norms or self.personal.local_entries
        if kept and name not in KEEPS_ENTRIES:
            problems.append(
                f"personal.local_norms and personal.local_entries cannot be combined with "
                f"algorithm.name={name!r}, whose updates are more than differences of models; use "
                f"one of {', '.join(KEEPS_ENTRIES)}"
            )
        return problems
