"""Using a loaded model: what goes in, what comes out, what is refused."""

import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.inputs import pad_rows
from jaxlab.data.images import image_transform
from jaxlab.parallel import make_mesh
from jaxlab.text import WordPieceTokenizer

TEXTS = ["杰尼龟", "一只猫坐在窗边看外面的雨", "", "a"]


helpers = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_model.py"))))
CONFIG, encoded, picture = helpers.CONFIG, helpers.encoded, helpers.picture


@pytest.fixture(scope="module")
def model():
    return helpers.tiny_model()


@pytest.fixture(scope="module")
def reference():
    """The towers by themselves, a row at a time: `(images, texts) -> features`."""
    weights = helpers.tiny_weights()
    network = clip.ChineseClip(CONFIG)
    transform, tokenizer = image_transform(16), WordPieceTokenizer()
    apply = jax.jit(network.apply, static_argnames="method")

    def image(data):
        return apply(weights.variables, transform(data)[None], method="encode_image")[0]

    def text(words):
        return apply(weights.variables, tokenizer.tokenize(words, 52), method="encode_text")[0]

    return image, text


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_features_are_those_of_the_towers_alone(model, reference):
    data = [encoded(picture(i)) for i in range(5)]
    wanted = np.stack([reference[0](one) for one in data])
    np.testing.assert_allclose(model.encode_image(data, normalized=False), wanted, atol=2e-6)
    np.testing.assert_allclose(model.encode_image(data), unit(wanted), atol=2e-6)
    wanted = np.stack([reference[1](text) for text in TEXTS])
    np.testing.assert_allclose(model.encode_text(TEXTS, normalized=False), wanted, atol=2e-6)
    np.testing.assert_allclose(model.encode_text(TEXTS), unit(wanted), atol=2e-6)


def test_all_forms_of_a_picture_give_the_same_feature(model, tmp_path):
    image = picture()
    data = encoded(image)
    path = tmp_path / "图 1.png"
    path.write_bytes(data)
    array = np.asarray(image)
    forms = [path, str(path), data, image, array]
    features = model.encode_image(forms)
    assert features.shape == (5, 12) and features.dtype == np.float32
    np.testing.assert_array_equal(features, np.repeat(features[:1], 5, axis=0))
    alone = model.encode_image(path)
    assert alone.shape == (1, 12)
    np.testing.assert_allclose(alone[0], features[0], atol=1e-6)
    np.testing.assert_allclose(model.encode_image(np.stack([array] * 2)), features[:2], atol=1e-6)
    ready = np.stack([model.image_transform(form) for form in forms])
    np.testing.assert_allclose(model.encode_image(ready), features, atol=1e-6)
    channels_first = ready.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(model.encode_image(channels_first), features, atol=1e-6)
    pixels = np.stack([model.squash(form) for form in forms])
    np.testing.assert_allclose(model.encode_pixels(pixels), features, atol=1e-6)
    from_generator = model.encode_image(form for form in forms)
    np.testing.assert_array_equal(from_generator, features)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16", "CMYK", "YCbCr"])
def test_pictures_of_every_mode_are_encoded_like_their_rgb_form(model, mode):
    image = picture(mode=mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    data = encoded(image, kind)
    from jaxlab.data.images import decode_image

    rgb = decode_image(data)
    assert rgb.mode == "RGB"
    np.testing.assert_array_equal(model.encode_image([data]), model.encode_image([rgb]))
    assert np.isfinite(model.encode_image([image])).all()


def test_one_pixel_and_the_first_frame_of_an_animation(model):
    one = picture(size=(1, 1))
    flat = Image.new("RGB", (30, 30), one.getpixel((0, 0)))
    np.testing.assert_allclose(model.encode_image([one]), model.encode_image([flat]), atol=1e-6)
    frames = [picture(i).quantize(64) for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
        first = opened.convert("RGB")
    np.testing.assert_allclose(model.encode_image([data]), model.encode_image([first]), atol=1e-6)


def test_exif_orientation_turns_pictures_only_when_asked(model):
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encoded(image, "PNG", exif=exif)
    np.testing.assert_array_equal(model.encode_image([data]), model.encode_image([image]))
    turning = helpers.tiny_model(apply_exif=True)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(turning.encode_image([data]), model.encode_image([turned]))


def test_compat_original_resizes_before_it_converts():
    data = encoded(picture(mode="RGBA"))
    ours, original = (helpers.tiny_model(compat=compat) for compat in ("white", "original"))
    wanted = image_transform(16, compat="original")(data)
    np.testing.assert_allclose(original.image_transform(data), wanted, atol=1e-6)
    assert np.abs(ours.image_transform(data) - wanted).max() > 0.1


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (None, TypeError, "images is None; give one picture"),
        (3, TypeError, "images is 3; give one picture"),
        ([None], TypeError, r"images\[0\]: got NoneType; wanted the path of a picture"),
        ([b""], ValueError, r"images\[0\]: image of example in memory: 0 bytes"),
        ([b"\x89PNG\r\n"], ValueError, "cannot be decoded"),
        (["absent.png"], FileNotFoundError, "absent.png is not a file; give the path of a picture"),
        (np.zeros((4, 4, 3), np.int32), ValueError, "got an array of type int32 and shape"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "wanted uint8"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "wanted uint8"),
        (np.zeros((2, 8, 8, 3), np.float32), ValueError, "must be what image_transform makes"),
        (np.zeros((16, 16, 3), np.float32), ValueError, "must be what image_transform makes"),
    ],
)
def test_what_is_no_picture_is_refused(model, images, kind, message):
    with pytest.raises(kind, match=message):
        model.encode_image(images)


