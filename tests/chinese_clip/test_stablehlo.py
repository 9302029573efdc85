"""StableHLO programs: any batch, three platforms, the module's numbers; broken copies refused."""

import hashlib
import importlib.util
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from jaxlab import chinese_clip as clip
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip import published
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

TEXT = BertConfig(
    vocab_size=50, num_layers=1, width=16, num_heads=2, mlp_width=24, max_positions=20
)
VIT = clip.ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12), TEXT, context_length=8
)
RESNET = clip.ChineseClipConfig(
    ModifiedResNetConfig(
        image_size=18, stem_width=8, stages=(1,), expansion=2, num_heads=2, output_dim=12
    ),
    TEXT,
    context_length=8,
)


def draw(config):
    """Weights of about the size that keeps activations near 1; norms are not the identity."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in published.variable_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if path.endswith(("scale", "var")):
            values = 1 + 0.2 * np.abs(values)
        else:
            values *= 0.3 if len(shape) < 2 else float(np.prod(shape[:-1])) ** -0.5
        flat[path] = values
    return published.unflatten(flat)


def inputs(config, rows=64):
    rng = np.random.default_rng(1)
    size = config.vision.image_size
    ids = rng.integers(1, config.text.vocab_size, (rows, config.context_length))
    for row, length in enumerate(rng.integers(0, config.context_length + 1, rows)):
        ids[row, length:] = 0  # some rows are padding alone
    return rng.standard_normal((rows, 3, size, size), dtype=np.float32), ids


def cosines(a, b):
    return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Programs of the small ViT; tests that break them work on a copy."""
    folder = tmp_path_factory.mktemp("programs") / "vit"
    clip.export_stablehlo(folder, draw(VIT), VIT)
    return folder


@pytest.fixture(scope="module")
def wanted():
    """What the modules of the small ViT give for `inputs`."""
    model, variables = clip.ChineseClip(VIT), draw(VIT)
    images, ids = inputs(VIT)
    encode = jax.jit(model.apply, static_argnames="method")
    return (
        np.asarray(encode(variables, images.transpose(0, 2, 3, 1), method="encode_image")),
        np.asarray(encode(variables, ids.astype(np.int32), method="encode_text")),
    )


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_one_artefact_runs_any_batch_with_the_numbers_of_the_module(folder, wanted):
    programs, (images, ids) = clip.load_stablehlo(folder), inputs(VIT)
    for rows in (1, 5, 64):
        found = programs.image(images[:rows]), programs.text(ids[:rows])
        for array, rows_wanted in zip(found, wanted, strict=True):
            assert array.dtype == jnp.float32
            np.testing.assert_allclose(array, rows_wanted[:rows], rtol=0, atol=1e-5)


def test_resnet_image_tower_alone(tmp_path):
    variables = draw(RESNET)
    part = {name: {"visual": tree["visual"]} for name, tree in variables.items()}
    clip.export_stablehlo(tmp_path, part, RESNET)
    programs = clip.load_stablehlo(tmp_path)
    assert programs.text is None and set(programs.description["graphs"]) == {"image"}
    assert "logit_scale" not in programs.description
    images = inputs(RESNET)[0][:5]
    model, nhwc = clip.ChineseClip(RESNET), images.transpose(0, 2, 3, 1)
    encode = jax.jit(model.apply, static_argnames="method")
    wanted = encode(variables, nhwc, method="encode_image")
    np.testing.assert_allclose(programs.image(images), wanted, rtol=0, atol=1e-5)


def test_programs_are_lowered_for_cpu_tpu_and_cuda(folder):
    for name in ("image", "text"):
        exported = export.deserialize(bytearray((folder / f"{name}.stablehlo").read_bytes()))
        assert exported.platforms == ("cpu", "tpu", "cuda")
        # A call of a library of one platform would not run on the others; the assertion is JAX's
        # own and stands for the free axis.
        calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
        assert calls <= {"shape_assertion"}


@pytest.mark.parametrize(("precision", "bar"), [("fp16", 0.9995), ("bf16", 0.999)])
def test_half_precision_halves_the_matrices_and_keeps_the_direction(
    folder, tmp_path, wanted, precision, bar
):
    clip.export_stablehlo(tmp_path, draw(VIT), VIT, precision=precision)
    for path, array in flatten(clip.load_published(tmp_path).variables).items():
        is_exact = np.array_equal(array, flatten(draw(VIT))[path])
        assert is_exact == (array.ndim < 2), path
    whole, half = (f / "model.safetensors" for f in (folder, tmp_path))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    programs = clip.load_stablehlo(tmp_path)
    for call, array, one in zip(programs[:2], inputs(VIT), wanted, strict=True):
        found = np.asarray(call(array[:5]))
        assert found.dtype == np.float32
        assert 1 - 1e-7 > cosines(found, one[:5]).min() >= bar


def test_the_folder_is_a_published_one_too(folder):
    loaded = clip.load_published(folder)
    assert loaded.config == VIT
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, draw(VIT))


