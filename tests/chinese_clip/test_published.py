"""Our published form: complete or part, exact round trip, broken copies noticed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.chinese_clip import published
from jaxlab.chinese_clip.model import MODELS, ChineseClipConfig
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

TEXT = BertConfig(
    vocab_size=30, num_layers=1, width=16, num_heads=2, mlp_width=24, max_positions=20
)
RESNET = ChineseClipConfig(
    ModifiedResNetConfig(
        image_size=16, stem_width=4, stages=(1, 1), expansion=2, num_heads=2, output_dim=12,
        stem_pool=1,
    ),
    TEXT,
    context_length=12,
)  # fmt: skip
VIT = ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12, activation="gelu"), TEXT, context_length=12
)


def draw(config):
    rng = np.random.default_rng(0)
    shapes = published.variable_shapes(config)
    return published.unflatten(
        {p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()}
    )


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_round_trip_is_bit_identical(config, tmp_path):
    variables = jax.tree.map(jnp.asarray, draw(config))
    published.save_published(
        tmp_path / "new dir", variables, config, info={"命令": "train", "n": 1}
    )
    loaded = published.load_published(tmp_path / "new dir")
    assert loaded.config == config
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    document = published.read_document(tmp_path / "new dir")
    assert document["info"] == {"命令": "train", "n": 1}
    assert document["parts"] == ["bert", "logit_scale", "text_projection", "visual"]
    assert sorted(p.name for p in (tmp_path / "new dir").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_image_tower_alone_in_half_precision(tmp_path):
    variables = draw(RESNET)
    part = {name: {"visual": tree["visual"]} for name, tree in variables.items()}
    published.save_published(tmp_path, part, RESNET, dtype=jnp.float16)
    assert published.read_document(tmp_path)["parts"] == ["visual"]
    loaded = flatten(published.load_published(tmp_path).variables)
    want = flatten(part)
    assert list(loaded) == list(want) and any(p.startswith("batch_stats") for p in loaded)
    for path, array in want.items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], array.astype(np.float16))


def test_variables_of_another_config_are_refused_before_writing(tmp_path):
    broken = draw(VIT)
    del broken["params"]["visual"]["ln_pre"]["bias"]
    broken["params"]["visual"]["projection"] = np.ones((3, 3), np.float32)
    broken["params"]["visual"]["head"] = np.ones(1, np.float32)
    with pytest.raises(NameMismatchError) as error:
        published.save_published(tmp_path / "w", broken, VIT)
    problems = error.value.problems
    assert problems.missing == ["params/visual/ln_pre/bias"]
    assert problems.unexpected == ["params/visual/head"]
    assert problems.misshaped == {"params/visual/projection": ((3, 3), (16, 12))}
    assert not (tmp_path / "w").exists()


def test_broken_copies_are_noticed(tmp_path):
    published.save_published(tmp_path, draw(VIT), VIT)
    tensors = tmp_path / published.TENSORS_FILE
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=rf"is truncated: {len(data) - 10} bytes.*{len(data)}"):
        published.load_published(tmp_path)
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="SHA-256"):
        published.load_published(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        published.load_published(tmp_path)


def test_other_documents_are_refused(tmp_path):
    path = tmp_path / published.CONFIG_FILE
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        published.load_published(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        published.load_published(tmp_path)
    path.write_text('{"architectures": []}')
    with pytest.raises(ValueError, match=r"format=None; .*'jaxlab.chinese_clip'"):
        published.load_published(tmp_path)


def test_tensors_of_another_config_are_refused_on_loading(tmp_path):
    published.save_published(tmp_path, draw(VIT), VIT)
    path = tmp_path / published.CONFIG_FILE
    document = json.loads(path.read_text())
    document["config"]["vision"]["output_dim"] = 13
    path.write_text(json.dumps(document))
    with pytest.raises(NameMismatchError, match=r"projection: got \(16, 12\), want \(16, 13\)"):
        published.load_published(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_configs_survive_json(name):
    config = MODELS[name]
    text = json.dumps(published.config_to_dict(config))
    assert published.config_from_dict(json.loads(text)) == config


def test_unknown_fields_and_kinds_are_named():
    values = published.config_to_dict(VIT)
    with pytest.raises(ValueError, match=r"BertConfig has no \['depth'\]; it has .*'num_layers'"):
        published.config_from_dict(values | {"text": {"depth": 3}})
    with pytest.raises(ValueError, match=r"vision\.kind='swin' is unknown"):
        published.config_from_dict(values | {"vision": {"kind": "swin"}})