def test_nothing_gives_no_rows(model):
    for features in (model.encode_image([]), model.encode_text([])):
        assert features.shape == (0, 12) and features.dtype == np.float32
    assert model.tokenize([]).shape == (0, 52)
    found = model.similarity([picture()], [])
    assert found.cosines.shape == found.probabilities.shape == (1, 0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts"),
        (7, "texts"),
        (["a", None], r"texts\[1\] is None of type NoneType"),
        (["a", 7], r"texts\[1\] is 7 of type int"),
    ],
)
def test_what_is_no_text_is_refused_by_its_index(model, texts, message):
    for call in (model.encode_text, model.tokenize):
        with pytest.raises(TypeError, match=message):
            call(texts)


def test_bytes_are_read_as_utf8_without_what_is_invalid(model):
    data = "杰尼龟".encode()
    np.testing.assert_array_equal(model.tokenize(data), model.tokenize("杰尼龟"))
    np.testing.assert_array_equal(model.tokenize([data + b"\xff"]), model.tokenize("杰尼龟"))
    np.testing.assert_array_equal(model.encode_text(data), model.encode_text("杰尼龟"))


def test_an_empty_text_is_a_valid_text(model, reference):
    assert model.tokenize("")[0, :3].tolist() == [101, 102, 0]
    np.testing.assert_allclose(
        model.encode_text("")[0], unit(np.asarray(reference[1](""))), atol=2e-6
    )


def test_context_length_is_bounded_and_what_is_cut_is_told(model):
    assert model.tokenize("猫" * 3, 3).tolist() == [[101, 4344, 102]]
    for length in (2, 513):
        with pytest.raises(ValueError, match=f"context_length={length} is not between 3 and 512"):
            model.tokenize("猫", length)
    ids, truncated = model.tokenize(["猫" * 50, "猫" * 51], return_truncated=True)
    assert ids.shape == (2, 52) and truncated.tolist() == [False, True]
    assert model.encode_text(model.tokenize("猫" * 60, 64)).shape == (1, 12)
    with pytest.raises(ValueError, match="at most 64 tokens a text"):
        model.encode_text(model.tokenize("猫", 65))
    with pytest.raises(ValueError, match="the vocabulary has 21128 entries"):
        model.encode_text(np.array([[101, 30000, 102]]))


def test_curly_quotes_are_cleaned_where_texts_are_encoded_and_not_where_they_are_tokenized(model):
    assert 100 in model.tokenize("“猫”") and 100 not in model.tokenize("“猫”", clean=True)
    np.testing.assert_array_equal(model.encode_text("“猫”"), model.encode_text('"猫"'))
    raw = model.encode_text("“猫”", clean=False)
    np.testing.assert_allclose(raw, model.encode_text(model.tokenize("“猫”")), atol=1e-6)
    assert np.abs(raw - model.encode_text("“猫”")).max() > 1e-3


def test_less_padding_gives_the_same_features_and_padding_alone_keeps_its_length(model, reference):
    ids = model.tokenize(TEXTS)
    full = np.stack([reference[1](text) for text in TEXTS])
    np.testing.assert_allclose(model.encode_text(ids, normalized=False), full, atol=2e-6)
    with_blank = np.concatenate([ids, np.zeros((1, 52), np.int32)])
    assert np.isfinite(model.encode_text(with_blank)).all()


def test_similarity_is_that_of_the_original(model, reference):
    data, texts = [encoded(picture(i)) for i in range(3)], TEXTS[:2]
    f, g = unit([reference[0](d) for d in data]), unit([reference[1](t) for t in texts])
    logits = 100.0 * f @ g.T
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = model.similarity(data, texts)
    np.testing.assert_allclose(found.cosines, f @ g.T, atol=2e-6)
    np.testing.assert_allclose(found.logits_per_image, logits, atol=4e-4)
    np.testing.assert_allclose(found.probabilities, exp / exp.sum(axis=1, keepdims=True), atol=2e-4)
    from_features = model.similarity(model.encode_image(data), 7 * model.encode_text(texts))
    np.testing.assert_allclose(from_features.cosines, found.cosines, atol=1e-6)
    with pytest.raises(ValueError, match="those of this model are 12 long"):
        model.similarity(np.zeros((1, 7), np.float32), texts)


