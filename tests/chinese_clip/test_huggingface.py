"""Folders of Hugging Face's ChineseCLIPModel: features, every way to lie on disk, bad files."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten, unflatten
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.chinese_clip import huggingface
from jaxlab.chinese_clip.model import MODELS, ChineseClip, normalize
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.weights import load_original, save_original
from jaxlab.layers.resnet import ModifiedResNetConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def _golden_script():
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make_chinese_clip_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _golden_script()


@functools.cache
def golden():
    """What transformers has: names and shapes, config.json, features; and the weights."""
    with np.load(GOLDEN / "chinese_clip_files.npz") as stored:
        shapes = {n: tuple(s) for n, s in json.loads(str(stored["shapes"])).items()}
        return shapes, MAKE.draw(shapes), str(stored["config"]), stored["image"], stored["text"]


def write_folder(folder, state=None, config=None, name="model.safetensors"):
    """A folder as transformers leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config or golden()[2])
    write = write_torch_zip if name.endswith(".bin") else write_safetensors
    write(folder / name, state or golden()[1])
    return folder


def split_folder(folder, name):
    """The same over two files with an index."""
    _, state, config, *_ = golden()
    folder.mkdir()
    (folder / "config.json").write_text(config)
    stem, _, suffix = name.rpartition(".")
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    places = {tensor: files[i % 2] for i, tensor in enumerate(state)}
    for file in files:
        part = {n: a for n, a in state.items() if places[n] == file}
        (write_torch_zip if suffix == "bin" else write_safetensors)(folder / file, part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    return folder, files


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return huggingface.load_huggingface(write_folder(tmp_path_factory.mktemp("hf") / "model"))


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_features_equal_those_of_transformers(loaded):
    images, ids = MAKE.inputs()
    apply = jax.jit(ChineseClip(loaded.config).apply)
    with jax.default_matmul_precision("highest"):
        got = apply(
            jax.tree.map(jnp.asarray, loaded.variables),
            jnp.asarray(images.transpose(0, 2, 3, 1)),
            jnp.asarray(ids, jnp.int32),
        )
    _, _, _, image, text = golden()
    np.testing.assert_allclose(got.image, normalize(jnp.asarray(image)), rtol=0, atol=2e-6)
    np.testing.assert_allclose(got.text, normalize(jnp.asarray(text)), rtol=0, atol=2e-6)
    assert got.log_scale == 2.5


def test_config_is_honoured(loaded):
    vision, text = loaded.config.vision, loaded.config.text
    assert (vision.image_size, vision.patch_size, vision.num_layers) == (24, 8, 2)
    assert (vision.width, vision.num_heads, vision.mlp_width, vision.output_dim) == (32, 8, 36, 20)
    assert (vision.activation, vision.layer_norm_epsilon) == ("gelu", 1e-3)
    assert (text.vocab_size, text.width, text.num_heads, text.mlp_width) == (60, 24, 6, 28)
    assert (text.num_layers, text.max_positions, text.num_types) == (2, 40, 2)
    assert (text.activation, text.layer_norm_epsilon) == ("gelu_new", 1e-6)
    assert (text.hidden_dropout, text.attention_dropout, text.pad_id) == (0.2, 0.3, 0)
    assert loaded.config.context_length == 40, "no longer than the positions"
    assert loaded.config.initial_scale == pytest.approx(np.exp(2.6592))


def test_absent_entries_mean_what_they_mean_to_transformers():
    config = huggingface.config_from_huggingface({"model_type": "chinese_clip"})
    b32 = MODELS["ViT-B-32"]
    assert config.vision == b32.vision
    assert config.text == dataclasses.replace(b32.text, vocab_size=30522)
    # Older files repeat the sizes under NAME_dict, which then count.
    values = {
        "architectures": ["ChineseCLIPModel"],
        "text_config": {"num_hidden_layers": 3},
        "text_config_dict": {"num_hidden_layers": 5, "vocab_size": 21128},
        "vision_config_dict": None,
    }
    text = huggingface.config_from_huggingface(values).text
    assert text == dataclasses.replace(b32.text, num_layers=5)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_every_way_to_lie_on_disk_gives_the_same_variables(name, loaded, tmp_path):
    whole = huggingface.load_huggingface(write_folder(tmp_path / "whole", name=name))
    assert_equal(whole.variables, loaded.variables)
    split = huggingface.load_huggingface(split_folder(tmp_path / "split", name)[0])
    assert_equal(split.variables, loaded.variables)
    assert split.config == whole.config == loaded.config


def test_buffers_and_a_pooler_are_ignored(loaded, tmp_path):
    extra = {
        "text_model.embeddings.position_ids": np.arange(40)[None],
        "text_model.embeddings.token_type_ids": np.zeros((1, 40), np.int64),
        "vision_model.embeddings.position_ids": np.arange(10)[None],
        "text_model.pooler.dense.weight": np.ones((24, 24), np.float32),
    }
    folder = write_folder(tmp_path, golden()[1] | extra)
    assert_equal(huggingface.load_huggingface(folder).variables, loaded.variables)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(dtype, tmp_path):
    state = {n: a.astype(dtype) for n, a in golden()[1].items()}
    leaves = flatten(huggingface.load_huggingface(write_folder(tmp_path, state)).variables)
    assert {a.dtype for a in leaves.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        leaves["params/visual/projection"], state["visual_projection.weight"].astype(np.float32).T
    )


def test_saved_folder_holds_the_names_shapes_and_values_of_transformers(loaded, tmp_path):
    shapes, state, *_ = golden()
    huggingface.save_huggingface(tmp_path, loaded.variables, loaded.config)
    saved = read_safetensors(tmp_path / "model.safetensors")
    assert saved.metadata == {"format": "pt"}
    assert {n: a.shape for n, a in saved.tensors.items()} == shapes
    for name, array in state.items():
        np.testing.assert_array_equal(saved.tensors[name], array, err_msg=name, strict=True)
    again = huggingface.load_huggingface(tmp_path)
    assert again.config == loaded.config
    assert_equal(again.variables, loaded.variables)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["do_center_crop"] is False
    assert processor["size"] == {"height": 24, "width": 24}
    assert not (tmp_path / "vocab.txt").exists(), "the vocabulary is not the Chinese BERT's"


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("ViT")])
def test_configs_survive_the_form(name):
    config = dataclasses.replace(MODELS[name], context_length=64, initial_scale=25.0)
    config = dataclasses.replace(
        config, text=dataclasses.replace(config.text, embedding_init_std=0.01)
    )
    values = json.loads(json.dumps(huggingface.config_to_huggingface(config)))
    assert huggingface.config_from_huggingface(values) == config


