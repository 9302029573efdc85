import sys
from pathlib import Path

import pytest

from jaxlab.packages import cache_dir, check_sha256, file_sha256, is_offline
from jaxlab.packages.cache import build_in_cache, check_spec

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_directory_is_the_variable_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("JAXLAB_CACHE_DIR", "~/mine")
    assert cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("JAXLAB_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "jaxlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "jaxlab"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path.home() / "Library" / "Caches" / "jaxlab"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_dir() == tmp_path / "jaxlab"


@pytest.mark.parametrize(
    "word, expected", [("1", True), ("TRUE", True), ("on", True), ("0", False), ("", False)]
)
def test_offline_switch(monkeypatch, word, expected):
    monkeypatch.setenv("JAXLAB_OFFLINE", word)
    assert is_offline() is expected


def test_an_unclear_offline_switch_is_an_error(monkeypatch):
    monkeypatch.delenv("JAXLAB_OFFLINE", raising=False)
    assert not is_offline()
    monkeypatch.setenv("JAXLAB_OFFLINE", "maybe")
    with pytest.raises(ValueError, match="JAXLAB_OFFLINE='maybe'"):
        is_offline()


def test_checksum_of_a_known_text(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path) == ABC
    check_sha256(path, ABC.upper(), "abc")
    check_sha256(path, None, "abc")
    path.write_bytes(b"ab")
    with pytest.raises(ValueError, match=rf"abc: .* expected {ABC} \(2 bytes.*delete it"):
        check_sha256(path, ABC, "abc")


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(scratch):
        (scratch / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_in_cache(tmp_path / "deep" / "thing", build)
    assert list((tmp_path / "deep").iterdir()) == []


def test_of_two_builders_of_a_folder_the_first_result_stays(tmp_path):
    target = tmp_path / "thing"

    def build_while_another_finishes(scratch):
        target.mkdir()
        (target / "file").write_text("first")
        made = scratch / "made"
        made.mkdir()
        (made / "file").write_text("second")
        return made

    assert build_in_cache(target, build_while_another_finishes) == target
    assert (target / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "package, version",
    [
        ("--index", "1"),
        ("../up", "1"),
        ("a", "*"),
        ("a", ">=1"),
        ("a", ""),
        ("a", "--x"),
        ("", "1"),
    ],
)
def test_names_and_versions_must_be_exact(package, version):
    with pytest.raises(ValueError, match="is not"):
        check_spec(package, version, r"[a-z][a-z._-]*")
    check_spec("fine", "1.2.3rc1+local", r"[a-z][a-z._-]*")
