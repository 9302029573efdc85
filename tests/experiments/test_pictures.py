import io
import re

import numpy as np
import pytest
from PIL import Image

from experiments.common import build_font, drawing, pictures
from experiments.common.pictures import (
    CaptionResult,
    ImageQuery,
    PictureResult,
    TextQuery,
    draw_retrieval,
    draw_search,
    load_font,
    save_png,
)
from jaxlab.data.emoji import load_emoji

RED = (200, 30, 30)


def plain(height=64, width=64, colour=RED):
    return np.full((height, width, len(colour)), colour, np.uint8)


def text_query(num_results=5, text="饺子", correct=(1,), image=None):
    image = plain() if image is None else image
    return TextQuery(
        text,
        tuple(
            PictureResult(image, "早上好", 0.9 - 0.1 * i, i in correct) for i in range(num_results)
        ),
    )


def image_query(num_results=5, scores=None, correct=(1,)):
    scores = scores or [0.9 - 0.1 * i for i in range(num_results)]
    return ImageQuery(
        plain(), tuple(CaptionResult("早上好", s, i in correct) for i, s in enumerate(scores))
    )


def count(image, colour):
    return int((np.asarray(image) == np.asarray(colour, np.uint8)).all(axis=-1).sum())


def font_characters():
    from fontTools.ttLib import TTFont

    with TTFont(drawing.ASSETS / drawing.FONT_FILE) as font:
        return {chr(point) for point in font.getBestCmap()}


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


# The font


def test_the_font_writes_every_emoji_text_and_common_chinese(emoji):
    characters = font_characters()
    texts = [
        text
        for index in range(emoji.num_emoji)
        for language in ("zh", "en")
        for text in emoji.texts(index, language)
    ]
    assert not {char for text in texts for char in text} - characters
    common = build_font.gb2312_characters(tuple(range(16, 56)))
    assert len(common) == 3755 and not common - characters
    assert not {chr(point) for point in range(0x20, 0x7F)} - characters
    assert drawing.ELLIPSIS in characters


def test_the_font_is_small_and_is_the_one_that_its_page_describes():
    content = (drawing.ASSETS / drawing.FONT_FILE).read_bytes()
    page = (drawing.ASSETS / "README.md").read_text("utf-8")
    assert len(content) <= 1_200_000
    assert build_font.sha256_of(drawing.ASSETS / drawing.FONT_FILE) in page
    assert f"{len(font_characters()):,} of its characters" in page
    assert f"`{build_font.PACKAGE}` {build_font.VERSION}" in page
    licence = (drawing.ASSETS / build_font.LICENCE_FILE).read_text("utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence


def test_subset_font_keeps_what_was_asked_and_the_box(tmp_path):
    source, target = drawing.ASSETS / drawing.FONT_FILE, tmp_path / "small.ttf"
    build_font.subset_font(source, target, {"饺", "子", "\U0001f95f"})
    again = tmp_path / "again.ttf"
    build_font.subset_font(source, again, {"子", "饺"})
    from fontTools.ttLib import TTFont

    with TTFont(target) as font:
        assert set(map(chr, font.getBestCmap())) == {"饺", "子"}
        assert font["glyf"][".notdef"].numberOfContours > 0
        assert font["name"].getDebugName(1) == build_font.FAMILY
        assert "Adobe" in font["name"].getDebugName(0)
    assert target.read_bytes() == again.read_bytes()


def test_a_missing_font_is_one_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "ASSETS", tmp_path)
    load_font.cache_clear()
    with pytest.raises(FileNotFoundError, match="is missing.*experiments.common.build_font"):
        load_font(14)
    load_font.cache_clear()


def test_missing_glyphs_are_boxes():
    font = load_font(20)
    box = np.asarray(font.getmask("\U0001f95f"))
    assert box.any()
    np.testing.assert_array_equal(box, np.asarray(font.getmask("\uf8ff")))
    assert not np.array_equal(box, np.asarray(font.getmask("饺")))


# Text


