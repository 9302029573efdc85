"""What a teacher adds: image features, similarities, its own size, and what it leaves alone."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxlab.chinese_clip.distillation import (
    DistillationConfig,
    image_distillation_loss,
    resize_images,
    similarity_distillation_loss,
)
from jaxlab.chinese_clip.evaluate import encode
from jaxlab.chinese_clip.losses import contrastive_loss, resize_features
from jaxlab.chinese_clip.model import (
    ChineseClip,
    ChineseClipConfig,
    ClipFeatures,
    abstract_variables,
    normalize,
)
from jaxlab.chinese_clip.objective import LossConfig, initial_objective
from jaxlab.chinese_clip.train import (
    Teacher,
    join_variables,
    make_clamp,
    make_pair_step,
    make_step_parts,
    model_variables,
    split_variables,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.parallel import batch_sharding, make_mesh
from jaxlab.training import OptimizerConfig, TrainState, make_optimizer

BATCH = 16
RNG = np.random.default_rng(0)


def unit(*shape):
    return normalize(jnp.asarray(RNG.normal(size=shape), jnp.float32))


STUDENT = ClipFeatures(unit(BATCH, 6), unit(BATCH, 6), jnp.float32(2.0))
TEACHER = ClipFeatures(unit(BATCH, 9), unit(BATCH, 9), jnp.float32(2.5))


def divergence(student, teacher):
    """Both directions in float64."""
    logits = [
        np.exp(float(f.log_scale)) * np.asarray(f.image, np.float64) @ np.asarray(f.text).T
        for f in (student, teacher)
    ]
    total = 0.0
    for axis in (0, 1):
        q, p = (log_softmax(z, axis=axis) for z in logits)
        total += (np.exp(p) * (p - q)).sum() / BATCH / 2
    return total


def test_similarities_are_compared_in_both_directions_and_in_chunks():
    def dense(student):
        total = 0.0
        for axis in (0, 1):
            p, q = (
                jax.nn.log_softmax(jnp.exp(f.log_scale) * f.image @ f.text.T, axis=axis)
                for f in (TEACHER, student)
            )
            total += (jnp.exp(p) * (p - q)).sum() / BATCH / 2
        return total

    mesh = make_mesh(devices=jax.devices()[:4])

    def chunked(student, teacher):
        # 3 does not divide the four rows of a device.
        return similarity_distillation_loss(student, teacher, chunk_size=3, mesh=mesh)

    wanted, gradient = jax.value_and_grad(dense)(STUDENT)
    assert float(wanted) == pytest.approx(divergence(STUDENT, TEACHER), rel=1e-5)
    rows = batch_sharding(mesh)
    placed = [ClipFeatures(*jax.device_put(f[:2], rows), f.log_scale) for f in (STUDENT, TEACHER)]
    value, (got, none) = jax.jit(jax.value_and_grad(chunked, (0, 1)))(*placed)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(got, gradient, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    assert all(np.abs(g).max() == 0 for g in none)  # nothing reaches the teacher


def test_a_student_that_agrees_with_its_teacher_has_no_loss():
    same = similarity_distillation_loss(STUDENT, STUDENT, chunk_size=5)
    assert abs(float(same)) < 1e-6
    wider = jnp.pad(STUDENT.image, [(0, 0), (0, 3)])
    kernel = jnp.eye(6, 9)
    assert abs(float(image_distillation_loss(STUDENT.image, wider, kernel))) < 1e-6


def test_images_are_resized_to_the_teachers_size():
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, :, None, None], (1, 32, 32, 3))
    assert resize_images(ramp, 32) is ramp
    # Away from the edges a straight line stays one: pixel i of the half size lies at 2 i + 0.5.
    half = resize_images(ramp, 16)[0, 4:12, 8, 0]
    np.testing.assert_allclose(half, 2 * np.arange(4, 12) + 0.5, atol=1e-4)
    stripes = jnp.where(jnp.arange(32) % 2, 1.0, 0.0)[None, :, None, None] + jnp.zeros_like(ramp)
    np.testing.assert_allclose(resize_images(stripes, 16)[0, 4:12], 0.5, atol=0.02)  # no aliases


def tower(size, layers, dim):
    text = BertConfig(
        vocab_size=20, num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=5,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    return ChineseClipConfig(VisionTransformerConfig(size, 4, layers, 16, 2, 16, dim), text, 5)


SMALL, LARGE = tower(8, 1, 6), tower(12, 1, 9)


def draw(config, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.5), jnp.float32),
        abstract_variables(config),
    )


def test_a_step_learns_from_a_larger_teacher_and_leaves_it_alone():
    rng = np.random.default_rng(4)
    batch = {
        "image": jnp.asarray(rng.normal(size=(BATCH, 8, 8, 3)), jnp.float32),
        "ids": jnp.asarray(rng.integers(1, 20, (BATCH, 5)), jnp.int32),
    }
    config = DistillationConfig(image_weight=0.5, similarity_weight=0.25, image_map="linear")
    loss = LossConfig()
    own = initial_objective(
        loss, jax.random.key(7), model=SMALL, distillation=config, teacher=LARGE
    )
    assert own["image_map"].shape == (6, 9) and np.std(own["image_map"]) < 0.6
    student, teacher = draw(SMALL, 1), draw(LARGE, 2)
    parts = split_variables({**student, "objective": own}, image_locked=False)
    model, large = ChineseClip(SMALL), ChineseClip(LARGE)
    tx = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant"), 5)
    step_parts = make_step_parts(
        model, None, loss, image_locked=False, teacher=Teacher(large, config)
    )
    step = jax.jit(make_pair_step(step_parts, tx, loss), donate_argnums=0)
    state = jax.tree.map(jnp.copy, TrainState.create(parts.params, tx, jax.random.key(0)))
    frozen = {"teacher": teacher}
    after, metrics = step(state, frozen, batch, jax.random.key(1))

    @jax.jit
    def both(student, teacher, images, ids):
        return (
            encode(model, student, images, "encode_image"),
            encode(model, student, ids, "encode_text"),
            encode(large, teacher, resize_images(images, 12), "encode_image"),
            encode(large, teacher, ids, "encode_text"),
        )

    f, g, t, u = both(student, teacher, batch["image"], batch["ids"])
    mapped = np.asarray(f @ own["image_map"], np.float64)
    said = np.asarray(t, np.float64)
    cosines = (mapped * said).sum(1) / np.linalg.norm(mapped, axis=1)
    pair = contrastive_loss(f, g, student["params"]["logit_scale"])
    similar = divergence(
        ClipFeatures(f, g, student["params"]["logit_scale"]),
        ClipFeatures(t, u, teacher["params"]["logit_scale"]),
    )
    assert float(metrics["pair_loss"]) == pytest.approx(float(pair), rel=1e-5)
    assert float(metrics["image_distillation_loss"]) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    assert float(metrics["similarity_distillation_loss"]) == pytest.approx(similar, rel=1e-5)
    total = float(pair) + 0.5 * (1 - cosines.mean()) + 0.25 * similar
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)

    jax.tree.map(np.testing.assert_array_equal, frozen["teacher"], draw(LARGE, 2))
    moved = np.abs(after.params["objective"]["image_map"] - own["image_map"]).max()
    assert moved > 1e-4
    joined = join_variables(after.params, frozen, {})
    assert joined.keys() == {"params", "objective"}
    assert jax.tree.structure(model_variables(joined)) == jax.tree.structure(student)


def test_a_batch_may_hold_the_teachers_own_images():
    teacher = Teacher(ChineseClip(LARGE))
    parts = make_step_parts(
        ChineseClip(SMALL), None, LossConfig(), image_locked=False, teacher=teacher
    )
    frozen = {"teacher": draw(LARGE, 2)}
    pixels = np.random.default_rng(5).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    given = jax.jit(parts.teach)(frozen, {"teacher_image": pixels}, jax.random.key(0))
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    images = jnp.asarray((pixels / 255 - mean) / std, jnp.float32)
    ours = jax.jit(lambda images: encode(teacher.model, frozen["teacher"], images, "encode_image"))
    wanted = ours(images)
    np.testing.assert_allclose(given.image, wanted, atol=1e-5)
    assert given.text is None
    with pytest.raises(ValueError, match=r"image or teacher_image; this one has \['ids'\]"):
        parts.teach(frozen, {"ids": pixels[:, 0, :, 0]}, jax.random.key(0))


def test_a_locked_tower_with_image_distillation_warns(caplog):
    def build(config):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="jaxlab"):
            make_step_parts(
                ChineseClip(SMALL), None, LossConfig(), image_locked=True,
                teacher=Teacher(ChineseClip(LARGE), config),
            )  # fmt: skip
        return caplog.text

    assert "image_weight=0.5 of the distillation reaches no tower" in build(DistillationConfig())
    assert build(DistillationConfig(image_weight=0.0, similarity_weight=1.0)) == ""


def test_interpolation_is_the_default_map():
    wanted = 1 - (normalize(resize_features(STUDENT.image, 9)) * TEACHER.image).sum(1).mean()
    got = image_distillation_loss(STUDENT.image, TEACHER.image, None)
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)
    assert DistillationConfig().image_map == "interpolate"
    assert make_clamp(LossConfig())({"objective": {}}) == {"objective": {}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_weight": -0.1},
            "image_weight=-0.1 and similarity_weight=0.0 must not be negative",
        ),
        ({"image_weight": 0.0}, "not both zero; leave the teacher out"),
        ({"image_map": "cubic"}, r"image_map='cubic' is not one of \('interpolate', 'linear'\)"),
    ],
)
def test_distillation_that_does_not_exist_is_refused(fields, message):
    config = object.__new__(DistillationConfig)
    for field in dataclasses.fields(DistillationConfig):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    with pytest.raises(ValueError, match=message):
        config.__post_init__()
