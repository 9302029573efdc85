"""Our side of the configurations of tests/golden/make_distillation_textbrewer.py."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import distillation as kd
from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.distillation.configs import Wishes, config_from_huggingface
from jaxlab.distillation.model import param_shapes
from jaxlab.distillation.weights import huggingface_state_dict
from jaxlab.training import TrainState

GOLDEN = Path(__file__).parents[1] / "golden"
MAKER = runpy.run_path(str(GOLDEN / "make_distillation_textbrewer.py"), run_name="maker")
CASES = MAKER["CASES"]
_SCHEDULES = {"linear_decay": "decay", "linear_growth": "growth"}


def objective_config(config, *, masked=True, probabilities=False):
    """Our settings that say what the arguments of the original's `DistillationConfig` say."""
    schedule, *numbers = config.get("temperature_scheduler", ["constant"])
    weight = config.get("kd_loss_weight", 1)
    response = kd.ResponseConfig(
        config.get("kd_loss_type", "ce") if weight else "none",
        float(weight),
        float(config.get("temperature", 4)),
        temperature_schedule=schedule,
        shift_probability=config.get("probability_shift", False),
        schedule=_SCHEDULES.get(config.get("kd_loss_weight_scheduler"), "constant"),
        **dict(zip(("beta", "gamma"), map(float, numbers), strict=False)),
    )
    matches = kd.from_textbrewer(
        config.get("intermediate_matches", ()), masked=masked, probabilities=probabilities
    )
    hard = kd.HardConfig(float(config.get("hard_label_weight", 0)))
    return kd.ObjectiveConfig(kd.format_matches(matches), response, hard)


def ours(case, drawn):
    """Our loss of a case, and its gradients by the student's features that have one."""
    teacher, student, batch, projections = drawn
    config = objective_config(case.config, masked=case.masked, probabilities=case.probabilities)
    shapes = [kd.Shape(*sizes) for sizes in (case.student, MAKER["TEACHER"])]
    task = "tagging" if case.tokens else "classification"
    objective = kd.compile_objective(config, *shapes, task=task)
    given = [jax.tree.map(jnp.asarray, each) for each in projections if each is not None]
    names = [name for name, *_ in objective.projections]
    mask = batch["mask"]
    batch = {
        # Without a mask the original's loss of logits is over all tokens.
        "mask": jnp.asarray(mask if case.masked or not case.tokens else np.ones_like(mask)),
        "label": jnp.asarray(batch["label"]),
        "has_label": jnp.ones(len(mask), bool),
    }
    attention = "probabilities" if case.probabilities else "scores"

    def features(side):
        return kd.Features(
            logits=jnp.asarray(side["logits"]),
            hidden=tuple(map(jnp.asarray, side["hidden"])),
            **{attention: tuple(map(jnp.asarray, side["attention"]))},
        )

    def loss(student):
        mine = dict(zip(names, given, strict=True))
        return objective(mine, student, features(teacher), batch).total()

    value, found = jax.jit(jax.value_and_grad(loss))(features(student))
    gradients = {"logits": found.logits}
    gradients |= {f"hidden/{i}": gradient for i, gradient in enumerate(found.hidden)}
    gradients |= {f"attention/{i}": g for i, g in enumerate(getattr(found, attention))}
    return float(value), {n: np.asarray(g) for n, g in gradients.items() if np.abs(g).max() > 0}


def check_gradients(found, expected):
    """The same features have gradients, and these are equal to 1e-5 of their largest entry."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        atol = 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=atol, err_msg=name)


def model_config(side):
    """Our config of one of the two small BERTs."""
    values = {"model_type": "bert", **MAKER["COMMON"], **MAKER["SIZES"][side]}
    values |= {"hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    values |= {"pad_token_id": 0, "architectures": ["BertForSequenceClassification"]}
    wishes = Wishes("bert", "classification", MAKER["COMMON"]["num_labels"], "first")
    return config_from_huggingface(values, wishes, {})


def our_run():
    """The loss of every step of the original's run, and the student's weights after it."""
    configs = {side: model_config(side) for side in MAKER["SIZES"]}
    states = [
        MAKER["draw_state"](
            {n: a.shape for n, a in foreign_zeros(config).items()}, list(configs).index(side)
        )
        for side, config in configs.items()
    ]
    teacher, student = (
        jax.tree.map(jnp.asarray, kd.load_params(state, config).params)
        for state, config in zip(states, configs.values(), strict=True)
    )
    shapes = [
        kd.Shape(c.encoder.num_layers, c.encoder.width, c.encoder.num_heads)
        for c in (configs["student"], configs["teacher"])
    ]
    config = objective_config(MAKER["RUN"], probabilities=True)
    objective = kd.compile_objective(config, *shapes)
    parts = kd.Parts(
        objective,
        kd.make_forward(kd.TextModel(configs["student"])),
        kd.make_forward(kd.TextModel(configs["teacher"])),
    )
    tx = optax.sgd(MAKER["RATE"])
    step = jax.jit(kd.make_distillation_step(parts, tx, MAKER["STEPS"]))
    key = jax.random.key(0)
    state = TrainState.create(kd.distillation_params(objective, student, key), tx, key, {})
    losses = []
    for i, batch in enumerate(MAKER["draw_batches"]()):
        batch = {
            "ids": jnp.asarray(batch["ids"], jnp.int32),
            "types": jnp.zeros(batch["ids"].shape, jnp.int32),
            "mask": jnp.asarray(batch["mask"]),
            "label": jnp.asarray(batch["label"], jnp.int32),
            "has_label": jnp.ones(len(batch["label"]), bool),
        }
        state, metrics = step(state, {"teacher": teacher}, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    after = huggingface_state_dict(kd.exported_params(state.params), configs["student"])
    return states[1], np.array(losses), after


def foreign_zeros(config):
    """Zeros under the names of transformers, for their shapes."""
    zeros = {path: np.zeros(shape, np.float32) for path, shape in param_shapes(config).items()}
    return huggingface_state_dict(unflatten(zeros), config)


def check_run(found, expected):
    """Losses to 1e-4 relative, and the update to 1e-4 of the largest change of each tensor."""
    before, losses, after = found
    expected_losses, expected_after = expected
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert after.keys() == expected_after.keys()
    for name, old in before.items():
        change = expected_after[name] - old
        largest = np.abs(change).max()
        if name.endswith("key.bias"):  # its gradient is zero but for rounding
            assert largest < 1e-6 and np.abs(after[name] - old).max() < 1e-6
            continue
        assert largest > 1e-5, name
        np.testing.assert_allclose(after[name] - old, change, atol=1e-4 * largest, err_msg=name)
