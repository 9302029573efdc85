"""Plots: round ticks, all points inside the frame, labels apart, mistakes named, same bytes."""

import numpy as np
import pytest

from experiments.common import plots
from experiments.common.axes import format_tick, linear_ticks, log_ticks, map_axis, spread
from experiments.common.drawing import PAPER
from experiments.common.pictures import save_png
from experiments.common.plots import COLOURS, Axis, Plot, Series, draw_plots

NUMBERS = Axis("x"), Axis("y")
LOGS = Axis("bytes", "log", "bytes"), Axis("error", "log", "percent")


def pixels(image, colour):
    return int((np.asarray(image) == np.asarray(colour, np.uint8)).all(axis=-1).sum())


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (-3.0, 7.0), (1e-9, 3e-9), (0, 123456)])
def test_linear_ticks_are_few_round_and_cover_the_range(low, high):
    ticks = linear_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low and ticks[-1] >= high and 3 <= len(ticks) <= 8
    assert np.diff(ticks) == pytest.approx(step, rel=1e-3)
    digits = f"{step:.2e}"[:4]
    assert digits in ("1.00", "2.00", "2.50", "5.00")


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9833, 1.0])
def test_a_share_alone_stays_among_shares(share):
    axis = map_axis(Axis("accuracy", kind="percent"), [share, share], "plot")
    assert 0 <= axis.ticks[0] <= share <= axis.ticks[-1] <= 1 and len(axis.ticks) >= 3
    assert axis.ticks[-1] - axis.ticks[0] <= 0.15 and 0 <= axis.place(share) <= 1


def test_names_take_the_place_of_numbers_on_lines_of_their_own():
    students = Series("students", x=[1, 2, 3], y=[0.1, 0.5, 0.9], line=False)
    axis = map_axis(Axis("", names=("hard", "kd", "attention")), [1, 2, 3], "plot")
    assert [axis.write(tick) for tick in axis.ticks] == ["hard", "kd", "attention"]
    assert [axis.place(tick) for tick in axis.ticks] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    short, long = (
        draw_plots([Plot([students], Axis("", names=names), Axis("y"))])
        for names in (("hard", "kd", "attention"), ("a very long name of a variant " * 2,) * 3)
    )
    assert short.size == long.size and pixels(short, COLOURS[0]) > pixels(long, COLOURS[0]) * 0.9


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2000, [1, 10, 100, 1000]),
        (3, 30, [5, 10, 20]),
        (1, 2.7, [1, 1.5, 2, 2.5]),
        (1, 1e14, [1, 1e3, 1e6, 1e9, 1e12]),
    ],
)
def test_log_ticks_are_powers_or_round_numbers_between(low, high, expected):
    assert log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, "number", "0"),
        (0.00025, "number", "0.00025"),
        (99_999, "number", "99,999"),
        (100_000, "number", "100k"),
        (2.5e9, "number", "2.5G"),
        (512, "bytes", "512 B"),
        (1e3 - 1e-9, "bytes", "1 kB"),
        (1.5e12, "bytes", "1.5 TB"),
        (0.005, "percent", "0.5 %"),
        (-1.5, "percent", "-150 %"),
        (90, "seconds", "90 s"),
    ],
)
def test_ticks_are_written_for_people(value, kind, text):
    assert format_tick(value, kind) == text


def test_labels_are_pushed_apart_and_stay_inside():
    levels = spread([0.0, 1.0, 1.0, 50.0, 99.5], 10.0, 0.0, 100.0)
    assert levels == [0.0, 10.0, 20.0, 50.0, 99.5]
    assert (np.diff(spread([5.0] * 8, 10.0, 0.0, 100.0)) >= 10 - 1e-9).all()


