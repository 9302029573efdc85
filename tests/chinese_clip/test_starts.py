"""English CLIPs and Chinese BERTs as starts: their files, their names, and what does not fit."""

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
from jaxlab.checkpoints.foreign.safetensors import write_safetensors
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.published import Weights, save_published, variable_shapes
from jaxlab.chinese_clip.starts import load_image_tower, load_text_tower
from jaxlab.chinese_clip.tables import image_tower_table
from jaxlab.chinese_clip.towers import (
    ImageTower,
    TextTower,
    with_context_length,
    with_image_size,
    with_image_tower,
    with_text_tower,
)
from jaxlab.chinese_clip.weights import original_state_dict, save_original
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.positions import resize_positions
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHIVE = GOLDEN / "chinese_clip_openai.pt"
VISION = VisionTransformerConfig(8, 4, 1, 64, 1, 12, 5)
"""The tower in the archive."""
RESNET = ModifiedResNetConfig(
    image_size=64, stem_width=8, stages=(1, 2), num_heads=1, expansion=4, output_dim=5
)
BERT = BertConfig(
    vocab_size=60, num_layers=2, width=24, num_heads=6, mlp_width=28, max_positions=40
)


def _golden_script():
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make_chinese_clip_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _golden_script()


@functools.cache
def bert():
    """What transformers saves of a BERT with its heads: tensors and config.json."""
    with np.load(GOLDEN / "chinese_clip_files.npz") as stored:
        shapes = {n: tuple(s) for n, s in json.loads(str(stored["bert_shapes"])).items()}
        return MAKE.draw(shapes), str(stored["bert_config"])


def draw(config):
    rng = np.random.default_rng(3)
    shapes = variable_shapes(config)
    return unflatten({p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()})


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


# --- image towers ---------------------------------------------------------------------------------


def openai_variables():
    names = image_tower_table(VISION).foreign_shapes(
        {p: s for p, s in variable_shapes(ChineseClipConfig(VISION, BERT, 40)).items()
         if p.startswith(("params/visual/", "params/logit_scale"))}
    )  # fmt: skip
    state = {n: a.astype(np.float32) for n, a in MAKE.openai_state().items() if n in names}
    assert state.keys() == names.keys()
    return state


def test_openai_archive_gives_image_tower_and_temperature():
    config, variables = load_image_tower(ARCHIVE)
    assert config == VISION
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"visual", "logit_scale"}
    saved = image_tower_table(config).save(flatten(variables))
    want = openai_variables()
    assert saved.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("name", ["clip.pt", "open_clip_pytorch_model.bin", "a.safetensors"])
def test_state_dicts_give_the_same_tower_as_the_archive(name, tmp_path):
    state = {f"module.{n}": a for n, a in MAKE.openai_state().items()}
    state["module.logit_scale"] = state["module.logit_scale"].reshape(1)
    sizes = {name: np.array(8) for name in MAKE.OPENAI_SIZES}
    if name.endswith("safetensors"):
        write_safetensors(tmp_path / name, state | sizes)
    else:
        write_torch_zip(tmp_path / name, {"epoch": 3, "state_dict": state | sizes})
    got, want = load_image_tower(tmp_path / name), load_image_tower(ARCHIVE)
    assert got.config == want.config
    assert_equal(got.variables, want.variables)


def test_what_tensors_do_not_show_comes_from_the_config():
    # Weights that were trained with the exact GELU do not say so.
    wanted = dataclasses.replace(VISION, activation="gelu", num_heads=4, layer_norm_epsilon=1e-6)
    assert load_image_tower(ARCHIVE, wanted).config == wanted
    assert load_image_tower(ARCHIVE).config.activation == "quick_gelu"


def test_positions_are_resized_when_asked():
    larger = dataclasses.replace(VISION, image_size=12)
    with pytest.raises(NameMismatchError) as error:
        load_image_tower(ARCHIVE, larger)
    text = str(error.value)
    assert str(ARCHIVE) in text and "image_size=8 (not 12)" in text
    assert "visual.positional_embedding: got (5, 64), want (10, 64)" in text
    tower = load_image_tower(ARCHIVE, larger, resize_positions=True)
    assert tower.config == larger
    np.testing.assert_array_equal(
        tower.variables["params"]["visual"]["positional_embedding"],
        resize_positions(MAKE.openai_state()["visual.positional_embedding"].astype(np.float32), 3),
    )


