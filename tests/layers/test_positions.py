import numpy as np
import pytest

from jaxlab.layers.positions import bicubic_matrix, resize_positions


def test_small_grid_has_the_known_values():
    table = np.array([[9.0], [0.0], [1.0], [2.0], [3.0]], np.float32)
    resized = resize_positions(table, 3)
    assert resized.dtype == np.float32
    expected = [9.0, 0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0]
    np.testing.assert_allclose(resized.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(2, 3), (14, 24), (7, 4), (5, 1)])
def test_resizing_keeps_constants_and_corners(source, target):
    matrix = bicubic_matrix(source, target)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    corners = [0, target - 1] if target > 1 else [0]
    expected = np.eye(source)[[0, source - 1][: len(corners)]]
    np.testing.assert_allclose(matrix[corners], expected, atol=1e-12)


def test_the_right_size_is_left_alone():
    table = np.random.default_rng(0).normal(size=(50, 3))
    assert resize_positions(table, 7) is table


@pytest.mark.parametrize("rows", [0, 1, 49, 51])
def test_a_table_that_is_no_square_grid_is_refused(rows):
    with pytest.raises(ValueError, match=rf"{rows} rows.*wanted 1 \+ g\*g"):
        resize_positions(np.zeros((rows, 2)), 3)


def test_a_grid_without_patches_is_refused():
    with pytest.raises(ValueError, match="grid=0"):
        resize_positions(np.zeros((5, 2)), 0)
