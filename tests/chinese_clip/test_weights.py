"""Checkpoints of the original: features, round trips, other spellings, mismatches."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import read_torch_zip, write_torch_zip
from jaxlab.chinese_clip import weights
from jaxlab.chinese_clip.detection import detect_config
from jaxlab.chinese_clip.model import ChineseClip
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.layers.positions import resize_positions

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("vit", "resnet")


def _golden_script():
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make_chinese_clip_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _golden_script()


@functools.cache
def golden(kind):
    """The original's names and shapes, its features, and the weights that gave them."""
    with np.load(GOLDEN / "chinese_clip_weights.npz") as stored:
        shapes = {n: tuple(s) for n, s in json.loads(str(stored[f"{kind}/shapes"])).items()}
        features = stored[f"{kind}/image"], stored[f"{kind}/text"]
    counters = {n for n in shapes if n.endswith("num_batches_tracked")}
    state = MAKE.draw({n: s for n, s in shapes.items() if n not in counters})
    return shapes, state | {n: np.array(3, np.int64) for n in counters}, features


def save_pt(path, state, **extra):
    write_torch_zip(path, {"epoch": 1, "state_dict": state} | extra)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_the_originals(kind, tmp_path):
    _, state, (image, text) = golden(kind)
    prefixed = {f"module.{n}": a for n, a in state.items()}
    prefixed["module.bert.pooler.dense.weight"] = np.ones((2, 2), np.float32)
    path = save_pt(tmp_path / "clip.pt", prefixed, optimizer={"lr": np.float64(1e-5)})
    config, variables = weights.load_original(path)
    variables = jax.tree.map(jnp.asarray, variables)
    images, ids = MAKE.inputs(config.vision.image_size)
    model = ChineseClip(config)

    @jax.jit
    def encode(variables, images, ids):
        return tuple(
            model.apply(variables, x, method=method)
            for x, method in ((images, "encode_image"), (ids, "encode_text"))
        )

    with jax.default_matmul_precision("highest"):
        nhwc = jnp.asarray(images.transpose(0, 2, 3, 1))
        got_image, got_text = encode(variables, nhwc, jnp.asarray(ids, jnp.int32))
    for got, want in ((got_image, image), (got_text, text)):
        unit = want / np.linalg.norm(want, axis=-1, keepdims=True)
        normalised = got / np.linalg.norm(got, axis=-1, keepdims=True)
        np.testing.assert_allclose(normalised, unit, rtol=0, atol=2e-6)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_round_trip_is_bit_identical(kind, suffix, tmp_path):
    shapes, state, _ = golden(kind)
    loaded = weights.load_original(save_pt(tmp_path / "clip.pt", state))
    path = tmp_path / f"ours.{suffix}"
    weights.save_original(path, loaded.variables, loaded.config)
    if suffix == "pt":
        tree = read_torch_zip(path, verify=True)
        assert (tree["epoch"], tree["step"], tree["name"]) == (0, 0, "jaxlab")
        saved = {n.removeprefix("module."): a for n, a in tree["state_dict"].items()}
        assert all(n.startswith("module.") for n in tree["state_dict"])
    else:
        saved = read_safetensors(path).tensors
    assert {n: a.shape for n, a in saved.items()} == shapes
    for name, array in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(saved[name], array, err_msg=name, strict=True)
    again = weights.load_original(path)
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)


def test_arrays_are_views_of_the_file(tmp_path):
    path = save_pt(tmp_path / "clip.pt", golden("vit")[1])
    kernel = weights.load_original(path).variables["params"]["visual"]["layer_0"]["mlp_in"][
        "kernel"
    ]
    assert not kernel.flags.owndata and not kernel.flags.writeable


def test_stored_config_restores_what_shapes_do_not_show(tmp_path):
    loaded = weights.load_original(save_pt(tmp_path / "clip.pt", golden("vit")[1]))
    vision = dataclasses.replace(loaded.config.vision, num_heads=4, activation="gelu")
    config = dataclasses.replace(loaded.config, vision=vision, context_length=9)
    for name in ("ours.pt", "ours.safetensors"):
        weights.save_original(tmp_path / name, loaded.variables, config)
        assert weights.load_original(tmp_path / name).config == config


def flash_names(state):
    """The names that the original's flash-attention form uses."""
    renamed = {
        name.replace("attn.in_proj_", "attn.Wqkv.").replace(
            "attention.output.dense", "attention.self.out_proj"
        ): array
        for name, array in state.items()
    }
    for layer in range(2):
        prefix = f"bert.encoder.layer.{layer}.attention.self"
        for end in ("weight", "bias"):
            parts = [renamed.pop(f"{prefix}.{n}.{end}") for n in ("query", "key", "value")]
            renamed[f"{prefix}.Wqkv.{end}"] = np.concatenate(parts)
    return renamed


def test_flash_attention_names_give_the_same_variables(tmp_path):
    state = golden("vit")[1]
    flash = flash_names(state)
    assert (
        len(flash) == len(state) - 2 * 4
        and "bert.encoder.layer.1.attention.self.Wqkv.bias" in flash
    )
    want = weights.load_original(save_pt(tmp_path / "plain.pt", state))
    got = weights.load_original(save_pt(tmp_path / "flash.pt", flash))
    assert got.config == want.config
    jax.tree.map(np.testing.assert_array_equal, got.variables, want.variables)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(dtype, tmp_path):
    state = {n: a.astype(dtype) for n, a in golden("vit")[1].items()}
    variables = weights.load_original(save_pt(tmp_path / "half.pt", state)).variables
    leaves = flatten(variables)
    assert {a.dtype for a in leaves.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        leaves["params/visual/projection"], state["visual.proj"].astype(np.float32)
    )


