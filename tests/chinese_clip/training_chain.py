"""Five steps of our training on the weights and inputs of tests/golden/make_chinese_clip_train.py.

Loaded by runpy from the tests that compare them with the original, stored and live.
"""

import dataclasses
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.chinese_clip.detection import detect_config
from jaxlab.chinese_clip.model import ChineseClip
from jaxlab.chinese_clip.objective import LossConfig
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.train import (
    make_original_decay_mask,
    make_pair_step,
    make_step_parts,
    split_variables,
)
from jaxlab.chinese_clip.weights import original_table
from jaxlab.training import OptimizerConfig, TrainState, make_optimizer

GOLDEN = Path(__file__).parents[1] / "golden"
with_path = [str(GOLDEN), *sys.path]
sys.path, before = with_path, sys.path
MAKER = runpy.run_path(str(GOLDEN / "make_chinese_clip_train.py"))
sys.path = before


def remember_gradient():
    """An optimizer link that passes gradients on and keeps the last one as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (grads, grads),
    )


def run(sizes, shapes, seed=11):
    """What the maker's `train` gives, by our model, loss, optimizer and clamp.

    Args:
      sizes: one of the maker's `MODELS`.
      shapes: of the original's tensors, by name.
      seed: of the inputs.
    """
    drawn = MAKER["weights"](sizes, shapes)
    config = detect_config({n: a.shape for n, a in drawn.items()})
    text = dataclasses.replace(config.text, hidden_dropout=0.0, attention_dropout=0.0)
    length = MAKER["LENGTH"]
    config = dataclasses.replace(config, text=text, context_length=length)
    table = original_table(config)
    before = table.load(drawn, variable_shapes(config))
    parts = split_variables(unflatten(before), image_locked=False)
    optimizer = OptimizerConfig(
        learning_rate=MAKER["RATE"], schedule="constant", weight_decay=MAKER["DECAY"],
        b1=MAKER["BETAS"][0], b2=MAKER["BETAS"][1], eps=sizes["eps"],
    )  # fmt: skip
    mask = make_original_decay_mask(config)
    tx = optax.chain(remember_gradient(), make_optimizer(optimizer, MAKER["STEPS"], mask))
    loss = make_step_parts(ChineseClip(config), None, LossConfig(), image_locked=False)
    state = TrainState.create(parts.params, tx, jax.random.key(0), parts.extra)
    step = jax.jit(make_pair_step(loss, tx, LossConfig()))
    images, ids = MAKER["inputs"](sizes["image_resolution"], seed)
    batch = {"image": images.transpose(0, 2, 3, 1), "ids": ids.astype(np.int32)}
    losses, gradients = [], None
    for _ in range(MAKER["STEPS"]):
        state, metrics = step(state, {}, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
        gradients = state.opt_state[0] if gradients is None else gradients

    def by_name(params):
        arrays = {f"params/{path}": np.asarray(leaf) for path, leaf in flatten(params).items()}
        return table.save(arrays)

    start = {path.removeprefix("params/"): a for path, a in before.items()}
    moved = {path: np.asarray(a) - start[path] for path, a in flatten(state.params).items()}
    statistics = {path: np.asarray(a) for path, a in flatten(state.extra).items()}
    return {
        "losses": np.array(losses),
        "gradients": by_name(gradients),
        "updates": by_name(unflatten(moved)),
        "statistics": table.save(statistics) if statistics else {},
    }


def summed_terms(name, sizes):
    """How large the terms are that a gradient sums, where they cancel; else 0.

    The gradient of the multiplier sums logits of both signs, each up to the multiplier itself. What
    float32 leaves of such a sum depends on the processor.
    """
    return np.exp(sizes["logit_scale"]) if name == "logit_scale" else 0.0


def without_key_biases(name, array):
    """The tensor without biases of attention keys, whose true gradient is zero; None if it is one.

    Adam turns the rounding noise of such a gradient into steps.
    """
    if name.endswith(("key.bias", "k_proj.bias")):
        return None
    if name.endswith("in_proj_bias"):
        third = len(array) // 3
        return np.concatenate([array[:third], array[2 * third :]])
    return array
