"""One step of either stage: what it trains, what it leaves alone, and which loss it takes."""

import dataclasses
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxlab import parallel
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip.accumulation import StepParts
from jaxlab.chinese_clip.evaluate import encode
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, abstract_variables
from jaxlab.chinese_clip.objective import (
    LossConfig,
    PairFeatures,
    make_objective,
    split_ids,
    text_fingerprints,
)
from jaxlab.chinese_clip.train import (
    join_variables,
    make_clamp,
    make_loss_fn,
    make_original_decay_mask,
    make_pair_step,
    split_variables,
    with_batch_norm,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.training import OptimizerConfig, TrainState, make_optimizer, make_train_step

ROWS, LENGTH, SIZE, WIDTH, DIM = 16, 6, 8, 32, 16
TEXT = BertConfig(
    vocab_size=30, num_layers=1, width=WIDTH, num_heads=2, mlp_width=WIDTH, max_positions=LENGTH,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
VIT = VisionTransformerConfig(SIZE, 4, 1, WIDTH, 2, WIDTH, DIM)
RESNET = ModifiedResNetConfig(SIZE, 16, (1,), expansion=2, num_heads=2, output_dim=DIM, stem_pool=1)
CONFIGS = {
    "vit": ChineseClipConfig(VIT, TEXT, LENGTH),
    "resnet": ChineseClipConfig(RESNET, TEXT, LENGTH),
}
DENSE = LossConfig()


@functools.cache
def start(kind):
    """Variables drawn by NumPy, which compiles nothing; none is zero, variances are positive."""
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
        abstract_variables(CONFIGS[kind]),
    )
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(lambda a: 1 + np.abs(a), drawn["batch_stats"])
    drawn["params"]["logit_scale"] = np.float32(2.0)
    return drawn


def make_batch():
    """Images, and ids in which rows 1 and 5 and rows 2, 3 and 7 have the same text."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 30, (ROWS, LENGTH)).astype(np.int32)
    ids[:, 4:] = 0
    ids[5] = ids[1]
    ids[[3, 7]] = ids[2]
    return {"image": rng.normal(size=(ROWS, SIZE, SIZE, 3)).astype(np.float32), "ids": ids}


@functools.cache
def features(kind):
    """Normalised features of the batch in evaluation mode."""
    model, variables, batch = ChineseClip(CONFIGS[kind]), start(kind), make_batch()

    @jax.jit
    def both(variables, images, ids):
        image = encode(model, variables, images, "encode_image")
        return image, encode(model, variables, ids, "encode_text")

    return tuple(np.asarray(f) for f in both(variables, batch["image"], batch["ids"]))


def stage(kind, *, image_locked):
    """State, frozen variables and jitted step of a stage, with plain gradient descent."""
    parts = split_variables(start(kind), image_locked=image_locked)
    config = OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant")
    tx = make_optimizer(config, 10)
    loss_fn = make_loss_fn(ChineseClip(CONFIGS[kind]), None, DENSE, image_locked=image_locked)
    state = TrainState.create(parts.params, tx, jax.random.key(0), parts.extra)
    step = jax.jit(make_train_step(loss_fn, tx, post_update=make_clamp(DENSE)))
    return state, parts.frozen, step


def info_nce(logits, targets=None):
    """The loss of both directions in float64."""
    targets = np.eye(len(logits)) if targets is None else targets

    def one(z, t):
        z = z - z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -(t / t.sum(1, keepdims=True) * log_p).sum(1).mean()

    return (one(logits, targets) + one(logits.T, targets.T)) / 2


def logits_of(kind):
    image, text = features(kind)
    assert min(image.std(axis=0).max(), text.std(axis=0).max()) > 0.01, "all rows are alike"
    return np.exp(2.0) * image.astype(np.float64) @ text.astype(np.float64).T


def same_texts():
    ids = make_batch()["ids"]
    return (ids[:, None] == ids[None]).all(-1)


def test_stage_1_leaves_the_image_tower_as_it_is():
    # A ResNet, the tower that has statistics; that of the other kind is divided in the same way.
    kind = "resnet"
    state, frozen, step = stage(kind, image_locked=True)
    batch = make_batch()
    after, metrics = step(state, frozen, batch, jax.random.key(3))
    after, _ = step(after, frozen, batch, jax.random.key(4))

    variables = flatten(join_variables(after.params, frozen, after.extra))
    before = flatten(start(kind))
    assert variables.keys() == before.keys()
    locked = {p for p in before if p.startswith(("params/visual/", "batch_stats/"))}
    assert len(locked) > 10
    same = {p for p, array in variables.items() if np.array_equal(array, before[p])}
    assert locked == same - {"params/bert/layer_0/attention/key/bias"}  # whose gradient is zero

    # The tower runs on stored statistics: its features are those of evaluation.
    logits = logits_of(kind)
    assert float(metrics["loss"]) == pytest.approx(info_nce(logits), rel=1e-5)
    assert metrics["image_to_text_accuracy"] == np.mean(logits.argmax(1) == np.arange(ROWS))
    assert metrics["text_to_image_accuracy"] == np.mean(logits.argmax(0) == np.arange(ROWS))
    assert float(metrics["scale"]) == pytest.approx(np.exp(2.0), rel=1e-6)

    # Features computed beforehand train as the tower does that made them.
    cached = {"image_features": features(kind)[0], "ids": batch["ids"]}
    other, metrics_cached = step(state, {}, cached, jax.random.key(3))
    once, _ = step(state, frozen, batch, jax.random.key(3))
    assert abs(float(metrics["loss"] - metrics_cached["loss"])) <= 1e-6
    assert metrics_cached.keys() == metrics.keys() and metrics["grad_norm"] > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), once.params, other.params
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_stage_1_keeps_no_optimizer_state_of_the_image_tower(kind):
    parts = split_variables(start(kind), image_locked=True)
    tx = make_optimizer(OptimizerConfig(weight_decay=0.1, ema_decay=0.9), 10)
    moments = jax.eval_shape(tx.init, parts.params)
    paths = [parallel.path_name(path) for path, _ in jax.tree.leaves_with_path(moments)]
    assert any("text_projection" in path for path in paths)
    assert not any("visual" in path or "batch_stats" in path for path in paths)
    shapes = [leaf.shape for leaf in jax.tree.leaves(moments) if leaf.shape]
    trained = [leaf.shape for leaf in jax.tree.leaves(parts.params) if leaf.shape]
    assert sorted(shapes) == sorted(3 * trained) and not parts.extra


def test_stage_2_trains_everything_and_blends_the_batch_statistics_in():
    state, frozen, step = stage("resnet", image_locked=False)
    assert frozen == {}
    batch = make_batch()
    after, _ = step(state, frozen, batch, jax.random.key(3))
    variables = flatten(join_variables(after.params, {}, after.extra))
    before = flatten(start("resnet"))
    assert variables.keys() == before.keys()
    still = {p for p, array in variables.items() if np.array_equal(array, before[p])}
    assert all(p.endswith("/key/bias") for p in still), still

    path = "batch_stats/visual/bn_1/mean"
    kernel = start("resnet")["params"]["visual"]["conv_1"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        batch["image"], kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    decay = RESNET.norm_decay
    wanted = decay * before[path] + (1 - decay) * convolved.mean((0, 1, 2))
    np.testing.assert_allclose(variables[path], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("slope", "end"), [(-1.0, math.log(30.0)), (1.0, 0.0)])
def test_multiplier_is_held_within_its_bounds_after_the_update(slope, end):
    def loss_fn(params, frozen, extra, batch, key):
        return slope * params["logit_scale"], (extra, {"scale": jnp.exp(params["logit_scale"])})

    tx = make_optimizer(
        OptimizerConfig(name="sgd", b1=0.0, learning_rate=100.0, schedule="constant"), 5
    )
    step = make_train_step(loss_fn, tx, post_update=make_clamp(LossConfig(max_scale=30.0)))
    state = TrainState.create({"logit_scale": jnp.float32(2.0)}, tx, jax.random.key(0))
    after, metrics = jax.jit(step)(state, {}, {}, jax.random.key(0))
    assert float(after.params["logit_scale"]) == pytest.approx(end, abs=1e-6)
    assert float(metrics["scale"]) == pytest.approx(math.exp(2.0), rel=1e-6)  # before the update


def test_clamp_passes_parameters_without_a_temperature():
    params = {"visual": {"projection": jnp.full((2, 2), 9.0)}}
    assert make_clamp(LossConfig())(params) is params
    scaled = make_clamp(LossConfig())({**params, "logit_scale": jnp.float32(5.0)})
    assert float(scaled["logit_scale"]) == pytest.approx(4.6052, abs=1e-4)
    assert scaled["visual"] is params["visual"]


SPARED = {
    "vit": ("visual/ln_pre/scale", "visual/ln_post/scale", "visual/layer_0/ln_1/scale",
            "visual/layer_0/ln_2/scale"),
    "resnet": (*(f"visual/bn_{n}/scale" for n in (1, 2, 3)),
               *(f"visual/stage_0_block_0/bn_{n}/scale" for n in (1, 2, 3))),
}  # fmt: skip
DECAYED = {
    "vit": ("visual/class_embedding", "visual/positional_embedding", "visual/patch_embedding",
            "visual/projection", "visual/layer_0/attention/query/kernel"),
    "resnet": ("visual/stage_0_block_0/shortcut_norm/scale",
               "visual/attention_pool/positional_embedding", "visual/conv_1/kernel",
               "visual/attention_pool/attention/out/kernel"),
    "both": ("bert/word_embeddings", "bert/position_embeddings", "bert/type_embeddings",
             "bert/embeddings_norm/scale", "bert/layer_0/attention_norm/scale",
             "bert/layer_0/output_norm/scale", "bert/layer_0/mlp_in/kernel", "text_projection"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_weight_decay_picks_the_parameters_that_the_original_picks(kind):
    params = start(kind)["params"]
    mask = flatten(make_original_decay_mask(CONFIGS[kind])(params))
    assert mask.keys() == flatten(params).keys()
    spared = {path for path, decays in mask.items() if not decays}
    biases = {path for path in mask if path.endswith("/bias")}
    assert spared == {*SPARED[kind], *biases, "logit_scale"}
    assert all(mask[path] is True for path in (*DECAYED[kind], *DECAYED["both"]))


def test_original_rule_decays_a_norm_that_the_standard_one_spares():
    bert = start("vit")["params"]["bert"]
    norm, bias = bert["embeddings_norm"]["scale"], bert["layer_0"]["mlp_in"]["bias"]
    params = {
        "bert": {"embeddings_norm": {"scale": norm}, "layer_0": {"mlp_in": {"bias": bias}}},
        "text_projection": start("vit")["params"]["text_projection"],
    }
    config = OptimizerConfig(
        name="sgd", b1=0.0, learning_rate=0.5, weight_decay=0.1, schedule="constant"
    )
    zeros = jax.tree.map(np.zeros_like, params)
    for mask, norm_share in ((make_original_decay_mask(CONFIGS["vit"]), 0.05), (None, 0.0)):
        tx = make_optimizer(config, 3, mask)
        updates, _ = tx.update(zeros, tx.init(params), params)
        taken = {"norm": norm_share, "bias": 0.0, "projection": 0.05}
        for name, update, old in (
            ("norm", updates["bert"]["embeddings_norm"]["scale"], norm),
            ("bias", updates["bert"]["layer_0"]["mlp_in"]["bias"], bias),
            ("projection", updates["text_projection"], params["text_projection"]),
        ):
            np.testing.assert_allclose(update, -taken[name] * old, rtol=1e-5, err_msg=name)


LOSSES = {
    "dense": DENSE,
    "chunked": LossConfig(kind="chunked", chunk_size=3),
    "local": LossConfig(kind="local"),
    "halves": LossConfig(kind="local"),
    "scaled": LossConfig(tower_grad_scale=0.25),
    "chunked scaled": LossConfig(kind="chunked", tower_grad_scale=0.25),
    # With dropout, which tells equal texts apart.
    "dropout": DENSE,
    "dropout equal": LossConfig(equal_texts_match=True),
    "dropout chunked equal": LossConfig(kind="chunked", chunk_size=5, equal_texts_match=True),
    "equal": LossConfig(equal_texts_match=True),
}


@pytest.fixture(scope="module")
def losses():
    """`(image features) -> name -> (loss, gradients, metrics)` by every loss, compiled once.

    Gradients are those of the text projection and the temperature: the tower below is the same.
    """
    config = CONFIGS["vit"]
    dropping = dataclasses.replace(config, text=dataclasses.replace(TEXT, hidden_dropout=0.3))
    params, ids = start("vit")["params"], make_batch()["ids"]
    two = parallel.make_mesh(devices=jax.devices()[:2])
    top = {name: params[name] for name in ("text_projection", "logit_scale")}

    @jax.jit
    def run(top, bert, image_features, ids):
        found = {}
        for name, config in LOSSES.items():
            mesh = two if name == "halves" else None
            model = ChineseClip(dropping if "dropout" in name else CONFIGS["vit"])
            loss_fn = make_loss_fn(model, None, config, image_locked=True, mesh=mesh)

            def loss_of(top, loss_fn=loss_fn):
                batch = {"image_features": image_features, "ids": ids}
                return loss_fn({"bert": bert, **top}, {}, {}, batch, jax.random.key(0))

            (loss, (_, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(top)
            found[name] = loss, grads, metrics
        return found

    return lambda image_features: jax.device_get(run(top, params["bert"], image_features, ids))


def assert_same(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    for name, grad in wanted[1].items():
        np.testing.assert_allclose(
            found[1][name], grad, rtol=1e-5, atol=1e-5 * np.abs(grad).max(), err_msg=name
        )


def test_all_kinds_of_loss_agree_on_one_device(losses):
    found = losses(features("vit")[0])
    assert found["dense"][0] == pytest.approx(info_nce(logits_of("vit")), rel=1e-5)
    assert_same(found["chunked"], found["dense"])
    assert_same(found["local"], found["dense"])
    both = {"image_to_text_accuracy", "text_to_image_accuracy"}
    assert all(found[name][2].keys() == {*both, "scale"} for name in ("dense", "local", "chunked"))
    for name in found["dense"][2]:
        assert found["chunked"][2][name] == pytest.approx(found["dense"][2][name], rel=1e-6)


def test_local_loss_compares_the_rows_of_a_device_only(losses):
    found, logits, half = losses(features("vit")[0]), logits_of("vit"), ROWS // 2
    halves = [info_nce(logits[:half, :half]), info_nce(logits[half:, half:])]
    assert found["halves"][0] == pytest.approx(np.mean(halves), rel=1e-5)
    assert found["halves"][0] < found["local"][0] - 0.1


def test_equal_texts_are_positives_in_both_forms(losses):
    found, same = losses(features("vit")[0]), same_texts()
    assert same.sum() == ROWS + 2 + 6
    assert_same(found["dropout chunked equal"], found["dropout equal"])
    assert abs(found["dropout equal"][0] - found["dropout"][0]) > 1e-3

    perfect = losses(features("vit")[1])  # images with the features of their texts
    for direction in ("image_to_text", "text_to_image"):
        assert perfect["chunked"][2][f"{direction}_accuracy"] == 13 / ROWS
        assert perfect["equal"][2][f"{direction}_accuracy"] == 1.0
        assert perfect["dense"][2][f"{direction}_accuracy"] == 13 / ROWS


def test_equal_texts_without_dropout_train_the_same_either_way(losses):
    # Their logits are equal: the mean over the positives is that of the own pair.
    found, same = losses(features("vit")[0]), same_texts()
    wanted = info_nce(logits_of("vit"), same.astype(np.float64))
    assert wanted == pytest.approx(info_nce(logits_of("vit")), rel=1e-6)
    assert found["equal"][0] == pytest.approx(wanted, rel=1e-5)
    assert_same(found["equal"], found["dense"])


def test_tower_gradients_can_be_scaled_and_the_temperature_is_not(losses):
    found = losses(features("vit")[0])
    loss, grads, _ = found["dense"]
    quarter = loss, {**grads, "text_projection": grads["text_projection"] / 4}
    assert_same(found["scaled"], quarter)
    assert_same(found["chunked scaled"], quarter)


def test_zero_features_give_a_finite_loss(losses):
    for name, (loss, grads, _) in losses(np.zeros((ROWS, DIM), np.float32)).items():
        rows = ROWS // 2 if name == "halves" else ROWS
        assert loss == pytest.approx(math.log(rows), rel=1e-6), name
        assert all(np.isfinite(g).all() for g in grads.values())


def test_batch_statistics_of_each_device_are_those_of_its_rows():
    mesh, images = parallel.make_mesh(), make_batch()["image"]
    config = with_batch_norm(CONFIGS["resnet"], bn_sync=False, num_devices=8)
    variables, rows = jax.tree.map(jnp.asarray, start("resnet")), ROWS // 8

    def train_tower(config, images):
        @jax.jit
        def run(variables, images):
            return ChineseClip(config).apply(
                variables, images, train=True, method="encode_image", mutable=["batch_stats"]
            )

        return [jax.device_get(run(variables, x)) for x in images]

    sharded = parallel.shard_batch(mesh, {"image": images})["image"]
    ((features, updated),) = train_tower(config, [sharded])
    found = train_tower(CONFIGS["resnet"], np.split(images, ROWS // rows))
    wanted = np.concatenate([f[0] for f in found])
    np.testing.assert_allclose(features, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(f[1] for f in found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), updated, mean)
    synced = with_batch_norm(config, bn_sync=True, num_devices=8)
    assert synced == CONFIGS["resnet"]  # over the global batch, as of one device


def test_a_model_without_batch_norm_has_no_choice_of_statistics():
    group = dataclasses.replace(RESNET, norm="group")
    for config in (CONFIGS["vit"], dataclasses.replace(CONFIGS["resnet"], vision=group)):
        assert with_batch_norm(config, bn_sync=False, num_devices=8) is config


def test_a_pair_alone_is_allowed_and_warned_of(caplog):
    features = PairFeatures(jnp.eye(1, 4), jnp.eye(1, 4, 1))
    params, batch = {"logit_scale": jnp.float32(2.0)}, {"ids": jnp.ones((1, 3), jnp.int32)}
    for config in (DENSE, LossConfig(kind="chunked")):
        caplog.clear()
        with caplog.at_level("WARNING", logger="jaxlab"):
            loss, metrics = make_objective(config)(params, {}, features, (), batch)
        assert float(loss) == 0.0 and float(metrics["image_to_text_accuracy"]) == 1.0
        assert "a pair has nothing to be compared with in a batch of 1" in caplog.text


def test_equal_images_are_positives_where_batches_name_them():
    image = jnp.asarray(features("vit")[0])
    found, params = PairFeatures(image, image), {"logit_scale": jnp.float32(2.0)}
    ids = np.arange(ROWS) + (np.int64(1) << 40)
    ids[3] = ids[2]
    batch = {"ids": jnp.asarray(make_batch()["ids"]), "image_id": jnp.asarray(split_ids(ids))}
    same = np.eye(ROWS)
    same[2, 3] = same[3, 2] = 1
    wanted = info_nce(np.exp(2.0) * np.asarray(image, np.float64) @ np.asarray(image).T, same)
    for kind in ("dense", "chunked"):
        objective = make_objective(LossConfig(kind, chunk_size=5, equal_images_match=True))
        loss, _ = objective(params, {}, found, (), batch)
        assert float(loss) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match=r"needs batches with image_id; this one has \['ids'\]"):
        objective(params, {}, found, (), {"ids": batch["ids"]})


def test_parts_of_a_batch_are_compared_with_all_of_it_or_with_themselves():
    parts = StepParts(
        lambda params, frozen, extra, batch, key: (PairFeatures(batch["f"], batch["g"]), extra),
        lambda *_: (),
        make_objective(DENSE),
    )
    tx = make_optimizer(OptimizerConfig(name="sgd", schedule="constant"), 3)
    state = TrainState.create({"logit_scale": jnp.float32(2.0)}, tx, jax.random.key(0))
    f, g = (jnp.asarray(x) for x in features("vit"))
    batch = {"f": f, "g": g, "ids": jnp.asarray(make_batch()["ids"])}
    found = {}
    for negatives in ("batch", "microbatch"):
        step = make_pair_step(parts, tx, DENSE, num_microbatches=2, negatives=negatives)
        found[negatives] = float(jax.jit(step)(state, {}, batch, jax.random.key(0))[1]["loss"])
    logits = logits_of("vit")
    assert found["batch"] == pytest.approx(info_nce(logits), rel=1e-5)
    halves = [info_nce(logits[i::2, i::2]) for i in (0, 1)]
    assert found["microbatch"] == pytest.approx(np.mean(halves), rel=1e-5)


def test_prepare_gets_a_key_and_comes_before_the_tower():
    model, batch = ChineseClip(CONFIGS["vit"]), make_batch()
    parts = split_variables(start("vit"), image_locked=False)

    def prepare(key, images):
        return images * jax.random.bernoulli(key, 0.5, (1, 1, 1, 3))

    loss_fn = jax.jit(make_loss_fn(model, prepare, DENSE, image_locked=False))
    found = [
        float(loss_fn(parts.params, {}, {}, batch, jax.random.key(seed))[0]) for seed in (0, 1, 0)
    ]
    assert found[0] == found[2] != found[1]


texts_of_ids = hnp.arrays(np.int32, (6, 9), elements=st.integers(0, 21127))


@hypothesis.given(texts_of_ids, st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_fingerprints_are_equal_where_texts_are(ids, data):
    copied = data.draw(st.lists(st.integers(0, 5), min_size=6, max_size=6))
    ids = ids[np.asarray(copied)]
    prints = np.asarray(text_fingerprints(jnp.asarray(ids)))
    assert prints.shape == (6, 2) and prints.dtype == np.uint32
    same = (ids[:, None] == ids[None]).all(-1)
    np.testing.assert_array_equal((prints[:, None] == prints[None]).all(-1), same)


def test_fingerprints_tell_apart_order_place_and_neighbouring_words():
    # All texts of two words out of 60, in both orders, and shifted by one place: no two alike.
    first, second = np.meshgrid(np.arange(60), np.arange(60), indexing="ij")
    ids = np.zeros((2, 3600, 5), np.int32)
    ids[0, :, 1], ids[0, :, 2] = first.ravel() + 1, second.ravel() + 1
    ids[1, :, 2], ids[1, :, 3] = first.ravel() + 1, second.ravel() + 1
    prints = np.asarray(text_fingerprints(jnp.asarray(ids.reshape(-1, 5))))
    for column in prints.T:
        assert len(np.unique(column)) == 7200


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("image_locked", [True, False])
def test_variables_survive_the_division_into_parts(kind, image_locked):
    parts = split_variables(start(kind), image_locked=image_locked)
    joined = join_variables(parts.params, parts.frozen, parts.extra)
    assert flatten(joined).keys() == flatten(start(kind)).keys()
    jax.tree.map(np.testing.assert_array_equal, joined, start(kind))
    assert ("visual" in parts.params) == (not image_locked)
    assert bool(parts.frozen) == image_locked
    assert bool(parts.extra) == (kind == "resnet" and not image_locked)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sparse"}, r"LossConfig\.kind='sparse' is not one of .*'chunked'"),
        ({"transport": "mail"}, r"LossConfig\.transport='mail' is not one of .*'ring'"),
        ({"chunk_size": 0}, "chunk_size=0 and .* must be at least 1"),
        ({"max_scale": 0.5}, r"max_scale=0\.5 must be at least 1"),
        ({"kind": "local", "equal_texts_match": True}, "not offered with kind='local'"),
        ({"kind": "local", "equal_images_match": True}, "not offered with kind='local'"),
        ({"kind": "sigmoid", "label_smoothing": 0.1}, "label_smoothing is not offered with"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1\.0 is a share; use one in \[0, 1\)"),
    ],
)
def test_losses_that_do_not_exist_are_refused(fields, message):
    # Past the type checker of the tests, as a user without one would.
    config = object.__new__(LossConfig)
    for field in dataclasses.fields(LossConfig):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    with pytest.raises(ValueError, match=message):
        config.__post_init__()
