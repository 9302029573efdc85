"""Steps of a distillation: ours and TextBrewer's, with a teacher that runs and with a cached one.

Processes take turns, so that what else the machine does meets all of them. Before anything is
timed, the losses of two steps without dropout must be equal.
"""

import functools
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.workers import Timed, Worker
from experiments.distillation.benchmark_work import (
    CLIP_NORM,
    LEARNING_RATE,
    NUM_STEPS,
    TEMPERATURE,
    WEIGHT_DECAY,
    Work,
    cache_logits,
    draw_batch,
    draw_params,
    load,
    make_optimizer,
    make_parts,
    model_config,
    textbrewer_matches,
    use_device,
)

CHECK_STEPS = 2
LOSS_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}
CACHE_ERROR = {"float32": 1e-5, "bfloat16": 2e-2}


def speed(work: Work) -> dict[str, dict[str, float]]:
    """Steps a second of ours and of TextBrewer, and their ratios.

    Args:
      work: what to time.

    Raises:
      ModuleNotFoundError: if TextBrewer is not there.
      RuntimeError: if the two do not compute the same losses.
    """
    absent = [name for name in ("torch", "textbrewer") if importlib.util.find_spec(name) is None]
    if absent:
        raise ModuleNotFoundError(
            f"--suite=speed takes turns with TextBrewer, and {' and '.join(absent)} is not "
            "installed here; run it in the environment that `.ci/peer_env parity DIR` makes (cache "
            "and sweep need none)"
        )
    with (
        Worker("ours", make_ours, work, threads=work.threads) as ours,
        Worker("TextBrewer", make_peer, work, threads=work.threads) as peer,
    ):
        return compare({"ours": ours, "TextBrewer": peer}, work, LOSS_ERROR[work.dtype])


def cache(work: Work) -> dict[str, dict[str, float]]:
    """Steps a second with cached logits of the teacher and with the teacher beside the student.

    Args:
      work: what to time.

    Raises:
      RuntimeError: if the two do not compute the same losses.
    """
    with (
        Worker("cached", make_logits, work, True, threads=work.threads) as cached,
        Worker("live", make_logits, work, False, threads=work.threads) as live,
    ):
        return compare({"cached": cached, "live": live}, work, CACHE_ERROR[work.dtype])


def compare(workers: dict[str, Worker], work: Work, allowed: float) -> dict[str, dict[str, float]]:
    """Check that two workers compute the same losses, then time their steps in turns.

    Args:
      workers: two by name, with the actions `losses` and `step`; the second is compared with.
      work: how often.
      allowed: relative difference of losses.

    Raises:
      RuntimeError: if losses differ by more.
    """
    losses = [np.asarray(worker.ask("losses").value) for worker in workers.values()]
    error = np.max(np.abs(losses[0] / losses[1] - 1))
    if not error <= allowed:
        names = " and ".join(workers)
        raise RuntimeError(
            f"{names} differ by {error:.2g} of their losses, more than {allowed:g}: they do not do "
            "the same work"
        )
    runs = [[w.ask("step") for w in workers.values()] for _ in range(1 + work.rounds)][1:]
    rows = {name: _row(taken) for name, taken in zip(workers, zip(*runs, strict=True), strict=True)}
    first, second = rows.values()
    for name, heading in (("steps/s", "ratio"), ("steps/CPU s", "by CPU time")):
        first[heading] = first[name] / second[name]
    first["loss error"] = float(error)
    return rows


def _row(taken: Sequence[Timed]) -> dict[str, float]:
    seconds, cpu_seconds = (
        statistics.median(getattr(timed, name) for timed in taken)
        for name in ("seconds", "cpu_seconds")
    )
    return {
        "steps/s": 1 / seconds,
        "best": 1 / min(timed.seconds for timed in taken),
        "steps/CPU s": 1 / cpu_seconds,
    }


def make_ours(work: Work) -> dict[str, Callable[[], Any]]:
    """Our side, in its process."""
    use_device(work.device)
    teacher, student, batch = load(work)
    return _actions(
        work,
        lambda dropout: make_step(
            work, teacher, student, batch, intermediate=True, dropout=dropout
        ),
    )


def make_logits(work: Work, cached: bool) -> dict[str, Callable[[], Any]]:
    """A student of logits alone, with its teacher or with what that gave, in its process."""
    use_device(work.device)
    teacher, student, batch = load(work)
    if cached:
        batch = cache_logits(work, teacher, batch)
        teacher = {}
    return _actions(
        work,
        lambda dropout: make_step(
            work, teacher, student, batch, intermediate=False, dropout=dropout
        ),
    )


def _actions(work: Work, make: Callable[[float], Callable[[], float]]) -> dict[str, Any]:
    """The actions of a side, from what makes a step for a rate of dropout."""
    step = functools.cache(make)

    def losses() -> list[float]:
        found = [step(0.0)() for _ in range(CHECK_STEPS)]
        if work.dropout:
            step.cache_clear()  # it holds a student and the moments of its gradients
        return found

    return {"losses": losses, "step": lambda: step(work.dropout)()}


def make_step(
    work: Work,
    teacher: Any,
    student: Any,
    batch: Any,
    *,
    intermediate: bool,
    dropout: float,
) -> Callable[[], float]:
    """A step of ours that waits for its end and gives its loss.

    Args:
      work: sizes.
      teacher: parameters; empty where the batch brings its logits.
      student: parameters before the first step.
      batch: on the device.
      intermediate: match hidden states, too.
      dropout: rate of the student.
    """
    import jax
    import jax.numpy as jnp

    from jaxlab import distillation as kd
    from jaxlab import training

    parts, tx = make_parts(work, intermediate=intermediate, dropout=dropout), make_optimizer()
    if not teacher:  # the batch brings what it said
        parts = parts._replace(teacher=None)
    step = jax.jit(kd.make_distillation_step(parts, tx, NUM_STEPS), donate_argnums=0)
    key = jax.random.key(0)
    # A copy: the step gives its input away.
    params = kd.distillation_params(parts.objective, jax.tree.map(jnp.copy, student), key)
    state = training.TrainState.create(params, tx, jax.random.key(1), {})
    frozen = {"teacher": teacher}

    def run() -> float:
        nonlocal state
        state, metrics = step(state, frozen, batch, jax.random.fold_in(key, state.step))
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return run


def make_peer(work: Work) -> dict[str, Callable[[], Any]]:
    """TextBrewer's side, in its process."""
    os.environ["OMP_NUM_THREADS"] = str(work.threads or os.cpu_count())
    # For the weights' names alone: the device is the peer's.
    use_device("cpu")
    from experiments.distillation.peers import textbrewer_steps
    from jaxlab.distillation.weights import huggingface_state_dict

    textbrewer_steps.set_threads(work.threads or os.cpu_count() or 1)
    configs = [model_config(sizes, work.vocab_size) for sizes in (work.teacher, work.student)]
    states = [
        huggingface_state_dict(draw_params(config, seed), config)
        for seed, config in enumerate(configs)
    ]
    batch = draw_batch(work)

    def make(dropout: float) -> Callable[[], float]:
        teacher, student = (
            textbrewer_steps.build(model_config(sizes, work.vocab_size, dropout), state)
            for sizes, state in zip((work.teacher, work.student), states, strict=True)
        )
        settings = {
            "temperature": TEMPERATURE,
            "intermediate_matches": textbrewer_matches(work),
        }
        rates = {"rate": LEARNING_RATE, "decay": WEIGHT_DECAY, "clip": CLIP_NORM}
        return textbrewer_steps.make_step(
            teacher, student, batch, settings, device=work.device, **rates
        )

    return _actions(work, make)
