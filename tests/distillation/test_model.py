import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.distillation.model import (
    FAMILIES,
    TextModel,
    TextModelConfig,
    init_params,
    mean_of_tokens,
    param_shapes,
)
from jaxlab.distillation.sizes import SIZES, flops, num_params
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.mobilebert import MobileBertConfig

ENCODER = BertConfig(20, 1, 8, 2, 16, 12)
MOBILE = MobileBertConfig(20, 1, 8, 4, 2, 6, 2, 6, max_positions=12, hidden_dropout=0.1)
LABELS = {"none": 0, "classification": 3, "regression": 1, "tagging": 4, "span": 2, "mlm": 0}
IDS = jnp.array([[1, 2, 3, 4], [5, 6, 0, 0]])
TABLE = {
    "bert_large": (24, 1024, 4096, 16, 335_141_888, 302_309_376, None),
    "bert_base": (12, 768, 3072, 12, 109_482_240, 85_054_464, 22.35),
    "bert_6": (6, 768, 3072, 12, 66_955_008, 42_527_232, 11.17),
    "bert_4": (4, 768, 3072, 12, 52_779_264, 28_351_488, 7.45),
    "bert_3": (3, 768, 3072, 12, 45_691_392, 21_263_616, None),
    "minilm_l12": (12, 384, 1536, 12, 33_360_000, 21_293_568, 5.74),
    "minilm_l6": (6, 384, 1536, 12, 22_713_216, 10_646_784, 2.87),
    "minilm_l3": (3, 384, 1536, 12, 17_389_824, 5_323_392, 1.43),
    "bert_12_nano": (12, 256, 1024, 4, 17_488_640, 9_477_120, 2.62),
    "tinybert4": (4, 312, 1200, 12, 14_350_248, 4_568_736, 1.25),
    "bert_medium": (8, 512, 2048, 8, 41_373_184, 25_219_072, None),
    "bert_small": (4, 512, 2048, 8, 28_763_648, 12_609_536, 3.36),
    "bert_mini": (4, 256, 1024, 4, 11_170_560, 3_159_040, None),
    "bert_tiny": (2, 128, 512, 2, 4_385_920, 396_544, None),
    # The checkpoint's 109,486,978 numbers include 514 integers, the position ids.
    "mpnet_base": (12, 768, 3072, 12, 109_486_978 - 514, 85_054_464, 22.35),
    # As counted in AutoModel.from_config of transformers 5.24.
    "roberta_base": (12, 768, 3072, 12, 124_645_632, 85_054_464, 22.35),
    "distilbert_base": (6, 768, 3072, 12, 66_362_880, 42_527_232, 11.17),
    "electra_small": (12, 256, 1024, 4, 13_483_008, 9_477_120, 2.62),
    # Published: 25.3 M and 5.7 GFLOPs, 15.1 M and 3.1 GFLOPs, 293 M (arXiv:2004.02984).
    "mobilebert": (24, 512, 512, 4, 24_581_888, 20_213_760, 5.34),
    "mobilebert_tiny": (24, 512, 512, 4, 15_485_696, 11_117_568, 3.02),
    "ib_bert_large": (24, 512, 4096, 4, 294_467_840, 289_837_056, None),
}


def test_every_size_has_its_row():
    assert set(TABLE) == set(SIZES)


@pytest.mark.parametrize("name", TABLE)
def test_sizes_have_their_numbers_of_parameters_and_flops(name):
    *sizes, total, layers, gflops = TABLE[name]
    config = SIZES[name]
    encoder = config.encoder
    assert [encoder.num_layers, encoder.width, encoder.mlp_width, encoder.num_heads] == sizes
    assert (num_params(config), num_params(config, "layers")) == (total, layers)
    if gflops is not None:
        # The printed numbers have two digits; 7.4489 is printed as 7.45.
        assert flops(config, 128) / 1e9 == pytest.approx(gflops, abs=0.0051)


def make(family="bert", task="classification", encoder=None, **options):
    encoder = encoder or (MOBILE if family == "mobilebert" else ENCODER)
    return TextModelConfig(encoder, family, task, LABELS[task], **options)


@functools.cache
def drawn(config):
    """Parameters drawn by NumPy, none at exactly 0 or 1."""
    rng = np.random.default_rng(0)
    return unflatten(
        {
            path: jnp.asarray(rng.normal(size=shape, scale=0.3), jnp.float32)
            for path, shape in param_shapes(config).items()
        }
    )


@functools.cache
def applied(config, **options):
    run = functools.partial(TextModel(config).apply, taps=("hidden",))
    return jax.jit(run)({"params": drawn(config)}, IDS)


