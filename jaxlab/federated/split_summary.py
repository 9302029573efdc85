"""What a split looks like: sizes of clients, how far their labels are from those of all."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Shaped


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """The shape of a split; `str` gives it as text.

    Attributes:
      num_examples: in the data set.
      sizes: examples of every client.
      num_unused: examples that no client holds.
      num_shared: examples that several clients hold.
      label_distances: per client, half the sum of absolute differences between its shares of the
        classes and those of all clients: 0 as in an even split, towards 1 the more its classes
        are its own; NaN without examples or labels.
      num_classes: classes that a client holds; 0 without labels.
    """

    num_examples: int
    sizes: Int64[np.ndarray, " clients"]
    num_unused: int
    num_shared: int
    label_distances: Float64[np.ndarray, " clients"]
    num_classes: Int64[np.ndarray, " clients"]

    @property
    def empty_clients(self) -> list[int]:
        """Clients without examples, counted from 0."""
        return np.flatnonzero(self.sizes == 0).tolist()

    @property
    def label_skew(self) -> float:
        """Mean of the distances over the clients that have examples; NaN if there are none."""
        known = self.label_distances[~np.isnan(self.label_distances)]
        return float(known.mean()) if known.size else float("nan")

    def __str__(self) -> str:
        sizes = self.sizes if self.sizes.size else np.zeros(1, np.int64)
        lines = [
            f"{self.sizes.size} clients hold {self.sizes.sum()} of {self.num_examples} examples: "
            f"from {sizes.min()} over {np.median(sizes):g} (median) to {sizes.max()}"
        ]
        if self.empty_clients:
            number, some = len(self.empty_clients), self.empty_clients[:10]
            lines.append(f"{number} clients have no examples: {some}{' ...' * (number > 10)}")
        if self.num_unused or self.num_shared:
            lines.append(
                f"{self.num_unused} examples unused, {self.num_shared} held more than once"
            )
        if not np.isnan(self.label_skew):
            held = self.num_classes[self.sizes > 0]
            lines.append(
                f"label skew {self.label_skew:.3f}; a client holds {held.mean():.1f} classes, from "
                f"{held.min()} to {held.max()}"
            )
        return "\n".join(lines)


def summarize_split(
    split: Sequence[Int64[np.ndarray, "_"]],
    num_examples: int,
    labels: Shaped[np.ndarray, " examples"] | None = None,
) -> SplitSummary:
    """Sizes and skew of a split.

    Args:
      split: indices of the examples of every client.
      num_examples: in the data set.
      labels: class of every example; None says nothing of skew.

    Returns:
      The numbers.
    """
    sizes = np.array([len(part) for part in split], np.int64)
    held = np.concatenate([*split, np.zeros(0, np.int64)])
    times = np.bincount(held, minlength=num_examples)
    distances = np.full(len(split), np.nan)
    num_classes = np.zeros(len(split), np.int64)
    if labels is not None and held.size:
        classes, numbers = np.unique(labels, return_inverse=True)
        overall = np.bincount(numbers[held], minlength=len(classes)) / held.size
        for client, part in enumerate(split):
            if len(part):
                counts = np.bincount(numbers[part], minlength=len(classes))
                distances[client] = np.abs(counts / len(part) - overall).sum() / 2
                num_classes[client] = np.count_nonzero(counts)
    return SplitSummary(
        num_examples, sizes, int((times == 0).sum()), int((times > 1).sum()), distances, num_classes
    )
