"""Data inside installed Python packages: found without importing them, read where it lies."""

from importlib import metadata
from pathlib import Path


def installed_file(package: str, member: str, install: str) -> tuple[Path, str]:
    """A file of an installed package.

    Args:
      package: its name on the package index.
      member: path of the file in the directory of packages, with `/`.
      install: arguments of pip that install it, for the error.

    Returns:
      The file, to be read and not written, and the version of the package.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      FileNotFoundError: if this version has no such file.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the package {package}, which brings the data, is not installed; install it with: "
            f"pip install {install}"
        ) from None
    path = Path(str(found.locate_file(member)))
    if not path.exists():
        raise FileNotFoundError(
            f"{package} {found.version} has no {member} ({path}); install another version with: "
            f"pip install {install}"
        )
    return path, found.version
