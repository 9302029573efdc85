"""Small models of all five kinds against what the original computed: features and gradients."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.chinese_clip.model import ChineseClip
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.weights import original_table

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")


@functools.cache
def made():
    """What the script of the goldens draws, without running it."""
    sys.path.insert(0, str(GOLDEN))
    try:
        import make_chinese_clip_sizes
    finally:
        sys.path.remove(str(GOLDEN))
    return make_chinese_clip_sizes


@functools.cache
def ours(name):
    """Features, and the gradient of the objective under the original's names."""
    make = made()
    config = make.CONFIGS[name]
    table, shapes = original_table(config), variable_shapes(config)
    drawn = make.draw(table.foreign_shapes(dict(shapes)))
    variables = jax.tree.map(jnp.asarray, unflatten(table.load(drawn, shapes)))
    images, ids = (jnp.asarray(x) for x in make.inputs(config))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        features = ChineseClip(config).apply(variables | {"params": params}, images, ids)
        both = jnp.stack(features[:2])
        return jnp.sum(both * make.objective(config)), (both, jnp.exp(features.log_scale))

    (_, (features, scale)), gradient = run(variables["params"])
    flat = {"params/" + path: np.asarray(leaf) for path, leaf in flatten(gradient).items()}
    flat |= {path: np.zeros(shape) for path, shape in shapes.items() if path not in flat}
    return features, scale, table.save(flat)


@pytest.mark.parametrize("name", NAMES)
def test_features_and_scale_equal_the_originals(name):
    features, scale, _ = ours(name)
    with np.load(GOLDEN / "chinese_clip_sizes.npz") as stored:
        np.testing.assert_allclose(features, stored[f"{name}/features"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(scale, stored[f"{name}/scale"], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_the_originals(name):
    """Key biases have a gradient of zero: what is left of theirs is rounding.

    The gradients of queries and keys are what is left of terms up to a hundred times as large
    (as those of the values), so that processors round them apart: 2.1e-5 of the norm was seen.
    """
    gradient, make = ours(name)[2], made()
    with np.load(GOLDEN / "chinese_clip_sizes.npz") as stored:
        names, wanted = str(stored[f"{name}/parameters"]).split("\n"), stored[f"{name}/gradients"]
    assert len(names) > 50
    for parameter, want in zip(names, wanted, strict=True):
        if not parameter.endswith(("key.bias", "k_proj.bias")):
            got = make.digest(parameter, gradient[parameter])
            cancelled = ".query." in parameter or ".key." in parameter
            atol = (1e-4 if cancelled else 2e-5) * want[0]
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=parameter)
