"""Training steps beside the original itself (`pytest -m parity`, the parity extra)."""

import runpy
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

CHAIN = runpy.run_path(str(Path(__file__).with_name("training_chain.py")))
MAKER = CHAIN["MAKER"]
SIZES = {
    # The large epsilon keeps Adam from stepping on the rounding noise of tiny gradients.
    "vit": {**MAKER["MODELS"]["vit"], "vision_layers": 2, "text_num_hidden_layers": 2,
            "logit_scale": 2.0, "eps": 1e-4},
    # With one block more float32 leaves 1e-5 to 3e-5 of a gradient, the original's own, too.
    "resnet": MAKER["MODELS"]["resnet"],
}  # fmt: skip
SEEDS = {"vit": 5, "resnet": 11}


@pytest.mark.parametrize("kind", SIZES)
def test_every_gradient_and_update_of_five_steps_equals_the_originals(kind):
    wanted = MAKER["train"](SIZES[kind], seed=SEEDS[kind])
    got = CHAIN["run"](SIZES[kind], wanted["shapes"], seed=SEEDS[kind])
    # Those after the first also hold what the updates before them may differ by.
    np.testing.assert_allclose(got["losses"][0], wanted["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(got["losses"], wanted["losses"], rtol=1e-4)
    compared = 0
    for name, gradient in wanted["gradients"].items():
        want = CHAIN["without_key_biases"](name, gradient)
        if want is None:
            continue
        have = CHAIN["without_key_biases"](name, got["gradients"][name])
        largest = max(np.abs(want).max(), CHAIN["summed_terms"](name, SIZES[kind]))
        assert np.abs(have - want).max() <= 1e-5 * largest, name
        want = CHAIN["without_key_biases"](name, wanted["updates"][name])
        have = CHAIN["without_key_biases"](name, got["updates"][name])
        assert np.linalg.norm(have - want) <= 1e-3 * np.linalg.norm(want), name
        compared += 1
    assert compared > 40
    for name, want in wanted["statistics"].items():
        assert np.abs(got["statistics"][name] - want).max() <= 1e-4 * np.abs(want).max(), name
