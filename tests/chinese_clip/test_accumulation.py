"""The accumulated gradient against that of all parts in one graph, for towers and for a toy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.chinese_clip.accumulation import StepParts, compose_loss, make_cached_step
from jaxlab.chinese_clip.distillation import DistillationConfig, Taught
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, abstract_variables
from jaxlab.chinese_clip.objective import LossConfig, PairFeatures, make_objective
from jaxlab.chinese_clip.train import make_step_parts, split_variables
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.parallel import make_mesh, place, shard_batch
from jaxlab.training import TrainState
from jaxlab.training.step import join_microbatches, split_microbatches

ROWS = 32
DENSE = LossConfig()
RNG = np.random.default_rng(0)
TOY_BATCH = {
    "image": RNG.normal(size=(ROWS, 6)).astype(np.float32),
    "ids": RNG.integers(1, 9, (ROWS, 2)).astype(np.int32),  # with equal texts
    "image_id": RNG.integers(0, 20, ROWS).astype(np.int32),
}
TOY_PARAMS = {
    "image": RNG.normal(size=(6, 8)).astype(np.float32),
    "text": RNG.normal(size=(9, 8)).astype(np.float32),
    "logit_scale": np.float32(1.5),
    "objective": {
        "bias": np.float32(-3.0),
        "image_map": RNG.normal(size=(8, 5)).astype(np.float32),
    },
}
TOY_FROZEN = {
    "teacher": {
        "w": RNG.normal(size=(6, 5)).astype(np.float32),
        "params": {"logit_scale": np.float32(2.0)},
    }
}


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def toy_encode(params, frozen, extra, batch, key):
    """Two one-layer towers with dropout; `extra` counts the parts and averages their images."""
    keep = jax.random.bernoulli(key, 0.8, (batch["image"].shape[0], 8))
    image = jnp.tanh(batch["image"] @ params["image"]) * keep
    text = jnp.take(params["text"], batch["ids"], axis=0).sum(axis=1)
    mean = 0.9 * extra["mean"] + 0.1 * batch["image"].mean()
    return PairFeatures(unit(image + 0.1), unit(text)), {"calls": extra["calls"] + 1, "mean": mean}


def toy_teach(frozen, batch, key):
    """A teacher that sees the images through the key of the student."""
    noise = jax.random.normal(key, batch["image"].shape)
    image = unit((batch["image"] + 0.1 * noise) @ frozen["teacher"]["w"])
    return Taught(image, unit(image + 0.3))


def toy_parts(config, mesh=None, distillation=None):
    return StepParts(toy_encode, toy_teach, make_objective(config, mesh, distillation))


def keep_gradient():
    """An optimizer that moves nothing and whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
    )


def accumulated(parts, params, frozen, extra, batch, key, num_microbatches, mesh=None):
    """Gradient, metrics and `extra` of a cached step, jitted with its state donated."""
    tx = keep_gradient()
    state = TrainState.create(jax.tree.map(jnp.asarray, params), tx, jax.random.key(9), extra)
    if mesh is not None:
        state, batch = place(mesh, state), shard_batch(mesh, batch)
    state = jax.tree.map(jnp.copy, state)
    step = make_cached_step(parts, tx, num_microbatches=num_microbatches)
    after, metrics = jax.jit(step, donate_argnums=0)(state, frozen, batch, key)
    assert int(after.step) == 1
    return jax.device_get((after.opt_state, metrics, after.extra))


