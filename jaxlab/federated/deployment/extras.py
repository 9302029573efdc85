"""Packages that come with `jaxlab[flower]`, imported where they are needed."""

import importlib
from typing import Any


def needed_module(name: str, what: str) -> Any:
    """A module of a package that may not be installed.

    Args:
      name: of the module, with that of its package.
      what: for the message, what the package is needed for, such as `keys need cryptography`.

    Raises:
      ModuleNotFoundError: saying how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{what} ({error}): pip install "jaxlab[flower]"') from error
