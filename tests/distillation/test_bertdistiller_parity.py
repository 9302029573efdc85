"""Beside bertdistiller itself (`pytest -m parity`): relations, models, and where it differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import distillation as kd
from jaxlab.distillation.configs import Wishes, config_from_huggingface
from tests.distillation.bertdistiller import CASES, MAKER, check, matches_of, ours

pytestmark = pytest.mark.parity

SIZES = {
    "teacher": {"num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 40},
    "student": {"num_hidden_layers": 2, "hidden_size": 12, "intermediate_size": 20},
}
COMMON = {"vocab_size": 30, "num_attention_heads": 3, "max_position_embeddings": 12}
LAYERS = (2, 2)  # from 1, as the original counts


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_relations_are_equal(name, seed):
    drawn = MAKER["draw"](seed)
    check(ours(CASES[name], drawn), MAKER["theirs"](CASES[name], drawn))


def build(side, seed):
    """A model under transformers, and ours with its weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {**COMMON, **SIZES[side], "initializer_range": 0.5}
    model = BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()
    values = {"model_type": "bert", **sizes, "hidden_act": "gelu", "type_vocab_size": 2}
    values |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, "architectures": ["BertModel"]}
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    config = config_from_huggingface(values, Wishes("bert", "none", None, "mean"), state)
    return model, config, jax.tree.map(jnp.asarray, kd.load_params(state, config).params)


@pytest.mark.parametrize("name", ["published", "weighted"])
def test_whole_models_give_equal_losses(name):
    import torch

    case = CASES[name]
    (teacher, teacher_config, teacher_params), (student, config, params) = (
        build(side, i) for i, side in enumerate(SIZES)
    )
    rng = np.random.default_rng(3)
    mask = np.arange(8)[None] < np.array([8, 5, 2])[:, None]
    ids = rng.integers(1, COMMON["vocab_size"], (3, 8)) * mask
    trainer = MAKER["make_trainer"](teacher, case.relations, case.num_heads, LAYERS)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask).long()}
    expected = trainer.compute_loss(student, inputs).item()

    pair = "-".join(str(layer - 1) for layer in LAYERS)
    shapes = [
        kd.Shape(c.encoder.num_layers, c.encoder.width, c.encoder.num_heads)
        for c in (config, teacher_config)
    ]
    matches = kd.ObjectiveConfig(matches_of(case, pair), kd.ResponseConfig("none"))
    objective = kd.compile_objective(matches, *shapes, task="none")
    batch = {"ids": jnp.asarray(ids, jnp.int32), "mask": jnp.asarray(mask)}
    batch["types"] = jnp.zeros_like(batch["ids"])
    shown, learnt = (
        kd.make_forward(kd.TextModel(c))(p, batch, taps=objective.student_taps)
        for c, p in ((teacher_config, teacher_params), (config, params))
    )
    found = float(objective({}, learnt, shown, batch).total())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_padding_on_the_left_is_taken_for_the_text_there():
    """It cuts texts at their number of tokens; ours looks at the mask, wherever the padding is."""
    teacher, student, mask = MAKER["draw"](4)
    case = CASES["published"]
    right = ours(case, (teacher, student, mask))[0]
    turned = tuple(np.ascontiguousarray(array[:, ::-1]) for array in (teacher, student, mask))
    np.testing.assert_allclose(ours(case, turned)[0], right, rtol=1e-5)
    theirs = MAKER["theirs"](case, turned)[0]
    assert abs(theirs / right - 1) > 1e-3


def test_a_text_without_tokens_is_nothing_there():
    """0 / 0 of one text is the loss of the batch; ours leaves the text out."""
    teacher, student, mask = MAKER["draw"](5)
    mask[1] = False
    case = CASES["published"]
    assert np.isnan(MAKER["theirs"](case, (teacher, student, mask))[0])
    rest = tuple(array[[0, 2]] for array in (teacher, student, mask))
    found, gradient = ours(case, (teacher, student, mask))
    np.testing.assert_allclose(found, ours(case, rest)[0], rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[1].any()
