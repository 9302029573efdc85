"""The original (cn_clip 1.6.0 on torch) with given weights: encoding and training steps."""

import math
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.training import OptimizerConfig

_UNDECAYED = ("bn", "ln", "bias", "logit_scale")


def build(config: ChineseClipConfig, state: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """The original's model in float32 with the given weights, in evaluation mode.

    Args:
      config: sizes, dropout rates included.
      state: its state dict.
    """
    _stand_in_for_torchvision()
    from cn_clip.clip.model import CLIP

    vision, text = config.vision, config.text
    if isinstance(vision, ModifiedResNetConfig):
        tower: dict[str, Any] = {
            "vision_layers": vision.stages,
            "vision_width": vision.stem_width,
            "vision_patch_size": None,
        }
    else:
        tower = {
            "vision_layers": vision.num_layers,
            "vision_width": vision.width,
            "vision_patch_size": vision.patch_size,
            "vision_head_width": vision.width // vision.num_heads,
        }
    model = CLIP(
        embed_dim=config.embed_dim,
        image_resolution=vision.image_size,
        vocab_size=text.vocab_size,
        text_attention_probs_dropout_prob=text.attention_dropout,
        text_hidden_act=text.activation,
        text_hidden_dropout_prob=text.hidden_dropout,
        text_hidden_size=text.width,
        text_initializer_range=text.init_std,
        text_intermediate_size=text.mlp_width,
        text_max_position_embeddings=text.max_positions,
        text_num_attention_heads=text.num_heads,
        text_num_hidden_layers=text.num_layers,
        text_type_vocab_size=text.num_types,
        **tower,
    )
    model.float().load_state_dict({n: torch.from_numpy(a) for n, a in state.items()}, strict=False)
    return model.eval()


def set_threads(number: int) -> None:
    """Let torch compute on a number of threads."""
    torch.set_num_threads(number)


def _stand_in_for_torchvision() -> None:
    """The package imports torchvision for its image transform, which is not used here."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        names = ("Compose", "ToTensor", "Normalize", "Resize", "InterpolationMode")
        transforms = ModuleType("torchvision.transforms")
        for name in names:
            setattr(transforms, name, None)
        package = ModuleType("torchvision")
        package.__dict__["transforms"] = transforms
        sys.modules["torchvision"] = package
        sys.modules["torchvision.transforms"] = transforms


def fuse_text_attention(model: torch.nn.Module) -> None:
    """Let the text tower use torch's fused attention, as the image tower does by itself.

    Args:
      model: the original's model; its blocks are changed in place.
    """
    for layer in model.bert.encoder.layer:
        layer.attention.self.forward = _fused(layer.attention.self)


def _fused(block: Any) -> Callable[..., tuple[torch.Tensor]]:
    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (block.num_attention_heads, -1)).transpose(1, 2)

    def forward(x: torch.Tensor, mask: torch.Tensor, _: Any = None) -> tuple[torch.Tensor]:
        attended = torch.nn.functional.scaled_dot_product_attention(
            split(block.query(x)),
            split(block.key(x)),
            split(block.value(x)),
            attn_mask=mask.to(x.dtype),
            dropout_p=block.dropout.p if block.training else 0.0,
        )
        return (attended.transpose(1, 2).flatten(-2),)

    return forward


class Runner:
    """The original on a device: encoders and training steps on one batch."""

    def __init__(
        self,
        model: torch.nn.Module,
        images: np.ndarray,
        ids: np.ndarray,
        *,
        dtype: str,
        device: str,
    ):
        """Place a model and its batch.

        Args:
          model: the original's model.
          images: NHWC float32.
          ids: token ids.
          dtype: `float32`, or `bfloat16` for automatic mixed precision.
          device: `cpu` or `gpu`.
        """
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._dtype = getattr(torch, dtype)
        self.model = model.to(self._device)
        self._images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self._device)
        self._ids = torch.from_numpy(ids.astype(np.int64)).to(self._device)

    def _autocast(self) -> torch.autocast:
        mixed = self._dtype != torch.float32
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=mixed)

    def encode_image(self) -> np.ndarray:
        """Normalised image features of the batch."""
        return self._encode(lambda: self.model.encode_image(self._images))

    def encode_text(self) -> np.ndarray:
        """Normalised text features of the batch."""
        return self._encode(lambda: self.model.encode_text(self._ids))

    def _encode(self, encode: Callable[[], torch.Tensor]) -> np.ndarray:
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            features = encode().float()
            return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()

    def make_step(self, config: OptimizerConfig, max_scale: float) -> Callable[[], float]:
        """A training step of the original: loss, gradients, AdamW, clamp; it gives the loss.

        Args:
          config: a constant rate is taken from it.
          max_scale: upper bound of the multiplier.
        """
        model = self.model.train()
        spared, rest = [], []
        for name, parameter in model.named_parameters():
            (spared if any(part in name for part in _UNDECAYED) else rest).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": spared, "weight_decay": 0.0},
                {"params": rest, "weight_decay": config.weight_decay},
            ],
            lr=config.learning_rate,
            betas=(config.b1, config.b2),
            eps=config.eps,
        )
        cross_entropy = torch.nn.CrossEntropyLoss()
        truth = torch.arange(len(self._ids), device=self._device)

        def step() -> float:
            model.train()
            optimizer.zero_grad()
            with self._autocast():
                image, text, scale = model(self._images, self._ids, 0)
                logits = scale * image @ text.t()
                loss = (cross_entropy(logits, truth) + cross_entropy(logits.t(), truth)) / 2
            loss.backward()
            optimizer.step()
            model.logit_scale.data = torch.clamp(model.logit_scale.data, 0, math.log(max_scale))
            return loss.item()

        return step
