"""The package as users import it."""

import importlib
import pkgutil

import pytest

from jaxlab import ndv

INTERNAL = {"arrow_kernels"}  # needs Numba


def test_every_room_is_an_attribute_of_the_package():
    rooms = {room.name for room in pkgutil.iter_modules(ndv.__path__)} - INTERNAL
    for name in sorted(rooms):
        assert getattr(ndv, name) is importlib.import_module(f"jaxlab.ndv.{name}")
    assert rooms <= set(dir(ndv)) and set(ndv.__all__) <= set(dir(ndv))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'theta'; it has"):
        _ = ndv.theta
