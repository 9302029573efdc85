import io
import logging
import sys

import pytest

from jaxlab.training import progress
from jaxlab.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="jaxlab"), Progress(40, 0, 32) as shown:
        for step in range(1, 41):
            shown.update(step, 1.5)
            clock.now += 0.5
    assert caplog.messages == [
        "step 22/40 (55 %), loss 1.5, 64 examples/s, 0:00:09 left",
        "step 40/40 (100 %), loss 1.5, 64 examples/s, 0:00:00 left",
    ]


def test_rate_leaves_compiling_and_evaluating_out(clock):
    shown = Progress(100, 0, 10)
    clock.now += 60  # the first step compiles
    shown.update(1, 1.0)
    assert shown.examples_per_s == 0
    clock.now += 2
    shown.update(2, 1.0)
    assert shown.examples_per_s == pytest.approx(5)
    shown.pause()
    clock.now += 300  # an evaluation
    shown.update(3, 1.0)
    clock.now += 2
    shown.update(4, 1.0)
    assert shown.examples_per_s == pytest.approx(5)
    assert shown.line(4, 0.25) == "step 4/100 (4 %), loss 0.25, 5 examples/s, 0:03:12 left"


def test_operations_a_second_are_shown_where_their_number_is_known(clock):
    shown = Progress(100, 0, 10, flops_per_example=3e12)
    shown.update(1, 1.0)
    assert shown.rates == {}
    clock.now += 2
    shown.update(2, 1.0)
    assert shown.rates == pytest.approx({"train/examples_per_s": 5, "train/tflops_per_s": 15})
    assert "5 examples/s, 15 TFLOP/s, 0:03:16 left" in shown.line(2, 0.25)
    assert Progress(100, 0, 10).tflops_per_s == 0


def test_terminal_gets_a_bar_that_starts_where_the_run_continues(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, 6, 8) as shown:
        shown.update(7, 0.5)
        clock.now += 1
        shown.update(8, 0.25)
        shown.say("evaluated")
    text = terminal.getvalue()
    assert "60%" in text and "80%" in text and "loss 0.25, 8 examples/s" in text
