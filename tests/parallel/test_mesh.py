import jax
import pytest
from jax.sharding import AxisType

from jaxlab.parallel import data_process, fit_mesh_shape, make_mesh, share_of_rows


def test_data_fills_what_model_leaves():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(model=4).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh(2, 1, jax.devices()[:2]).shape) == {"data": 2, "model": 1}


def test_axes_are_auto_and_devices_all_used_once():
    mesh = make_mesh(model=2)
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()]


@pytest.mark.parametrize(
    "data, model, words",
    [
        (-1, 3, "model=3 does not divide the 8 devices; nearest valid model sizes: 2 and 4"),
        (-1, 16, "nearest valid model sizes: 8"),
        (-1, 0, "nearest valid model sizes: 1"),
        (3, 2, "needs 6 devices and there are 8; the valid data size is 4"),
        (16, 1, "needs 16 devices and there are 8; the valid data size is 8"),
        (0, 1, "the valid data size is 8"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest_that_do(data, model, words):
    with pytest.raises(ValueError) as error:
        make_mesh(data, model)
    assert words in str(error.value)


def test_no_devices_is_an_error():
    with pytest.raises(ValueError, match="no devices"):
        fit_mesh_shape(-1, 1, 0)


@pytest.mark.parametrize(
    "owners, process, share",
    [
        ([[0], [0], [1], [1]], 1, (1, 2)),
        ([[0], [1], [2], [3]], 3, (3, 4)),
        ([[0, 0], [1, 1]], 1, (1, 2)),
        ([[0, 1], [2, 3]], 2, (1, 2)),
        ([[0, 1], [2, 3]], 3, (1, 2)),
        ([[1], [0], [1], [0]], 0, (1, 2)),
    ],
)
def test_processes_on_the_same_rows_load_the_same_share(owners, process, share):
    assert share_of_rows(owners, process) == share


@pytest.mark.parametrize(
    "owners, words",
    [
        ([[0], [1]], "process 3 has no device"),
        ([[0, 3], [3, 3]], "uneven or overlapping"),
        ([[0, 3], [3, 1], [1, 0]], "uneven or overlapping"),
    ],
)
def test_rows_that_cannot_be_shared_out_are_refused(owners, words):
    with pytest.raises(ValueError, match=words):
        share_of_rows(owners, 3)


def test_one_process_loads_everything():
    assert data_process(make_mesh(model=2)) == (0, 1)