# --- the five shapes, in small --------------------------------------------------------------------


def small(name):
    """A published model with all widths divided by 32, heads by 2, and two layers a tower."""
    config = MODELS[name]
    vision, text = config.vision, config.text
    if isinstance(vision, ModifiedResNetConfig):
        vision = dataclasses.replace(
            vision, image_size=32, stem_width=4, stages=(1, 2, 1, 1), num_heads=2, output_dim=32
        )
    else:
        vision = dataclasses.replace(
            vision,
            image_size=vision.patch_size * (vision.grid_size // 7 + 1),
            num_layers=2,
            width=vision.width // 32,
            num_heads=vision.num_heads // 2,
            mlp_width=vision.mlp_width // 32,
            output_dim=vision.output_dim // 32,
        )
    text = dataclasses.replace(
        text,
        vocab_size=50,
        num_layers=2,
        width=text.width // 32,
        num_heads=text.num_heads // 2,
        mlp_width=text.mlp_width // 32,
        max_positions=30,
    )
    return dataclasses.replace(config, vision=vision, text=text, context_length=12)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"])
def test_round_trip_through_all_forms_is_bit_identical(name, tmp_path):
    config = small(name)
    rng = np.random.default_rng(5)
    variables = unflatten(
        {p: rng.standard_normal(s, np.float32) for p, s in variable_shapes(config).items()}
    )
    save_original(tmp_path / "a.pt", variables, config)
    weights = load_original(tmp_path / "a.pt")
    if name == "RN50":
        with pytest.raises(ValueError, match="is a ResNet.* write a .pt or .safetensors file"):
            huggingface.save_huggingface(tmp_path / "hf", *reversed(weights))
        assert not (tmp_path / "hf").exists()
    else:
        huggingface.save_huggingface(tmp_path / "hf", *reversed(weights))
        weights = huggingface.load_huggingface(tmp_path / "hf")
    save_original(tmp_path / "b.safetensors", *reversed(weights))
    weights = load_original(tmp_path / "b.safetensors")
    assert weights.config == config
    assert_equal(weights.variables, variables)


# --- bad files ------------------------------------------------------------------------------------


def change(config, **entries):
    return json.dumps(json.loads(config) | entries)


def test_truncated_files_are_told(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = write_folder(tmp_path / name, name=name) / name
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=rf"{name} is truncated"):
            huggingface.load_huggingface(path.parent)


def test_wrong_names_are_listed(tmp_path):
    state = dict(golden()[1])
    state["vision_model.pre_layernorm.bias"] = state.pop("vision_model.pre_layrnorm.bias")
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(NameMismatchError, match="the file itself is incomplete") as error:
        huggingface.load_huggingface(write_folder(tmp_path, state))
    problems = error.value.problems
    assert problems.unexpected == ["vision_model.pre_layernorm.bias"]
    assert sorted(problems.missing) == [
        "vision_model.encoder.layers.1.self_attn.k_proj.weight",
        "vision_model.pre_layrnorm.bias",
    ]


def test_a_config_of_other_sizes_names_tensors_shapes_and_what_fits(tmp_path):
    config = change(golden()[2], projection_dim=16)
    config = json.loads(config)
    config["text_config"]["num_hidden_layers"] = 1
    config["vision_config"]["patch_size"] = 4
    with pytest.raises(NameMismatchError) as error:
        huggingface.load_huggingface(write_folder(tmp_path, config=json.dumps(config)))
    text = str(error.value)
    assert str(tmp_path) in text
    assert "text_projection.weight: got (20, 24), want (16, 24)" in text
    assert "patch_embedding.weight: got (32, 3, 8, 8), want (32, 3, 4, 4)" in text
    assert "text_model.encoder.layer.1.attention.self.query.weight" in text
    for fits in ("output_dim=20 (not 16)", "text.num_layers=2 (not 1)", "patch_size=8 (not 4)"):
        assert fits in text


def test_a_missing_shard_is_named(tmp_path):
    folder, files = split_folder(tmp_path / "split", "model.safetensors")
    (folder / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of the 2 files .*missing: {files[1]}"):
        huggingface.load_huggingface(folder)


def test_what_is_not_offered_is_refused_by_name(tmp_path):
    config = json.loads(golden()[2])
    config["text_config"] |= {"hidden_act": "mish", "position_embedding_type": "relative_key"}
    config["vision_config"] |= {"num_channels": 1, "hidden_size": "32"}
    with pytest.raises(ValueError) as error:
        huggingface.load_huggingface(write_folder(tmp_path, config=json.dumps(config)))
    text = str(error.value)
    assert text.startswith(str(tmp_path / "config.json"))
    assert "text_config.hidden_act='mish' is an activation that is not offered; gelu, " in text
    assert "text_config.position_embedding_type='relative_key' is not offered" in text
    assert "vision_config.num_channels=1 is not offered; 3 is" in text
    assert "vision_config.hidden_size='32'; wanted an integer" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is not JSON"),
        ("[1]", r"config\.json holds a list"),
        ('{"model_type": "clip"}', r"config\.json: it is of model_type='clip'; 'chinese_clip'"),
        ('{"model_type": "chinese_clip", "text_config": 3}', r"text_config=3; wanted an object"),
        (
            '{"model_type": "chinese_clip", "vision_config": {"num_attention_heads": 7}}',
            r"config\.json: .*768.*7",
        ),
    ],
)
def test_wrong_configs_are_told(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        huggingface.load_huggingface(write_folder(tmp_path, config=text))


def test_a_folder_without_files_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        huggingface.load_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(golden()[2])
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        huggingface.load_huggingface(tmp_path)


def test_a_part_of_a_model_cannot_be_saved(loaded, tmp_path):
    part = {"params": {"visual": loaded.variables["params"]["visual"]}}
    with pytest.raises(ValueError, match="lack bert, text_projection, logit_scale: Hugging Face"):
        huggingface.save_huggingface(tmp_path / "part", part, loaded.config)
    assert not (tmp_path / "part").exists()


def test_only_the_parts_asked_for_are_read(loaded, tmp_path):
    folder = write_folder(tmp_path, name="pytorch_model.bin")
    params = loaded.variables["params"]
    for parts in (["visual"], ["bert", "text_projection"]):
        some = huggingface.load_huggingface(folder, parts=parts)
        assert_equal(some.variables, {"params": {part: params[part] for part in parts}})
        assert some.config == loaded.config
    with pytest.raises(ValueError, match=r"parts=\['image'\] are not parts of a model; use some"):
        huggingface.load_huggingface(folder, parts=["image"])
