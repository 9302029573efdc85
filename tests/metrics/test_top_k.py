"""Exact search against a stable sort: ties, blocks, parts, devices, files."""

import jax
import numpy as np
import pytest

from jaxlab.metrics import top_k_blockwise
from jaxlab.metrics.top_k import search_blocks
from jaxlab.parallel import make_mesh

BLOCKS = {"query_block": 8, "gallery_block": 16}


def small_integers(seed, rows, dim=6):
    """Embeddings whose inner products are exact in float32, with many ties."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)


def sorted_gallery(queries, gallery, k):
    scores = queries @ gallery.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def check(queries, gallery, k, **options):
    best = top_k_blockwise(queries, gallery, k, **options)
    indices, scores = sorted_gallery(queries, gallery, k)
    np.testing.assert_array_equal(best.indices, indices)
    np.testing.assert_array_equal(best.scores, scores)
    assert best.indices.dtype == np.int32 and best.scores.dtype == np.float32


@pytest.mark.parametrize(("queries", "items", "k"), [(19, 50, 10), (5, 3, 10), (1, 1, 1)])
def test_it_equals_a_stable_sort(queries, items, k):
    check(small_integers(1, queries), small_integers(items, items), k, **BLOCKS)


@pytest.mark.parametrize(
    "options",
    [
        {"query_block": 8, "gallery_block": 3},
        {"resident_items": 7},  # parts smaller than k
    ],
)
def test_it_does_not_depend_on_blocks_and_parts(options):
    check(small_integers(2, 19), small_integers(3, 50), 9, **options)


@pytest.mark.parametrize(
    ("items", "options"),
    [
        (120, {"gallery_block": 5, "resident_items": 80}),  # two blocks a device, then one
        (5, {}),  # fewer items than devices
    ],
)
def test_a_gallery_shared_by_eight_devices_gives_the_same(items, options):
    mesh = make_mesh()
    assert mesh.shape["data"] == 8
    check(small_integers(4, 19), small_integers(5, items), 9, query_block=8, mesh=mesh, **options)


def test_real_valued_embeddings_agree_with_float64():
    rng = np.random.default_rng(6)
    queries, gallery = (rng.standard_normal((n, 16)).astype(np.float32) for n in (30, 400))
    expected, _ = sorted_gallery(queries.astype(np.float64), gallery.astype(np.float64), 10)
    best = top_k_blockwise(queries, gallery, 10, gallery_block=64)
    np.testing.assert_array_equal(best.indices, expected)


def test_minus_zero_and_zero_are_equal_scores():
    gallery = np.array([[-0.0], [0.0], [-0.0], [0.0]], np.float32)
    best = top_k_blockwise(np.array([[1.0], [-1.0]], np.float32), gallery, 4)
    assert best.indices.tolist() == [[0, 1, 2, 3]] * 2


def test_padding_never_wins_when_all_scores_are_negative():
    queries, gallery = np.ones((3, 4), np.float32), -np.ones((5, 4), np.float32)
    best = top_k_blockwise(queries, gallery, 5, query_block=2, gallery_block=4)
    assert best.indices.tolist() == [[0, 1, 2, 3, 4]] * 3 and (best.scores == -4).all()


def test_a_gallery_mapped_from_a_file_is_searched_in_parts(tmp_path):
    gallery = small_integers(7, 60)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    check(small_integers(8, 3), mapped, 4, resident_items=16)


def test_no_queries_give_no_results():
    best = top_k_blockwise(np.zeros((0, 4), np.float32), np.ones((5, 4), np.float32), 3)
    assert best.indices.shape == best.scores.shape == (0, 3)


def test_bad_input_is_named():
    ones = np.ones((4, 2), np.float32)
    broken = ones.copy()
    broken[3, 1] = np.nan
    cases = [
        (lambda: top_k_blockwise(ones, ones, 0), "k=0 is not positive"),
        (lambda: top_k_blockwise(ones, ones[:, :1], 1), r"\(4, 2\) and the gallery \(4, 1\)"),
        (lambda: top_k_blockwise(ones, ones[:0], 1), "at least one gallery item"),
        (lambda: top_k_blockwise(broken, ones, 1), "queries: 1 of 4 rows.*row 3"),
        (lambda: top_k_blockwise(ones, broken, 1, resident_items=2), "gallery: 1 of 2.*row 3"),
        (lambda: top_k_blockwise(ones, ones, 1, query_block=0), "query_block=0"),
        (lambda: top_k_blockwise(ones, ones, 1, gallery_block=0), "gallery_block=0"),
        (lambda: top_k_blockwise(ones, ones, 1, resident_items=0), "resident_items=0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_score_matrix_of_the_whole_gallery_never_exists():
    """The compiled search of 64 blocks needs little more than one block, not 64."""
    shapes = [((64, 8), np.float32), ((64, 128, 8), np.float32), ((64, 128), bool), ((64,), "i4")]
    arguments = [jax.ShapeDtypeStruct(*spec) for spec in shapes]
    compiled = jax.jit(search_blocks, static_argnames="k").lower(*arguments, k=10).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    one_block = 64 * (128 + 10) * 4
    assert temporary < 8 * one_block < 64 * 64 * 128 * 4
