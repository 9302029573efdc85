"""The algorithm that settings name: optimizers, what is personal, what is compressed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from experiments.federated.settings import (
    CompressionConfig,
    LocalConfig,
    RunConfig,
    ServerConfig,
)
from jaxlab import federated
from jaxlab.federated import Algorithm, Schedule, Task, compression


def make_optimizer(config: LocalConfig, rate: float = 0.0) -> optax.GradientTransformation:
    """The optimizer of the clients.

    Args:
      config: which.
      rate: learning rate in place of its own; 0 takes that.
    """
    rate = rate or config.learning_rate
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay))
    is_sgd = config.optimizer == "sgd"
    step = optax.sgd(rate, config.momentum or None) if is_sgd else optax.adam(rate)
    return optax.chain(*chain, step) if chain else step


def make_server_optimizer(config: ServerConfig) -> optax.GradientTransformation | None:
    """The optimizer of the server; None takes the mean itself."""
    rate, b1, b2, tau = config.learning_rate, config.b1, config.b2, config.tau
    match config.optimizer:
        case "none":
            return None
        case "sgd":
            schedule: Any = rate
            if config.decay_every_rounds:
                schedule = optax.exponential_decay(
                    rate, config.decay_every_rounds, config.decay, staircase=True
                )
            return optax.sgd(schedule, config.momentum or None)
        case "adam":
            return federated.fed_adam(rate, b1=b1, b2=b2, tau=tau)
        case "adagrad":
            return federated.fed_adagrad(rate, b1=b1, tau=tau)
        case "yogi":
            return federated.fed_yogi(rate, b1=b1, b2=b2, tau=tau)


def make_algorithm(
    config: RunConfig, task: Task, num_trained: int, num_rounds: int, num_clients: int
) -> Algorithm:
    """The algorithm of the settings, with what personal settings add to it.

    Args:
      config: the settings.
      task: what is learned.
      num_trained: clients that train.
      num_rounds: length of the course.
      num_clients: all clients.

    Raises:
      ConfigError: (a ValueError) if parts cannot be combined.
    """
    base = _base(config, task, num_trained)
    if config.averaging.start_round:
        averaging = config.averaging
        base = federated.stochastic_averaging(
            base, num_rounds, start_round=averaging.start_round,
            every_rounds=averaging.every_rounds, compat=averaging.compat,
        )  # fmt: skip
    whole = _compressed(config.compression, _personal(config, task, base), config.seed)
    if config.algorithm.name != "atc":
        return whole
    given, counts = config.algorithm, config.algorithm.num_nearest
    return federated.clustered(
        whole, num_clients, num_nearest=(counts[0] if len(counts) == 1 else counts) or None,
        num_groups=given.num_groups or None, inside_weight=given.inside_weight,
        outside_weight=given.outside_weight,
    )  # fmt: skip


def _base(config: RunConfig, task: Task, num_trained: int) -> Algorithm:
    """The algorithm without what personal settings add."""
    given, rate, schedule = config.algorithm, config.local.learning_rate, config.local.schedule
    tx, server_tx = make_optimizer(config.local), make_server_optimizer(config.server)
    own_tx = make_optimizer(config.local, given.personal_rate)
    own = dataclasses.replace(schedule, amount=given.personal_amount or schedule.amount)
    weighing = {} if given.weighting == "auto" else {"weighting": given.weighting}
    match given.name:
        case "atc":
            weighting = weighing.get("weighting", "processed")
            return federated.fed_avg(task, tx, schedule, server_tx=server_tx, weighting=weighting)
        case "fed_gc":
            return federated.fed_gc(
                task, tx, schedule, temperature=config.task.temperature,
                global_weight=given.global_weight, server_tx=server_tx, compat=given.compat,
                **weighing,
            )  # fmt: skip
        case "fed_avg":
            gradient = None
            if given.sharpness_rho:
                gradient = federated.sharpness_aware(
                    given.sharpness_rho, adaptive=given.sharpness_adaptive, eta=given.sharpness_eta
                )
            return federated.fed_avg(
                task, tx, schedule, server_tx=server_tx, prox_mu=given.prox_mu, gradient=gradient,
                **weighing,
            )  # fmt: skip
        case "ada_fed_prox":
            return federated.ada_fed_prox(
                task, tx, schedule, mu=given.prox_mu, change=given.prox_change,
                patience=given.prox_patience, **weighing,
            )  # fmt: skip
        case "scaffold":
            return federated.scaffold(
                task, rate, schedule, num_trained, server_rate=given.server_rate
            )
        case "fed_nova":
            return federated.fed_nova(
                task, rate, schedule, momentum=config.local.momentum, server_tx=server_tx,
                **weighing,
            )  # fmt: skip
        case "fed_dyn":
            return federated.fed_dyn(task, tx, schedule, num_trained, alpha=given.alpha)
        case "mime" | "mime_lite":
            make = federated.mime if given.name == "mime" else federated.mime_lite
            return make(task, tx, schedule, server_rate=given.server_rate, **weighing)
        case "q_fed_avg":
            return federated.q_fed_avg(task, rate, schedule, given.q)
        case "local_entropy":
            return federated.local_entropy(
                task, rate, schedule, gamma=given.gamma, growth=given.gamma_growth,
                noise=given.noise, alpha=given.mean_rate, server_tx=server_tx,
                compat=given.compat, **weighing,
            )  # fmt: skip
        case "fed_rep":
            is_head = federated.named(*given.head)
            return federated.fed_rep(
                task, is_head, own_tx, own, tx, schedule, server_tx=server_tx, **weighing
            )
        case "ditto":
            return federated.ditto(
                task, tx, schedule, regularisation=given.regularisation, personal_tx=own_tx,
                personal_schedule=own, server_tx=server_tx,
            )  # fmt: skip
        case "pfedme":
            return federated.pfedme(
                task, own_tx, rate, schedule, num_inner_steps=given.num_inner_steps,
                regularisation=given.regularisation, beta=given.beta, outer=given.outer,
            )  # fmt: skip
        case "fed_em":
            return federated.fed_em(
                task, tx, schedule, server_tx=server_tx, compat=given.compat, **weighing
            )


def _personal(config: RunConfig, task: Task, base: Algorithm) -> Algorithm:
    """An algorithm with tuning before evaluation and with entries that stay with the clients."""
    given = config.personal
    if given.tune_amount:
        schedule = Schedule(config.local.batch_size, given.tune_amount, given.tune_unit)
        anew = federated.named(*given.tune_anew, form=given.form) if given.tune_anew else None
        tuner = _tuner(config, task, schedule)
        base = federated.fine_tuned(base, tuner, schedule, reinitialised=anew)
    kinds: list[Callable[[str], bool]] = []
    if given.local_norms:
        kinds.append(federated.is_normalization)
    if given.local_entries:
        kinds.append(federated.named(*given.local_entries, form=given.form))
    if not kinds:
        return base
    return federated.keep_local(base, lambda name: any(kind(name) for kind in kinds))


def _tuner(config: RunConfig, task: Task, schedule: Schedule) -> Algorithm:
    """How a client tunes what it evaluates with, which has the form of the algorithm's models."""
    given, algorithm = config.personal, config.algorithm
    tx = make_optimizer(config.local, given.tune_rate)
    if given.tune_entries:
        tx = federated.train_only(tx, federated.named(*given.tune_entries, form=given.form))
    match algorithm.name:
        case "ditto":
            return federated.ditto(task, tx, schedule, regularisation=algorithm.regularisation)
        case "fed_em":
            return federated.fed_em(task, tx, schedule, compat=algorithm.compat)
        case "fed_rep":
            is_head = federated.named(*algorithm.head)
            return federated.fed_rep(task, is_head, tx, schedule, tx, schedule)
        case _:
            return federated.fed_avg(task, tx, schedule)


def _compressed(given: CompressionConfig, algorithm: Algorithm, seed: int) -> Algorithm:
    """The algorithm with what travels in fewer bytes; itself if nothing is compressed."""
    codecs: list[compression.Codec] = (
        [compression.top_k(given.top_share)] if given.top_share else []
    )
    if given.rotate:
        codecs.append(compression.rotate())
    if given.bits:
        codecs.append(compression.quantize(given.bits, stochastic=given.stochastic))
    down = None
    if given.down_bits:
        down = compression.quantize(given.down_bits, stochastic=given.stochastic)
    if not codecs and down is None:
        return algorithm
    chosen = {"is_entry": compression.is_original_entry} if given.original_entries else {}
    return compression.compressed(
        algorithm, up=compression.chain(*codecs) if codecs else None, down=down,
        error_feedback=given.error_feedback, seed=seed, **chosen,
    )  # fmt: skip