def test_a_zero_vector_has_cosine_zero_and_no_nan(model):
    found = model.similarity(np.zeros((1, 12), np.float32), ["猫", "狗"])
    np.testing.assert_array_equal(found.cosines, 0.0)
    np.testing.assert_allclose(found.probabilities, 0.5)


def test_match_probability_needs_a_calibration_and_uses_it(model):
    with pytest.raises(ValueError, match="has no calibration: cosines of matching pairs"):
        model.match_probability(picture(), "猫")
    calibration = clip.fit_calibration(np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.3]))
    calibrated = model.with_calibration(calibration)
    cosine = model.similarity([picture()], ["猫"]).cosines
    found = calibrated.match_probability([picture()], ["猫"])
    np.testing.assert_allclose(found, calibration.probability(cosine), rtol=1e-6)


def test_batches_are_padded_to_few_shapes():
    for rows, devices, padded in ((1, 1, 1), (3, 1, 4), (5, 1, 8), (5, 8, 8), (17, 8, 32)):
        block = np.arange(rows)[:, None]
        out = pad_rows(block, devices)
        assert len(out) == padded
        np.testing.assert_array_equal(out[:rows], block)
        assert (out[rows:] == rows - 1).all()


def test_devices_and_batch_size_do_not_change_the_features(model):
    data = [encoded(picture(i)) for i in range(11)]
    spread = helpers.tiny_model(mesh=make_mesh(), batch_size=4)
    assert spread.mesh.size == 8
    np.testing.assert_allclose(spread.encode_image(data), model.encode_image(data), atol=1e-6)
    np.testing.assert_allclose(spread.encode_text(TEXTS), model.encode_text(TEXTS), atol=1e-6)


def test_bfloat16_stays_near_float32(model):
    half = helpers.tiny_model(dtype=jnp.bfloat16)
    data = [encoded(picture(i)) for i in range(4)]
    for ours, theirs in (
        (half.encode_image(data), model.encode_image(data)),
        (half.encode_text(TEXTS), model.encode_text(TEXTS)),
    ):
        assert ours.dtype == np.float32
        assert (ours * theirs).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_one_tower_alone(model, tower, other):
    alone = helpers.tiny_model(towers=tower)
    assert "visual" in alone.variables["params"] if tower == "image" else "bert"
    assert len(jax.tree.leaves(alone.variables)) < len(jax.tree.leaves(model.variables))
    assert set(alone.fingerprints) == {tower}
    assert alone.fingerprints[tower] == model.fingerprints[tower]
    inputs = {"image": [picture()], "text": ["猫"]}
    encode = {"image": "encode_image", "text": "encode_text"}
    ours = getattr(alone, encode[tower])(inputs[tower])
    np.testing.assert_allclose(ours, getattr(model, encode[tower])(inputs[tower]), atol=1e-6)
    with pytest.raises(ValueError, match=f"was loaded without its {other} tower"):
        getattr(alone, encode[other])(inputs[other])


def test_fingerprints_tell_models_apart(model):
    same, other = helpers.tiny_model(), helpers.tiny_model(seed=1)
    assert same.fingerprints == model.fingerprints
    assert set(other.fingerprints.values()).isdisjoint(model.fingerprints.values())


def test_models_load_from_folders_and_files_with_their_calibration(model, tmp_path):
    weights = helpers.tiny_weights()
    clip.save_published(tmp_path / "ours", weights.variables, CONFIG)
    clip.save_original(tmp_path / "original.pt", weights.variables, CONFIG)
    one = make_mesh(devices=jax.devices()[:1])
    for path in (tmp_path / "ours", tmp_path / "original.pt"):
        loaded = clip.load(path, mesh=one)
        assert loaded.fingerprints == model.fingerprints and loaded.calibration is None
    calibration = clip.fit_calibration(np.array([0.5, 0.6]), np.array([0.1, 0.2]))
    calibration.save(tmp_path / "ours" / "calibration.json")
    assert clip.load(tmp_path / "ours", mesh=one).calibration == calibration
    (tmp_path / "run").mkdir()
    (tmp_path / "ours").rename(tmp_path / "run" / "model")
    assert clip.load(tmp_path / "run", mesh=one).calibration == calibration


def test_models_print_as_one_line_without_their_weights(model):
    assert repr(model).startswith("LoadedModel(") and "towers=image+text" in repr(model)
    assert len(repr(model)) < 200 and "\n" not in repr(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"towers": "audio"}, "towers='audio' is unknown; use one of both, image, text"),
        ({"batch_size": 0}, "batch_size=0 is not positive"),
        ({"compat": "x"}, "compat='x' is not one of"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        clip.load(helpers.tiny_weights(), **options)


def test_weights_without_the_wanted_tower_are_refused():
    tower = clip.load_english_tower()
    with pytest.raises(ValueError, match="no tower for towers='text'"):
        clip.load(tower, towers="text")
