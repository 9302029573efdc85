import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.bert import BertConfig, BertEncoder

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
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **{field: value})