def test_written_down_shapes_are_those_of_the_parameters():
    config = make("electra", "mlm", dataclasses.replace(ENCODER, num_layers=3, embedding_width=4))
    traced = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    assert {p: leaf.shape for p, leaf in flatten(traced).items()} == dict(param_shapes(config))


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def slow_logits(config, params, first):
    """Every family's classifier, written out."""
    pooled = np.tanh(dense(params["pooler"], first)) if "pooler" in params else first
    head = params["head"]
    match config.family:
        case "bert" | "mobilebert":
            x = pooled
        case "tinybert":
            x = np.maximum(pooled, 0)
        case "roberta" | "mpnet":
            x = np.tanh(dense(head["dense"], first))
        case "distilbert":
            x = np.maximum(dense(head["dense"], first), 0)
        case "electra":
            y = dense(head["dense"], first)
            x = y * (1 + erf(y / np.sqrt(2))) / 2
    return dense(head["out"], x)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_classifier_of_a_family_is_its_own(family):
    config = make(family)
    features = applied(config)
    first = np.asarray(features.hidden[-1], np.float64)[:, 0]
    wanted = slow_logits(config, drawn(config), first)
    np.testing.assert_allclose(features.logits, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_mean_pooling_takes_the_real_tokens_and_one_dense_layer(family):
    config = make(family, pooling="mean")
    assert set(drawn(config)) == {"encoder", "head"}
    assert set(drawn(config)["head"]) == {"out"}
    features = applied(config)
    hidden = np.asarray(features.hidden[-1], np.float64)
    mean = np.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    np.testing.assert_allclose(features.pooled, mean, rtol=1e-5, atol=1e-6)
    wanted = dense(drawn(config)["head"]["out"], mean)
    np.testing.assert_allclose(features.logits, wanted, rtol=1e-5, atol=1e-6)


def test_the_mean_of_no_tokens_is_zero():
    hidden = jnp.ones((1, 3, 2), jnp.bfloat16)
    got = mean_of_tokens(hidden, jnp.zeros((1, 3), bool))
    np.testing.assert_array_equal(got, np.zeros((1, 2), np.float32))
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_have_the_shape_of_the_task(family, task):
    config = make(family, task)
    params = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    features = jax.eval_shape(TextModel(config, dtype=jnp.bfloat16).apply, {"params": params}, IDS)
    shape = {
        "none": None, "classification": (2, 3), "regression": (2, 1), "tagging": (2, 4, 4),
        "span": (2, 4, 2), "mlm": (2, 4, 20),
    }[task]  # fmt: skip
    assert (features.logits is None) == (shape is None)
    if features.logits is not None:
        assert (features.logits.shape, features.logits.dtype) == (shape, jnp.float32)
    assert (features.pooled is not None) == config.is_sentence_level
    assert ("pooler" in params) == config.has_pooler
    assert features.hidden == features.scores == features.queries == ()


@pytest.mark.parametrize("family", ["bert", "mobilebert"])
def test_the_language_model_is_tied_to_the_embeddings(family):
    config = make(family, "mlm")
    params, features = drawn(config), applied(config)
    head = params["lm_head"]
    y = dense(head["dense"], np.asarray(features.hidden[-1], np.float64))
    y = y * (1 + erf(y / np.sqrt(2))) / 2 if family == "bert" else np.maximum(y, 0)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-12)
    y = y * np.asarray(head["norm"]["scale"]) + np.asarray(head["norm"]["bias"])
    kernel = np.asarray(params["encoder"]["word_embeddings"]).T
    if family == "mobilebert":
        kernel = np.concatenate([kernel, head["features"]])
    wanted = y @ kernel + np.asarray(head["bias"])
    np.testing.assert_allclose(features.logits, wanted, rtol=1e-4, atol=1e-5)

    def loss(params):
        return jnp.square(TextModel(config).apply({"params": params}, IDS).logits).mean()

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]["word_embeddings"]
    assert np.abs(gradient[19]).max() > 0  # a word that is in no text


def test_dropout_of_the_head_is_that_of_the_family():
    rates = {family: make(family).dropout_of_head for family in FAMILIES}
    assert rates == dict.fromkeys(FAMILIES, 0.1) | {"distilbert": 0.2}
    assert make("distilbert", "tagging").dropout_of_head == 0.1
    assert make("distilbert", head_dropout=0.3).dropout_of_head == 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_drops_while_training(family):
    encoder = make(family).encoder
    still = dataclasses.replace(encoder, hidden_dropout=0.0, attention_dropout=0.0)
    config = make(family, encoder=still, head_dropout=0.5)
    run = jax.jit(functools.partial(TextModel(config).apply, train=True))
    params = {"params": drawn(config)}
    first, second = (run(params, IDS, rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
    same = np.array_equal(first.logits, second.logits)
    assert same == (family == "tinybert")  # whose code drops nothing there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "gpt"}, "family='gpt' is unknown; use one of bert"),
        ({"task": "ner", "pooling": "max"}, "task='ner' is unknown.*pooling='max' is unknown"),
        ({"num_labels": 1}, "num_labels=1; task='classification' takes at least 2"),
        ({"task": "none"}, "num_labels=3; task='none' takes 0"),
        ({"head_dropout": 1.0}, "head_dropout=1.0 is a rate"),
        ({"with_pooler": False}, "needs its pooler: set with_pooler=True, or pooling='mean'"),
        (
            {"family": "mobilebert"},
            "family='mobilebert' with a BertConfig; mobilebert has a Mobile",
        ),
        ({"encoder": MOBILE}, "family='bert' with a MobileBertConfig"),
        (
            {
                "encoder": dataclasses.replace(MOBILE, embedding_width=9),
                "family": "mobilebert",
                "task": "mlm",
                "num_labels": 0,
            },
            "embedding_width=9 of a MobileBERT that puts out words is more than its width=8",
        ),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(), **options)
