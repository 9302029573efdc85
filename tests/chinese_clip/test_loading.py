"""One door for weights: every form, parts, image sizes, and words for what is something else."""

import json

import jax
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.checkpoints.foreign.safetensors import write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.chinese_clip.huggingface import save_huggingface
from jaxlab.chinese_clip.loading import find_weights, load_weights
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import save_published, variable_shapes
from jaxlab.chinese_clip.weights import original_state_dict, save_original
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.positions import resize_positions
from jaxlab.layers.vit import VisionTransformerConfig

CONFIG = ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 64, 1, 24, 12),
    BertConfig(vocab_size=30, num_layers=1, width=64, num_heads=1, mlp_width=24, max_positions=20),
    context_length=20,
)
FORMS = ("published", "run", "huggingface", "tensors", "pt", "safetensors", "bare")


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    shapes = variable_shapes(CONFIG)
    return unflatten({p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()})


@pytest.fixture(scope="module")
def paths(variables, tmp_path_factory):
    """The model in every form."""
    folder = tmp_path_factory.mktemp("forms")
    save_published(folder / "published", variables, CONFIG)
    save_published(folder / "run" / "model", variables, CONFIG)
    save_huggingface(folder / "huggingface", variables, CONFIG)
    save_original(folder / "clip.pt", variables, CONFIG)
    save_original(folder / "clip.safetensors", variables, CONFIG)
    # The content decides, not the name.
    write_torch_zip(folder / "epoch_latest.ckpt", original_state_dict(variables, CONFIG))
    return {
        "published": folder / "published",
        "run": folder / "run",
        "huggingface": folder / "huggingface",
        "tensors": folder / "huggingface" / "model.safetensors",
        "pt": folder / "clip.pt",
        "safetensors": folder / "clip.safetensors",
        "bare": folder / "epoch_latest.ckpt",
    }


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model(form, paths, variables):
    weights = load_weights(str(paths[form]))
    assert weights.config == CONFIG
    assert_equal(weights.variables, variables)


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_read_alone(form, paths, variables):
    for parts in (["visual"], ["bert", "text_projection"]):
        weights = load_weights(paths[form], parts=parts)
        assert weights.config == CONFIG
        assert_equal(weights.variables, {"params": {p: variables["params"][p] for p in parts}})
    with pytest.raises(ValueError, match=r"parts=\['text'\] are not parts"):
        load_weights(paths[form], parts=["text"])


@pytest.mark.parametrize("form", ["published", "pt", "huggingface"])
def test_damage_in_another_part_does_not_matter(form, paths, variables, tmp_path):
    """The bytes of the other parts are not read: turned into garbage, they change nothing."""
    source = paths[form]
    if source.is_dir():
        for path in source.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        place, file = tmp_path, tmp_path / "model.safetensors"
    else:
        place = file = tmp_path / source.name
    data = bytearray((file if source.is_dir() else source).read_bytes())
    words = variables["params"]["bert"]["word_embeddings"].tobytes()
    at = data.find(words)
    assert at > 0
    data[at : at + len(words)] = b"\xff" * len(words)
    file.write_bytes(data)
    weights = load_weights(place, parts=["visual"])
    assert_equal(weights.variables, {"params": {"visual": variables["params"]["visual"]}})
    if form != "huggingface":  # safetensors of others carry no checksum
        with pytest.raises(ValueError, match=r"SHA-256|CRC-32"):
            load_weights(place)


