"""Axes of plots: where numbers lie, round numbers to write beside them, and how to write them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Scale = Literal["linear", "log"]
Kind = Literal["number", "percent", "bytes", "seconds"]

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
      label: what it measures.
      scale: "linear" or "log".
      kind: how its numbers are written; shares of 1 for "percent".
      low: where it begins; by default where the data does, 0 if that is near on a linear axis.
      high: where it ends.
      names: what is at 1, 2, ..., written in place of numbers; the axis shows just these places.

    Raises:
      ValueError: if the scale or kind is unknown, or an end is no number that the scale can show.
    """

    label: str
    scale: Scale = "linear"
    kind: Kind = "number"
    low: float | None = None
    high: float | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("scale", self.scale, ("linear", "log")),
            ("kind", self.kind, ("number", "percent", "bytes", "seconds")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        ends = [end for end in (self.low, self.high) if end is not None]
        if any(not is_drawable(end, self.scale) for end in ends) or ends != sorted(set(ends)):
            raise ValueError(
                f"low={self.low}, high={self.high} are no ends of a {self.scale} axis; wanted "
                "ascending finite numbers, positive on a log axis"
            )


class MappedAxis(NamedTuple):
    """An axis with its ends fixed.

    Attributes:
      ticks: numbers that are written beside it.
      minor: further lines of the grid.
      place: from a number to its share of the length, 0 to 1 inside.
      write: from a number to its text.
    """

    ticks: list[float]
    minor: list[float]
    place: Callable[[float], float]
    write: Callable[[float], str]


def map_axis(axis: Axis, values: Sequence[float], named: str) -> MappedAxis:
    """The axis with ends that show all values and with ticks.

    Args:
      axis: its ends are kept where it has any.
      values: what it should show; numbers that its scale cannot show are ignored.
      named: the plot, for the error.

    Raises:
      ValueError: if no value is left.
    """
    if axis.names:
        number = len(axis.names)
        return MappedAxis(
            [float(place) for place in range(1, number + 1)],
            [],
            lambda value: (value - 0.5) / number,
            lambda tick: axis.names[round(tick) - 1],
        )
    shown = [value for value in values if is_drawable(value, axis.scale)]
    if not shown:
        raise ValueError(
            f"plot {named!r} has no point that its {axis.scale} axis {axis.label!r} can show; "
            "wanted at least one finite one, positive on a log axis"
        )
    low = min(shown) if axis.low is None else axis.low
    high = max(shown) if axis.high is None else axis.high
    if axis.scale == "log":
        return _map_log(axis, low, high)
    from_zero = axis.low is None and 0 < low < high / 2
    low = 0.0 if from_zero else low
    if high <= low and axis.kind == "percent" and 0 <= low <= 1:
        low, high = max(low - 0.05, 0.0), min(low + 0.05, 1.0)
    elif high <= low:
        low, high = (low - 1, low + 1) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    ticks = linear_ticks(low, high)
    room = (ticks[-1] - ticks[0]) / 40  # so that no marker lies on the frame
    start = ticks[0] if from_zero else min(ticks[0], low - room)
    end = max(ticks[-1], high + room)
    start = start if axis.low is None else axis.low
    end = end if axis.high is None else axis.high
    ticks = [tick for tick in ticks if start <= tick <= end]
    return MappedAxis(ticks, [], lambda v: (v - start) / (end - start), _writer(axis.kind))


def _map_log(axis: Axis, low: float, high: float) -> MappedAxis:
    if high <= low:
        low, high = low / 2, high * 2
    room = (high / low) ** 0.04  # so that no marker lies on the frame
    low = low / room if axis.low is None else axis.low
    high = high * room if axis.high is None else axis.high
    start, length = math.log10(low), math.log10(high / low)
    ticks = log_ticks(low, high)
    powers = range(math.floor(start), math.ceil(start + length) + 1)
    minor = [m * 10.0**p for p in powers for m in range(1, 10) if low <= m * 10.0**p <= high]
    minor = minor if length < 6 else []
    return MappedAxis(
        ticks, minor, lambda value: (math.log10(value) - start) / length, _writer(axis.kind)
    )


def _writer(kind: Kind) -> Callable[[float], str]:
    return lambda value: format_tick(value, kind)


def format_tick(value: float, kind: Kind) -> str:
    """A number as it stands beside an axis.

    Args:
      value: any number.
      kind: how to write it.

    Example:
      >>> [format_tick(0.01, "percent"), format_tick(2e6, "bytes"), format_tick(0.5, "seconds")]
      ['1 %', '2 MB', '0.5 s']
      >>> [format_tick(value, "number") for value in (0.001, 1000, 2e6)]
      ['0.001', '1,000', '2M']
    """
    if kind == "percent":
        return f"{_plain(100 * value)} %"
    if kind == "seconds":
        return f"{_plain(value)} s"
    size, prefix = next((p for p in _PREFIXES if abs(value) >= p[0] * (1 - 1e-9)), (1.0, ""))
    if kind == "bytes":
        return f"{_plain(value / size)} {prefix}B"
    return f"{_plain(value / size)}{prefix}" if abs(value) >= 1e5 else _plain(value)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover a range: multiples of 1, 2, 2.5 or 5 times a power of ten.

    Args:
      low: lower end.
      high: upper end, above it.
      most: about how many.

    Returns:
      Ascending; the first is at most `low` and the last at least `high`.

    Example:
      >>> linear_ticks(0.0, 0.9)
      [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Powers of ten in a range; 1, 2 and 5 times them, or even steps, where it has few of them.

    Args:
      low: positive lower end.
      high: upper end, above it.
      most: about how many; of more powers only every second (third, ...) is kept.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1)]
    inside = [power for power in powers if _within(power, low, high)]
    if len(inside) >= 3:
        return inside[:: -(-len(inside) // most)]
    between = [
        factor * power for power in powers for factor in (1, 2, 5)
        if _within(factor * power, low, high)
    ]  # fmt: skip
    even = [tick for tick in linear_ticks(low, high) if _within(tick, low, high)]
    return between if len(between) >= 3 else even


def _within(value: float, low: float, high: float) -> bool:
    return low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


def _plain(value: float) -> str:
    """At most four significant digits, without an exponent; thousands apart."""
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 9)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_drawable(value: float, scale: Scale) -> bool:
    """Whether a number has a place on such an axis."""
    return math.isfinite(value) and (scale == "linear" or value > 0)


def spread(levels: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending positions moved as little as needed to be apart, and inside if they fit.

    Args:
      levels: ascending positions.
      distance: least distance between neighbours.
      low: lower bound.
      high: upper bound.

    Example:
      >>> spread([1.0, 1.0, 9.0], 2.0, 0.0, 10.0)
      [0.0, 2.0, 9.0]
    """
    groups: list[list[float]] = []  # of positions less their rank times the distance
    for rank, level in enumerate(levels):
        groups.append([level - rank * distance])
        while len(groups) > 1 and _mean(groups[-2]) > _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    base = [_mean(group) for group in groups for _ in group]
    most = high - (len(levels) - 1) * distance
    return [max(min(b, most), low) + rank * distance for rank, b in enumerate(base)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
