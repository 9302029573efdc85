import hashlib
import re
import shutil
from collections import Counter

import numpy as np
import pytest

from jaxlab.data.emoji import composite, load_emoji
from jaxlab.data.emoji.loader import ANNOTATIONS_FILE, ASSETS, CATEGORY_NAMES_ZH


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture(scope="module")
def google(emoji):
    return emoji.images("google")


def duplicates(drawings):
    """Groups of equal drawings, and drawings in them."""
    counts = [n for n in Counter(map(bytes, drawings)).values() if n > 1]
    return len(counts), sum(counts)


def test_counts_of_the_whole_set(emoji):
    assert (emoji.num_emoji, emoji.num_concepts) == (3786, 1911)
    assert len(set(emoji.names_zh)) == len(set(emoji.code_points)) == 3786
    pairs = [(i, text) for i in range(emoji.num_emoji) for text in emoji.texts(i)]
    assert len(pairs) == len(set(pairs)) == 25_450
    assert len({text for _, text in pairs}) == 7_690
    assert sum(len(emoji.texts(i)) for i in emoji.base_index) == 9_915


def test_lengths_of_chinese_names(emoji):
    lengths = [len(name) for name in emoji.names_zh]
    assert max(lengths) == 22
    assert round(float(np.mean(lengths)), 1) == 8.0


def test_sizes_of_categories(emoji):
    sizes = np.bincount(emoji.categories[emoji.base_index])
    assert dict(zip(emoji.category_names, sizes.tolist(), strict=True)) == {
        "Smileys & Emotion": 169,
        "People & Body": 386,
        "Component": 5,
        "Animals & Nature": 159,
        "Food & Drink": 131,
        "Travel & Places": 218,
        "Activities": 85,
        "Objects": 264,
        "Symbols": 224,
        "Flags": 270,
    }
    words = [word for names in CATEGORY_NAMES_ZH.values() for word in names]
    assert len(CATEGORY_NAMES_ZH) == 10 and len(set(words)) == len(words)


def test_an_item_has_its_texts_and_structure(emoji):
    dumpling = emoji.code_points.index("1F95F")
    assert emoji.character(dumpling) == "🥟"
    assert emoji.texts(dumpling)[0] == "饺子"
    assert set(emoji.texts(dumpling)[1:]) == {"水饺", "煎饺", "波兰饺子", "恩潘纳达"}
    assert emoji.names_en[dumpling] == "dumpling"
    assert emoji.category_names[emoji.categories[dumpling]] == "Food & Drink"
    runner = emoji.code_points.index("1F3C3-1F3FD")
    base = emoji.base_index[emoji.concepts[runner]]
    assert emoji.skin_tones[runner] == "1F3FD" and not emoji.is_base[runner]
    assert emoji.code_points[base] == "1F3C3" and emoji.is_base[base]


def test_variations_follow_their_base(emoji):
    steps = np.diff(emoji.concepts)
    assert set(steps.tolist()) == {0, 1}
    np.testing.assert_array_equal(np.flatnonzero(steps) + 1, emoji.base_index[1:])


def test_drawings_are_those_of_the_sources(google, emoji):
    """Known facts: duplicates counted on the source PNGs, and colours of two circles."""
    assert google.shape == (3786, 64, 64, 4) and google.dtype == np.uint8
    assert duplicates(google) == (12, 31)
    invisible = google[google[..., 3] == 0]
    assert not invisible.any()
    red_circle = google[emoji.code_points.index("1F534"), 32, 32]
    assert red_circle[0] > 180 and red_circle[1] < 90 and red_circle[3] == 255
    blue_circle = google[emoji.code_points.index("1F535"), 32, 32]
    assert blue_circle[2] > 180 and blue_circle[0] < 90


def test_twitter_drawings_differ_from_google_ones(google, emoji):
    twitter = emoji.images("twitter")
    assert duplicates(twitter) == (11, 45)
    assert not set(map(bytes, google)) & set(map(bytes, twitter))


def test_composite_blends_by_alpha():
    pixels = np.array([[[[10, 20, 30, 255], [10, 20, 30, 0], [100, 0, 200, 51]]]], np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [224, 204, 244]]
    assert composite(pixels)[0, 0].tolist() == expected
    assert composite(pixels, (0, 0, 0))[0, 0].tolist() == [[10, 20, 30], [0, 0, 0], [20, 0, 40]]


def test_assets_are_listed_licensed_and_small():
    readme = (ASSETS / "README.md").read_text("utf-8")
    digests = {
        name: hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()
        for name in ("google.zip", "twitter.zip", ANNOTATIONS_FILE)
    }
    for name, digest in digests.items():
        assert re.search(rf"`{re.escape(name)}`.*`{digest}`", readme)
    for licence in re.findall(r"`(LICENSE-[^`]+)`", readme):
        assert (ASSETS / licence).stat().st_size > 1000
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 22e6


def test_damage_and_absence_are_told(tmp_path):
    shutil.copy(ASSETS / ANNOTATIONS_FILE, tmp_path)
    emoji = load_emoji(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"google\.zip is missing.*jaxlab\.data\.emoji"):
        emoji.images("google")
    content = bytearray((ASSETS / "google.zip").read_bytes())
    content[5_000_000] ^= 1
    (tmp_path / "google.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"google\.zip is damaged: SHA-256 .*, expected 949c"):
        emoji.images("google")
    with pytest.raises(ValueError, match="style='apple' is not one of 'google', 'twitter'"):
        emoji.images("apple")
    (tmp_path / ANNOTATIONS_FILE).write_bytes((ASSETS / ANNOTATIONS_FILE).read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"emoji\.json\.gz is damaged"):
        load_emoji(tmp_path)
    (tmp_path / ANNOTATIONS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"emoji\.json\.gz is missing"):
        load_emoji(tmp_path)


def test_unknown_language_is_refused(emoji):
    assert emoji.texts(0, "en")[0] == "grinning face"
    with pytest.raises(ValueError, match="language='fr' is not one of"):
        emoji.texts(0, "fr")