def test_every_series_has_its_colour_in_every_plot_and_in_the_legend():
    series = [Series(f"s{i}", (1.0, 2.0, 3.0), (i + 1.0, i + 2.0, i + 1.5)) for i in range(3)]
    alone = [pixels(draw_plots([Plot(series, *NUMBERS)]), colour) for colour in COLOURS[:4]]
    assert all(count > 50 for count in alone[:3]) and alone[3] == 0
    both = draw_plots([Plot(series, *NUMBERS), Plot(series[1:], *NUMBERS)])
    assert all(pixels(both, colour) > 50 for colour in COLOURS[:3])
    # The second plot lacks the first series, and the others keep their colours.
    right = both.crop((both.width // 2, 90, both.width, both.height))
    assert pixels(right, COLOURS[0]) == 0 and pixels(right, COLOURS[1]) > 50


@pytest.mark.parametrize("axes", [NUMBERS, LOGS])
def test_markers_at_the_ends_of_the_data_are_not_cut_off(axes):
    def area(*points):
        points = Series("a", *zip(*points, strict=True), line=False)
        return pixels(draw_plots([Plot([points], *axes)]), COLOURS[0])

    inside = area((1, 1), (10, 10), (100, 100)) - area((1, 1), (100, 100))
    assert area((1, 1), (100, 100)) == pytest.approx(2 * inside, rel=0.2)


def test_points_that_an_axis_cannot_show_break_the_line():
    whole = Series("a", (1, 2, 3, 4), (1, 2, 3, 4), markers=False)
    broken = Series("a", (1, 2, 3, 4), (1, 2, float("nan"), 4), markers=False)
    log = Series("a", (1, 2, 0, 4), (1, 2, 3, 4), markers=False)
    counts = [
        pixels(draw_plots([Plot([s], *axes)]), COLOURS[0])
        for s, axes in ((whole, NUMBERS), (broken, NUMBERS), (log, LOGS))
    ]
    assert counts[0] > 2 * counts[1] > 0 and counts[2] > 0


def test_error_bars_reach_from_low_to_high_and_widen_the_axis():
    plain = Series("a", (1, 2), (1, 2), line=False, markers=False)
    bars = Series("a", (1, 2), (1, 2), (0.5, 0.5), (2, 4), line=False, markers=False)
    assert pixels(draw_plots([Plot([bars], *NUMBERS)]), COLOURS[0]) > 100
    name_only = pixels(draw_plots([Plot([plain], *NUMBERS)]), COLOURS[0])
    assert name_only < 30
    values = plots._values(Plot([bars], *NUMBERS), "y")
    assert (min(values), max(values)) == (0.5, 4)


def test_dashes_leave_gaps():
    line = [Series("a", (0, 1), (0, 0), markers=False, dashed=dashed) for dashed in (False, True)]
    solid, dashed = (pixels(draw_plots([Plot([s], *NUMBERS)]), COLOURS[0]) for s in line)
    assert 0.3 * solid < dashed < 0.7 * solid


def test_names_of_points_turn_inwards_at_the_right_frame():
    names = ("first", "a long name at the end")
    series = Series("a", (0, 1), (0, 1), line=False, names=names)
    plain = Series("a", (0, 1), (0, 1), line=False)
    drawn, bare = (draw_plots([Plot([s], *NUMBERS)]) for s in (series, plain))
    changed = np.argwhere((np.asarray(drawn) != np.asarray(bare)).any(axis=-1))
    frame = np.argwhere((np.asarray(bare) == np.asarray(PAPER, np.uint8)).all(axis=-1))
    assert changed[:, 1].max() < frame[:, 1].max() and len(changed) > 100


def test_the_same_plot_gives_the_same_bytes(tmp_path):
    plot = Plot([Series("a", (1, 10), (0.1, 0.01))], *LOGS, title="one")
    files = [save_png(tmp_path / f"{i}.png", draw_plots([plot] * 3, "t", "s")) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("values", [(5.0,), (0.0, 0.0), (-2.0, -2.0)])
def test_a_single_value_makes_an_axis(values):
    for axes in (NUMBERS, LOGS) if min(values) > 0 else (NUMBERS,):
        drawn = np.asarray(draw_plots([Plot([Series("a", values, values)], *axes)]))
        assert (drawn != np.asarray(PAPER, np.uint8)).any(axis=-1).sum() > 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draw_plots([]), "got 0 plots in 2 columns"),
        (lambda: Axis("x", "cubic"), "scale='cubic' is not one of linear, log"),
        (lambda: Axis("x", kind="euro"), "kind='euro' is not one of number"),
        (lambda: Axis("x", "log", low=0.0), "low=0.0, high=None are no ends of a log axis"),
        (lambda: Axis("x", low=2, high=1), "low=2, high=1 are no ends"),
        (lambda: Series("a", (1, 2), (1,)), "series 'a' has 2 x, 1 y"),
        (lambda: Series("a", (1,), (1,), low=(0,)), "1 low, 0 high"),
        (
            lambda: draw_plots([Plot([Series("a", (0,), (1,))], *LOGS, title="p")]),
            "plot 'p' has no point that its log axis 'bytes' can show",
        ),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()
