import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.distillation.mobilebert import load_mobilebert, save_mobilebert
from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertEncoder


def make(tmp_path, **options):
    config = MobileBertConfig(20, 2, 12, 8, 2, 10, 3, 6, max_positions=8, **options)
    rng = np.random.default_rng(0)
    ids = jnp.ones((1, 2), jnp.int32)
    traced = jax.eval_shape(MobileBertEncoder(config).init, jax.random.key(0), ids)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), traced)
    save_mobilebert(tmp_path, params, config)
    return config, params


@pytest.mark.parametrize("options", [{}, {"norm": "layer", "narrow_values": True}])
def test_a_saved_model_is_read_again_as_it_was(options, tmp_path):
    config, params = make(tmp_path, **options)
    found = load_mobilebert(tmp_path)
    assert found.config == config
    assert set(flatten(found.params)) == set(flatten(params))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"num_hidden_layers": 3}, NameMismatchError, "encoder.layer.2.attention.self.key.bias"),
        ({"model_type": "bert"}, ValueError, "model_type='bert'; mobilebert is read"),
        ({"use_bottleneck": False}, ValueError, "use_bottleneck=False is not offered"),
        ({"normalization_type": "rms"}, ValueError, "'rms'; no_norm, layer_norm are read"),
        ({"key_query_shared_bottleneck": False}, ValueError, "one of the two is wanted"),
    ],
)
def test_what_does_not_fit_is_refused(entries, error, message, tmp_path):
    make(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(error, match=message):
        load_mobilebert(tmp_path)
