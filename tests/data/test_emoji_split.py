import dataclasses

import numpy as np
import pytest

from jaxlab.data.emoji import LEVELS, category_floor, load_emoji, pixel_floor, standard_split
from jaxlab.data.emoji.floors import pixel_features, pixel_recall


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture(scope="module")
def split(emoji):
    return standard_split(emoji)


def test_sizes(split):
    assert split.train.shape == (5542, 2)
    assert len(split.unseen_concepts) == 191
    assert len(split.unseen_combinations) == 341
    assert len(split.unseen_drawing_concepts) == len(split.unseen_drawing_styles) == 382
    sizes = {
        name: tuple(
            map(
                len,
                (
                    level.image_queries,
                    level.text_gallery,
                    level.text_queries,
                    level.image_gallery,
                ),
            )
        )
        for name, level in split.levels.items()
    }
    assert tuple(sizes) == LEVELS
    assert sizes == {
        "unseen_drawing": (382, 1911, 382, 1911),
        "unseen_combination": (682, 3786, 341, 3786),
        "unseen_concept": (382, 191, 191, 191),
    }


def test_the_draws_are_in_the_published_order(emoji, split):
    """The same draws, written as one straight loop over sets."""
    rng = np.random.default_rng(2026)
    order = rng.permutation(1911).tolist()
    unseen = order[:191]
    variations = {}
    for item, (concept, base) in enumerate(zip(emoji.concepts, emoji.is_base, strict=True)):
        if not base:
            variations.setdefault(int(concept), []).append(item)
    combinations = set()
    for concept in sorted(set(range(1911)) - set(unseen)):
        forms = variations.get(concept, [])
        if len(forms) >= 5:
            combinations |= set(rng.choice(forms, len(forms) // 5, replace=False).tolist())
    styles = {concept: int(rng.integers(2)) for concept in order[191 : 191 + 382]}
    train = [
        [style, item]
        for style in range(2)
        for item in range(3786)
        if emoji.concepts[item] not in unseen
        and item not in combinations
        and styles.get(int(emoji.concepts[item])) != style
    ]
    assert split.train.tolist() == train
    assert split.unseen_concepts.tolist() == unseen
    assert set(split.unseen_combinations.tolist()) == combinations
    assert split.unseen_drawing_concepts.tolist() == list(styles)
    assert split.unseen_drawing_styles.tolist() == list(styles.values())


def test_nothing_asked_is_trained_on(emoji, split):
    train = set(map(tuple, split.train.tolist()))
    for level in split.levels.values():
        assert not train & set(map(tuple, level.image_queries.tolist()))
    trained_items = split.train[:, 1]
    trained_names = {emoji.names_zh[item] for item in trained_items}
    assert not set(split.unseen_concepts) & set(emoji.concepts[trained_items])
    assert not {emoji.names_zh[i] for i in split.unseen_combinations} & trained_names
    other_style = np.stack(
        [1 - split.unseen_drawing_styles, emoji.base_index[split.unseen_drawing_concepts]], axis=1
    )
    assert set(map(tuple, other_style.tolist())) <= train  # the concept is known


@pytest.mark.parametrize("name", LEVELS)
def test_targets_point_at_the_query(split, name):
    level = split.levels[name]
    np.testing.assert_array_equal(
        level.text_gallery[level.image_targets], level.image_queries[:, 1]
    )
    np.testing.assert_array_equal(level.image_gallery[level.text_targets, 1], level.text_queries)
    assert len(np.unique(level.text_gallery)) == len(level.text_gallery)
    assert len(np.unique(level.image_gallery, axis=0)) == len(level.image_gallery)


def test_gallery_of_unseen_drawings_holds_the_unseen_style(split):
    level = split.levels["unseen_drawing"]
    queries = set(map(tuple, level.image_queries.tolist()))
    gallery = set(map(tuple, level.image_gallery.tolist()))
    assert queries <= gallery
    assert all(style == 0 for style, _ in gallery - queries)


def test_a_part_of_the_set_cannot_be_split(emoji):
    arrays = {name: getattr(emoji, name)[:400] for name in ("is_base", "concepts", "categories")}
    part = dataclasses.replace(emoji, **arrays)
    with pytest.raises(ValueError, match=r"concepts, the standard split needs at least 573"):
        standard_split(part)


def test_pixel_floor_of_unseen_drawings(emoji, split):
    floor = pixel_floor(emoji, split)
    assert {name: round(value, 1) for name, value in floor.items()} == {
        "r1": 24.1,
        "r5": 40.6,
        "r10": 48.7,
    }


def test_category_floor(emoji, split):
    floor = category_floor(emoji, split)
    assert floor["chance"] == 10.0
    assert round(floor["largest"], 1) == 18.3


def test_pixel_features_are_centred_unit_vectors_of_the_picture_on_white():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 4), np.uint8)
    pixels[1] = 0  # nothing visible: plain white, a constant picture
    features = pixel_features(pixels)
    assert features.shape == (2, 192)
    alpha = pixels[0, 8:16, :8, 3] / 255  # second block of the first column
    block = (pixels[0, 8:16, :8, 1] * alpha + 255 * (1 - alpha)).mean()
    whole = pixel_features(pixels[:1], size=1)[0]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 0], atol=1e-12)
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-12)
    colours = (pixels[0, ..., :3] * (pixels[0, ..., 3:] / 255)) + 255 - pixels[0, ..., 3:]
    means = colours.mean(axis=(0, 1))
    centred = means - means.mean()
    np.testing.assert_allclose(whole, centred / np.linalg.norm(centred), atol=1e-9)
    ratio = (block - means.mean()) / features[0].reshape(8, 8, 3)[1, 0, 1]
    other = (colours[:8, :8, 0].mean() - means.mean()) / features[0].reshape(8, 8, 3)[0, 0, 0]
    assert abs(ratio - other) < 1e-6  # one scale for all entries
    with pytest.raises(ValueError, match=r"size=7 does not divide the drawings' 64x64 pixels"):
        pixel_features(pixels, size=7)


def test_ties_and_absent_names_count_against_the_model():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    recall = pixel_recall(queries, np.array([0, 2, 3]), gallery, np.array([0, 1, 2]))
    assert recall["r1"] == pytest.approx(100 / 3)  # the second query alone
    assert recall["r5"] == pytest.approx(200 / 3)  # the name without a drawing is never found
