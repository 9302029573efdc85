"""Plain text: lines of files in order, cut where they are long."""

import pytest

from jaxlab.data.texts import load_corpus, load_text_data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_text("last line\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text(
        "".join(f"text number {i} of the first file\n" for i in range(20)) + "\n\n",
        encoding="utf-8",
    )
    (tmp_path / "notes.md").write_text("not read", encoding="utf-8")
    return tmp_path


def test_every_line_is_a_text_once(folder):
    data = load_corpus(folder)
    assert sorted(e.id for e in (*data.train, *data.validation)) == list(range(21))
    assert {e.text for e in (*data.train, *data.validation)} >= {"last line"}
    assert len(data.validation) == 3 and not data.test
    assert data.num_outputs == 0 and data.train[0].label is None


def test_long_lines_are_cut_and_nothing_is_lost(folder):
    whole, cut = load_corpus(folder), load_text_data("corpus", folder, max_words=4)
    assert max(len(e.text.split()) for e in cut.train) == 4

    def words(data):
        return [w for e in sorted((*data.train, *data.validation), key=lambda e: e.id)
                for w in e.text.split()]  # fmt: skip

    assert words(whole) == words(cut)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder and no file"):
        load_corpus(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no file \*.txt"):
        load_corpus(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty"):
        load_corpus(tmp_path)
