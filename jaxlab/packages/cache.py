"""The one cache directory, the offline switch, and the placing of files in the cache."""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_SWITCH = {"": False, "0": False, "false": False, "no": False, "off": False} | {
    word: True for word in ("1", "true", "yes", "on")
}


def cache_dir() -> Path:
    """Directory of everything that jaxlab reads from packages and keeps.

    The environment variable JAXLAB_CACHE_DIR if set, else `jaxlab` in the platform's cache
    directory: XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, LOCALAPPDATA on Windows. It
    may be deleted at any time: what is needed is fetched again.

    Returns:
      The path; the directory need not exist yet.
    """
    if chosen := os.environ.get("JAXLAB_CACHE_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxlab"


def is_offline() -> bool:
    """Whether nothing may be fetched: JAXLAB_OFFLINE is 1, true, yes or on.

    Raises:
      ValueError: if the variable is neither such a word nor 0, false, no, off or empty.
    """
    word = os.environ.get("JAXLAB_OFFLINE", "")
    if word.lower() not in _SWITCH:
        raise ValueError(f"JAXLAB_OFFLINE={word!r} is neither on nor off; set it to 1 or 0")
    return _SWITCH[word.lower()]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, sha256: str | None, what: str) -> None:
    """Compare a file with its expected checksum.

    Args:
      path: the file.
      sha256: expected SHA-256 in hexadecimal; None checks nothing.
      what: name of the thing in the error.

    Raises:
      ValueError: if they differ.
    """
    if sha256 is not None and (got := file_sha256(path)) != sha256.lower():
        raise ValueError(
            f"{what}: SHA-256 of {path} is {got}, expected {sha256.lower()} "
            f"({path.stat().st_size} bytes, perhaps truncated or another release); delete it to "
            "fetch it again, and if that gives the same correct the expected checksum"
        )


def build_in_cache(target: Path, build: Callable[[Path], Path]) -> Path:
    """Make a file or directory and place it in the cache in one step.

    Nobody ever sees half of it: it is built in a temporary directory on the same disk and renamed.
    Of two processes that build the same, either result stays.

    Args:
      target: where it goes.
      build: given an empty directory, returns the path of what it has made inside.

    Returns:
      `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        made = build(scratch)
        try:
            os.replace(made, target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def check_spec(package: str, version: str, name_pattern: str) -> None:
    """Refuse names and versions that are not exact, or that a command would take for an option.

    Args:
      package: name of the package.
      version: exact version.
      name_pattern: regular expression of a whole valid name.

    Raises:
      ValueError: naming what is wrong.
    """
    if not re.fullmatch(name_pattern, package):
        raise ValueError(f"package={package!r} is not a package name; expected {name_pattern}")
    if not re.fullmatch(r"[0-9][A-Za-z0-9.+!-]*", version):
        raise ValueError(f"version={version!r} is not an exact version such as '1.2.3'; pin one")
