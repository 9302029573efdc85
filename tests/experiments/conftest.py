"""What the tests of the commands share: a program run in this process."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_program(monkeypatch, capfd):
    """Runs `experiments.{program}`: `(program, *arguments) -> (exit code, output, errors)`."""
    monkeypatch.chdir(CHECKOUT)
    loggers = [logging.getLogger(name) for name in (None, "jaxlab", "experiments", "__main__")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]

    def call(name, *arguments):
        program = importlib.import_module("experiments.common.program")
        module = importlib.import_module(f"experiments.{name}")
        argv = [f"experiments.{name}", *arguments, "--compilation_cache=off"]
        monkeypatch.setattr(sys, "argv", argv)
        capfd.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
            program.run(module.main)
        output, errors = capfd.readouterr()
        return ended.value.code, output, errors

    yield call
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
