"""Our side of the benchmark: a course as any user runs it, stopped between its rounds."""

from typing import Any

import numpy as np

from experiments.federated.benchmark_work import WIDTHS, Work
from experiments.federated.peers.gate import open_gate, read_work


def make_course(
    work: Work, x: np.ndarray, y: np.ndarray, layers: list[np.ndarray], num_devices: int = 0
) -> tuple[Any, Any]:
    """A simulation of the work, and its task.

    Args:
      work: what is to be done.
      x: (clients, examples, 784).
      y: labels.
      layers: what the network begins with.
      num_devices: that compute; 0 takes all.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxlab import federated, parallel
    from jaxlab.federated import models

    model = models.MLP(WIDTHS[1:], use_norm=False)
    schedule = federated.Schedule(work.batch_size, 1)
    task = federated.classification(model, jax.ShapeDtypeStruct((WIDTHS[0],), jnp.float32))
    algorithm = federated.fed_avg(task, optax.sgd(work.rate), schedule)
    config = federated.CourseConfig(
        work.num_clients, work.num_rounds, federated.Strategy(cohort_size=work.cohort_size),
        eval_every_rounds=0,
    )  # fmt: skip
    rows = np.arange(x[..., 0].size).reshape(x.shape[:2])
    data = federated.gather_clients(
        {"x": x.reshape(-1, WIDTHS[0]), "y": y.reshape(-1).astype(np.int32)}, list(rows)
    )
    simulation = federated.make_simulation(
        config, algorithm, data, to_variables(task, layers), schedule,
        mesh=parallel.make_mesh(devices=jax.devices()[: num_devices or None]),
    )  # fmt: skip
    return simulation, task


def to_variables(task: Any, layers: list[np.ndarray]) -> Any:
    """The layers as variables of the task: kernel, bias, kernel, ..."""
    import jax

    shapes = jax.eval_shape(task.init, jax.random.key(0))
    names = sorted(shapes["params"])
    pairs = zip(names, layers[::2], layers[1::2], strict=True)
    return {"params": {name: {"kernel": kernel, "bias": bias} for name, kernel, bias in pairs}}


def to_layers(variables: Any) -> list[np.ndarray]:
    """The variables as layers."""
    params = variables["params"]
    return [np.asarray(params[n][part]) for n in sorted(params) for part in ("kernel", "bias")]


class _EndError(Exception):
    """No other round is wanted."""


def main() -> None:
    """Run rounds until no other is wanted."""
    path, gate = open_gate()
    import jax

    from jaxlab import federated

    federated.use_cpu_cores()
    settings, x, y, layers = read_work(path)
    work = Work(**settings)
    simulation, _ = make_course(work, x, y, layers)
    state = simulation.start()

    def between_rounds(state: Any) -> None:
        variables = jax.block_until_ready(simulation.variables(state))
        if not gate.wait(lambda: to_layers(variables)):
            raise _EndError

    try:
        between_rounds(state)
        federated.run_course(simulation.course, state, on_round=between_rounds)
    except _EndError:
        pass


if __name__ == "__main__":
    main()
