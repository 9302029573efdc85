"""Makes federated_splits.npz: splits of FederatedScope 0.3.0.

    git clone https://github.com/alibaba/FederatedScope
    pip install numpy scikit-learn
    python tests/golden/make_federated_splits.py FederatedScope

Its splitters need NumPy only, so their file is run by itself. A client's examples lie one after
another (`*_indices`), `*_sizes` says how many each has. Training, validation and test examples of a
client (`cut_*`) are cut by two calls of scikit-learn, as its data sets do it.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import sklearn
from sklearn.model_selection import train_test_split

UTILS = "federatedscope/core/splitters/utils.py"
CASES = ((3, 10, 0.5, 400, 5), (4, 30, 0.1, 3000, 10), (5, 4, 100.0, 60, 3))
"""Seed, clients, alpha, examples, classes."""
SHARES = ((0.6, 0.2), (0.8, 0.1), (0.8, 0.0))
SIZES = (5, 10, 57)


def cut(size, train, val, seed=1234):
    """As `process` of `federatedscope/nlp/dataset/leaf_nlp.py`."""
    first, rest = train_test_split(np.arange(size), train_size=train, random_state=seed)
    if val == 0:
        return first, rest[:0], rest
    try:
        middle, last = train_test_split(rest, train_size=val / (1.0 - train), random_state=seed)
    except ValueError:  # too few for both
        return first, rest[:0], rest
    return first, middle, last


def main(folder):
    split = runpy.run_path(str(Path(folder) / UTILS))["dirichlet_distribution_noniid_slice"]
    arrays = {"numpy": np.array(np.__version__), "sklearn": np.array(sklearn.__version__)}

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
    for train, val in SHARES:
        for size in SIZES:
            keep(f"cut_{train}_{val}_{size}", cut(size, train, val))
    np.savez_compressed(Path(__file__).parent / "federated_splits.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
