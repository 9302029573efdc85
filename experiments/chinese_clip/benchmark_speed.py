"""Encoding and training steps, ours and the original's.

Both have the same weights and the same batch, in a process each, and take turns. Before anything is
timed their features, and the losses of two training steps without dropout, must be equal.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from experiments.common.workers import Timed, Worker
from jaxlab.layers.attention import AttentionImplementation

TASKS = ("image", "text", "trimmed_text", "train", "train_without_dropout")
PEERS = ("original", "fused")
ATTENTION = get_args(AttentionImplementation)
MEAN_CHARACTERS = 7.4
"""Of the texts of MUGE: arXiv:2211.01335, appendix."""

_FEATURE_ERROR = {"float32": 2e-5, "bfloat16": 2e-2}
_LOSS_ERROR = {"float32": 1e-4, "bfloat16": 1e-2}
_MAX_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class SpeedSettings:
    """What is timed, and how.

    Attributes:
      model: a published size.
      depth: layers of both towers; 0 is as published.
      tasks: of `TASKS`.
      batch_size: pairs of a batch.
      dtype: of the computation.
      device: `cpu` or `gpu`.
      peer: `original`, or `fused` with torch's fused attention in the text tower too.
      attention: our implementation, see `jaxlab.layers.attention`.
      scan: compile one layer a tower.
      threads: processors of each process.
      rounds: timed runs, of which the median counts.
      peak_tflops: of the device; None reports no share.
    """

    model: str = "ViT-B-16"
    depth: int = 0
    tasks: tuple[str, ...] = TASKS
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    peer: str = "original"
    attention: AttentionImplementation = "auto"
    scan: bool = False
    threads: int = 2
    rounds: int = 7
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
          ValueError: if a task is unknown, or there is none.
        """
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"tasks has {unknown}; wanted some of {', '.join(TASKS)}")
        if not self.tasks:
            raise ValueError(f"tasks is empty; wanted some of {', '.join(TASKS)}")


def speed(settings: SpeedSettings) -> dict[str, dict[str, float]]:
    """Pairs per second of every task: ours, the peer's, and the ratios.

    The ratio of processor time says the same on a machine that does other things, too. The first
    run of each is not counted. The operations are those of the untrimmed model.

    Args:
      settings: what to time.

    Raises:
      RuntimeError: if the two do not give the same numbers.
    """
    with (
        Worker("ours", make_ours, settings, threads=settings.threads) as ours,
        Worker("the peer", make_peer, settings, threads=settings.threads) as peer,
    ):
        return compare(ours, peer, settings)


def compare(ours: Worker, peer: Worker, settings: SpeedSettings) -> dict[str, dict[str, float]]:
    """Check that two workers give the same numbers, then time them in turns.

    Args:
      ours: a process with the actions of `make_ours`.
      peer: one with those of `make_peer`.
      settings: what to time.

    Raises:
      RuntimeError: if they do not give the same numbers.
    """
    found = {}
    for task in settings.tasks:
        _check(task, ours, peer, settings)
        runs = [(ours.ask(task), peer.ask(task)) for _ in range(1 + settings.rounds)][1:]
        flops = ours.ask(f"flops of {task}").value
        found[task] = _row(runs, flops, settings)
    return found


def _row(
    runs: Sequence[tuple[Timed, Timed]], flops: float, settings: SpeedSettings
) -> dict[str, float]:
    ours, peer = zip(*runs, strict=True)
    wall, peer_wall = (statistics.median(t.seconds for t in taken) for taken in (ours, peer))
    cpu, peer_cpu = (statistics.median(t.cpu_seconds for t in taken) for taken in (ours, peer))
    row = {
        "ours/s": settings.batch_size / wall,
        "peer/s": settings.batch_size / peer_wall,
        "ours / peer": peer_wall / wall,
        "by CPU time": peer_cpu / cpu,
        "TFLOP/s": flops / wall / 1e12,
        "peer's": flops / peer_wall / 1e12,
    }
    if settings.peak_tflops is not None:
        row["of the peak"] = row["TFLOP/s"] / settings.peak_tflops
    return row


def _check(task: str, ours: Worker, peer: Worker, settings: SpeedSettings) -> None:
    """Compare what a task gives; a training step by its losses without dropout."""
    if task.startswith("train"):
        got, want = (
            [worker.ask("train_without_dropout").value for _ in range(2)] for worker in (ours, peer)
        )
        allowed = _LOSS_ERROR[settings.dtype] * np.abs(want)
    else:
        got, want = (worker.ask(task).value for worker in (ours, peer))
        allowed = _FEATURE_ERROR[settings.dtype]
    error = np.abs(np.subtract(got, want))
    if not (error <= allowed).all():
        raise RuntimeError(
            f"{task}: ours and the peer differ by {error.max():.2g}, more than "
            f"{np.max(allowed):.2g}: they do not do the same work"
        )


