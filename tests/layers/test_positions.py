import numpy as np
import pytest

from jaxlab.layers.positions import bicubic_matrix, resize_positions, stretch_positions


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


def test_stretching_keeps_the_first_rows_and_the_ends():
    table = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    stretched = stretch_positions(table, 20 + 59)
    assert stretched.dtype == np.float32
    np.testing.assert_array_equal(stretched[:20], table[:20])
    # 30 rows become 59: every second one is a row of the table, the others are means.
    np.testing.assert_allclose(stretched[20::2], table[20:], rtol=1e-6)
    means = (table[20:-1] + table[21:]) / 2
    np.testing.assert_allclose(stretched[21::2], means, rtol=1e-5, atol=1e-7)


def test_a_text_table_that_is_long_enough_is_left_alone():
    table = np.zeros((50, 3))
    assert stretch_positions(table, 50) is table and stretch_positions(table, 20) is table


@pytest.mark.parametrize("kept", [-1, 49, 50])
def test_stretching_needs_two_rows(kept):
    with pytest.raises(ValueError, match=rf"kept={kept} of 50 positions leaves fewer than two"):
        stretch_positions(np.zeros((50, 3)), 60, kept)
