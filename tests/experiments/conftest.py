"""What the tests of the commands share: a program run in this process."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

FLAGS = flags.FLAGS
CHECKOUT = Path(__file__).resolve().parents[2]


def forget_flags():
    """Forgets the programs imported so far: two of them may define flags of the same name."""
    for module, own in FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments.") and not module.startswith("experiments.common."):
            for flag in list(own):
                delattr(FLAGS, flag.name)
            sys.modules.pop(module, None)


@pytest.fixture
def run_program(monkeypatch, capfd):
    """Runs `experiments.{program}`: `(program, *arguments) -> (exit code, output, errors)`."""
    monkeypatch.chdir(CHECKOUT)
    loggers = [logging.getLogger(name) for name in (None, "jaxlab", "experiments", "__main__")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]

    def call(name, *arguments):
        forget_flags()
        importlib.import_module("grain")  # it defines flags, which flagsaver would take back
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
    forget_flags()
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