def compile_times(settings: SpeedSettings) -> dict[str, dict[str, float]]:
    """Seconds to compile our training step, layer by layer and scanned.

    Args:
      settings: sizes and types.
    """
    found = {}
    for name, scan in (("unrolled", False), ("scanned", True)):
        each = dataclasses.replace(settings, scan=scan)
        with Worker("ours", make_ours, each, threads=settings.threads) as ours:
            found[name] = ours.ask("compile").value
    return found


def make_config(settings: SpeedSettings, *, dropout: bool) -> Any:
    """Sizes of the model that is timed.

    Args:
      settings: names the model.
      dropout: keep the published rates; else they are 0.
    """
    from jaxlab.layers.vit import VisionTransformerConfig

    config = published_config(settings.model)
    text, vision = config.text, config.vision
    if settings.depth:
        text = dataclasses.replace(text, num_layers=settings.depth)
        if isinstance(vision, VisionTransformerConfig):
            vision = dataclasses.replace(vision, num_layers=settings.depth)
    if not dropout:
        text = dataclasses.replace(text, hidden_dropout=0.0, attention_dropout=0.0)
    return dataclasses.replace(config, text=text, vision=vision)


def published_config(name: str) -> Any:
    """The sizes of a published model."""
    from jaxlab.chinese_clip.model import MODELS

    return MODELS[name]


def make_optimizer_config() -> Any:
    """AdamW as in the recipes, at a constant rate."""
    from jaxlab.training import OptimizerConfig

    return OptimizerConfig(
        learning_rate=1e-5, schedule="constant", b2=0.98, eps=1e-6, weight_decay=1e-3
    )


def draw_state(config: Any) -> dict[str, np.ndarray]:
    """Random weights under the original's names.

    Args:
      config: sizes of the model.
    """
    from jaxlab.chinese_clip.published import variable_shapes
    from jaxlab.chinese_clip.weights import original_table

    shapes = original_table(config).foreign_shapes(dict(variable_shapes(config)))
    rng = np.random.default_rng(0)
    drawn = {}
    for name in sorted(shapes):
        value = np.float32(0.03) * rng.standard_normal(shapes[name], dtype=np.float32)
        is_scale = "weight" in name and len(shapes[name]) == 1
        drawn[name] = value + 1 if is_scale or name.endswith("running_var") else value
    drawn["logit_scale"] = np.array(np.log(1 / 0.07), np.float32)
    return drawn


