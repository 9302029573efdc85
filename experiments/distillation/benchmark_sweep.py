"""Students that train together and one by one: seconds a step, and memory."""

import contextlib
import functools
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.workers import Worker
from experiments.distillation.benchmark_speed import CHECK_STEPS, LOSS_ERROR
from experiments.distillation.benchmark_work import (
    NUM_STEPS,
    Work,
    draw_params,
    load,
    make_objective,
    make_optimizer,
    make_parts,
    model_config,
    use_device,
)

ALONE = "one by one"
_GIB = 2**30


def sweep(work: Work, num_students: int, at_once: Sequence[int]) -> dict[str, dict[str, float]]:
    """Seconds for a step of all students, and memory: one by one, and as a sweep.

    Students are of one shape and objective, and begin with weights of their own. One by one, the
    steps of the students are those of one, as many times: one student and its teacher are in
    memory. Memory is what the compiled step needs, and the peak of the device where it is known.

    Args:
      work: sizes.
      num_students: of the sweep.
      at_once: how many of them are computed side by side; a row for each.

    Raises:
      RuntimeError: if a sweep does not give the losses of the students alone.
    """
    sizes = [0, *at_once]
    names = [ALONE, *(f"{size} at once" for size in at_once)]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(name, make_sweep, work, num_students, size, threads=work.threads)
            )
            for name, size in zip(names, sizes, strict=True)
        ]
        _check(names, workers, LOSS_ERROR[work.dtype])
        runs = [[w.ask("step").seconds for w in workers] for _ in range(1 + work.rounds)][1:]
        memory = [worker.ask("memory").value for worker in workers]
    seconds = [statistics.median(taken) for taken in zip(*runs, strict=True)]
    seconds[0] *= num_students
    return {
        name: {"seconds": taken, "speed-up": seconds[0] / taken, **held}
        for name, taken, held in zip(names, seconds, memory, strict=True)
    }


def _check(names: Sequence[str], workers: Sequence[Worker], allowed: float) -> None:
    """Compare the losses of all students after two steps without dropout."""
    wanted: np.ndarray | None = None
    for name, worker in zip(names, workers, strict=True):
        losses = np.asarray(worker.ask("losses").value)
        wanted = losses if wanted is None else wanted
        error = np.max(np.abs(losses / wanted - 1))
        if not error <= allowed:
            raise RuntimeError(
                f"the losses of the students {name} differ by {error:.2g} from those of the "
                f"students {names[0]}, more than {allowed:g}"
            )


def make_sweep(work: Work, num_students: int, at_once: int) -> dict[str, Callable[[], Any]]:
    """Students in a process: a sweep, or (`at_once=0`) each alone."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_device(work.device)
    import jax

    teacher, _, batch = load(work)
    rest = {"teacher": teacher}, batch, jax.random.key(0)
    everyone = list(range(num_students))
    groups = [everyone] if at_once else [[seed] for seed in everyone]

    @functools.cache
    def compiled(dropout: float) -> Any:
        state = _make_state(work, groups[0], at_once)
        return _make_step(work, len(groups[0]), at_once, dropout).lower(state, *rest).compile()

    def losses() -> list[float]:
        found = []
        for seeds in groups:
            state = _make_state(work, seeds, at_once)
            metrics: dict[str, Any] = {}
            for _ in range(CHECK_STEPS):
                state, metrics = compiled(0.0)(state, *rest)
            names = [f"loss/{seed}" for seed in seeds] if at_once else ["loss"]
            found += [float(metrics[name]) for name in names]
        return found

    states: list[Any] = []

    def step() -> None:
        state = states.pop() if states else _make_state(work, groups[0], at_once)
        states.append(jax.block_until_ready(compiled(work.dropout)(state, *rest)[0]))

    return {"losses": losses, "step": step, "memory": lambda: _memory(compiled(work.dropout))}


def _make_state(work: Work, seeds: Sequence[int], at_once: int) -> Any:
    """The state of a sweep of these students; of the one alone where `at_once` is 0."""
    import jax

    from jaxlab import distillation as kd
    from jaxlab import training

    config = model_config(work.student, work.vocab_size)
    students = [jax.device_put(draw_params(config, 1 + seed)) for seed in seeds]
    objective, tx, key = (
        make_objective(work, intermediate=True),
        make_optimizer(),
        jax.random.key(2),
    )
    if at_once:
        return kd.init_sweep(objective, students, tx, key, list(seeds))
    return training.TrainState.create(
        kd.distillation_params(objective, students[0], key), tx, jax.random.key(3), {}
    )


def _make_step(work: Work, num_students: int, at_once: int, dropout: float) -> Any:
    """The jitted step of a sweep; of one student alone where `at_once` is 0."""
    import jax

    from jaxlab import distillation as kd

    parts, tx = make_parts(work, intermediate=True, dropout=dropout), make_optimizer()
    if not at_once:
        return jax.jit(kd.make_distillation_step(parts, tx, NUM_STEPS), donate_argnums=0)
    factors = [dict.fromkeys(parts.objective.names, 1.0)] * num_students
    variants = kd.make_variants(parts.objective, factors, seeds=list(range(num_students)))
    names = [str(seed) for seed in range(num_students)]
    step = kd.make_sweep_step(parts, tx, NUM_STEPS, variants, names, at_once=at_once)
    return jax.jit(step, donate_argnums=0)


def _memory(compiled: Any) -> dict[str, float]:
    """GiB of a compiled step, and of the device at most."""
    import jax

    analysis = compiled.memory_analysis()
    held = {
        "temporary GiB": analysis.temp_size_in_bytes / _GIB,
        "arguments GiB": analysis.argument_size_in_bytes / _GIB,
    }
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        held["peak GiB"] = statistics_of_device["peak_bytes_in_use"] / _GIB
    return held
