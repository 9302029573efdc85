"""Makes distillation_textbrewer.npz: losses, gradients and five steps of TextBrewer 0.2.1.post1.

`python tests/golden/make_distillation_textbrewer.py` in the environment of `.ci/peer_env parity`.
Features are drawn by NumPy (`draw`, which the tests use, too) and go through the original's
`GeneralDistiller`, so that its tables of losses, weights, temperatures and projections have a part.
"""

import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROWS, TIME, CLASSES = 3, 6, 4
LENGTHS = (6, 4, 1)
# Layers, width, heads.
TEACHER, SAME, NARROW = (4, 12, 2), (2, 12, 2), (2, 8, 4)


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration of the original.

    Attributes:
      config: arguments of `DistillationConfig`.
      student: sizes of the student.
      masked: the adaptors give a mask.
      probabilities: of attention, not scores.
      tokens: logits are of tokens.
    """

    config: dict[str, Any]
    student: tuple[int, int, int] = SAME
    masked: bool = True
    probabilities: bool = False
    tokens: bool = False


def match(loss, teacher, student, weight=1.0, projection=""):
    feature = "attention" if loss.startswith("attention") else "hidden"
    found = {
        "layer_T": teacher,
        "layer_S": student,
        "feature": feature,
        "loss": loss,
        "weight": weight,
    }
    return found | ({"proj": [projection, NARROW[1], TEACHER[1]]} if projection else {})


def only(*matches):
    return {"kd_loss_weight": 0, "intermediate_matches": list(matches)}


HIDDEN = ("hidden_mse", "cos", "pkd")
PAIRS = ("gram", "fsp", "mmd", "nst")
ATTENTION = ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")


def make_cases():
    """Name -> case: every entry of the original's tables."""
    cases = {}
    for masked in (True, False):
        suffix = "" if masked else "/unmasked"
        for loss in HIDDEN + ATTENTION:
            cases[loss + suffix] = Case(only(match(loss, 3, 1)), masked=masked)
        for loss in PAIRS:
            cases[loss + suffix] = Case(only(match(loss, [1, 4], [0, 2])), masked=masked)
        for loss in ("attention_mse_sum", "attention_ce_mean"):
            name = f"{loss}/other_heads{suffix}"
            cases[name] = Case(only(match(loss, 3, 1)), NARROW, masked)
        cases[f"mmd/other_width{suffix}"] = Case(only(match("mmd", [2, 2], [1, 1])), NARROW, masked)
        cases[f"attention_mse/probabilities{suffix}"] = Case(
            only(match("attention_mse", 0, 0)), masked=masked, probabilities=True
        )
    for projection in ("linear", "relu", "tanh"):
        for loss in HIDDEN:
            one = match(loss, 4, 2, projection=projection)
            cases[f"{loss}/{projection}"] = Case(only(one), NARROW)
        two = match("gram", [4, 2], [2, 1], projection=projection)
        cases[f"gram/{projection}"] = Case(only(two), NARROW)
    schedules = {"constant": None, "flsw": ["flsw", 1, 2], "cwsm": ["cwsm", 1]}
    for kind in ("ce", "mse"):
        for name, schedule in schedules.items():
            for tokens in (False, True):
                config = {"kd_loss_type": kind, "temperature": 8 if schedule is None else 4}
                config |= {} if schedule is None else {"temperature_scheduler": schedule}
                place = "tokens" if tokens else "texts"
                cases[f"kd_{kind}/{name}/{place}"] = Case(config, tokens=tokens)
    shift = {"probability_shift": True, "kd_loss_weight": 3}
    cases["shift"] = Case(shift)
    cases["shift/flsw"] = Case({**shift, "temperature_scheduler": ["flsw", 2, 1]})
    cases["shift/tokens"] = Case(shift, tokens=True, masked=False)
    cases["everything"] = Case(
        {
            "temperature": 2,
            "kd_loss_weight": 0.7,
            "hard_label_weight": 0.3,
            "intermediate_matches": [
                match("hidden_mse", 0, 0, 0.1, "linear"),
                match("hidden_mse", 4, 2, 2.5, "linear"),
                match("cos", 2, 1, 1.5, "tanh"),
                match("nst", [2, 4], [1, 2], 0.25),
                match("attention_ce_mean", 3, 1, 0.5),
            ],
        },
        NARROW,
    )
    return cases


CASES = make_cases()


