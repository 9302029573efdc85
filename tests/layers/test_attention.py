from types import SimpleNamespace

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


def _attend_as_cudnn(query, key, value, bias=None, *, key_value_seq_lengths, implementation):
    """What cuDNN takes, computed by XLA."""
    assert implementation == "cudnn"
    shape = (query.shape[1], key.shape[1])
    assert not any(length % 2 for length in shape)
    assert bias is None or (bias.shape[2:], bias.dtype) == (shape, query.dtype)
    return DOT_PRODUCT_ATTENTION(
        query, key, value, bias, key_value_seq_lengths=key_value_seq_lengths
    )


DOT_PRODUCT_ATTENTION = jax.nn.dot_product_attention


@pytest.mark.parametrize("mask", [None, MASK], ids=["free", "masked"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["plain", "biased"])
@pytest.mark.parametrize("lengths", [(3, 5), (2, 5), (3, 4), (2, 4)], ids=str)
def test_cudnn_gets_even_lengths_and_full_biases(monkeypatch, lengths, bias, mask):
    monkeypatch.setattr(jax.nn, "dot_product_attention", _attend_as_cudnn)
    queries, keys = lengths
    half = [x.astype(jnp.bfloat16) for x in (Q[:, :queries], K[:, :keys], V[:, :keys])]
    bias, mask = (None if x is None else x[..., :keys] for x in (bias, mask))
    got = attention(*half, bias=bias, mask=mask, implementation="cudnn")
    want = attention(*half, bias=bias, mask=mask)
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=0.02)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "used"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.bfloat16, True),
        ("NVIDIA B200", "10.0", jnp.float16, True),
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.float32, False),
        ("Tesla V100-SXM2-16GB (NVIDIA)", "7.0", jnp.float16, False),
        ("AMD Instinct MI300X", "gfx942", jnp.bfloat16, False),
    ],
)
def test_auto_is_cudnn_on_gpus_that_have_it(monkeypatch, kind, capability, dtype, used):
    device = SimpleNamespace(device_kind=kind, compute_capability=capability)
    called = []

    def attend(query, *_, key_value_seq_lengths, implementation):
        called.append(implementation)
        return query

    query = jnp.ones((1, 2, 1, 64), dtype)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    attention(query, query, query, implementation="auto")
    assert called == ["cudnn"] * used


def test_auto_is_einsum_on_this_cpu():
    half = Q.astype(jnp.bfloat16)
    got, want = (attention(half, half, half, implementation=i) for i in ("auto", "einsum"))
    np.testing.assert_array_equal(got, want)


def test_cudnn_is_refused_in_float32():
    with pytest.raises(ValueError, match="in float32; it exists in bfloat16 and float16"):
        attention(Q, K, V, implementation="cudnn")
