"""The tokenizer against the ids of cn_clip, its fixtures, its errors and its properties."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.text import WordPieceTokenizer, clean_text
from jaxlab.text.wordpiece import longest_match, split_punctuation, strip_accents

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer()


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "wordpiece.npz") as file:
        strings = json.loads(file["strings"].tobytes())
        rows = np.split(file["ids"].astype(np.int32), np.cumsum(file["lengths"])[:-1])
    return strings, rows


def expected_rows(rows, context_length):
    """[CLS] ids [SEP] and zeros, from the ids of the original."""
    out = np.zeros((len(rows), context_length), np.int32)
    for i, row in enumerate(rows):
        ids = [101, *row[: context_length - 2], 102]
        out[i, : len(ids)] = ids
    return out


@pytest.mark.parametrize("context_length", [52, 512])
def test_ids_equal_the_original_on_all_chinese_cldr_strings_and_odd_cases(
    tokenizer, golden, context_length
):
    strings, rows = golden
    assert len(strings) >= 13_000
    ids, truncated = tokenizer.tokenize(strings, context_length, return_truncated=True)
    np.testing.assert_array_equal(ids, expected_rows(rows, context_length))
    lengths = np.array([len(row) for row in rows])
    np.testing.assert_array_equal(truncated, lengths > context_length - 2)
    assert truncated.any() and not truncated.all()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("杰尼龟", [101, 3345, 2225, 7991, 102]),
        ("", [101, 102]),
        (
            "皮卡丘 Hello, 世界！😀 “引号”",
            [101, 4649, 1305, 687, 8701, 117, 686, 4518, 8013, 100, 100, 2471, 1384, 100, 102],
        ),
    ],
)
def test_published_ids(tokenizer, text, ids):
    np.testing.assert_array_equal(tokenizer.tokenize(text), [ids + [0] * (52 - len(ids))])


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("iPhone13手机壳", ["iphone", "##13", "手", "机", "壳"]),
        ("a\u200bb", ["ab"]),
        ("[MASK]x", ["[", "ma", "##sk", "]", "x"]),
        ("a\ufeffb\0c\ufffd", ["abc"]),
        ("カタカナ ガ", ["カ", "##タ", "##カ", "##ナ", "カ"]),
        ("x" * 201, ["[UNK]"]),
        ("。\u3000，", ["。", "，"]),
    ],
)
def test_pieces(tokenizer, text, pieces):
    assert tokenizer.split(text) == pieces


def test_a_word_of_200_characters_is_cut_and_of_201_is_unknown(tokenizer):
    assert len(tokenizer.split("1" * 200)) > 1
    assert tokenizer.split("1" * 201) == ["[UNK]"]


def test_special_token_strings_in_a_text_are_ordinary_text(tokenizer):
    ids = tokenizer.tokenize("[PAD][CLS][SEP][MASK][UNK]")[0]
    assert (ids == 101).sum() == 1 and (ids == 102).sum() == 1
    assert not np.isin(ids, [100, 103]).any()


def test_clean_lowers_and_straightens_quotes(tokenizer):
    assert clean_text("“ABC” É") == '"abc" é'
    raw, cleaned = tokenizer.tokenize("“猫”"), tokenizer.tokenize("“猫”", clean=True)
    assert (raw == 100).sum() == 2 and (cleaned == 100).sum() == 0
    np.testing.assert_array_equal(cleaned, tokenizer.tokenize('"猫"'))


def test_bytes_are_utf8_with_invalid_sequences_dropped(tokenizer):
    data = "龟".encode() + b"\xff\xfe" + "猫".encode()
    np.testing.assert_array_equal(tokenizer.tokenize(data), tokenizer.tokenize("龟猫"))
    np.testing.assert_array_equal(tokenizer.tokenize([data, "x"])[0], tokenizer.tokenize("龟猫")[0])


def test_no_texts_give_no_rows(tokenizer):
    ids, truncated = tokenizer.tokenize([], context_length=7, return_truncated=True)
    assert ids.shape == (0, 7) and ids.dtype == np.int32 and truncated.shape == (0,)


def test_truncation_keeps_the_first_ids_and_says_so(tokenizer):
    ids, truncated = tokenizer.tokenize(
        ["一二三", "一二", "一"], context_length=4, return_truncated=True
    )
    np.testing.assert_array_equal(ids[0], [101, *tokenizer.tokenize("一二")[0, 1:3], 102])
    np.testing.assert_array_equal(truncated, [True, False, False])


@pytest.mark.parametrize("bad", [None, 3, 1.5, ["x"]])
def test_a_text_that_is_none_names_its_index(tokenizer, bad):
    with pytest.raises(TypeError, match=r"texts\[2\] is .* must be a str"):
        tokenizer.tokenize(["a", b"b", bad])


@pytest.mark.parametrize("bad", [-1, 0, 2, 513])
def test_context_length_out_of_range(tokenizer, bad):
    with pytest.raises(ValueError, match=f"context_length={bad} is not between 3 and 512"):
        tokenizer.tokenize("a", context_length=bad)


def test_own_vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ab", "##c", "a"]).encode())
    tokenizer = WordPieceTokenizer(path)
    np.testing.assert_array_equal(
        tokenizer.tokenize("abc ab c ac", context_length=9), [[2, 4, 5, 4, 1, 6, 5, 3, 0]]
    )


@given(st.text(max_size=40), st.integers(3, 20))
@settings(max_examples=150, deadline=None)
def test_every_row_is_well_formed(text, context_length):
    tokenizer = shared_tokenizer()
    (row,), (cut,) = tokenizer.tokenize(text, context_length, return_truncated=True)
    num_ids = int((row != 0).sum())
    assert row[0] == 101 and row[num_ids - 1] == 102
    assert (row[num_ids:] == 0).all() and (row < tokenizer.vocab_size).all()
    assert cut == (len(tokenizer.split(text)) > context_length - 2)


@given(st.lists(st.sampled_from(["猫", "cat", "un", "é", "!", "１", "\u200b", "[SEP]"])))
@settings(max_examples=50, deadline=None)
def test_texts_joined_by_spaces_are_tokenized_one_by_one(words):
    tokenizer = shared_tokenizer()
    together = tokenizer.split(" ".join(words))
    assert together == [piece for word in words for piece in tokenizer.split(word)]


def shared_tokenizer(cache=[]):  # noqa: B006 - hypothesis refuses function-scoped fixtures
    if not cache:
        cache.append(WordPieceTokenizer())
    return cache[0]


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_split_punctuation_loses_only_white_space(text):
    assert "".join(split_punctuation(text)) == "".join(text.split())


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_strip_accents_leaves_no_nonspacing_mark(text):
    stripped = strip_accents(text)
    assert all(unicodedata.category(char) != "Mn" for char in stripped)
    assert strip_accents(stripped) == stripped


def test_longest_match_is_greedy():
    ids = {"a": 0, "ab": 1, "##b": 2, "##bc": 3}
    assert longest_match("ab", ids, 4) == [1]
    assert longest_match("abb", ids, 4) == [1, 2]
    assert longest_match("abc", ids, 4) is None  # greedy "ab" leaves "##c"; "a ##bc" is not tried
    assert longest_match("", ids, 4) == []