def draw(case, seed=0):
    """Teacher's and student's features and the batch of a case, by name."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def features(layers, width, heads):
        attention = [normal(ROWS, heads, TIME, TIME) for _ in range(layers)]
        if case.probabilities:
            powers = [np.exp(scores) for scores in attention]
            attention = [power / power.sum(axis=-1, keepdims=True) for power in powers]
        return {
            "logits": normal(ROWS, *((TIME,) if case.tokens else ()), CLASSES) * 2,
            "hidden": [normal(ROWS, TIME, width) for _ in range(layers + 1)],
            "attention": attention,
        }

    teacher, student = features(*TEACHER), features(*case.student)
    mask = np.arange(TIME)[None] < np.array(LENGTHS)[:, None]
    shape = (ROWS, TIME) if case.tokens else (ROWS,)
    label = rng.integers(0, CLASSES, shape).astype(np.int32)
    if case.tokens:
        label[:, ::3] = -100
    projections = [
        {"kernel": normal(NARROW[1], TEACHER[1]) / 3, "bias": normal(TEACHER[1])}
        if "proj" in each
        else None
        for each in case.config.get("intermediate_matches", [])
    ]
    return teacher, student, {"mask": mask, "label": label}, projections


def theirs(case, drawn):
    """The original's loss, and its gradients by the student's features: `hidden/2` and the like."""
    import torch

    teacher, student, batch, projections = drawn
    mask, label = torch.tensor(batch["mask"]), torch.tensor(batch["label"]).long()

    def results(features, learns):
        def leaf(array):
            return torch.tensor(array).requires_grad_(learns)

        found = {"logits": [leaf(features["logits"])]}
        found |= {name: [leaf(a) for a in features[name]] for name in ("hidden", "attention")}
        if case.masked:
            found |= {"inputs_mask": mask, "logits_mask": [mask]}
        return found

    distiller = make_distiller(case.config)
    for layer, projection in zip(distiller.projs, projections, strict=True):
        if layer is not None:
            first = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
            with torch.no_grad():
                first.weight.copy_(torch.tensor(projection["kernel"].T))
                first.bias.copy_(torch.tensor(projection["bias"]))
    shown, learnt = results(teacher, False), results(student, True)
    learnt["labels"] = [label]
    if case.config.get("hard_label_weight"):
        learnt["losses"] = [torch.nn.functional.cross_entropy(learnt["logits"][0], label)]
    loss, _ = distiller.compute_loss(learnt, shown)
    loss.backward()
    leaves = {"logits": learnt["logits"][0]}
    for name in ("hidden", "attention"):
        leaves |= {f"{name}/{i}": leaf for i, leaf in enumerate(learnt[name])}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return loss.item(), {n: g.numpy() for n, g in gradients.items() if g.abs().max() > 0}


def make_distiller(config, teacher=None, student=None, adaptors=(None, None)):
    """The original's distiller; it writes nothing but what a run saves, to a temporary folder."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    folder = tempfile.mkdtemp()
    training = TrainingConfig(device="cpu", output_dir=folder, log_dir=None)
    return GeneralDistiller(training, DistillationConfig(**config), teacher, student, *adaptors)


# A whole run: two small BERTs under transformers, trained by the original.

STEPS, BATCH_SIZE, LENGTH, RATE = 5, 8, 10, 0.05
SIZES = {
    "teacher": {"num_hidden_layers": 4, "hidden_size": 24, "intermediate_size": 48},
    "student": {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32},
}
COMMON = {
    "vocab_size": 40,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RUN = {
    "temperature": 8,
    "kd_loss_weight": 2,
    "hard_label_weight": 0.5,
    "intermediate_matches": [
        *(
            {"layer_T": 2 * i, "layer_S": i, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
            for i in range(3)
        ),
        *(
            {"layer_T": [2 * i] * 2, "layer_S": [i] * 2, "feature": "hidden", "loss": "nst",
             "weight": 1}
            for i in range(3)
        ),
        {"layer_T": 3, "layer_S": 1, "feature": "attention", "loss": "attention_mse", "weight": 5},
    ],
}  # fmt: skip


def draw_batches():
    """`STEPS` batches of ids, masks and labels."""
    rng = np.random.default_rng(7)
    ids = rng.integers(1, COMMON["vocab_size"], (STEPS, BATCH_SIZE, LENGTH))
    lengths = rng.integers(3, LENGTH + 1, (STEPS, BATCH_SIZE))
    mask = np.arange(LENGTH)[None, None] < lengths[..., None]
    label = rng.integers(0, COMMON["num_labels"], (STEPS, BATCH_SIZE))
    return [{"ids": ids[i] * mask[i], "mask": mask[i], "label": label[i]} for i in range(STEPS)]


def draw_state(shapes, seed):
    """Weights by name, from the shapes of a state dict."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(shapes):
        value = 0.1 * rng.standard_normal(shapes[name])
        is_scale = name.endswith("LayerNorm.weight")
        drawn[name] = (value + 1 if is_scale else value).astype(np.float32)
    return drawn


def build(side):
    """One of the two models under transformers, with drawn weights, and these."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**COMMON, **SIZES[side], attn_implementation="eager")
    model = BertForSequenceClassification(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    state = draw_state(shapes, seed=list(SIZES).index(side))
    model.load_state_dict({n: torch.tensor(a) for n, a in state.items()}, strict=False)
    return model, state


def train():
    """Weights before, the loss of every step, and the student's weights after the run."""
    import torch

    (teacher, of_teacher), (student, of_student) = build("teacher"), build("student")
    losses = []

    def adaptor(batch, outputs):
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "attention": outputs.attentions,
            "inputs_mask": batch["attention_mask"],
            "losses": outputs.loss,
        }

    distiller = make_distiller(RUN, teacher, student, (adaptor, adaptor))
    distiller.write_loss = lambda total, *_: losses.append(total.item())
    batches = [
        {
            "input_ids": torch.tensor(batch["ids"]),
            "attention_mask": torch.tensor(batch["mask"]).long(),
            "labels": torch.tensor(batch["label"]),
        }
        for batch in draw_batches()
    ]
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), distiller:
        distiller.train(
            optimizer, batches, num_epochs=1, output_hidden_states=True, output_attentions=True
        )
    after = {name: p.detach().numpy() for name, p in student.named_parameters()}
    return of_teacher, of_student, np.array(losses), after


def main():
    saved = {}
    for name, case in CASES.items():
        loss, gradients = theirs(case, draw(case))
        saved[f"{name}:loss"] = np.float64(loss)
        saved |= {f"{name}:{place}": gradient for place, gradient in gradients.items()}
    *_, losses, after = train()
    saved["run:losses"] = losses
    saved |= {f"run:{name}": array for name, array in after.items()}
    np.savez_compressed(Path(__file__).with_name("distillation_textbrewer.npz"), **saved)


if __name__ == "__main__":
    main()
