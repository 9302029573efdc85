"""Makes federated_contrastive.npz: the contrastive losses of FederatedScope 0.3.0.

    git clone https://github.com/alibaba/FederatedScope
    pip install numpy torch
    python tests/golden/make_federated_contrastive.py FederatedScope

Embeddings are drawn by NumPy (`draw`, which the test uses, too), so that only losses and gradients
are stored.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

CLIENTS, ROWS, FEATURES = 3, 6, 5


def draw():
    """Both views of the batches of all clients, (clients, view, rows, features)."""
    rng = np.random.RandomState(0)
    return rng.standard_normal((CLIENTS, 2, ROWS, FEATURES)).astype(np.float32)


def load(path):
    """A module of the original, without the packages that it lies in."""
    register = types.ModuleType("federatedscope.register")
    register.register_criterion = lambda name, build: None
    sys.modules.setdefault("federatedscope", types.ModuleType("federatedscope"))
    sys.modules["federatedscope.register"] = register
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(root):
    import torch

    folder = Path(root) / "federatedscope" / "cl"
    local = load(folder / "loss" / "NT_xentloss.py").NT_xentloss()
    shared = load(folder / "fedgc" / "utils.py").global_NT_xentloss()
    views, saved = torch.tensor(draw()), {}
    for name in ("local", "global"):
        losses, gradients = [], []
        for client in range(CLIENTS):
            own = views[client].clone().requires_grad_()
            others = [views[other, 1] for other in range(CLIENTS) if other != client]
            loss = local(own[0], own[1]) if name == "local" else shared(own[0], own[1], others)
            loss.backward()
            losses.append(loss.item())
            gradients.append(own.grad.numpy())
        saved[f"{name}_loss"], saved[f"{name}_gradient"] = np.array(losses), np.array(gradients)
    np.savez_compressed(Path(__file__).with_name("federated_contrastive.npz"), **saved)


if __name__ == "__main__":
    main(*sys.argv[1:])
