"""Makes federated_splits.npz: splits of FederatedScope 0.3.0.

    git clone https://github.com/alibaba/FederatedScope
    python tests/golden/make_federated_splits.py FederatedScope

Its splitters need NumPy only, so their file is run by itself. A client's examples lie one after
another (`*_indices`), `*_sizes` says how many each has.
"""

import runpy
import sys
from pathlib import Path

import numpy as np

UTILS = "federatedscope/core/splitters/utils.py"
CASES = ((3, 10, 0.5, 400, 5), (4, 30, 0.1, 3000, 10), (5, 4, 100.0, 60, 3))
"""Seed, clients, alpha, examples, classes."""


def main(folder):
    split = runpy.run_path(str(Path(folder) / UTILS))["dirichlet_distribution_noniid_slice"]
    arrays = {"numpy": np.array(np.__version__)}

    def keep(name, parts):
        arrays[f"{name}_indices"] = np.concatenate(parts).astype(np.int16)
        arrays[f"{name}_sizes"] = np.array([len(part) for part in parts], np.int16)

    for seed, clients, alpha, examples, classes in CASES:
        rng = np.random.default_rng(seed)
        labels = np.concatenate([np.arange(classes), rng.integers(classes, size=examples)])
        others = np.concatenate([np.arange(classes), rng.integers(classes, size=examples // 4)])
        np.random.seed(seed)
        parts = split(labels, clients, alpha)
        held = [labels[part].tolist() for part in parts]
        keep(f"{seed}_train", parts)
        keep(f"{seed}_test", split(others, clients, alpha, prior=held))
        arrays[f"{seed}_settings"] = np.array([clients, alpha])
        arrays[f"{seed}_labels"] = labels.astype(np.int8)
        arrays[f"{seed}_other_labels"] = others.astype(np.int8)
    np.savez_compressed(Path(__file__).parent / "federated_splits.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