def in_one_graph(parts, params, frozen, extra, batch, key, num_microbatches):
    """The same by differentiating through all parts at once."""

    @jax.jit
    def run(params, batch, extra):
        def loss_of(params):
            def one(extra, part):
                index, piece = part
                own = jax.random.fold_in(key, index)
                features, extra = parts.encode(params, frozen, extra, piece, own)
                return extra, (features, parts.teach(frozen, piece, jax.random.clone(own)))

            pieces = split_microbatches(batch, num_microbatches)
            last, found = jax.lax.scan(one, extra, (jnp.arange(num_microbatches), pieces))
            features, taught = join_microbatches(found)
            loss, metrics = parts.objective(params, frozen, features, taught, batch)
            return loss, ({**metrics, "loss": loss}, last)

        (_, (metrics, last)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return grads, metrics, last

    return jax.device_get(run(params, batch, extra))


def assert_same(got, wanted):
    """Gradients to 1e-5 of their largest entry, metrics and `extra` likewise."""
    for name in wanted[1]:
        np.testing.assert_allclose(got[1][name], wanted[1][name], rtol=1e-5, err_msg=name)
    for path, want in jax.tree.leaves_with_path((wanted[0], wanted[2])):
        have = functools.reduce(
            lambda tree, k: tree[getattr(k, "key", getattr(k, "idx", None))],
            path,
            (got[0], got[2]),
        )
        assert np.abs(have - want).max() <= 1e-5 * np.abs(want).max() + 1e-9, path


LEARNT = DistillationConfig(image_weight=0.5, similarity_weight=0.7, image_map="linear")
LOSSES = {
    "dense": (LossConfig(equal_texts_match=True, equal_images_match=True), None),
    "chunked": (
        LossConfig(kind="chunked", chunk_size=5, equal_texts_match=True, label_smoothing=0.1),
        LEARNT,
    ),
    "local": (LossConfig(kind="local"), None),
    "sigmoid": (LossConfig(kind="sigmoid", chunk_size=7, equal_images_match=True), LEARNT),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_accumulates_on_eight_devices_as_in_one_graph(name):
    config, distillation = LOSSES[name]
    mesh, key = make_mesh(), jax.random.key(4)
    extra = {"calls": jnp.zeros((), int), "mean": jnp.zeros(())}
    wanted = in_one_graph(
        toy_parts(config, mesh if name == "local" else None, distillation),
        TOY_PARAMS, TOY_FROZEN, extra, TOY_BATCH, key, 2,
    )  # fmt: skip
    parts = toy_parts(config, mesh, distillation)
    got = accumulated(parts, TOY_PARAMS, TOY_FROZEN, extra, TOY_BATCH, key, 2, mesh)
    assert got[2]["calls"] == 2  # statistics move once a part, not once a pass
    assert_same(got, wanted)
    assert abs(got[0]["logit_scale"]) > 1e-3
    if distillation is not None:
        assert np.abs(got[0]["objective"]["image_map"]).max() > 1e-4


LENGTH, SIZE, WIDTH = 5, 8, 16
MODEL = ChineseClipConfig(
    VisionTransformerConfig(SIZE, 2, 1, WIDTH, 2, WIDTH, 8),
    BertConfig(
        vocab_size=20, num_layers=1, width=WIDTH, num_heads=2, mlp_width=WIDTH, max_positions=LENGTH
    ),
    LENGTH,
)


def tower_batch():
    rng = np.random.default_rng(3)
    ids = rng.integers(1, 20, (8, LENGTH)).astype(np.int32)
    return {"image": rng.normal(size=(8, SIZE, SIZE, 3)).astype(np.float32), "ids": ids}


@pytest.mark.parametrize(("parts", "locked"), [(2, False), (4, True)])
def test_towers_with_dropout_and_masked_patches_accumulate_as_in_one_graph(parts, locked):
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
        abstract_variables(MODEL),
    )
    stage = split_variables(variables, image_locked=locked)
    assert MODEL.text.hidden_dropout == MODEL.text.attention_dropout == 0.1
    loss = make_step_parts(
        ChineseClip(MODEL), None, DENSE, image_locked=locked, mask_ratio=0.0 if locked else 0.5
    )
    frozen = jax.tree.map(jnp.asarray, stage.frozen)
    arguments = (loss, stage.params, frozen, {}, tower_batch(), jax.random.key(2), parts)
    got, wanted = accumulated(*arguments), in_one_graph(*arguments)
    key_bias = got[0]["bert"]["layer_0"]["attention"]["key"].pop("bias")
    assert np.abs(key_bias).max() < 1e-6  # its gradient is zero but for rounding
    del wanted[0]["bert"]["layer_0"]["attention"]["key"]["bias"]
    if not locked:
        for tree in (got, wanted):
            del tree[0]["visual"]["layer_0"]["attention"]["key"]["bias"]
    assert_same(got, wanted)
    assert ("visual" in got[0]) == (not locked)


@pytest.mark.parametrize("parts", [1, 4])
def test_any_number_of_parts_accumulates_as_in_one_graph(parts):
    extra = {"calls": jnp.zeros((), int), "mean": jnp.zeros(())}
    arguments = (toy_parts(DENSE), TOY_PARAMS, TOY_FROZEN, extra, TOY_BATCH, jax.random.key(1))
    assert_same(accumulated(*arguments, parts), in_one_graph(*arguments, parts))


def test_without_randomness_the_number_of_parts_does_not_matter():
    def encode(params, frozen, extra, batch, key):
        image = jnp.tanh(batch["image"] @ params["image"])
        text = jnp.take(params["text"], batch["ids"], axis=0).sum(axis=1)
        return PairFeatures(unit(image), unit(text)), extra

    parts = StepParts(encode, lambda *_: (), make_objective(DENSE))
    arguments = (TOY_PARAMS, {}, {}, TOY_BATCH, jax.random.key(0))
    got = accumulated(parts, *arguments, 4)
    loss = jax.jit(jax.value_and_grad(compose_loss(parts), has_aux=True))
    (value, (_, metrics)), grads = jax.device_get(loss(*arguments))
    assert_same(got, (grads, {**metrics, "loss": value}, {}))


def temporary_bytes(num_microbatches):
    """Of a step whose activations are sixteen times its parameters."""
    rows, hidden = 1024, 1024

    def encode(params, frozen, extra, batch, key):
        image = jnp.tanh(batch["image"] @ params["up"]) @ params["down"]
        return PairFeatures(unit(image), unit(image + 1.0)), extra

    params = {
        "up": jnp.zeros((16, hidden)),
        "down": jnp.zeros((hidden, 16)),
        "logit_scale": jnp.zeros(()),
    }
    parts = StepParts(encode, lambda *_: (), make_objective(LossConfig("chunked", chunk_size=16)))
    tx = optax.sgd(0.1)
    step = make_cached_step(parts, tx, num_microbatches=num_microbatches)
    state = jax.eval_shape(lambda: TrainState.create(params, tx, jax.random.key(0)))
    batch = {"image": jax.ShapeDtypeStruct((rows, 16), jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(step, donate_argnums=0).lower(state, {}, batch, key).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_one_part():
    whole, parts = temporary_bytes(1), temporary_bytes(16)
    assert parts < whole / 5


def test_rows_that_do_not_divide_are_refused():
    parts = toy_parts(DENSE)
    with pytest.raises(ValueError, match="num_microbatches=0 must be at least 1"):
        make_cached_step(parts, keep_gradient(), num_microbatches=0)
    extra = {"calls": jnp.zeros((), int), "mean": jnp.zeros(())}
    with pytest.raises(ValueError, match="32 rows does not divide into 5"):
        accumulated(parts, TOY_PARAMS, TOY_FROZEN, extra, TOY_BATCH, jax.random.key(0), 5)
