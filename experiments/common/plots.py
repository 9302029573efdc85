"""Plots of numbers: lines and points on linear or logarithmic axes, drawn by Pillow alone.

For the curves that experiments end with: error against bytes, accuracy against time, Pareto fronts.
Every plot is plain data and gives an image, in the font and colours of the other pictures; the same
data gives the same bytes on every machine.

Use::

    curve = Series("registers", x=sizes, y=errors, low=lows, high=highs)
    plot = Plot((curve, other), Axis("bytes sent", "log", "bytes"), Axis("error", "log", "percent"))
    save_png(workdir / "bytes.png", draw_plots([plot], title="Error against bytes"))

A series has the same colour and marker in all plots of a figure. One plot alone names its series at
the ends of their lines, several share one legend.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from experiments.common.axes import Axis, MappedAxis, Scale, is_drawable, map_axis, spread
from experiments.common.drawing import (
    INK,
    LINE,
    MUTED,
    PAGE,
    PAPER,
    SMOOTHING,
    Colour,
    below,
    beside,
    clean_line,
    load_font,
    text_line,
)

# Pixels.
WIDTH, HEIGHT = 560, 400  # of one of several plots
WIDE, TALL = 980, 560  # of one alone
MARGIN, GAP, PADDING = 32, 26, 8
TITLE, SUBTITLE, HEADING, TEXT, SMALL = 27, 16, 18, 15, 14  # font sizes
STROKE, BAR_STROKE, RADIUS, CAP, DASH = 2.4, 1.4, 4.6, 4.0, 7.0
MAX_LABEL = 230

# Colours that people with any colour vision tell apart (Okabe and Ito), darkened for thin lines.
COLOURS: tuple[Colour, ...] = (
    (0, 104, 172), (205, 84, 0), (0, 140, 102), (176, 82, 144),
    (60, 66, 78), (200, 138, 0), (50, 150, 205), (140, 104, 60),
)  # fmt: skip
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross")
GRID: Colour = (235, 238, 243)


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    A point that is not finite, or not positive on a log axis, is left out, and the line is broken
    there.

    Attributes:
      label: its name; series of one label look alike in all plots of a figure.
      x: positions, in the order in which the line goes.
      y: as many values.
      low: lower ends of the error bars, as many, or none.
      high: upper ends.
      line: whether the points are joined.
      markers: whether they are marked.
      dashed: whether the line is dashed, as for limits and references.
      names: what stands beside each point, as many, or none.

    Raises:
      ValueError: if the lengths differ.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    line: bool = True
    markers: bool = True
    dashed: bool = False
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y)}
        lengths |= {len(part) for part in (self.low, self.high, self.names) if len(part)}
        if len(lengths) > 1 or bool(len(self.low)) != bool(len(self.high)):
            raise ValueError(
                f"series {self.label!r} has {len(self.x)} x, {len(self.y)} y, {len(self.low)} low, "
                f"{len(self.high)} high, {len(self.names)} names; wanted as many of each, or none "
                "of the last ones"
            )


@dataclasses.dataclass(frozen=True)
class Plot:
    """Series on a pair of axes.

    Attributes:
      series: at least one with a point that the axes can show.
      x: the horizontal axis.
      y: the vertical one.
      title: what stands above.
    """

    series: Sequence[Series]
    x: Axis
    y: Axis
    title: str = ""


class _Look(NamedTuple):
    """How a series is drawn."""

    colour: Colour
    marker: str


def draw_plots(
    plots: Sequence[Plot], title: str = "", subtitle: str = "", columns: int = 2
) -> Image.Image:
    """A figure of one or more plots.

    Args:
      plots: in reading order.
      title: what stands above all.
      subtitle: what stands below the title, smaller.
      columns: plots side by side.

    Returns:
      An RGB image.

    Raises:
      ValueError: if there is no plot, or one has nothing that its axes can show.
    """
    if not plots or columns < 1:
        raise ValueError(f"got {len(plots)} plots in {columns} columns; wanted at least one")
    looks = _looks(plots)
    if len(plots) == 1:
        body = _draw(plots[0], looks, WIDE, TALL, names=True)
    else:
        drawn = [_draw(plot, looks, WIDTH, HEIGHT, names=False) for plot in plots]
        rows = [
            beside(drawn[start : start + columns], GAP) for start in range(0, len(drawn), columns)
        ]
        body = below([_legend(plots, looks, rows[0].width), *rows], GAP)
    heads = [
        text_line(text, size, colour, body.width)
        for text, size, colour in ((title, TITLE, INK), (subtitle, SUBTITLE, MUTED))
        if text
    ]
    content = below([below(heads, 2), body], GAP // 2) if heads else body
    page = Image.new("RGB", (content.width + 2 * MARGIN, content.height + 2 * MARGIN), PAGE)
    page.paste(content, (MARGIN, MARGIN))
    return page


def _looks(plots: Sequence[Plot]) -> dict[str, _Look]:
    """Colour and marker of every label, in order of appearance."""
    labels = dict.fromkeys(series.label for plot in plots for series in plot.series)
    return {
        label: _Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, label in enumerate(labels)
    }


def _draw(
    plot: Plot, looks: Mapping[str, _Look], width: int, height: int, *, names: bool
) -> Image.Image:
    """One plot; `names` writes the labels at the ends of the lines."""
    mapped = [map_axis(plot.x, _values(plot, "x"), plot.title)]
    mapped.append(map_axis(plot.y, _values(plot, "y"), plot.title))
    x, y = mapped
    font, small = load_font(TEXT), load_font(SMALL)
    label_width = 0
    if names:
        longest = max(font.getlength(clean_line(series.label)) for series in plot.series)
        label_width = min(math.ceil(longest), MAX_LABEL) + 2 * PADDING
    ticks_width = math.ceil(max(small.getlength(y.write(tick)) for tick in y.ticks))
    half = math.ceil(max(small.getlength(x.write(x.ticks[-1])) / 2 - label_width, 0))
    left, right = TEXT + 2 * PADDING + ticks_width, label_width + half
    top = round(HEADING * 1.4) + PADDING if plot.title else PADDING
    lines = _tick_lines(plot.x, (width - left - right) / max(len(plot.x.names), 1), small)
    bottom = round(lines * SMALL * 1.4 + TEXT * 1.4) + 2 * PADDING
    area = (width - left - right, height - top - bottom)
    page = Image.new("RGB", (width, height), PAGE)
    page.paste(_area(plot, looks, x, y, area), (left, top))
    draw = ImageDraw.Draw(page)
    if plot.title:
        page.paste(text_line(plot.title, HEADING, INK, width - left), (left, 0))
    for number, tick in enumerate(x.ticks):
        line = round(number % lines * SMALL * 1.4)
        place = (left + x.place(tick) * area[0], top + area[1] + PADDING + line)
        draw.text(place, x.write(tick), MUTED, small, anchor="ma")
    for tick in y.ticks:
        place = (left - PADDING, top + (1 - y.place(tick)) * area[1])
        draw.text(place, y.write(tick), MUTED, small, anchor="rm")
    middle = (left + area[0] / 2, height - 2)
    draw.text(middle, clean_line(plot.x.label), INK, font, anchor="md")
    upright = text_line(plot.y.label, TEXT, INK, area[1]).transpose(Image.Transpose.ROTATE_90)
    page.paste(upright, (0, top + (area[1] - upright.height) // 2))
    if names:
        _name_ends(page, plot, looks, (left + area[0], top, area[1]), x, y)
    return page


def _tick_lines(axis: Axis, room: float, font: ImageFont.FreeTypeFont) -> int:
    """Lines that the names of an axis take in turn, so that neighbours do not touch."""
    longest = max((font.getlength(clean_line(name)) for name in axis.names), default=0.0)
    return min(max(math.ceil((longest + PADDING) / room), 1), 4) if axis.names else 1


def _values(plot: Plot, axis: str) -> list[float]:
    """All numbers that an axis should show, of points that both axes can."""
    found: list[float] = []
    for series in plot.series:
        for index, point in enumerate(zip(series.x, series.y, strict=True)):
            if is_drawable(point[0], plot.x.scale) and is_drawable(point[1], plot.y.scale):
                found.append(point[axis == "y"])
                if axis == "y" and len(series.low):
                    found += [series.low[index], series.high[index]]
    return found


def _area(
    plot: Plot, looks: Mapping[str, _Look], x: MappedAxis, y: MappedAxis, size: tuple[int, int]
) -> Image.Image:
    """The inside of the frame, drawn large and reduced; what lies outside is cut off."""
    width, height = (pixels * SMOOTHING for pixels in size)
    area = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(area)
    for ticks, colour in (((x.minor, y.minor), GRID), ((x.ticks, y.ticks), LINE)):
        for tick in ticks[0]:
            draw.line([(x.place(tick) * width, 0), (x.place(tick) * width, height)], colour, 4)
        for tick in ticks[1]:
            level = (1 - y.place(tick)) * height
            draw.line([(0, level), (width, level)], colour, 4)

    def place(a: float, b: float) -> tuple[float, float] | None:
        if not (is_drawable(a, plot.x.scale) and is_drawable(b, plot.y.scale)):
            return None
        return x.place(a) * width, (1 - y.place(b)) * height

    for series in plot.series:
        _draw_series(draw, series, looks[series.label], place, plot.y.scale)
    draw.rectangle((0, 0, width - 1, height - 1), None, LINE, SMOOTHING)
    reduced = area.reduce(SMOOTHING)
    for series in plot.series:
        _name_points(reduced, series, looks[series.label], place)
    return reduced


def _draw_series(
    draw: ImageDraw.ImageDraw,
    series: Series,
    look: _Look,
    place: Callable[[float, float], tuple[float, float] | None],
    scale: Scale,
) -> None:
    points = [place(a, b) for a, b in zip(series.x, series.y, strict=True)]
    for index, point in enumerate(points):
        if point is None or not len(series.low):
            continue
        low, high = series.low[index], series.high[index]
        ends = place(series.x[index], low if is_drawable(low, scale) else series.y[index])
        tops = place(series.x[index], high if is_drawable(high, scale) else series.y[index])
        if ends is not None and tops is not None:
            _error_bar(draw, ends, tops, look.colour)
    if series.line:
        for run in _runs(points):
            _polyline(draw, run, look.colour, dashed=series.dashed)
    if series.markers:
        for point in points:
            if point is not None:
                _marker(draw, point, look)


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if len(run) > 1]


def _polyline(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Colour, *, dashed: bool
) -> None:
    width = round(STROKE * SMOOTHING)
    if not dashed:
        draw.line(points, colour, width, joint="curve")
        return
    dash, done = DASH * SMOOTHING, 0.0
    for (a, b), (c, d) in zip(points[:-1], points[1:], strict=True):
        length = math.hypot(c - a, d - b)
        along = -(done % (2 * dash))
        while along < length:
            ends = [max(along, 0.0), min(along + dash, length)]
            if ends[0] < ends[1]:
                share = [end / length for end in ends]
                line = [(a + s * (c - a), b + s * (d - b)) for s in share]
                draw.line(line, colour, width)
            along += 2 * dash
        done += length


def _error_bar(
    draw: ImageDraw.ImageDraw, low: tuple[float, float], high: tuple[float, float], colour: Colour
) -> None:
    width, cap = round(BAR_STROKE * SMOOTHING), CAP * SMOOTHING
    draw.line([low, high], colour, width)
    for x, y in (low, high):
        draw.line([(x - cap, y), (x + cap, y)], colour, width)


def _marker(draw: ImageDraw.ImageDraw, at: tuple[float, float], look: _Look) -> None:
    """The marker with a rim of paper, so that markers on one another stay apart."""
    for radius, colour in ((RADIUS + 1.2, PAPER), (RADIUS, look.colour)):
        r = radius * SMOOTHING
        x, y = at
        if look.marker == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), colour)
        elif look.marker == "cross":
            arm = r * 0.9
            for sign in (1, -1):
                ends = [(x - arm, y - sign * arm), (x + arm, y + sign * arm)]
                draw.line(ends, colour, round(SMOOTHING * (radius - RADIUS + 1.3) * 2))
        else:
            draw.polygon([(x + r * a, y + r * b) for a, b in _SHAPES[look.marker]], colour)


_SHAPES = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    "down": ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
}


def _name_points(
    area: Image.Image,
    series: Series,
    look: _Look,
    place: Callable[[float, float], tuple[float, float] | None],
) -> None:
    """What stands beside single points; left of them where the frame is near."""
    font, draw = load_font(SMALL), ImageDraw.Draw(area)
    for a, b, name in zip(series.x, series.y, series.names, strict=False):
        point, text = place(a, b), clean_line(name)
        if point is None:
            continue
        x, y = (end / SMOOTHING for end in point)
        fits = x + RADIUS + 4 + font.getlength(text) < area.width
        offset, anchor = (RADIUS + 4, "ls") if fits else (-RADIUS - 4, "rs")
        draw.text((x + offset, y - RADIUS), text, look.colour, font, anchor=anchor)


def _name_ends(
    page: Image.Image,
    plot: Plot,
    looks: Mapping[str, _Look],
    corner: tuple[int, int, int],
    x: MappedAxis,
    y: MappedAxis,
) -> None:
    """The labels right of the frame, at the heights of the last points, pushed apart."""
    left, top, height = corner
    wanted: dict[str, float] = {}
    for series in plot.series:
        points = [
            (x.place(a), 1 - y.place(b)) for a, b in zip(series.x, series.y, strict=True)
            if is_drawable(a, plot.x.scale) and is_drawable(b, plot.y.scale)
        ]  # fmt: skip
        if points:
            level = min(max(max(points)[1], 0.0), 1.0) * height
            wanted.setdefault(series.label, level)
    names = sorted(wanted, key=lambda label: wanted[label])
    levels = spread([wanted[label] for label in names], TEXT * 1.25, 0.0, float(height))
    for label, level in zip(names, levels, strict=True):
        block = text_line(label, TEXT, looks[label].colour, MAX_LABEL)
        page.paste(block, (left + PADDING, round(top + level - block.height / 2)))


def _legend(plots: Sequence[Plot], looks: Mapping[str, _Look], width: int) -> Image.Image:
    """Samples and labels of all series, in as many lines as they need."""
    first = {series.label: series for plot in reversed(plots) for series in reversed(plot.series)}
    rows: list[list[Image.Image]] = [[]]
    for label in looks:
        sample = _sample(first[label], looks[label])
        entry = beside([sample, text_line(label, TEXT, INK, width - sample.width - PADDING)], 6)
        used = sum(block.width + GAP for block in rows[-1])
        if rows[-1] and used + entry.width > width:
            rows.append([])
        rows[-1].append(entry)
    return below([beside(row, GAP) for row in rows], 2)


def _sample(series: Series, look: _Look) -> Image.Image:
    """A short piece of a series, as high as a line of text."""
    width, height = 34, round(TEXT * 1.4)
    block = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), PAGE)
    draw = ImageDraw.Draw(block)
    middle = block.height / 2
    if series.line:
        ends = [(0.0, middle), (float(block.width), middle)]
        _polyline(draw, ends, look.colour, dashed=series.dashed)
    if series.markers:
        _marker(draw, (block.width / 2, middle), look)
    return block.reduce(SMOOTHING)
