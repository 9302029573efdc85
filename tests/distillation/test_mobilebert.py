import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten, unflatten
from jaxlab.distillation.model import TextModelConfig, param_shapes
from jaxlab.distillation.sizes import SIZES
from jaxlab.distillation.weights import load_pretrained, save_pretrained
from jaxlab.layers.mobilebert import MobileBertConfig

SMALL = MobileBertConfig(20, 2, 12, 8, 2, 10, 3, 6, max_positions=8)


def write(folder, *, with_pooler=False, **options):
    encoder = dataclasses.replace(SMALL, **options)
    config = TextModelConfig(encoder, "mobilebert", "classification", 3, with_pooler=with_pooler)
    rng = np.random.default_rng(0)
    params = unflatten(
        {path: rng.normal(size=s).astype(np.float32) for path, s in param_shapes(config).items()}
    )
    save_pretrained(folder, params, config)
    return config, params


@pytest.mark.parametrize(
    "options",
    [
        {"with_pooler": True},
        {"norm": "layer", "attention_inputs": "narrow"},
        {"norm": "layer", "attention_inputs": "wide", "bottleneck_width": 24, "num_mlps": 1},
        {"trigrams": False, "embedding_width": 10},
    ],
)
def test_a_saved_model_is_read_again_as_it_was(options, tmp_path):
    config, params = write(tmp_path, **options)
    found = load_pretrained(tmp_path)
    assert found.config == config
    assert set(flatten(found.params)) == set(flatten(params))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_sizes_by_name_are_those_of_its_code():
    """`config/*.json` of google-research's mobilebert."""
    tiny, teacher = (SIZES[name].encoder for name in ("mobilebert_tiny", "ib_bert_large"))
    mobile = SIZES["mobilebert"].encoder
    assert dataclasses.replace(mobile, num_mlps=2, attention_inputs="narrow") == tiny
    assert (teacher.bottleneck_width, teacher.mlp_width, teacher.num_mlps) == (1024, 4096, 1)
    assert (teacher.norm, mobile.norm) == ("layer", "none")
    shapes = [(SIZES[name].shape) for name in ("mobilebert", "mobilebert_tiny", "ib_bert_large")]
    assert {shape[:3] for shape in shapes} == {(24, 512, 4)}


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"num_hidden_layers": 3}, NameMismatchError, "encoder.layer.2.attention.self.key.bias"),
        ({"use_bottleneck": False}, ValueError, "use_bottleneck=False is not offered"),
        ({"normalization_type": "rms"}, ValueError, "'rms'; no_norm, layer_norm are read"),
    ],
)
def test_what_does_not_fit_is_refused(entries, error, message, tmp_path):
    write(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(error, match=message):
        load_pretrained(tmp_path)
