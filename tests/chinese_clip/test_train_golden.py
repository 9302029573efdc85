"""The whole training step against the original's: losses, gradients, updates, decay, schedule."""

import functools
import json
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip.model import MODELS, abstract_variables
from jaxlab.chinese_clip.train import make_original_decay_mask
from jaxlab.chinese_clip.weights import original_table
from jaxlab.training import OptimizerConfig, make_schedule

CHAIN = runpy.run_path(str(Path(__file__).with_name("training_chain.py")))
MAKER = CHAIN["MAKER"]


@functools.cache
def golden():
    with np.load(CHAIN["GOLDEN"] / "chinese_clip_train.npz") as stored:
        return dict(stored)


def stored_tensors(kind, what):
    """Name -> (spread entries, norm, largest entry) of the original's tensors."""
    prefix, tensors, start = f"{kind}/{what}", {}, 0
    shapes = json.loads(str(golden()[f"{kind}/shapes"]))
    names = json.loads(str(golden()[f"{prefix}/names"]))
    for index, name in enumerate(names):
        size = min(int(np.prod(shapes[name])), MAKER["NUM_SAMPLES"])
        entries = golden()[f"{prefix}/entries"][start : start + size]
        tensors[name] = (
            entries, golden()[f"{prefix}/norms"][index], golden()[f"{prefix}/largest"][index]
        )  # fmt: skip
        start += size
    assert start == len(golden()[f"{prefix}/entries"])
    return tensors


@functools.cache
def ours(kind):
    shapes = json.loads(str(golden()[f"{kind}/shapes"]))
    return CHAIN["run"](MAKER["MODELS"][kind], shapes)


@pytest.mark.parametrize("kind", MAKER["MODELS"])
def test_five_steps_equal_the_originals(kind):
    got = ours(kind)
    np.testing.assert_allclose(got["losses"], golden()[f"{kind}/losses"], rtol=1e-5)
    assert got["losses"][-1] < got["losses"][0]
    for what, tolerance in (("gradients", 1e-5), ("updates", 1e-3)):
        wanted = stored_tensors(kind, what)
        assert wanted.keys() == got[what].keys()
        compared = 0
        for name, (entries, norm, largest) in wanted.items():
            if name.endswith(("key.bias", "k_proj.bias", "in_proj_bias")):
                continue  # the gradient of a key's bias is zero, and what Adam makes of it noise
            have = np.asarray(got[what][name], np.float64)
            wrong = np.abs(MAKER["sample"](have) - entries)
            norm_error = abs(np.linalg.norm(have) - norm)
            if what == "gradients":
                summed = CHAIN["summed_terms"](name, MAKER["MODELS"][kind])
                largest, norm = max(largest, summed), max(norm, summed)
                assert wrong.max() <= tolerance * largest, name
            else:
                assert np.linalg.norm(wrong) <= tolerance * np.linalg.norm(entries), name
            assert norm_error <= tolerance * norm, name
            compared += 1
        assert compared > 20
    if kind == "vit":  # the clamp has lifted the multiplier to 1, further than five steps do
        assert got["updates"]["logit_scale"] > 2 * MAKER["STEPS"] * MAKER["RATE"] - 1e-6
    for name, (entries, _, largest) in (
        stored_tensors(kind, "statistics") if kind == "resnet" else {}
    ).items():
        wrong = np.abs(MAKER["sample"](got["statistics"][name]) - entries)
        assert wrong.max() <= 1e-4 * largest, name


@pytest.mark.parametrize("name", MAKER["ZOO"])
def test_the_original_decays_these_parameters_and_no_others(name):
    config = MODELS[name]
    params = abstract_variables(config)["params"]
    mask, table = flatten(make_original_decay_mask(config)(params)), original_table(config)
    found = {True: set(), False: set()}
    for path, decays in mask.items():
        found[decays] |= set(table.foreign_names_of(f"params/{path}"))
    decayed, everything = (
        set(json.loads(str(golden()[f"{x}/{name}"]))) for x in ("decayed", "all")
    )
    assert found[True] == decayed
    assert found[False] == everything - decayed
    odd = {"bert.embeddings.LayerNorm.weight", "bert.encoder.layer.2.output.LayerNorm.weight"}
    odd |= {"visual.layer1.0.downsample.1.weight"} if name == "RN50" else {"visual.class_embedding"}
    assert odd < decayed and "logit_scale" not in decayed


def test_the_schedule_gives_the_originals_rates():
    plan = MAKER["SCHEDULE"]
    config = OptimizerConfig(learning_rate=plan["rate"], warmup_steps=plan["warmup"])
    schedule = make_schedule(config, plan["steps"])
    rates = np.array([float(schedule(jnp.int32(step))) for step in plan["at"]])
    # To float32: the last one is the square of a small sine, not the difference of two ones.
    np.testing.assert_allclose(rates, golden()["schedule"], rtol=3e-6)
    assert [f"{rate:.6e}" for rate in rates[:4]] == [
        "5.000000e-07", "5.000000e-05", "5.000000e-05", "2.506184e-05"
    ]  # fmt: skip
