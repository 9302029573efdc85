"""A linear layer on the features of a model, as a course of one who has all examples."""

from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.federated.learned import make_prepare
from experiments.federated.metrics import ClientNumbers
from experiments.federated.settings import EvaluationConfig, LocalConfig, RunConfig
from experiments.federated.tasks import Problem, make_problem, make_simulation, plan_baseline
from jaxlab.federated import ConfigError, run_course
from jaxlab.federated.probe import extract_features


def probe_config(config: RunConfig, layer: LocalConfig, num_epochs: int) -> RunConfig:
    """The settings of the course of a linear layer.

    Args:
      config: the settings of the run whose features it is on.
      layer: how it is trained.
      num_epochs: times that it sees all examples.
    """
    return RunConfig(
        num_rounds=num_epochs,
        num_unseen=config.num_unseen,
        seed=config.seed,
        data=config.data,
        local=layer,
        evaluation=EvaluationConfig(
            every_rounds=0, splits=config.evaluation.splits or ("test",), report=("weighted_avg",)
        ),
    )


def probe_model(
    config: RunConfig, problem: Problem, variables: PyTree, mesh: Mesh
) -> dict[str, float]:  # fmt: skip
    """Metrics of a linear layer on the features of a model.

    Args:
      config: the settings of its course, see `probe_config`.
      problem: of the run whose model it is.
      variables: of the model.
      mesh: the devices.

    Raises:
      ConfigError: (a ValueError) if the data has no classes.
    """
    if problem.data.info.num_classes is None:
        raise ConfigError(
            f"{problem.data.info.name} has numbers to predict, and a linear probe tells classes "
            "apart"
        )
    prepare = make_prepare(config.data.name, problem.data)
    data = problem.data.map(lambda part: extract_features(problem.module, variables, part, prepare))
    numbers = ClientNumbers(config.evaluation.report)
    linear = make_problem(config, data)
    simulation = make_simulation(
        linear, plan_baseline(config, linear, "global"), mesh, summarize=numbers.summarize
    )
    state = run_course(simulation.course, simulation.start())
    return dict(state.server.evaluations[-1].metrics)