@pytest.mark.parametrize(
    "text", ["两只手臂都有较深肤色的跑步的人", "a runner with a darker skin tone"]
)
def test_ellipsize_gives_the_longest_beginning_that_fits(text):
    font = load_font(14)
    assert drawing.ellipsize(text, font, font.getlength(text)) == text
    short = drawing.ellipsize(text, font, 80)
    beginning = short.removesuffix(drawing.ELLIPSIS)
    assert short != beginning and text.startswith(beginning) and beginning
    assert font.getlength(short) <= 80
    one_more = text[: len(beginning) + 1].rstrip()
    longer = one_more if one_more != beginning else text[: len(beginning) + 2]
    assert font.getlength(longer + drawing.ELLIPSIS) > 80
    assert drawing.ellipsize(text, font, 1) == drawing.ELLIPSIS


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("饺子", ["饺子"]),
        ("一二三四五六七", ["一二三四五", "六七"]),
        ("一二三四五六七八九十百千万", ["一二三四五", "六七八九…"]),
        ("red panda cub", ["red panda", "cub"]),
        ("", [""]),
    ],
)
def test_wrap_breaks_between_words_and_chinese_characters(text, lines):
    font = load_font(20)
    assert drawing.wrap(text, font, 5 * 20, 2) == lines


def test_wrap_ellipsizes_a_word_that_is_too_long():
    font = load_font(20)
    lines = drawing.wrap("antidisestablishmentarianism yes", font, 100, 2)
    assert lines[0].startswith("anti") and lines[0].endswith(drawing.ELLIPSIS)
    assert lines[1] == "yes"
    assert all(font.getlength(line) <= 100 for line in lines)


def test_clean_line_drops_what_only_controls():
    assert drawing.clean_line("  a\t\nb\u200d\ufe0f\u0007 ") == "a b"
    assert drawing.clean_line("\ud83d!") == "\ufffd!"
    assert drawing.clean_line("🥟") == "🥟"


# Pictures in cards


def test_fit_keeps_the_aspect_and_lays_alpha_on_white():
    square = np.asarray(drawing.fit(plain(20, 40), 80))
    assert square.shape == (80, 80, 3)
    assert (
        (square[20:60] == RED).all() and (square[:20] == 255).all() and (square[60:] == 255).all()
    )
    clear = np.asarray(drawing.fit(plain(colour=(*RED, 0)), 80))
    assert (clear == 255).all()
    half = np.asarray(drawing.fit(plain(colour=(*RED, 128)), 80))
    assert np.abs(half[0, 0].astype(int) - (np.array(RED) + 255) / 2).max() <= 1
    assert drawing.fit(plain(1, 1000), 80).size == (80, 80)


def test_fit_takes_views_that_are_not_contiguous():
    wide = plain(64, 128)
    assert drawing.fit(wide[:, ::-2], 80).size == (80, 80)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.25, 1.0, 1.5])
def test_bars_are_filled_to_their_share(share):
    bar = drawing.bar(200, 8, share, drawing.BAR)
    middle = np.asarray(bar)[4]
    filled = (middle == drawing.BAR).all(axis=-1).sum()
    assert abs(filled - 200 * min(max(share, 0), 1)) <= 2


# Figures


def test_retrieval_is_as_wide_as_promised_and_grows_with_queries():
    title = {"title": "Retrieval", "subtitle": "unseen drawings"}
    texts = draw_retrieval([text_query()], [], **title)
    images = draw_retrieval([], [image_query()], **title)
    both = draw_retrieval([text_query()], [image_query()], **title)
    assert texts.mode == "RGB" and {texts.width, images.width, both.width} == {pictures.WIDTH}
    assert max(texts.height, images.height) < both.height < texts.height + images.height
    two, three = (draw_retrieval([], [image_query()] * n, **title) for n in (2, 3))
    assert two.height == images.height < three.height


@pytest.mark.parametrize("num_results", [1, 3, 8, 19])
def test_every_result_is_drawn(num_results):
    figure = draw_retrieval([text_query(num_results)], [], title="")
    one = count(draw_retrieval([text_query(1)], [], title=""), RED)
    assert one > 70 * 70
    # Cards get narrower, and their pictures smaller, from 7 beside each other on.
    smallest = (pictures.MIN_CARD_WIDTH - 2 * pictures.PADDING) ** 2
    assert num_results * smallest <= count(figure, RED) <= num_results * one
    found = draw_search(text_query(num_results))
    assert count(found, RED) == num_results * count(draw_search(text_query(1)), RED)


