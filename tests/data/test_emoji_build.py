import json

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.emoji import load_emoji
from jaxlab.data.emoji.build import (
    PACKAGES,
    annotation_columns,
    build_assets,
    encode_drawing,
    list_emoji,
)

SMILE, WAVE, WAVE_DARK = "263A-FE0F", "1F44B", "1F44B-1F3FF"


def form(unified, **changes):
    drawn = {"has_img_google": True, "has_img_twitter": True}
    return {"unified": unified, "image": f"{unified.lower()}.png", **drawn, **changes}


def make_packages(folder, entries=None, keys=("☺", "👋", "👋🏿")):
    """Packages in miniature: two base emoji, the second with one variation, out of order."""
    entries = entries or [
        {
            **form(WAVE, category="People & Body", sort_order=2),
            "skin_variations": {"1F3FF": form(WAVE_DARK)},
        },
        form(SMILE, category="Smileys & Emotion", sort_order=1),
    ]
    folders = {name: folder / name for name in PACKAGES}
    rng = np.random.default_rng(0)
    for style in ("google", "twitter"):
        package = folders[f"emoji-datasource-{style}"]
        drawings = package / "img" / style / "64"
        drawings.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(entries))
        for name in (SMILE, WAVE, WAVE_DARK):
            pixels = rng.integers(0, 256, (64, 64, 4), np.uint8)
            pixels[:8, :, 3] = 0
            Image.fromarray(pixels).save(drawings / f"{name.lower()}.png")
    for locale, names in (
        ("zh", ("微笑", "招手", "招手: 深色")),
        ("en", ("smile", "wave", "dark")),
    ):
        columns = dict(zip(keys, names, strict=True))
        parts = {"annotations": keys[:2], "annotationsDerived": keys[2:]}
        for package, (part, members) in zip(list(PACKAGES)[:2], parts.items(), strict=True):
            path = folders[package] / part / locale / "annotations.json"
            path.parent.mkdir(parents=True)
            annotations = {
                key: {"tts": [columns[key]], "default": [f"{columns[key]}2", columns[key]]}
                for key in members
            }
            path.write_text(json.dumps({part: {"annotations": annotations}}))
    return folders


def test_build_joins_orders_and_round_trips(tmp_path):
    folders = make_packages(tmp_path / "npm")
    (tmp_path / "out").mkdir()
    build_assets(folders, tmp_path / "out")
    emoji = load_emoji(tmp_path / "out")
    assert emoji.code_points == (SMILE, WAVE, WAVE_DARK)  # by sort_order, variations after bases
    assert emoji.names_zh == ("微笑", "招手", "招手: 深色")  # U+FE0F does not hinder the join
    assert emoji.keywords_en == (("smile2",), ("wave2",), ("dark2",))  # without the name
    assert emoji.concepts.tolist() == [0, 1, 1]
    assert emoji.is_base.tolist() == [True, True, False]
    source = folders["emoji-datasource-twitter"] / "img/twitter/64/1f44b.png"
    expected = np.array(Image.open(source))
    expected[expected[..., 3] == 0] = 0
    np.testing.assert_array_equal(emoji.images("twitter")[1], expected)


def test_build_is_reproducible_to_the_byte(tmp_path):
    folders = make_packages(tmp_path / "npm")
    digests = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        digests.append(build_assets(folders, tmp_path / name))
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"google.zip", "twitter.zip", "emoji.json.gz"}


def test_missing_names_and_drawings_are_listed(tmp_path):
    with pytest.raises(KeyError, match=r"2 emoji have no CLDR annotation: ☺ 👋🏿"):
        items = list_emoji(make_packages(tmp_path / "a")["emoji-datasource-google"])
        annotation_columns(items, {"👋": {"tts": ["招手"], "default": []}})
    entry = form(SMILE, category="Smileys & Emotion", sort_order=1, has_img_twitter=False)
    folders = make_packages(tmp_path / "b", entries=[{**entry, "image": "smile.png"}])
    with pytest.raises(ValueError, match=r"2 emoji cannot be used: .*smile\.png.* no twitter"):
        list_emoji(folders["emoji-datasource-google"])


def test_a_drawing_of_another_size_is_refused(tmp_path):
    Image.new("RGBA", (32, 64)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is 32x64, expected 64x64"):
        encode_drawing(tmp_path / "x.png")
