"""Draw examples for three nodes, to try the app with: `python make_data.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Writes client_1.npz, client_2.npz and client_3.npz, whose inputs differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in (1, 2, 3):
        rng = np.random.default_rng(client)
        x = rng.normal(loc=0.2 * client, size=(200, 4))
        y = (x[:, 0] * x[:, 1] > 0).astype(int)
        np.savez(
            folder / f"client_{client}.npz", x=x[:150], y=y[:150], x_test=x[150:], y_test=y[150:]
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
