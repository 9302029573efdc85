"""Makes distillation_bertdistiller.npz: relations of bertdistiller 0.1.2, and their gradients.

`python tests/golden/make_distillation_bertdistiller.py`, in the environment that `.ci/peer_env
parity` makes. Queries, keys and values are drawn by NumPy (`draw`, which the tests use, too) and
handed to the original's trainer by a model of the form that it expects.
"""

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np

ROWS, TIME = 3, 6
LENGTHS = (6, 4, 1)
TEACHER_WIDTH, STUDENT_WIDTH = 24, 12
PROJECTIONS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings of the original.

    Attributes:
      relations: (1, 2) is from queries to keys and so on -> weight.
      num_heads: of relations.
    """

    relations: dict[tuple[int, int], float]
    num_heads: int = 4


CASES = {
    **{
        f"{PROJECTIONS[m - 1]}_{PROJECTIONS[n - 1]}": Case({(m, n): 1.0})
        for m in (1, 2, 3)
        for n in (1, 2, 3)
    },
    "published": Case({(1, 1): 1.0, (2, 2): 1.0, (3, 3): 1.0}, num_heads=12),
    "weighted": Case({(1, 2): 0.25, (3, 3): 2.0, (2, 1): 1 / 3}, num_heads=6),
    "one_head": Case({(3, 3): 1.0}, num_heads=1),
}


def draw(seed=0):
    """Teacher's and student's (rows, time, 3 widths): queries, keys, values; and the mask."""
    rng = np.random.default_rng(seed)
    teacher, student = (
        rng.standard_normal((ROWS, TIME, 3 * width)).astype(np.float32)
        for width in (TEACHER_WIDTH, STUDENT_WIDTH)
    )
    return teacher, student, np.arange(TIME)[None] < np.array(LENGTHS)[:, None]


def load_trainer():
    """The original's module of its trainer, without the packages that its data need."""
    from transformers import Trainer  # noqa: F401  (asks whether datasets is installed)

    datasets = types.ModuleType("datasets")
    datasets.Dataset = datasets.concatenate_datasets = object
    sys.modules["datasets"] = datasets
    try:
        from bertdistiller.distillation.minilm import trainer
    finally:
        del sys.modules["datasets"]
    return trainer


def make_trainer(teacher, relations, num_heads, layers=(1, 1)):
    """The original's trainer for a teacher, with what `compute_loss` reads of it."""
    import torch

    module = load_trainer()
    trainer = module.MiniLMTrainer.__new__(module.MiniLMTrainer)
    trainer.args = types.SimpleNamespace(
        teacher_layer=layers[0],
        student_layer=layers[1],
        relations=relations,
        num_relation_heads=num_heads,
    )
    trainer.teacher = teacher.eval()
    trainer.attention_extractor = module.BertAttentionExtractor()
    trainer.kl_loss = torch.nn.KLDivLoss(reduction="sum")
    return trainer


def make_model(width, features):
    """A model of one layer whose hidden states hold its queries, keys and values side by side."""
    import torch

    class Part(torch.nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index = index

        def forward(self, hidden):
            return hidden[..., self.index * width : (self.index + 1) * width]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = types.SimpleNamespace(hidden_size=width)
            parts = {name: Part(i) for i, name in enumerate(PROJECTIONS)}
            own = types.SimpleNamespace(self=types.SimpleNamespace(**parts))
            layer = types.SimpleNamespace(attention=own)
            self.encoder = types.SimpleNamespace(layer=[layer])

        def forward(self, **_):
            return types.SimpleNamespace(hidden_states=[features])

    return Model()


def theirs(case, drawn):
    """The original's loss, and its gradient by the student's queries, keys and values."""
    import torch

    teacher, student, mask = drawn
    learnt = torch.tensor(student, requires_grad=True)
    trainer = make_trainer(
        make_model(TEACHER_WIDTH, torch.tensor(teacher)), case.relations, case.num_heads
    )
    inputs = {"attention_mask": torch.tensor(mask).long()}
    loss = trainer.compute_loss(make_model(STUDENT_WIDTH, learnt), inputs)
    loss.backward()
    return loss.item(), learnt.grad.numpy()


def main():
    saved = {}
    for name, case in CASES.items():
        loss, gradient = theirs(case, draw())
        saved |= {f"{name}:loss": np.float64(loss), f"{name}:gradient": gradient}
    np.savez_compressed(Path(__file__).with_name("distillation_bertdistiller.npz"), **saved)


if __name__ == "__main__":
    main()
