"""Image decoding and the evaluation transform, exact against plain Pillow and NumPy."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxlab.data.images import (
    IMAGE_MEAN,
    IMAGE_STD,
    decode_image,
    image_transform,
    normalize,
    squash_resize,
    to_rgb,
)

BICUBIC = Image.Resampling.BICUBIC


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def image_of(mode, size=(23, 17)):
    """A noise image of a mode, (width, height) = size."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = size[::-1] if channels == 1 else (*size[::-1], channels)
    if mode == "1":
        return Image.fromarray(noise(shape)).convert("1")
    if mode == "P":
        return Image.fromarray(noise((*size[::-1], 3))).quantize(16)
    if mode == "I;16":
        return Image.fromarray(noise(shape, dtype=np.uint16))
    return Image.frombytes(mode, size, noise(shape).tobytes())


def original_transform(image, resolution):
    """What torchvision does in the original: resize, convert, ToTensor, Normalize (HWC here)."""
    resized = image.resize((resolution, resolution), BICUBIC).convert("RGB")
    unit = np.asarray(resized).astype(np.float32) / np.float32(255)
    return (unit - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)


def white_composite(rgba):
    """Slow form: alpha composite on white, rounded."""
    rgba = np.asarray(rgba).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK"])
@pytest.mark.parametrize("resolution", [9, 32])
def test_compat_original_is_the_original_transform_exactly(mode, resolution):
    image = image_of(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    ours = image_transform(resolution, compat="original")(data)
    np.testing.assert_array_equal(ours, original_transform(image, resolution))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_images_convert_then_resize(mode):
    image = image_of(mode)
    ours = image_transform(16)(image)
    np.testing.assert_array_equal(ours, original_transform(image.convert("RGB"), 16))
    assert ours.dtype == np.float32 and ours.shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = image_of(mode)
    rgb = decode_image(encode(image))
    assert rgb.mode == "RGB"
    np.testing.assert_allclose(np.asarray(rgb), white_composite(image.convert("RGBA")), atol=1)


def test_a_transparent_pixel_is_white_whatever_colour_lies_under_it():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    data = encode(Image.fromarray(pixels))
    assert (squash_resize(decode_image(data), 4) == 255).all()
    original = squash_resize(decode_image(data, compat="original"), 4)
    assert (original[..., 0] < 255).all()


def test_palette_gray_and_colour_transparency_are_composited():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    gray = Image.fromarray(np.array([[7, 9]], np.uint8))
    colour = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    wide = Image.fromarray(np.array([[257, 514]], np.uint16))
    expected = {"P": [255, 0, 0], "L": [7] * 3, "RGB": [1, 2, 3], "I;16": [1] * 3}
    for image, key in [(palette, 1), (gray, 9), (colour, (4, 5, 6)), (wide, 514)]:
        rgb = np.asarray(decode_image(encode(image, transparency=key)))[0]
        assert rgb[0].tolist() == expected[image.mode], image.mode
        assert rgb[1].tolist() == [255, 255, 255], image.mode


def test_sixteen_bits_are_scaled_by_1_over_257():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    ours = np.asarray(decode_image(encode(Image.fromarray(values))))
    np.testing.assert_array_equal(ours[..., 0], np.rint(values / 257.0))
    saturated = squash_resize(decode_image(encode(Image.fromarray(values)), compat="original"), 256)
    assert (saturated[2:] == 255).all()


def test_cmyk_jpeg_decodes():
    rgb = decode_image(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert rgb.mode == "RGB" and (np.asarray(rgb) >= 250).all()


def test_exif_orientation_is_an_option():
    image = Image.fromarray(noise((4, 6, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encode(image, exif=exif)
    assert decode_image(data).size == (6, 4)
    turned = decode_image(data, apply_exif=True)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), k=-1))


def test_animated_images_give_their_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode_image(data)) == [255, 0, 0]).all()


def test_one_pixel_fills_the_square():
    pixels = squash_resize(Image.new("RGB", (1, 1), (10, 20, 30)), 7)
    assert pixels.shape == (7, 7, 3) and (pixels == [10, 20, 30]).all()


def test_an_image_of_the_right_size_passes_unchanged():
    pixels = noise((12, 12, 3))
    np.testing.assert_array_equal(squash_resize(Image.fromarray(pixels), 12), pixels)


def test_the_aspect_is_squashed_not_cropped():
    image = Image.new("RGB", (40, 10))
    image.paste((255, 255, 255), (0, 0, 20, 10))
    column_means = squash_resize(image, 10).mean((0, 2))
    assert (column_means[:4] > 250).all() and (column_means[6:] < 5).all()


def test_layout_chw_is_the_transpose():
    image = image_of("RGB")
    hwc, chw = image_transform(8)(image), image_transform(8, layout="CHW")(image)
    np.testing.assert_array_equal(chw, np.moveaxis(hwc, -1, 0))
    assert chw.flags.c_contiguous


def test_normalize_takes_bytes_and_unit_floats_numpy_and_jax():
    pixels = noise((2, 3, 4, 3))
    expected = (pixels / 255.0 - IMAGE_MEAN) / IMAGE_STD
    for given_pixels in (pixels, pixels.astype(np.float32) / 255, jnp.asarray(pixels)):
        ours = normalize(given_pixels)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(np.asarray(ours), expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"shape \(3, 4\).*last axis"):
        normalize(np.zeros((3, 4)))


def test_resolution_must_be_positive():
    with pytest.raises(ValueError, match="resolution=0 is not positive"):
        image_transform(0)


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="layout='NHWC' is not one of 'HWC', 'CHW'"):
        image_transform(8, layout="NHWC")
    for call in (lambda: image_transform(8, compat="pil"), lambda: decode_image(b"", compat="pil")):
        with pytest.raises(ValueError, match="compat='pil' is not one of 'white', 'original'"):
            call()


def test_to_rgb_takes_any_background():
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    assert (np.asarray(to_rgb(clear, (1, 2, 3))) == [1, 2, 3]).all()


@pytest.mark.parametrize(
    "data", [b"", b"not an image", encode(image_of("RGB"))[:-30], encode(image_of("RGB"))[:40]]
)
def test_corrupt_bytes_name_the_example(data):
    with pytest.raises(ValueError, match=f"example 417: {len(data)} bytes .* cannot be decoded"):
        decode_image(data, example_id=417)


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]))
@settings(max_examples=120, deadline=None)
def test_a_damaged_byte_gives_an_image_or_a_value_error(position, value, file_format):
    data = bytearray(encode(image_of("RGB", (6, 5)), file_format))
    data[position % len(data)] = value
    try:
        image = decode_image(bytes(data), example_id=1)
    except ValueError as error:
        assert "example 1" in str(error)
    else:
        assert image.mode == "RGB" and min(image.size) >= 1
