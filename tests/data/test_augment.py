"""Host augmentation: crop boxes, AutoAugment's table and arithmetic, determinism."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxlab.data.augment import AugmentConfig, augment_image, random_crop_box, train_transform
from jaxlab.data.autoaugment import FILL, OPERATIONS, POLICY, auto_augment
from jaxlab.data.images import IMAGE_MEAN, image_transform, squash_resize

PLAIN = AugmentConfig(crop_scale=(1.0, 1.0), flip_probability=0.0, auto_augment=False)


class Fixed(np.random.Generator):
    """A generator that draws one sub-policy, and zeros: operations run, signs are positive."""

    def __init__(self, index):
        super().__init__(np.random.PCG64(0))
        self.index = index

    def integers(self, *args):
        return self.index

    def random(self, *args):
        return 0.0


class Drawn(np.random.Generator):
    """A generator that always draws one sub-policy and is random otherwise."""

    def __init__(self, index):
        super().__init__(np.random.PCG64(0))
        self.index = index

    def integers(self, *args):
        return self.index


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize((48, 40), Image.Resampling.BICUBIC)


def pixels(image):
    return np.asarray(image).astype(int)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_crop_boxes_lie_inside_and_keep_their_share(width, height, seed):
    left, top, right, bottom = random_crop_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    box_width, box_height = right - left, bottom - top
    if min(width, height) > 20 and 3 / 4 <= width / height <= 4 / 3:
        assert (box_width + 1) * (box_height + 1) >= 0.9 * width * height
    if min(width, height) > 20:
        assert 0.7 < box_width / box_height < 1.43


@pytest.mark.parametrize(("size", "expected"), [((400, 100), (133, 100)), ((100, 400), (100, 133))])
def test_a_strip_falls_back_to_the_largest_centred_box(size, expected):
    left, top, right, bottom = random_crop_box(*size, np.random.default_rng(0))
    assert (right - left, bottom - top) == expected
    assert abs((left + right) - size[0]) <= 1 and abs((top + bottom) - size[1]) <= 1


def test_crop_shares_are_uniform_and_places_cover_the_image():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(1000, 1000, rng, (0.5, 0.7)) for _ in range(2000)])
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    assert 0.499 < share.min() and share.max() < 0.701
    # Mean of a uniform draw: standard error 0.2 / sqrt(12 * 2000) = 0.0013.
    assert abs(share.mean() - 0.6) < 0.006
    slack = 1000 - (boxes[:, 2] - boxes[:, 0])
    assert abs((boxes[:, 0] / slack).mean() - 0.5) < 0.03


def test_without_randomness_it_is_the_evaluation_transform(photo):
    view = augment_image(photo.crop((0, 0, 40, 40)), 16, np.random.default_rng(0), PLAIN)
    squashed = squash_resize(photo.crop((0, 0, 40, 40)), 16)
    np.testing.assert_array_equal(np.asarray(view), squashed)


def test_flip_is_switchable_and_mirrors(photo):
    square = photo.crop((0, 0, 40, 40))
    config = AugmentConfig(crop_scale=(1.0, 1.0), flip_probability=1.0, auto_augment=False)
    view = augment_image(square, 16, np.random.default_rng(0), config)
    np.testing.assert_array_equal(np.asarray(view), squash_resize(square, 16)[:, ::-1])


def test_the_same_generator_state_gives_the_same_view_and_another_another(photo):
    views = [pixels(augment_image(photo, 32, np.random.default_rng(s))) for s in (5, 5, 6)]
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()


def test_train_transform_takes_bytes_or_images_and_normalises(photo):
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    transform = train_transform(24)
    a = transform(buffer.getvalue(), np.random.default_rng(1))
    b = transform(photo, np.random.default_rng(1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (24, 24, 3) and a.dtype == np.float32
    square = photo.crop((0, 0, 40, 40))
    plain = train_transform(24, PLAIN)(square, np.random.default_rng(1))
    np.testing.assert_array_equal(plain, image_transform(24)(square))


def test_transparent_images_are_composited_before_they_are_cropped():
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert (pixels(augment_image(clear, 8, np.random.default_rng(0), PLAIN)) == 255).all()


@pytest.mark.parametrize(
    "options",
    [{"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.9, 1.1)}, {"crop_ratio": (2.0, 1.0)}]
    + [{"flip_probability": 1.5}],
)
def test_config_names_the_bad_field(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        AugmentConfig(**options)


def test_the_policy_is_the_published_table():
    """Counts and sums over the table of 25 sub-policies, and the rows that are easy to misread."""
    assert len(POLICY) == 25 and all(len(pair) == 2 for pair in POLICY)
    flat = [operation for pair in POLICY for operation in pair]
    count = {name: sum(o[0] == name for o in flat) for name in OPERATIONS}
    assert count == {
        "rotate": 6, "shear_x": 1, "posterize": 5, "solarize": 7, "color": 6, "contrast": 2,
        "sharpness": 1, "equalize": 17, "auto_contrast": 2, "invert": 3,
    }  # fmt: skip
    assert sum(o[1] for o in flat) == pytest.approx(31.0) and sum(o[2] for o in flat) == 287
    assert POLICY[12] == (("equalize", 0.0, 7), ("equalize", 0.8, 8))
    assert POLICY[2] == POLICY[24] and POLICY[4] == POLICY[20] and POLICY[13] == POLICY[22]
    assert round(255 * IMAGE_MEAN[0]) == FILL[0] and round(255 * IMAGE_MEAN[2]) == FILL[2]


@pytest.mark.parametrize(
    ("name", "level", "formula"),
    [
        ("invert", 4, lambda x: 255 - x),
        ("solarize", 5, lambda x: np.where(x >= 128, 255 - x, x)),
        ("solarize", 10, lambda x: x),
        ("posterize", 8, lambda x: x & 0b11111110),
        ("posterize", 5, lambda x: x & 0b11111100),
        ("posterize", 10, lambda x: x),
    ],
)
def test_pointwise_operations(photo, name, level, formula):
    result = OPERATIONS[name](photo, level, 1)
    np.testing.assert_array_equal(pixels(result), formula(pixels(photo)))


def test_color_level_is_a_factor_of_saturation(photo):
    gray = pixels(photo.convert("L"))[..., None]
    for level, factor in ((0, 0.1), (5, 1.0), (8, 1.54)):
        expected = np.clip(gray + factor * (pixels(photo) - gray), 0, 255)
        result = pixels(OPERATIONS["color"](photo, level, 1))
        assert np.abs(result - expected).max() <= 1


def test_contrast_and_sharpness_at_factor_one_change_nothing(photo):
    for name in ("contrast", "sharpness", "color"):
        assert np.abs(pixels(OPERATIONS[name](photo, 5, 1)) - pixels(photo)).max() <= 1
    spread = [pixels(OPERATIONS["contrast"](photo, level, 1)).std() for level in (2, 5, 8)]
    assert spread[0] < spread[1] < spread[2]


def test_auto_contrast_and_equalize_use_the_whole_range():
    dull = Image.fromarray(np.tile(np.arange(100, 150, dtype=np.uint8), (8, 1))).convert("RGB")
    for name in ("auto_contrast", "equalize"):
        result = pixels(OPERATIONS[name](dull, 9, 1))
        assert result.min() <= 5 and result.max() == 255


@pytest.mark.parametrize(("sign", "turn"), [(1, 1), (-1, -1)])
def test_rotate_turns_by_three_degrees_a_level(sign, turn):
    dot = Image.new("RGB", (101, 101))
    dot.paste((255, 255, 255), (88, 48, 93, 53))  # 40 to the right of the centre
    result = pixels(OPERATIONS["rotate"](dot, 10, sign))
    np.testing.assert_array_equal(result[0, 0], FILL)
    ys, xs = np.nonzero((result > 200).all(-1))
    angle = np.degrees(np.arctan2(50 - ys.mean(), xs.mean() - 50))
    assert angle == pytest.approx(30 * turn, abs=1)


def test_shear_moves_rows_by_three_hundredths_a_level():
    line = Image.new("RGB", (100, 101))
    line.paste((255, 255, 255), (50, 0, 53, 101))
    result = pixels(OPERATIONS["shear_x"](line, 10, 1))
    center = [np.nonzero((result[y] > 200).all(-1))[0].mean() for y in (0, 100)]
    assert center[0] - center[1] == pytest.approx(30, abs=1)
    np.testing.assert_array_equal(result[100, 99], FILL)


@pytest.mark.parametrize("index", range(25))
def test_every_sub_policy_applies_its_operations_in_order(photo, index):
    expected = photo
    for name, _, level in POLICY[index]:
        expected = OPERATIONS[name](expected, level, 1)
    if POLICY[index][0][1] == 0.0:  # never runs
        expected = OPERATIONS["equalize"](photo, 8, 1)
    result = auto_augment(photo, Fixed(index))
    np.testing.assert_array_equal(pixels(result), pixels(expected))


def test_operations_run_with_their_probability(photo):
    """Sub-policy 15 always raises the contrast; its first operation runs in 6 of 10."""

    always = OPERATIONS["contrast"](photo, 8, 1)
    rng = Drawn(14)
    hits = sum((pixels(auto_augment(photo, rng)) != pixels(always)).any() for _ in range(300))
    # Binomial(300, 0.6): standard deviation 8.5, so 4.1 of them to either side.
    assert abs(hits - 180) < 35


def test_auto_augment_refuses_other_modes():
    with pytest.raises(ValueError, match="mode L; AutoAugment takes RGB"):
        auto_augment(Image.new("L", (4, 4)), np.random.default_rng(0))