def test_other_sizes_name_tensors_shapes_and_what_fits():
    wrong = dataclasses.replace(VISION, num_layers=2, mlp_width=16)
    with pytest.raises(NameMismatchError) as error:
        load_image_tower(ARCHIVE, wrong, resize_positions=True)
    text = str(error.value)
    assert "resblocks.0.mlp.c_fc.weight: got (12, 64), want (16, 64)" in text
    assert "resblocks.1.attn.in_proj_weight" in text
    assert "num_layers=1 (not 2)" in text and "mlp_width=12 (not 16)" in text


def test_a_resnet_comes_with_statistics_and_its_pool_is_not_resized(tmp_path):
    model = ChineseClipConfig(RESNET, BERT, 40)
    variables = draw(model)
    state = original_state_dict(variables, model)
    write_torch_zip(tmp_path / "RN.pt", {n: a for n, a in state.items() if "bert" not in n})
    tower = load_image_tower(tmp_path / "RN.pt", RESNET, resize_positions=True)
    params = {name: variables["params"][name] for name in ("visual", "logit_scale")}
    assert_equal(tower.variables, variables | {"params": params})
    larger = dataclasses.replace(RESNET, image_size=128)
    message = r"RN\.pt: .*positions for 8 x 8 places.*128 pixels\) for 16 x 16; .*cannot be resized"
    with pytest.raises(ValueError, match=message):
        load_image_tower(tmp_path / "RN.pt", larger, resize_positions=True)
    whole = Weights(model, variables)
    with pytest.raises(
        ValueError, match="image_size=128 for weights of images of 64 pixels; .*cannot be resized"
    ):
        with_image_size(whole, 128)


def test_a_folder_of_hugging_faces_clip_gives_its_image_tower(tmp_path):
    table = image_tower_table(VISION, huggingface=True)
    want = load_image_tower(ARCHIVE)
    text = {"text_model.embeddings.token_embedding.weight": np.ones((9, 6), np.float32)}
    ids = {"vision_model.embeddings.position_ids": np.arange(5)[None]}
    write_safetensors(
        tmp_path / "model.safetensors", table.save(flatten(want.variables)) | text | ids
    )
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "hidden_act": "gelu",
    }
    config = {"model_type": "clip", "projection_dim": 5, "vision_config": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    got = load_image_tower(tmp_path)
    assert got.config == dataclasses.replace(VISION, num_heads=2, activation="gelu")
    assert_equal(got.variables, want.variables)


def test_a_chinese_clip_gives_its_towers_in_every_form(tmp_path):
    model = ChineseClipConfig(VISION, BERT, 40)
    variables = draw(model)
    save_original(tmp_path / "clip.pt", variables, model)
    save_published(tmp_path / "folder", variables, model)
    params = variables["params"]
    image = {"params": {name: params[name] for name in ("visual", "logit_scale")}}
    text = {"params": {name: params[name] for name in ("bert", "text_projection")}}
    for path in (tmp_path / "clip.pt", tmp_path / "folder"):
        assert_equal(load_image_tower(path).variables, image)
        assert_equal(load_text_tower(path).variables, text)
        assert load_image_tower(path).config == VISION and load_text_tower(path).config == BERT
    alone = {"params": {"visual": params["visual"]}}
    save_published(tmp_path / "alone", alone, model)
    assert_equal(load_image_tower(tmp_path / "alone").variables, alone)
    with pytest.raises(ValueError, match=r"it has no bert; it has \['visual'\]"):
        load_text_tower(tmp_path / "alone")


def test_temperature_and_tower_are_taken_together():
    model = ChineseClipConfig(VISION, BERT, 40)
    variables, tower = draw(model), load_image_tower(ARCHIVE)
    started = with_image_tower(variables, model, tower)
    assert started["params"]["logit_scale"] == tower.variables["params"]["logit_scale"]
    assert started["params"]["visual"] is tower.variables["params"]["visual"]
    assert started["params"]["bert"] is variables["params"]["bert"]
    alone = ImageTower(VISION, {"params": {"visual": tower.variables["params"]["visual"]}})
    kept = with_image_tower(variables, model, alone)["params"]["logit_scale"]
    assert kept is variables["params"]["logit_scale"]


# --- text towers ----------------------------------------------------------------------------------


def body(state):
    """Torch's names without a prefix, heads dropped."""
    plain = {n.removeprefix("bert."): a for n, a in state.items()}
    return {n: a for n, a in plain.items() if n.startswith(("embeddings.", "encoder."))}


def tensorflow_names(state):
    """The same tensors as TensorFlow names and lays them."""
    named = {"global_step": np.array(7), "bert/pooler/dense/kernel": np.ones((2, 2), np.float32)}
    for name, array in body(state).items():
        if name.endswith("_embeddings.weight"):
            name = name.removesuffix(".weight")
        elif "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        elif name.endswith(".weight"):
            name, array = name.replace(".weight", ".kernel"), array.T.copy()
        name = name.replace("layer.", "layer_").replace(".", "/")
        named[f"bert/{name}"] = named[f"bert/{name}/adam_m"] = array
    return named


SPELLINGS = {
    "with heads": lambda state: state,
    "without prefix": body,
    "gamma and beta": lambda state: {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): a
        for n, a in state.items()
    },
    "position ids": lambda state: {"bert.embeddings.position_ids": np.arange(40)[None]} | state,
    "tensorflow": tensorflow_names,
}


