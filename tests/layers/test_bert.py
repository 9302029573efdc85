import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.bert import (
    BertConfig,
    BertEncoder,
    padding_bias,
    positions_after_pad,
    relative_buckets,
)
from jaxlab.layers.stacking import Taps

CONFIG = BertConfig(
    vocab_size=20,
    num_layers=2,
    width=8,
    num_heads=2,
    mlp_width=16,
    max_positions=10,
    init_std=0.3,
    embedding_init_std=0.3,
)
IDS = jnp.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 0]])
VARIABLES = jax.jit(BertEncoder(CONFIG).init)(jax.random.key(0), IDS)


def encode(ids=IDS, config=CONFIG, **options):
    apply = jax.jit(BertEncoder(config).apply, static_argnames="train")
    return apply(VARIABLES, ids, **options)[0]


def test_padding_does_not_change_a_text():
    np.testing.assert_allclose(encode(IDS[:1, :3]), encode(IDS[:1])[:, :3], atol=1e-5)


def test_a_given_mask_replaces_the_derived_one():
    derived, everything = encode(mask=IDS != 0), encode(mask=jnp.ones(IDS.shape, bool))
    np.testing.assert_allclose(derived, encode(), atol=1e-6)
    assert np.abs(everything[0] - derived[0]).max() > 1e-2
    np.testing.assert_allclose(everything[1], derived[1], atol=1e-6)


def test_a_text_of_padding_is_finite_with_its_gradient():
    @jax.jit
    @jax.value_and_grad
    def step(variables):
        return BertEncoder(CONFIG).apply(variables, IDS[2:])[0].sum()

    value, gradient = step(VARIABLES)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("left", ["hidden_dropout", "attention_dropout"])
def test_dropout_is_drawn_from_its_stream_and_only_while_training(left):
    """Each of the two rates acts on its own."""
    other = {"hidden_dropout": "attention_dropout"}.get(left, "hidden_dropout")
    model = BertEncoder(dataclasses.replace(CONFIG, num_layers=1, **{other: 0.0}))

    @jax.jit
    def train(seed):
        return model.apply(VARIABLES, IDS, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    first, again, another = train(1), train(1), train(2)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - another).max() > 1e-3
    idle = encode(rngs={"dropout": jax.random.key(1)})
    np.testing.assert_allclose(idle, encode(), atol=1e-6)


def test_bfloat16_stays_close_to_float32():
    got, _ = jax.jit(BertEncoder(CONFIG, dtype=jnp.bfloat16).apply)(VARIABLES, IDS)
    assert got.dtype == jnp.bfloat16
    a, b = np.asarray(got, np.float64).ravel(), np.asarray(encode()).ravel()
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.999


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match=r"11 tokens .*max_positions=10"):
        encode(jnp.ones((1, 11), jnp.int32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 0, "num_layers=0 must be at least 1"),
        ("hidden_dropout", 1.0, r"hidden_dropout=1.0 .*\[0, 1\)"),
        ("num_heads", 3, "width=8 is not divisible by num_heads=3"),
        ("activation", "gelu2", "'gelu2' is unknown"),
        ("num_types", -1, "num_types=-1 must be at least 0"),
        ("embedding_width", 0, "embedding_dim=0 must be at least 1"),
        ("positions", "relative", "positions='relative' is unknown; use one of"),
        ("relative_buckets", 30, "relative_buckets=30 .* a multiple of 4"),
        ("relative_max_distance", 8, "relative_max_distance=8: .* above a quarter"),
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **({"relative_buckets": 32} | {field: value}))


MPNET = dataclasses.replace(
    CONFIG, num_types=0, pad_id=1, positions="after_pad", max_positions=12, relative_buckets=8,
    relative_max_distance=6,
)  # fmt: skip
ELECTRA = dataclasses.replace(CONFIG, embedding_width=4)
TOKENS = jnp.array([[2, 3, 4, 5, 6, 7], [8, 9, 10, 1, 1, 1]])


@functools.cache
def started(config):
    return jax.jit(BertEncoder(config).init)(jax.random.key(1), TOKENS)


def paths(config):
    return set(started(config)["params"])


def test_parameters_are_those_that_the_config_has():
    plain = set(VARIABLES["params"])
    assert paths(MPNET) == plain - {"type_embeddings"} | {"relative_bias"}
    assert paths(ELECTRA) == plain | {"embeddings_project"}
    params = started(ELECTRA)["params"]
    assert params["word_embeddings"].shape == (20, 4)
    assert params["embeddings_norm"]["scale"].shape == (4,)
    assert params["embeddings_project"]["kernel"].shape == (4, 8)
    assert started(MPNET)["params"]["relative_bias"].shape == (8, 2)


@pytest.mark.parametrize("config", [MPNET, ELECTRA], ids=["mpnet", "electra"])
def test_padding_does_not_change_a_text_of_a_relative(config):
    apply = jax.jit(BertEncoder(config).apply)
    mask = jnp.array([[True] * 6, [True] * 3 + [False] * 3])
    whole = apply(started(config), TOKENS, mask=mask)[0]
    alone = apply(started(config), TOKENS[1:, :3], mask=mask[1:, :3])[0]
    np.testing.assert_allclose(alone, whole[1:, :3], atol=1e-5)


