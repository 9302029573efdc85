"""Published encoders beside the numbers that their own programs give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import published
from jaxlab.distillation.model import TextModel, mean_of_tokens
from jaxlab.distillation.weights import load_pretrained
from jaxlab.text import WordPieceTokenizer

TEXTS = (
    "A man is eating food.",
    "A man is eating a meal.",
    "The quick brown fox jumps over the lazy dog!",
)
LENGTH = 12
ALL_TAPS = ("hidden", "probabilities")


@functools.cache
def folder(name):
    """The folder of a published model; its test is skipped where it cannot be had."""
    try:
        return getattr(published, name)()
    except (FileNotFoundError, RuntimeError) as error:
        pytest.skip(f"{name} is neither installed, cached nor reachable: {error}")


def bert_ids():
    """Ids of the uncased vocabulary, 0 behind them."""
    tokenizer = WordPieceTokenizer(folder("minilm_l6") / "vocab.txt")
    return tokenizer.tokenize(TEXTS, LENGTH)


def embed(name, ids, mask):
    """Features of a published model, and the means of its tokens."""
    found = load_pretrained(folder(name))
    assert not found.loaded.problems
    assert found.loaded.fresh == ()
    run = jax.jit(functools.partial(TextModel(found.config, scan=True).apply, taps=ALL_TAPS))
    with jax.default_matmul_precision("highest"):
        features = run({"params": found.params}, jnp.asarray(ids), mask=jnp.asarray(mask))
    return features, np.asarray(mean_of_tokens(features.hidden[-1], jnp.asarray(mask)))


def cosines(means):
    normal = means / np.linalg.norm(means, axis=1, keepdims=True)
    return normal @ normal[0]


def assert_starts(array, wanted):
    """The first numbers, printed with six digits behind the point."""
    np.testing.assert_allclose(np.asarray(array)[:4], wanted, rtol=1e-5, atol=1.5e-6)


def test_minilm_l6_gives_its_numbers():
    ids = bert_ids()
    assert ids[0].tolist() == [101, 1037, 2158, 2003, 5983, 2833, 1012, 102, 0, 0, 0, 0]
    features, means = embed("minilm_l6", ids, ids != 0)
    assert_starts(features.hidden[0][0, 0], [-0.176567, -0.048236, 0.037698, -0.015718])
    assert_starts(features.hidden[6][0, 0], [-0.002550, 0.117697, 0.003738, 0.244708])
    assert_starts(features.pooled[0], [-0.043642, -0.037496, 0.055443, 0.019727])
    assert_starts(features.probabilities[0][0, 0, 0], [0.309865, 0.063303, 0.036576, 0.053946])
    assert_starts(features.probabilities[5][0, 0, 0], [0.487634, 0.096983, 0.151930, 0.070018])
    embedding = means[0] / np.linalg.norm(means[0])
    assert_starts(embedding, [0.033242, 0.004406, -0.006277, 0.048379])
    np.testing.assert_allclose(cosines(means)[1:], [0.926187, -0.016911], atol=1.5e-6)


def test_minilm_l3_gives_its_numbers():
    folder("minilm_l6")
    ids = bert_ids()
    _, means = embed("minilm_l3", ids, ids != 0)
    assert_starts(means[0], [-0.069725, 0.002336, -0.286847, 0.115123])
    np.testing.assert_allclose(cosines(means)[1:], [0.905126, -0.038447], atol=1.5e-6)
    assert (folder("minilm_l3") / "vocab.txt").is_file()


@pytest.mark.tiny
def test_mpnet_base_gives_its_numbers():
    """400 MB to fetch and a base-size model to run. Its ids of shared pieces are BERT's plus 4."""
    ids, found = bert_ids(), folder("mpnet_base")
    mask = ids != 0
    ids = np.where(mask, ids + 4, 1)
    ids = np.where(ids == 105, 0, np.where(ids == 106, 2, ids)).astype(np.int32)
    assert ids[0, :8].tolist() == [0, 1041, 2162, 2007, 5987, 2837, 1016, 2]
    entries = (found / "vocab.txt").read_text("utf-8").split("\n")
    assert [entries[i] for i in ids[0, :4]] == ["<s>", "a", "man", "is"]
    features, means = embed("mpnet_base", ids, mask)
    assert_starts(features.hidden[0][0, 0], [0.025114, 0.071971, -0.020045, 0.040383])
    assert_starts(features.hidden[12][0, 0], [0.101347, -0.093793, -0.013864, 0.112953])
    assert_starts(features.probabilities[0][0, 0, 0], [0.631433, 0.102603, 0.014077, 0.023219])
    embedding = means[0] / np.linalg.norm(means[0])
    assert_starts(embedding, [0.035501, -0.008432, 0.022024, 0.016263])
    np.testing.assert_allclose(cosines(means)[1:], [0.953329, -0.019670], atol=1.5e-6)


@pytest.mark.parametrize("name", ["minilm_l6", "minilm_l3", "mpnet_base"])
def test_offline_without_the_package_it_says_what_to_do(name, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    with pytest.raises(
        FileNotFoundError, match=r"not in the cache .*run once with JAXLAB_OFFLINE=0"
    ):
        getattr(published, name)()
    assert not (tmp_path / "distillation").exists()