def write_bert(folder, state, config=None, name="pytorch_model.bin"):
    folder.mkdir(exist_ok=True)
    write = write_torch_zip if name.endswith(".bin") else write_safetensors
    write(folder / name, state)
    if config:
        (folder / "config.json").write_text(config)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """The text tower from the folder that transformers leaves."""
    state, config = bert()
    return load_text_tower(write_bert(tmp_path_factory.mktemp("bert"), state, config))


def test_a_folder_of_bert_gives_its_body(roberta):
    state, _ = bert()
    assert roberta.config == BERT
    assert set(roberta.variables["params"]) == {"bert"}
    leaves = flatten(roberta.variables)
    layer = "bert.encoder.layer.1.attention.self.query.weight"
    np.testing.assert_array_equal(
        leaves["params/bert/layer_1/attention/query/kernel"], state[layer].T
    )
    np.testing.assert_array_equal(
        leaves["params/bert/word_embeddings"], state["bert.embeddings.word_embeddings.weight"]
    )
    assert sum(a.size for a in leaves.values()) == sum(a.size for a in body(state).values())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_tower(spelling, roberta, tmp_path):
    state = SPELLINGS[spelling](bert()[0])
    write_bert(tmp_path, state, name="model.safetensors")
    like = dataclasses.replace(BERT, hidden_dropout=0.0, max_positions=16)
    tower = load_text_tower(tmp_path / "model.safetensors", like)
    assert_equal(tower.variables, roberta.variables)
    assert tower.config == dataclasses.replace(like, max_positions=40)


def test_a_config_beside_the_file_is_read(roberta, tmp_path):
    state, config = bert()
    config = json.dumps(json.loads(config) | {"hidden_act": "relu", "num_attention_heads": 2})
    write_bert(tmp_path, state, config)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        got = load_text_tower(path).config
        assert got == dataclasses.replace(BERT, num_heads=2, activation="relu")
    write_bert(tmp_path, state, json.dumps({"model_type": "bert", "hidden_act": "mish"}))
    with pytest.raises(ValueError, match=r"config\.json: hidden_act='mish' is an activation"):
        load_text_tower(tmp_path)