def base_of(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("form", FORMS)
def test_arrays_are_views_of_the_mapped_file(form, paths):
    """No second copy in memory: every array, transposed or cut from a joint matrix, is a view."""
    for path, array in flatten(load_weights(paths[form]).variables).items():
        assert not isinstance(base_of(array), np.ndarray), path
        assert not array.flags.writeable, path


def test_half_precision_is_converted_array_by_array(paths, variables, tmp_path):
    state = original_state_dict(variables, CONFIG)
    write_torch_zip(tmp_path / "half.pt", {n: a.astype(np.float16) for n, a in state.items()})
    arrays = flatten(load_weights(tmp_path / "half.pt").variables)
    owners = [id(base_of(array)) for array in arrays.values()]
    assert len(set(owners)) == len(owners), "no array keeps the memory of another alive"
    for path, array in flatten(variables).items():
        np.testing.assert_array_equal(arrays[path], array.astype(np.float16))


@pytest.mark.parametrize("form", ["published", "pt", "huggingface"])
def test_another_image_size_resizes_the_positions(form, paths, variables):
    weights = load_weights(paths[form], image_size=24)
    assert weights.config.vision.image_size == 24
    np.testing.assert_array_equal(
        weights.variables["params"]["visual"]["positional_embedding"],
        resize_positions(variables["params"]["visual"]["positional_embedding"], 3),
    )
    with pytest.raises(ValueError, match=r"image_size=20 is not a multiple of patch_size=8"):
        load_weights(paths[form], image_size=20)
    text = load_weights(paths[form], parts=["bert"], image_size=24)
    assert text.config == weights.config and set(text.variables["params"]) == {"bert"}


def test_nothing_and_the_home_directory(paths, monkeypatch):
    monkeypatch.setenv("HOME", str(paths["pt"].parent))
    assert load_weights("~/clip.pt").config == CONFIG
    with pytest.raises(
        FileNotFoundError, match=r"nowhere does not exist; give a folder with model"
    ):
        load_weights("nowhere")


def write(path, *names):
    write_safetensors(path, {name: np.ones((2, 2), np.float32) for name in names})


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        (
            "tower.safetensors",
            lambda p: write(p, "visual.proj", "logit_scale"),
            r"the image tower of a CLIP and no Chinese CLIP; load_image_tower reads it, .*image_to",
        ),
        (
            "bert.safetensors",
            lambda p: write(p, "embeddings.word_embeddings.weight"),
            r"a BERT and no Chinese CLIP; load_text_tower reads it, .*config\.text_tower",
        ),
        (
            "hf.safetensors",
            lambda p: write(p, "text_model.a", "vision_model.b"),
            r"Hugging Face's tensors, without the config\.json that stands beside them; give",
        ),
        (
            "ours.safetensors",
            lambda p: write(p, "params/logit_scale"),
            r"a folder's tensors, without the config\.json that stands beside them; give",
        ),
        (
            "resnet.safetensors",
            lambda p: write(p, "fc.weight", "fc.bias"),
            r"a file of other tensors \(fc\.(weight|bias), fc\.(weight|bias), \.\.\.\); give a fol",
        ),
        (
            "text.pt",
            lambda p: p.write_text("<!DOCTYPE html><html>"),
            r"text\.pt is not a file of torch\.save: it starts with b'<!DOCTYPE html><'",
        ),
        ("empty.pt", lambda p: p.write_bytes(b""), r"empty\.pt is empty \(0 bytes\)"),
    ],
)
def test_other_files_are_told(name, make, told, tmp_path):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=told):
        load_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, r"is a folder without config\.json, and without weights in it; give a folder with"),
        (
            {"epoch1.pt": b"", "epoch_latest.pt": b""},
            r"of which one is to be given \(epoch1\.pt, epoch_latest\.pt\)",
        ),
        ({"pytorch_model.bin": b""}, r"tensors \(pytorch_model\.bin\) without config\.json"),
        ({"config.json": {"model_type": "blip"}}, r"whose config\.json has model_type='blip'"),
        ({"config.json": {"format": "other"}}, r"whose config\.json has format='other'"),
        ({"config.json": {"model_type": "clip"}}, r"Hugging Face CLIP and no Chinese CLIP; load_i"),
        ({"config.json": {"model_type": "bert"}}, r"Hugging Face BERT and no Chinese CLIP; load_t"),
        ({"config.json": b"{"}, r"config\.json is not JSON"),
    ],
)
def test_other_folders_are_told(files, told, tmp_path):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=told):
        load_weights(tmp_path)


def test_what_is_found_is_said(paths):
    found = {form: find_weights(path) for form, path in paths.items()}
    assert {form: place.kind for form, place in found.items()} == {
        "published": "published",
        "run": "published",
        "huggingface": "huggingface",
        "tensors": "huggingface",
        "pt": "original",
        "safetensors": "original",
        "bare": "original",
    }
    assert found["run"].path == paths["run"] / "model"
    assert found["tensors"].path == paths["huggingface"]
    assert found["pt"].description == "a file of the original's names"
