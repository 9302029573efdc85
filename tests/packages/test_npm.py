import base64
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from jaxlab.packages import npm_package
from jaxlab.packages.commands import run_command


def tarball(**members):
    """Bytes of a tar as npm makes them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, text in members.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    return out.getvalue()


CONTENT = tarball(**{"package.json": b"{}", "img/a.png": b"picture"})
SHA256 = hashlib.sha256(CONTENT).hexdigest()
INTEGRITY = "sha512-" + base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXLAB_OFFLINE", raising=False)
    return tmp_path / "cache"


class FakeNpm:
    """Writes the tarball that npm would, and remembers the commands."""

    def __init__(self, content=CONTENT):
        self.content, self.commands = content, []

    def __call__(self, command):
        self.commands.append(list(command))
        folder = Path(command[command.index("--pack-destination") + 1])
        (folder / "scope-pictures-2.0.0.tgz").write_bytes(self.content)


def test_a_package_is_fetched_once_and_then_read_offline(cache, monkeypatch):
    npm = FakeNpm()
    folder = npm_package("@scope/pictures", "2.0.0", SHA256, integrity=INTEGRITY, run=npm)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [os.path.join("img", "a.png"), "package.json"]
    assert not (folder / "link").is_symlink()
    assert npm.commands[0][:3] == ["npm", "pack", "--ignore-scripts"]
    assert npm.commands[0][-1] == "@scope/pictures@2.0.0"
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    assert npm_package("@scope/pictures", "2.0.0", SHA256, run=npm) == folder
    assert len(npm.commands) == 1
    assert not list(cache.rglob(".partial-*"))


def test_offline_and_not_cached_says_what_to_do_and_it_helps(cache, monkeypatch):
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        npm_package("pictures", "2.0.0", run=FakeNpm())
    place = cache / "npm" / "pictures-2.0.0" / "package.tgz"
    assert f"make {place} with `npm pack pictures@2.0.0`" in str(error.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert (npm_package("pictures", "2.0.0", SHA256) / "img" / "a.png").read_bytes() == b"picture"


@pytest.mark.parametrize(
    "wrong", [{"sha256": "0" * 64}, {"integrity": "sha512-" + base64.b64encode(b"0" * 64).decode()}]
)
def test_another_checksum_is_refused_before_and_after_placing(cache, wrong):
    npm = FakeNpm()
    with pytest.raises(ValueError, match="expected"):
        npm_package("pictures", "2.0.0", run=npm, **wrong)
    assert not list(cache.rglob("*.tgz"))
    npm_package("pictures", "2.0.0", run=npm)
    with pytest.raises(ValueError, match="npm package pictures 2.0.0"):
        npm_package("pictures", "2.0.0", run=npm, **wrong)


@pytest.mark.parametrize("integrity", ["md5-AAAA", "sha512-", "sha512-?", "nonsense"])
def test_integrity_of_another_form_is_refused(integrity):
    with pytest.raises(ValueError, match="is not sha256-, sha384- or sha512-"):
        npm_package("pictures", "2.0.0", integrity=integrity, run=FakeNpm())


def test_a_truncated_or_escaping_tarball_places_no_files(cache):
    with pytest.raises(ValueError, match="cannot read .*truncated"):
        npm_package("pictures", "2.0.0", run=FakeNpm(CONTENT[:60]))
    with pytest.raises(ValueError, match="leaves the folder"):
        npm_package("pictures", "3.0.0", run=FakeNpm(tarball(**{"../../x": b"x"})))
    assert not list(cache.rglob("files"))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script plays npm")
def test_the_npm_in_the_path_is_run(monkeypatch, tmp_path):
    (tmp_path / "ready.tgz").write_bytes(CONTENT)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n/bin/cp "{tmp_path}/ready.tgz" "$5/made.tgz"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    folder = npm_package("pictures", "2.0.0", integrity=INTEGRITY)
    assert (folder / "package.json").read_bytes() == b"{}"
    program.write_text("#!/bin/sh\necho 'no such version' >&2\nexit 3\n")
    with pytest.raises(
        RuntimeError, match=r"(?s)exit status 3: npm pack .*no such version.*network"
    ):
        npm_package("pictures", "9.0.0")


def test_a_missing_program_is_named():
    with pytest.raises(RuntimeError, match="no-such-program is not installed"):
        run_command(["no-such-program", "pack"])
