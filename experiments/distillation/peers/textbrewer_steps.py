"""Steps of TextBrewer 0.2.1 (torch, models of transformers) with given weights."""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertConfig, BertForSequenceClassification

from jaxlab.distillation import TextModelConfig


def set_threads(number: int) -> None:
    """Let torch compute on a number of threads."""
    torch.set_num_threads(number)


def build(config: TextModelConfig, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """A classifier under transformers with given weights.

    Args:
      config: its sizes and dropout rates.
      state: its weights under the names of transformers.

    Raises:
      ValueError: if names differ.
    """
    encoder = config.encoder
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=encoder.vocab_size,
            num_hidden_layers=encoder.num_layers,
            hidden_size=encoder.width,
            num_attention_heads=encoder.num_heads,
            intermediate_size=encoder.mlp_width,
            max_position_embeddings=encoder.max_positions,
            hidden_dropout_prob=encoder.hidden_dropout,
            attention_probs_dropout_prob=encoder.attention_dropout,
            num_labels=config.num_labels,
        )
    )
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


def make_step(
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    batch: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    *,
    device: str,
    rate: float,
    decay: float,
    clip: float,
) -> Callable[[], float]:
    """A step as the library's loop does it, on one batch; it gives the loss.

    Args:
      teacher: a classifier.
      student: a classifier.
      batch: `ids`, `types` and `mask`.
      settings: arguments of `DistillationConfig`.
      device: `cpu` or `gpu`.
      rate: of AdamW.
      decay: of weights with two dimensions.
      clip: largest norm of the gradients.
    """
    place = torch.device("cuda" if device == "gpu" else "cpu")
    teacher, student = teacher.to(place), student.to(place)

    def adaptor(given: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "inputs_mask": given["attention_mask"],
        }

    training = TrainingConfig(device=place, output_dir=tempfile.mkdtemp())
    config = DistillationConfig(**settings)
    distiller = GeneralDistiller(training, config, teacher, student, adaptor, adaptor)
    names = {"ids": "input_ids", "types": "token_type_ids", "mask": "attention_mask"}
    inputs = {ours: torch.from_numpy(batch[name]).long().to(place) for name, ours in names.items()}
    flat = [p for p in student.parameters() if p.ndim < 2]
    rest = [p for p in student.parameters() if p.ndim >= 2]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": decay}]
    optimizer = torch.optim.AdamW(groups, lr=rate)

    def step() -> float:
        with distiller:
            loss, _ = distiller.train_on_batch(inputs, {"output_hidden_states": True})
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

    return step