def test_only_right_answers_are_green():
    unknown = TextQuery("饺子", (PictureResult(plain(), "早上好", 0.5),))
    assert count(draw_search(unknown), drawing.GREEN) == 0
    legend = count(draw_search(text_query(3, correct=())), drawing.GREEN)
    one, two = (
        count(draw_search(text_query(3, correct=right)), drawing.GREEN) for right in ((0,), (0, 2))
    )
    assert 0 < legend < 200
    assert one - legend > 500 and two - one == one - legend
    wrong, right = (
        count(draw_search(image_query(correct=right)), drawing.GREEN) for right in ((), (0,))
    )
    assert right - wrong > 500


def test_right_answers_may_be_numpy_booleans():
    picture = PictureResult(plain(), "早上好", np.float32(0.5), np.True_)
    marked, known = (
        count(draw_search(TextQuery("饺子", (result,))), drawing.GREEN)
        for result in (picture, PictureResult(plain(), "早上好", 0.5, np.False_))
    )
    assert marked - known > 500


def test_bars_share_the_scale_of_the_largest_score():
    def blue(*scores):
        queries = [image_query(scores=[score], correct=()) for score in scores]
        return count(draw_retrieval([], queries, title=""), drawing.BAR)

    full = blue(0.4)
    assert abs(blue(0.4, 0.2) - 1.5 * full) < 0.03 * full
    assert blue(-0.4) == 0


def test_awkward_texts_and_pictures_are_drawn():
    texts = ["", "\n", "🥟" * 100, "饺子" * 500, "x" * 500, "\ud83d", "a\nb", "\u200b"]
    images = [plain(1, 1), plain(1, 900), plain(900, 2, (*RED, 128)), plain(3, 5)]
    queries = [
        TextQuery(text, tuple(PictureResult(image, text, 1e6) for image in images))
        for text in texts
    ]
    captions = ImageQuery(images[2], tuple(CaptionResult(text, -3.0) for text in texts))
    figure = draw_retrieval(
        queries, [captions], title=texts[3], subtitle=texts[4], text_heading=texts[2]
    )
    assert figure.width == pictures.WIDTH
    right_margin = np.asarray(figure)[:, -pictures.MARGIN :]
    assert (right_margin == np.array(drawing.PAGE)).all()
    for text in texts:
        assert draw_search(captions, title=text, subtitle=text).width == pictures.WIDTH


def test_real_drawings_keep_their_colours(emoji):
    file = emoji.encoded_images("twitter")[emoji.names_zh.index("旗: 日本")]
    flag = np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))
    figure = draw_search(text_query(1, image=flag))
    disc = tuple(int(value) for value in flag[32, 32, :3])
    assert count(figure, disc) > 1000


def test_the_same_data_gives_the_same_bytes(tmp_path):
    paths = [
        save_png(
            tmp_path / folder / "retrieval.png",
            draw_retrieval([text_query()], [image_query()], title="饺子"),
        )
        for folder in ("first", "second")
    ]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert [path.name for path in paths[0].parent.iterdir()] == ["retrieval.png"]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG" and image.width == pictures.WIDTH


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = save_png(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    before = path.read_bytes()

    def full_disk(self, data):
        self.touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_png(path, Image.new("RGB", (8, 8)))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Errors


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        [[[0, 0, 0]]],
    ],
    ids=lambda image: f"{type(image).__name__}{np.shape(image)}",
)
def test_wrong_images_are_refused_with_what_was_got_and_wanted(image):
    message = re.escape(f"got an image of shape {np.shape(image)}") + ".*wanted uint8.*convert"
    with pytest.raises(ValueError, match=message):
        PictureResult(image, "饺子", 0.5)
    with pytest.raises(ValueError, match=message):
        ImageQuery(image, (CaptionResult("饺子", 0.5),))


def test_empty_results_are_refused():
    with pytest.raises(ValueError, match="query '饺子' has no results; give at least one picture"):
        TextQuery("饺子", ())
    with pytest.raises(ValueError, match="no results; give at least one caption"):
        ImageQuery(plain(), ())
    with pytest.raises(ValueError, match="nothing to draw: give at least one"):
        draw_retrieval([], [], title="Retrieval")


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_must_be_finite(score):
    with pytest.raises(ValueError, match="the score of '饺子' is (nan|inf); only finite"):
        PictureResult(plain(), "饺子", score)
    with pytest.raises(ValueError, match="the score of '饺子' is (nan|inf); only finite"):
        CaptionResult("饺子", score)
