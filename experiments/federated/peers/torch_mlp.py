"""The network of the work in torch."""

from collections.abc import Sequence

import numpy as np
import torch


class MLP(torch.nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, layers: Sequence[np.ndarray]) -> None:
        """Take over kernels (in, out) and biases."""
        modules: list[torch.nn.Module] = []
        for kernel, bias in zip(layers[::2], layers[1::2], strict=True):
            linear = torch.nn.Linear(*kernel.shape)
            linear.weight.data.copy_(torch.from_numpy(kernel.T.copy()))
            linear.bias.data.copy_(torch.from_numpy(bias))
            modules += [linear, torch.nn.ReLU()]
        super().__init__(*modules[:-1])


def to_layers(model: torch.nn.Module) -> list[np.ndarray]:
    """Kernels (in, out) and biases."""
    return [p.detach().cpu().numpy().T.copy() for p in model.parameters()]


def shuffled(tensors: Sequence[torch.Tensor], rng: np.random.Generator) -> list[torch.Tensor]:
    """The rows of some tensors in one new order."""
    order = torch.from_numpy(rng.permutation(len(tensors[0])))
    return [tensor[order] for tensor in tensors]