def test_missing_and_mis_shaped_tensors_of_a_bert_are_named(tmp_path):
    state = {n: a for n, a in bert()[0].items() if not n.endswith("layer.1.output.dense.bias")}
    write_bert(tmp_path, state)
    wrong = dataclasses.replace(BERT, vocab_size=61)
    with pytest.raises(NameMismatchError) as error:
        load_text_tower(tmp_path / "pytorch_model.bin", wrong)
    text = str(error.value)
    assert "encoder.layer.1.output.dense.bias" in text and "vocab_size=60 (not 61)" in text
    assert "embeddings.word_embeddings.weight: got (60, 24), want (61, 24)" in text


def test_a_body_leaves_the_projection_and_its_positions_are_cut(roberta):
    model = ChineseClipConfig(
        VISION, dataclasses.replace(BERT, max_positions=16, attention_dropout=0.0), 16
    )
    variables = draw(model)
    params = with_text_tower(variables, model, roberta)["params"]
    tower = roberta.variables["params"]["bert"]
    assert params["text_projection"] is variables["params"]["text_projection"]
    assert params["visual"] is variables["params"]["visual"]
    np.testing.assert_array_equal(
        params["bert"]["position_embeddings"], tower["position_embeddings"][:16]
    )
    assert params["bert"]["layer_0"] is tower["layer_0"]
    assert tower["position_embeddings"].shape == (40, 24), "the given tower was changed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation": "relu", "num_heads": 3},
            r"\(num_heads: 3 here, 6 in the weights, activation: relu here, gelu in the weights\)",
        ),
        ({"max_positions": 50}, r"\(max_positions: 50 here, 40 in the weights\)"),
    ],
)
def test_a_text_tower_of_other_sizes_is_refused_with_every_difference(changes, message, roberta):
    model = ChineseClipConfig(VISION, dataclasses.replace(BERT, **changes), 16)
    with pytest.raises(ValueError, match=message):
        with_text_tower({"params": {}}, model, roberta)


def test_a_projection_of_another_width_and_weights_without_a_text_tower_are_refused(roberta):
    model = ChineseClipConfig(VISION, BERT, 16)
    params = roberta.variables["params"] | {"text_projection": np.ones((24, 7), np.float32)}
    with pytest.raises(ValueError, match="gives 7 features, the model's image tower 5; take an"):
        with_text_tower({"params": {}}, model, TextTower(BERT, {"params": params}))
    with pytest.raises(ValueError, match=r"hold \['visual'\] and no text tower \('bert'\)"):
        with_text_tower({"params": {}}, model, TextTower(BERT, {"params": {"visual": {}}}))


def test_files_of_another_kind_are_told(tmp_path):
    state, config = bert()
    write_bert(tmp_path / "bert", state, config)
    with pytest.raises(
        ValueError, match=r"bert is a folder of a Hugging Face BERT; give a file of"
    ):
        load_image_tower(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"a file with the image tower of a CLIP; give a file or"):
        load_text_tower(ARCHIVE)


def test_longer_texts_and_larger_images_keep_all_else():
    model = ChineseClipConfig(VISION, BERT, 16)
    weights = Weights(model, draw(model))
    params = weights.variables["params"]
    same = with_context_length(weights, 40)
    assert same.config == dataclasses.replace(model, context_length=40)
    assert same.variables["params"]["bert"]["position_embeddings"].shape == (40, 24)
    longer = with_context_length(weights, 100)
    assert longer.config.text.max_positions == longer.config.context_length == 100
    table = longer.variables["params"]["bert"]["position_embeddings"]
    np.testing.assert_array_equal(table[:20], params["bert"]["position_embeddings"][:20])
    np.testing.assert_array_equal(table[-1], params["bert"]["position_embeddings"][-1])
    assert longer.variables["params"]["bert"]["layer_0"] is params["bert"]["layer_0"]
    larger = with_image_size(weights, 12)
    assert larger.config.vision.image_size == 12
    np.testing.assert_array_equal(
        larger.variables["params"]["visual"]["positional_embedding"],
        resize_positions(params["visual"]["positional_embedding"], 3),
    )
    assert larger.variables["params"]["bert"] is params["bert"]
    assert jnp.array_equal(params["logit_scale"], larger.variables["params"]["logit_scale"])