def test_mismatch_names_tensors_shapes_and_the_config_that_fits(tmp_path):
    shapes, state, _ = golden("vit")
    path = save_pt(tmp_path / "clip.pt", state)
    fits = detect_config(shapes)
    wrong = dataclasses.replace(
        fits,
        vision=dataclasses.replace(fits.vision, patch_size=16, num_layers=1),
        text=dataclasses.replace(fits.text, vocab_size=60),
    )
    with pytest.raises(NameMismatchError) as error:
        weights.load_original(path, wrong)
    text = str(error.value)
    assert str(path) in text
    assert "visual.conv1.weight: got (128, 3, 8, 8), want (128, 3, 16, 16)" in text
    assert "visual.positional_embedding: got (17, 128), want (5, 128)" in text
    assert "word_embeddings.weight: got (50, 128), want (60, 128)" in text
    assert "visual.transformer.resblocks.1.attn.in_proj_weight" in text
    for size in ("vision.patch_size=8 (not 16)", "vision.num_layers=2 (not 1)", "=50 (not 60)"):
        assert size in text
    assert len(error.value.problems.unexpected) == 12 and not error.value.problems.missing


def test_other_tower_is_told(tmp_path):
    path = save_pt(tmp_path / "clip.pt", golden("vit")[1])
    resnet = detect_config(golden("resnet")[0])
    with pytest.raises(ValueError, match=r"vision=VisionTransformerConfig \(not ModifiedResNet"):
        weights.load_original(path, resnet)


def test_incomplete_file_lists_all_that_is_missing(tmp_path):
    state = dict(golden("resnet")[1])
    gone = ["visual.layer2.1.bn3.running_var", "visual.attnpool.q_proj.bias", "text_projection"]
    for name in gone:
        del state[name]
    with pytest.raises(NameMismatchError, match="the file itself is incomplete") as error:
        weights.load_original(save_pt(tmp_path / "clip.pt", state | {"extra": np.ones(2)}))
    assert sorted(error.value.problems.missing) == sorted(gone)
    assert error.value.problems.unexpected == ["extra"]


def test_positions_are_resized_only_when_asked(tmp_path):
    shapes, state, _ = golden("vit")
    path = save_pt(tmp_path / "clip.pt", {f"module.{n}": a for n, a in state.items()})
    fits = detect_config(shapes)
    larger = dataclasses.replace(fits, vision=dataclasses.replace(fits.vision, image_size=48))
    with pytest.raises(
        ValueError, match=r"positional_embedding: got \(17, 128\), want \(37, 128\)"
    ):
        weights.load_original(path, larger)
    params = weights.load_original(path, larger, resize_positions=True).variables["params"]
    np.testing.assert_array_equal(
        params["visual"]["positional_embedding"],
        resize_positions(state["visual.positional_embedding"], 6),
    )
    resnet = save_pt(tmp_path / "resnet.pt", golden("resnet")[1])
    with pytest.raises(ValueError, match="attention pool cannot be resized"):
        weights.load_original(resnet, resize_positions=True)


def test_files_without_a_model_are_refused(tmp_path):
    write_torch_zip(tmp_path / "list.pt", [1, 2])
    with pytest.raises(ValueError, match=r"list\.pt holds a list"):
        weights.load_original(tmp_path / "list.pt")
    write_torch_zip(tmp_path / "none.pt", {"epoch": 1, "state_dict": {}})
    with pytest.raises(ValueError, match=r"none\.pt holds no tensors.*'epoch', 'state_dict'"):
        weights.load_original(tmp_path / "none.pt")
    write_safetensors(tmp_path / "other.safetensors", {"fc.weight": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"other\.safetensors: this is no state dict of Chinese"):
        weights.load_original(tmp_path / "other.safetensors")


def test_save_refuses_other_suffixes_and_unknown_variables(tmp_path):
    config, variables = weights.load_original(save_pt(tmp_path / "clip.pt", golden("vit")[1]))
    with pytest.raises(ValueError, match=r"'\.bin'; use '\.pt' or '\.safetensors'"):
        weights.save_original(tmp_path / "clip.bin", variables, config)
    variables = {"params": variables["params"] | {"head": {"kernel": np.ones(1)}}}
    with pytest.raises(NameMismatchError, match="params/head/kernel"):
        weights.save_original(tmp_path / "clip2.pt", variables, config)
    assert not (tmp_path / "clip2.pt").exists()


def test_damaged_torch_file_is_noticed_by_default(tmp_path):
    path = save_pt(tmp_path / "clip.pt", golden("vit")[1])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="CRC-32"):
        weights.load_original(path)


@pytest.mark.parametrize("kind", KINDS)
def test_table_names_are_exactly_the_originals(kind):
    shapes, _, _ = golden(kind)
    config = detect_config(shapes)
    named = weights.original_table(config).foreign_shapes(variable_shapes(config))
    assert named == {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
