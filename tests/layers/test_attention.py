import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.attention import MultiHeadAttention, attention

BATCH, QUERIES, KEYS, HEADS, DIM = 2, 3, 5, 2, 4
RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.normal(size=(BATCH, QUERIES, HEADS, DIM)), jnp.float32)
K, V = jnp.asarray(RNG.normal(size=(2, BATCH, KEYS, HEADS, DIM)), jnp.float32)
BIAS = jnp.asarray(RNG.normal(size=(BATCH, 1, 1, KEYS)), jnp.float32)
MASK = jnp.array([[True, True, False, True, False], [False, True, True, True, True]])[:, None, None]
ALL_PADDING = jnp.full((BATCH, 1, 1, KEYS), -10000.0)


def reference(q, k, v, bias):
    """Attention in float64, one query of one head at a time."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    bias = np.broadcast_to(bias, (BATCH, HEADS, q.shape[1], k.shape[1]))
    out = np.zeros_like(q)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(q.shape[1]):
                scores = k[b, :, h] @ q[b, i, h] / np.sqrt(DIM) + bias[b, h, i]
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights @ v[b, :, h] / weights.sum()
    return out


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_attention_equals_float64(implementation):
    bias = BIAS + np.where(MASK, 0.0, -np.inf)
    got = attention(Q, K, V, bias=BIAS, mask=MASK, implementation=implementation)
    np.testing.assert_allclose(got, reference(Q, K, V, bias), rtol=2e-5, atol=2e-6)


def test_returned_scores_and_probabilities_belong_to_the_output():
    result = attention(Q, K, V, bias=BIAS, mask=MASK, return_scores=True)
    np.testing.assert_allclose(jax.nn.softmax(result.scores), result.probabilities, atol=1e-6)
    np.testing.assert_allclose(
        jnp.einsum("bhqk,bkhd->bqhd", result.probabilities, V), result.output, atol=1e-6
    )
    assert float(jnp.where(MASK, 0.0, result.probabilities).max()) == 0.0


def test_additive_padding_on_all_keys_leaves_the_softmax_as_unmasked():
    got = attention(Q, K, V, bias=ALL_PADDING)
    # Adding -10000 rounds scores to 2^-10.
    np.testing.assert_allclose(got, attention(Q, K, V), atol=3e-3)


def test_a_query_without_any_key_is_finite_and_attends_equally():
    nothing = jnp.zeros((BATCH, 1, 1, KEYS), bool)
    value, gradient = jax.value_and_grad(lambda q: attention(q, K, V, mask=nothing).sum())(Q)
    np.testing.assert_allclose(value, QUERIES * V.mean(axis=1).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_dropout_keeps_the_expectation_and_needs_a_key():
    keys = jax.random.split(jax.random.key(1), 1000)

    @jax.jit
    @jax.vmap
    def draw(key):
        return attention(Q, K, V, dropout_rate=0.4, dropout_key=key)

    drawn = draw(keys)
    error = np.abs(drawn.mean(axis=0) - attention(Q, K, V))
    standard_error = drawn.std(axis=0) / np.sqrt(len(keys))
    assert (error < 5 * standard_error).all()
    assert (standard_error > 0).all()
    with pytest.raises(ValueError, match=r"dropout_rate=0.4 needs a dropout_key"):
        attention(Q, K, V, dropout_rate=0.4)


def test_a_positive_rate_drops_under_every_implementation():
    def drop(implementation):
        key = jax.random.key(2)
        return attention(Q, K, V, dropout_rate=0.4, dropout_key=key, implementation=implementation)

    np.testing.assert_array_equal(drop("xla"), drop("einsum"))
    assert np.abs(drop("xla") - attention(Q, K, V)).max() > 1e-2


def test_scores_stay_float32_in_bfloat16():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V))
    result = attention(q, k, v, return_scores=True)
    assert result.output.dtype == jnp.bfloat16
    assert result.scores.dtype == result.probabilities.dtype == jnp.float32
    np.testing.assert_allclose(
        result.output.astype(jnp.float32), reference(Q, K, V, BIAS * 0), atol=0.05
    )


def test_module_attends_from_inputs_to_context():
    inputs, context = RNG.normal(size=(BATCH, QUERIES, 8)), RNG.normal(size=(BATCH, KEYS, 6))
    inputs, context = jnp.asarray(inputs, jnp.float32), jnp.asarray(context, jnp.float32)
    module = MultiHeadAttention(HEADS, out_features=3)
    variables = module.init(jax.random.key(0), inputs, context)
    got, extras = module.apply(variables, inputs, context, return_scores=True)
    split = {
        name: (x @ variables["params"][name]["kernel"]).reshape(*x.shape[:2], HEADS, DIM)
        for name, x in (("query", inputs), ("key", context), ("value", context))
    }
    attended = attention(*split.values()).reshape(BATCH, QUERIES, 8)
    np.testing.assert_allclose(got, attended @ variables["params"]["out"]["kernel"], atol=1e-5)
    assert extras.scores.shape == (BATCH, HEADS, QUERIES, KEYS)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"width=770 .*num_heads=12.*768 and 780"):
        MultiHeadAttention(12).init(jax.random.key(0), jnp.zeros((1, 2, 770)))
