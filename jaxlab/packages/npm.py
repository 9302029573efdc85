"""The contents of npm packages: some data is published there and nowhere else."""

import base64
import binascii
import hashlib
from collections.abc import Callable
from pathlib import Path

from jaxlab.packages.archives import extract_tar
from jaxlab.packages.cache import build_in_cache, cache_dir, check_sha256, check_spec, is_offline
from jaxlab.packages.commands import Runner, run_command


def npm_package(
    package: str,
    version: str,
    sha256: str | None = None,
    *,
    integrity: str | None = None,
    run: Runner = run_command,
) -> Path:
    """Folder with the extracted files of an npm package, in the cache.

    Fetched once by `npm pack`, which follows the user's npm settings and runs no script of the
    package. A machine without npm can be given the tarball: see the error when offline.

    Args:
      package: name, with its scope if any (`@unicode/cldr`).
      version: exact version.
      sha256: expected SHA-256 of the tarball in hexadecimal.
      integrity: expected checksum in the form of npm's lock files (`sha512-<base64>`).
      run: runs the command.

    Returns:
      The folder that holds `package.json`; read it, do not write it.

    Raises:
      FileNotFoundError: if offline and the package is not in the cache.
      RuntimeError: if npm is not installed or fails.
      ValueError: if the tarball is broken or has another checksum.
    """
    check_spec(package, version, r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*")
    folder = cache_dir() / "npm" / f"{package.replace('/', '+')}-{version}"
    tarball = folder / "package.tgz"
    what = f"npm package {package} {version}"

    def check(path: Path) -> None:
        check_sha256(path, sha256, what)
        check_integrity(path, integrity, what)

    if not tarball.exists():
        _fetch(tarball, package, version, check, run)
    else:
        check(tarball)
    files = folder / "files"
    if not files.exists():

        def build(scratch: Path) -> Path:
            made = scratch / "files"
            made.mkdir()
            extract_tar(tarball, made)
            return made

        build_in_cache(files, build)
    return files


def check_integrity(path: Path, integrity: str | None, what: str) -> None:
    """Compare a file with a checksum in the form of npm's lock files.

    Args:
      path: the file.
      integrity: `<algorithm>-<base64 of the digest>`; None checks nothing.
      what: name of the thing in the error.

    Raises:
      ValueError: if they differ or the algorithm is not sha256, sha384 or sha512.
    """
    if integrity is None:
        return
    algorithm, _, digest = integrity.partition("-")
    try:
        wanted = base64.b64decode(digest, validate=True)
    except binascii.Error:
        wanted = b""
    if algorithm not in ("sha256", "sha384", "sha512") or not wanted:
        raise ValueError(f"integrity={integrity!r} is not sha256-, sha384- or sha512-<base64>")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, algorithm).digest()
    if got != wanted:
        raise ValueError(
            f"{what}: {path} has integrity {algorithm}-{base64.b64encode(got).decode()}, expected "
            f"{integrity}; it is truncated or another release: delete it to fetch it again"
        )


def _fetch(
    tarball: Path, package: str, version: str, check: Callable[[Path], None], run: Runner
) -> None:
    """Put the verified tarball in the cache."""
    if is_offline():
        raise FileNotFoundError(
            f"npm package {package} {version} is not in the cache and JAXLAB_OFFLINE is set; run "
            f"once with JAXLAB_OFFLINE=0, or make {tarball} with `npm pack {package}@{version}` on "
            "another machine"
        )

    def build(scratch: Path) -> Path:
        command = ["npm", "pack", "--ignore-scripts", "--silent"]
        run([*command, "--pack-destination", str(scratch), f"{package}@{version}"])
        made = sorted(scratch.glob("*.tgz"))
        if len(made) != 1:
            raise RuntimeError(
                f"npm pack {package}@{version} left {len(made)} tarballs, expected 1"
            )
        check(made[0])
        return made[0]

    build_in_cache(tarball, build)
