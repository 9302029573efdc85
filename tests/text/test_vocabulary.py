"""Vocabulary files: the shipped one, and errors that name file, line and entry."""

import hashlib
from importlib import resources

import pytest

from jaxlab.text import load_chinese_vocabulary, read_vocabulary
from jaxlab.text import vocabulary as vocabulary_module


def test_the_shipped_vocabulary_is_the_published_file():
    data = resources.files("jaxlab.text").joinpath("assets", "vocab.txt").read_bytes()
    assert len(data) == 109_540
    assert hashlib.sha256(data).hexdigest().startswith("45bbac6b341c319adc98a532532882e9")


def test_line_separators_inside_entries_do_not_shift_ids():
    entries = load_chinese_vocabulary()
    assert len(entries) == 21_128 == len(set(entries))
    assert (entries[343], entries[13502]) == ("\u2028", "##\u2028")
    special = [entries[i] for i in (0, 100, 101, 102, 103)]
    assert special == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_a_changed_vocabulary_is_refused(monkeypatch):
    monkeypatch.setattr(vocabulary_module, "CHINESE_VOCABULARY_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="45bbac6b.*the file was changed, reinstall"):
        load_chinese_vocabulary()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_own_file_with_either_line_end(tmp_path, end):
    path = tmp_path / "vocab.txt"
    entries = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "猫", "\u2028")
    path.write_bytes(end.join((*entries, "")).encode())
    assert read_vocabulary(path) == entries


def test_a_repeated_entry_is_named_with_both_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n猫\n猫\n", "utf-8")
    with pytest.raises(ValueError, match="vocab.txt, line 6: entry '猫' is already on line 5"):
        read_vocabulary(path)


def test_missing_special_tokens_are_named_together(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[CLS]\n猫\n", "utf-8")
    with pytest.raises(ValueError, match=r"3 entries without \[UNK\], \[SEP\]"):
        read_vocabulary(path)