def test_types_add_their_rows():
    types = jnp.array([[0, 0, 1, 1, 1, 0]])
    taps = jax.jit(functools.partial(BertEncoder(CONFIG).apply, taps=("hidden",)))
    params = VARIABLES["params"]
    rows = np.asarray(params["type_embeddings"])[np.asarray(types)]
    words = np.asarray(params["word_embeddings"])[np.asarray(IDS[1:2])]
    total = words + np.asarray(params["position_embeddings"])[None, :6] + rows
    norm = params["embeddings_norm"]
    wanted = (total - total.mean(-1, keepdims=True)) / total.std(-1, keepdims=True)
    wanted = wanted * np.asarray(norm["scale"])[None, None] + np.asarray(norm["bias"])[None, None]
    got = taps(VARIABLES, IDS[1:2], types=types)[1].hidden[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    absent = taps(VARIABLES, IDS[1:2])[1].hidden[0]
    np.testing.assert_array_equal(
        absent, taps(VARIABLES, IDS[1:2], types=jnp.zeros_like(types))[1].hidden[0]
    )


def test_positions_after_pad_count_real_tokens():
    mask = jnp.array([[True, False, True], [False, False, False]])
    assert positions_after_pad(mask, 1).tolist() == [[2, 1, 3], [1, 1, 1]]
    with pytest.raises(ValueError, match=r"11 tokens do not fit max_positions=12"):
        BertEncoder(MPNET).apply(started(MPNET), jnp.ones((1, 11), jnp.int32))


def slow_bucket(distance, num_buckets=32, max_distance=128):
    """One distance at a time, by exact powers instead of logarithms."""
    half, exact, far = num_buckets // 2, num_buckets // 4, abs(distance)
    bucket = far
    if far >= exact:
        # (far / exact) ** exact >= (max / exact) ** step, in integers.
        bucket = exact
        while (
            bucket < half - 1
            and far**exact * exact ** (bucket + 1 - exact)
            >= max_distance ** (bucket + 1 - exact) * exact**exact
        ):
            bucket += 1
    return bucket + (half if distance > 0 else 0)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_buckets_of_distances_are_those_of_exact_arithmetic(num_buckets, max_distance):
    distances = np.arange(-511, 512)[None]
    wanted = [slow_bucket(int(d), num_buckets, max_distance) for d in distances[0]]
    np.testing.assert_array_equal(relative_buckets(distances, num_buckets, max_distance)[0], wanted)


def test_the_relative_bias_is_added_to_the_scaled_scores():
    taps = ("scores", "queries", "keys")
    _, got = jax.jit(functools.partial(BertEncoder(MPNET).apply, taps=taps))(started(MPNET), TOKENS)
    table = np.asarray(started(MPNET)["params"]["relative_bias"])
    mask = np.asarray(padding_bias(TOKENS != 1))
    for scores, q, k in zip(got.scores, got.queries, got.keys, strict=True):
        split = [np.asarray(x, np.float64).reshape(2, 6, 2, 4) for x in (q, k)]
        wanted = np.einsum("bqhd,bkhd->bhqk", *split) / 2.0
        for i in range(6):
            for j in range(6):
                wanted[:, :, i, j] += table[slow_bucket(j - i, 8, 6)][None]
        np.testing.assert_allclose(scores, wanted + mask, rtol=1e-5, atol=1e-5)


@functools.cache
def run_with_every_tap(**mode):
    """Loss of all taps, the taps and the gradients of a config with all that the relatives add."""
    config = dataclasses.replace(MPNET, embedding_width=4, num_types=2)

    def loss(variables):
        hidden, taps = BertEncoder(config, **mode).apply(variables, TOKENS, taps=Taps._fields)
        parts = jax.tree.map(lambda x: jnp.sin(x).mean(), (hidden, taps))
        return sum(jax.tree.leaves(parts)), taps

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(started(config))


@pytest.mark.parametrize(
    "mode", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True}], ids="-".join
)
def test_taps_and_their_gradients_are_the_same_in_every_mode(mode):
    result, wanted = run_with_every_tap(**mode), run_with_every_tap()
    assert {field: len(getattr(result[0][1], field)) for field in Taps._fields} == {
        "hidden": 3, "scores": 2, "probabilities": 2, "queries": 2, "keys": 2, "values": 2,
    }  # fmt: skip
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tap", Taps._fields)
def test_only_the_taps_that_are_asked_for_come_back(tap, scan):
    run = functools.partial(BertEncoder(CONFIG, scan=scan).apply, taps={tap}, num_outputs=1)
    hidden, taps = jax.eval_shape(run, VARIABLES, IDS)
    assert hidden.shape == (3, 1, 8)
    assert {field for field in taps._fields if getattr(taps, field)} == {tap}
    wanted = (3, 2, 6, 6) if tap in ("scores", "probabilities") else (3, 6, 8)
    assert {x.shape for x in getattr(taps, tap)} == {wanted}


def test_an_unknown_tap_is_refused():
    with pytest.raises(ValueError, match=r"logits cannot be tapped; use some of hidden, scores"):
        BertEncoder(CONFIG).apply(VARIABLES, IDS, taps={"hidden", "logits"})