def test_description_says_what_to_feed(folder):
    text = clip.load_stablehlo(folder).description
    assert (text["image_size"], text["context_length"], text["embed_dim"]) == (16, 8, 12)
    assert text["image_mean"][0] == 0.48145466 and text["image_std"][2] == 0.27577711
    assert text["logit_scale"] == float(draw(VIT)["params"]["logit_scale"])
    assert published.config_from_dict(text["config"]) == VIT
    assert text["precision"] == "fp32" and text["jax_version"] == jax.__version__
    assert text["graphs"]["text"]["output"] == "unnorm_text_features"


def test_programs_run_without_the_library(folder):
    exported = export.deserialize(bytearray((folder / "image.stablehlo").read_bytes()))
    weights = load_file(folder / "model.safetensors")
    names = json.loads((folder / "stablehlo.json").read_text())["graphs"]["image"]["weights"]
    images = inputs(VIT)[0][:5]
    found = exported.call({name: weights[name] for name in names}, images)
    np.testing.assert_array_equal(found, clip.load_stablehlo(folder).image(images))


def edit(folder, change):
    """Apply a change to the description and write it back."""
    path = folder / "stablehlo.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def put(folder, name, data):
    """A program with the sums that the description wants."""
    (folder / f"{name}.stablehlo").write_bytes(data)
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda document: document["graphs"][name].update(sums))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], r"image\.stablehlo is truncated: \d+ bytes, and stablehlo.json"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), r"image\.stablehlo is damaged: its SHA"),
        (lambda data: data + b"x", r"image\.stablehlo is damaged: \d+ bytes"),
    ],
)
def test_a_broken_program_is_refused(copy, damage, message):
    path = copy / "image.stablehlo"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        clip.load_stablehlo(copy)


@pytest.mark.parametrize("data", [b"not a program at all", b"", bytes(100)])
def test_a_program_that_jax_cannot_read_says_to_export_again(copy, data):
    put(copy, "image", data)
    with pytest.raises(ValueError, match="(?s)cannot read it .*export again from the weights in"):
        clip.load_stablehlo(copy)


def test_weights_of_another_model_are_refused_by_the_names_of_tensors(copy):
    other = clip.ChineseClipConfig(
        VisionTransformerConfig(16, 8, 1, 20, 2, 24, 12), TEXT, context_length=8
    )
    clip.save_published(copy, draw(other), other)
    with pytest.raises(
        ValueError, match=r"models \(params/visual/class_embedding: \(20,\) here, \(16,\) wanted"
    ):
        clip.load_stablehlo(copy)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("stablehlo.json", FileNotFoundError, "give a folder that export_stablehlo wrote"),
        ("text.stablehlo", FileNotFoundError, "stablehlo.json names it. Copy it too"),
        ("model.safetensors", FileNotFoundError, "model.safetensors"),
    ],
)
def test_a_missing_file_is_named(copy, name, error, message):
    (copy / name).unlink()
    with pytest.raises(error, match=message):
        clip.load_stablehlo(copy)


def test_a_foreign_description_is_refused(copy):
    edit(copy, lambda document: document.update(format="something else"))
    with pytest.raises(ValueError, match="has format='something else'; programs of Chinese CLIP"):
        clip.load_stablehlo(copy)
    (copy / "stablehlo.json").write_text("{")
    with pytest.raises(ValueError, match="stablehlo.json is not JSON"):
        clip.load_stablehlo(copy)


def test_inputs_of_other_shapes_or_types_are_refused(folder):
    programs, (images, ids) = clip.load_stablehlo(folder), inputs(VIT, 2)
    with pytest.raises(ValueError, match=r"image is float32\[2, 16, 16, 3\]; .*'N', 3, 16, 16"):
        programs.image(images.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"text is int64\[2, 7\]; the program takes integer"):
        programs.text(ids[:, :7])
    with pytest.raises(ValueError, match=r"text is float32\[2, 8\]"):
        programs.text(ids.astype(np.float32))
    with pytest.raises(ValueError, match="N at least 1"):
        programs.image(images[:0])


def test_half_a_tower_and_unknown_precisions_are_refused_before_writing(tmp_path):
    variables = draw(VIT)
    with pytest.raises(ValueError, match=r"text tower lacks \['text_projection'\]"):
        clip.export_stablehlo(tmp_path, {"params": {"bert": variables["params"]["bert"]}}, VIT)
    with pytest.raises(ValueError, match=r"hold \['logit_scale'\] and no tower"):
        clip.export_stablehlo(tmp_path, {"params": {"logit_scale": np.float32(1)}}, VIT)
    with pytest.raises(ValueError, match="precision='int8' is unknown; use one of fp32, fp16, bf1"):
        clip.export_stablehlo(tmp_path, variables, VIT, precision="int8")
    assert not list(tmp_path.iterdir())


def test_without_flatbuffers_one_sentence_says_what_to_install(folder, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "flatbuffers" else found(n, *a)
    )
    for call in (
        lambda: clip.export_stablehlo(tmp_path, draw(VIT), VIT),
        lambda: clip.load_stablehlo(folder),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxlab\[export\]'"):
            call()