def draw_batch(config: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images, NHWC, and texts of about the lengths of product searches, padded.

    Args:
      config: sizes of the model.
      batch_size: rows.
    """
    rng = np.random.default_rng(1)
    size = config.vision.image_size
    images = rng.standard_normal((batch_size, size, size, 3), dtype=np.float32)
    ids = rng.integers(672, 7992, (batch_size, config.context_length), dtype=np.int32)
    lengths = np.minimum(rng.poisson(MEAN_CHARACTERS, batch_size) + 2, config.context_length)
    ids[:, 0] = 101
    ids[np.arange(batch_size), lengths - 1] = 102
    ids[np.arange(config.context_length)[None] >= lengths[:, None]] = 0
    return images, ids


def make_ours(settings: SpeedSettings) -> dict[str, Callable[[], Any]]:
    """Our side, in its process."""
    # The peer needs the rest of the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    import jax

    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[settings.device])
    from jaxlab import chinese_clip as clip
    from jaxlab.checkpoints.foreign.names import unflatten
    from jaxlab.chinese_clip.published import variable_shapes
    from jaxlab.chinese_clip.weights import original_table

    config = make_config(settings, dropout=True)
    images, ids = draw_batch(config, settings.batch_size)
    trimmed = clip.trim_padding(ids)

    @functools.cache
    def variables() -> Any:
        loaded = original_table(config).load(draw_state(config), variable_shapes(config))
        return jax.device_put(unflatten(loaded))

    @functools.cache
    def encoders() -> clip.Encoders:
        return clip.make_encoders(_our_model(settings, dropout=True))

    @functools.lru_cache(maxsize=1)
    def step(dropout: bool) -> Callable[[], float]:
        return _make_our_step(settings, variables(), images, ids, dropout=dropout)

    @functools.cache
    def flops() -> tuple[float, float]:
        return forward_flops(_our_model(settings, dropout=True), images, ids)

    images_on_device = functools.cache(lambda: jax.device_put(images))
    actions: dict[str, Callable[[], Any]] = {
        "image": lambda: np.asarray(encoders().image(variables(), images_on_device())),
        "text": lambda: np.asarray(encoders().text(variables(), ids)),
        "trimmed_text": lambda: np.asarray(encoders().text(variables(), trimmed)),
        "train": lambda: step(True)(),
        "train_without_dropout": lambda: step(False)(),
        "compile": lambda: _time_compilation(settings, variables(), images, ids),
    }
    counts: dict[str, Callable[[], float]] = {
        "image": lambda: flops()[0],
        "text": lambda: flops()[1],
        "trimmed_text": lambda: flops()[1],
        "train": lambda: 3 * sum(flops()),
        "train_without_dropout": lambda: 3 * sum(flops()),
    }
    return actions | {f"flops of {task}": count for task, count in counts.items()}


def _our_model(settings: SpeedSettings, *, dropout: bool) -> Any:
    from jaxlab import chinese_clip as clip

    return clip.ChineseClip(
        make_config(settings, dropout=dropout),
        scan=settings.scan,
        implementation=settings.attention,
        dtype=settings.dtype,
    )


def _training(settings: SpeedSettings, *, dropout: bool) -> tuple[Any, Any]:
    """The optimizer, and the jitted step as the training loop runs it."""
    import jax

    from jaxlab import chinese_clip as clip
    from jaxlab import training

    model, loss = _our_model(settings, dropout=dropout), clip.LossConfig(max_scale=_MAX_SCALE)
    mask = clip.make_original_decay_mask(model.config)
    tx = training.make_optimizer(make_optimizer_config(), 10**6, mask)
    step = training.make_train_step(
        clip.make_loss_fn(model, None, loss, image_locked=False),
        tx,
        post_update=clip.make_clamp(loss),
    )
    return tx, jax.jit(step, donate_argnums=0)


def _make_our_step(
    settings: SpeedSettings, variables: Any, images: np.ndarray, ids: np.ndarray, *, dropout: bool
) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    from jaxlab import training

    tx, step = _training(settings, dropout=dropout)
    key = jax.random.key(0)
    extra = {k: v for k, v in variables.items() if k != "params"}
    # A copy: the step gives its input away.
    params, extra = jax.tree.map(jnp.copy, (variables["params"], extra))
    state = training.TrainState.create(params, tx, jax.random.key(1), extra)
    batch = jax.device_put({"image": images, "ids": ids})

    def run() -> float:
        nonlocal state
        state, metrics = step(state, {}, batch, jax.random.fold_in(key, state.step))
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return run


def _time_compilation(
    settings: SpeedSettings, variables: Any, images: np.ndarray, ids: np.ndarray
) -> dict[str, float]:
    import jax

    from jaxlab import training

    tx, step = _training(settings, dropout=True)
    extra = {k: v for k, v in variables.items() if k != "params"}
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: training.TrainState.create(variables["params"], tx, key, extra))
    start = time.perf_counter()
    lowered = step.lower(state, {}, {"image": images, "ids": ids}, key)
    traced = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    return {
        "trace s": traced - start,
        "compile s": end - traced,
        "temporary GiB": memory.temp_size_in_bytes / 2**30,
    }


def forward_flops(model: Any, images: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """Operations of the matrix products and convolutions of a batch through each tower.

    Args:
      model: the two towers.
      images: NHWC.
      ids: token ids.
    """
    import jax

    from jaxlab.chinese_clip.model import abstract_variables

    variables = abstract_variables(model.config)
    plain = model.clone(scan=False)
    image, text = (
        count_flops(
            jax.make_jaxpr(functools.partial(plain.apply, method=method))(variables, inputs).jaxpr
        )
        for method, inputs in (("encode_image", images), ("encode_text", ids))
    )
    return image, text


def count_flops(jaxpr: Any) -> float:
    """Operations of all matrix products and convolutions, a multiplication and addition as two.

    Args:
      jaxpr: of a program without loops.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in _inner(equation.params.values()):
            total += count_flops(inner)
        name = equation.primitive.name
        size = np.prod(equation.outvars[0].aval.shape, dtype=np.float64)
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * size * np.prod([shape[axis] for axis in contracted], dtype=np.float64)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * size * np.prod(kernel, dtype=np.float64) / features
    return float(total)


def _inner(values: Sequence[Any]) -> list[Any]:
    """The programs among the parameters of an equation."""
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]


def make_peer(settings: SpeedSettings) -> dict[str, Callable[[], Any]]:
    """The original's side, in its process."""
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    import jax

    # For the shapes alone: the device is the peer's.
    jax.config.update("jax_platforms", "cpu")
    from experiments.chinese_clip.peers import cn_clip_model

    config = make_config(settings, dropout=True)
    images, ids = draw_batch(config, settings.batch_size)
    cn_clip_model.set_threads(settings.threads)

    @functools.cache
    def runner(dropout: bool = True) -> Any:
        model = cn_clip_model.build(make_config(settings, dropout=dropout), draw_state(config))
        if settings.peer == "fused":
            cn_clip_model.fuse_text_attention(model)
        return cn_clip_model.Runner(
            model, images, ids, dtype=settings.dtype, device=settings.device
        )

    @functools.lru_cache(maxsize=1)
    def step(dropout: bool) -> Callable[[], float]:
        # A model of its own: the encoders keep the first weights.
        trained = runner.__wrapped__(dropout)
        return trained.make_step(make_optimizer_config(), _MAX_SCALE)

    return {
        "image": lambda: runner().encode_image(),
        "text": lambda: runner().encode_text(),
        "trimmed_text": lambda: runner().encode_text(),
        "train": lambda: step(True)(),
        "train_without_dropout": lambda: step(False)(),
    }
