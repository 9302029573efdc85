"""The shared command line: conversion of configs, documentation, errors in one line, tables."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from absl import flags
from ml_collections import config_dict

from experiments.common import (
    describe_config,
    print_grid,
    print_results,
    run_config,
    to_config_dict,
)
from experiments.common.configs import field_paths, nearest_path, unknown_key
from experiments.common.documentation import field_documentation
from experiments.common.flags import config_files, name_flags, other_program
from experiments.common.program import config_class_of, is_for_user
from experiments.common.tables import format_number

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    Attributes:
      learning_rate: peak rate, reached after the
        warm-up.
      kind (str): name of the rule.
    """

    learning_rate: float = 1e-3
    kind: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate={self.learning_rate} is negative")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      num_steps: optimisation steps.
      sizes: widths of the layers.
      pair: one number and one name.
      weights: file to start from.
      clip: largest norm of a gradient.
      optimizer: the optimizer's settings.
      teacher: settings of a second optimizer, if there is one.
      folder: where the data lie.
      shares: part of each source.
      use_cache: whether features are cached.

    Example:
      not_a_field: this stands outside the section.
    """

    num_steps: int = 3
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    weights: str | None = None
    clip: float | None = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    teacher: OptimizerConfig | None = None
    folder: Path = Path("data")
    shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"a": 1})
    use_cache: bool = True


def test_a_config_survives_the_way_to_a_config_dict_and_back():
    config = RunConfig(weights="w.npz", teacher=OptimizerConfig(0.5, "sgd"), sizes=())
    again = run_config(to_config_dict(config), RunConfig)
    assert again == dataclasses.replace(config, clip=1.0, shares={"a": 1.0})
    assert isinstance(again.clip, float) and isinstance(again.folder, Path)


def test_absent_values_are_typed_placeholders():
    config = to_config_dict(RunConfig())
    assert config.weights is None and config.teacher is None
    assert config.get_type("weights") is str
    assert config.get_type("clip") is float
    assert run_config(config, RunConfig).weights is None
    config.lock()
    with pytest.raises(TypeError):
        config.weights = 3
    config.weights = "w.npz"
    config.teacher = to_config_dict(OptimizerConfig(0.25))
    resolved = run_config(config, RunConfig)
    assert (resolved.weights, resolved.teacher) == ("w.npz", OptimizerConfig(0.25))


def test_missing_keys_take_the_defaults():
    assert run_config({}, RunConfig) == RunConfig()
    assert run_config({"optimizer": {"kind": "sgd"}}, RunConfig).optimizer.kind == "sgd"


def test_a_required_field_is_named_when_it_is_missing():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        """Needs a value."""

        rows: int

    with pytest.raises(ValueError, match=r"config\.rows is missing; give it a value of type int"):
        run_config({}, Needs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_step": 1}, r"config\.num_step does not exist; .* config\.num_steps"),
        ({"learning_rate": 1.0}, r"nearest valid key is config\.optimizer\.learning_rate"),
        ({"optimizer": {"sizes": 1}}, r"config\.optimizer\.sizes .* key is config\.sizes"),
        (
            {"optimizer": {"zzz": 1}},
            r"optimizer\.zzz .*valid keys are config\.optimizer\.learning_rate, ",
        ),
        ({"num_steps": 1.5}, r"config\.num_steps=1\.5 is a float; wanted int"),
        ({"num_steps": True}, r"config\.num_steps=True is a bool; wanted int"),
        ({"use_cache": 1}, r"config\.use_cache=1 is a int; wanted bool"),
        ({"sizes": 3}, r"config\.sizes=3 is a int; .* written as \(1,\)"),
        ({"sizes": (1, "b")}, r"config\.sizes\[1\]='b' is a str; wanted int"),
        ({"pair": (1, "b", 2)}, r"config\.pair=.* has 3 items; wanted exactly 2"),
        ({"clip": "x"}, r"config\.clip='x' is a str; wanted float"),
        ({"optimizer": 3}, r"config\.optimizer=3 is a int; wanted .*OptimizerConfig"),
        ({"optimizer": {"kind": "adam"}}, r"kind='adam' is not one of 'adamw', 'sgd'; .*'adamw'"),
        ({"optimizer": {"learning_rate": -1}}, r"config\.optimizer: learning_rate=-1\.0 is neg"),
        ({"teacher": {"kind": 1}}, r"config\.teacher\.kind=1 is not one of"),
        ({"shares": {"a": "b"}}, r"config\.shares\.a='b' is a str; wanted float"),
    ],
)
def test_a_wrong_config_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        run_config(config_dict.ConfigDict(config), RunConfig)


@dataclasses.dataclass(frozen=True)
class Small:
    """Small.

    Attributes:
      width: its width.
    """

    width: int = 4


@dataclasses.dataclass(frozen=True)
class Tower:
    """Takes one of two kinds.

    Attributes:
      body: which.
    """

    body: OptimizerConfig | Small = Small()


def test_a_field_of_several_classes_takes_the_one_that_fits():
    for body in (Small(7), OptimizerConfig(kind="sgd")):
        assert run_config(to_config_dict(Tower(body)), Tower) == Tower(body)
    with pytest.raises(
        ValueError, match=r"^config\.body\.widht does not exist; .*config\.body\.width$"
    ):
        run_config({"body": {"widht": 3}}, Tower)
    with pytest.raises(ValueError, match=r"config\.body=3 is a int; wanted .*Small"):
        run_config({"body": 3}, Tower)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        run_config({"num_step": 1, "sizes": 3, "optimizer": {"kind": "x"}}, RunConfig)
    assert len(str(caught.value).splitlines()) == 3


def test_only_dataclass_instances_become_config_dicts():
    with pytest.raises(TypeError, match="wanted an instance"):
        to_config_dict(RunConfig)


def test_fields_of_what_is_not_set_are_told_apart_from_mistyped_ones():
    paths = ["config", "config.first", "config.second", "config.second.rate"]
    assert "config.first has no fields in this config" in unknown_key("config.first.rate", paths)
    assert "nearest valid key is config.second.rate" in unknown_key("config.second.rat", paths)


def test_nearest_path_prefers_the_same_key_at_another_place():
    paths = field_paths(RunConfig)
    assert "config.teacher.kind" in paths
    assert nearest_path("config.kind", paths) == "config.optimizer.kind"
    assert nearest_path("config.teachr.kind", paths) == "config.teacher.kind"
    assert nearest_path("config.optimiser.kind", paths) == "config.optimizer.kind"
    assert nearest_path("config.qqq", paths) is None
    inner = ["config.data.name", "config.data.path", "config.stop.mode", "config.stop.weight_decay"]
    assert nearest_path("config.data.folder", inner) is None  # and not the mode of another group
    assert nearest_path("config.data.weigth_decay", inner) == "config.stop.weight_decay"


def test_documentation_reads_the_attributes_section_and_nothing_else():
    texts = field_documentation(RunConfig)
    assert set(texts) == {field.name for field in dataclasses.fields(RunConfig)}
    assert field_documentation(OptimizerConfig) == {
        "learning_rate": "peak rate, reached after the warm-up.",
        "kind": "name of the rule.",
    }


def test_documentation_is_inherited_and_overridden():
    @dataclasses.dataclass(frozen=True)
    class Longer(OptimizerConfig):
        """More of it.

        Attributes:
          kind: another text.
          decay: weight decay.
        """

        decay: float = 0.0

    assert field_documentation(Longer) == {
        "learning_rate": "peak rate, reached after the warm-up.",
        "kind": "another text.",
        "decay": "weight decay.",
    }


def test_description_has_every_value_with_its_text():
    text = describe_config(RunConfig())
    assert "config.num_steps = 3\n    optimisation steps." in text
    assert "config.optimizer.learning_rate = 0.001\n    peak rate, reached after" in text
    assert "config.teacher = None" in text
    assert "    Default: 3." in text
    assert "Default: 'adamw'. One of 'adamw', 'sgd'." in text


def test_main_parameters_decide_the_flags():
    def main(config: RunConfig, workdir: Path) -> None: ...

    def other(steps: int) -> None: ...

    def bare(config) -> None: ...

    def free(config: RunConfig | None) -> None: ...

    assert config_class_of(free) is RunConfig
    assert config_class_of(main) is RunConfig
    assert config_class_of(lambda: None) is None
    with pytest.raises(TypeError, match="main takes steps; it may take config and workdir"):
        config_class_of(other)
    with pytest.raises(TypeError, match="no annotation"):
        config_class_of(bare)


def _caught(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_errors_raised_on_purpose_are_for_the_user_and_others_are_not():
    assert is_for_user(_caught(lambda: run_config({"num_step": 1}, RunConfig)))
    assert is_for_user(_caught(lambda: open("/no/such/file")))
    assert not is_for_user(_caught(lambda: int("x")))
    assert not is_for_user(_caught(lambda: to_config_dict(RunConfig()).no_such_key))
    assert not is_for_user(ValueError("never raised"))


PROGRAM = """
import dataclasses, logging, warnings
from pathlib import Path
from experiments.common import run

@dataclasses.dataclass(frozen=True)
class Config:
    '''A run.

    Attributes:
      num_steps: optimisation steps.
      sizes: widths.
      weights: file to start from.
      clip: largest norm.
    '''
    num_steps: int = 3
    sizes: tuple[int, ...] = (1, 2)
    weights: str | None = None
    clip: float | None = 1.0

def main(config: Config, workdir: Path) -> None:
    '''Train a toy.'''
    print(config, workdir)
    logging.getLogger("jaxlab.toy").info("ours")
    logging.getLogger("elsewhere").info("theirs")
    warnings.warn("rows were left out", stacklevel=2)
    if config.num_steps == 0:
        int("a mistake in the program")
    if config.num_steps < 0:
        (workdir / "absent").read_text()

if __name__ == "__main__":
    run(main)
"""

CONFIG = """
from experiments.common import to_config_dict
from toy import Config

def get_config(arg=""):
    config = to_config_dict(Config())
    config.num_steps = int(arg or 7)
    return config
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Runs a toy experiment in a process of its own; returns (exit code, output, errors)."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "toy.py").write_text(textwrap.dedent(PROGRAM))
    (folder / "configs" / "toy").mkdir(parents=True)
    (folder / "configs" / "toy" / "tiny.py").write_text(CONFIG)
    environ = dict(os.environ, PYTHONPATH=f"{folder}{os.pathsep}{CHECKOUT}")

    def call(*arguments):
        command = [sys.executable, "-m", "toy", "--compilation_cache=off", *arguments]
        result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr

    return call


CONFIG_FLAG = "--config=configs/toy/tiny.py"


def test_values_change_from_the_command_line(program):
    code, out, err = program(
        f"{CONFIG_FLAG}:11", "--workdir=w", "--config.sizes=(9,)", "--config.weights=a.npz",
        "--config.sizes=(3,4)",
        "--config.clip=None",
    )  # fmt: skip
    assert (code, out) == (
        0,
        "Config(num_steps=11, sizes=(3, 4), weights='a.npz', clip=None) w\n",
    ), err
    assert "ours" in err and "theirs" not in err
    assert "warning: rows were left out" in err.splitlines()


def test_print_config_needs_no_workdir_and_runs_nothing(program):
    code, out, err = program(CONFIG_FLAG, "--print_config", "--config.num_steps=64")
    assert code == 0, err
    assert "config.num_steps = 64\n    optimisation steps.\n" in out
    assert "Config(num_steps" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [CONFIG_FLAG, "--config.num_step=1", "--config.clap=1"],
            "--config.num_step does not exist; the nearest valid key is config.num_steps\n"
            "  --config.clap does not exist; the nearest valid key is config.clip",
        ),
        (["--config=configs/toy/tinny.py"], "the nearest is configs/toy/tiny.py"),
        ([CONFIG_FLAG, "--config.num_steps=many"], "flag --config.num_steps=many: invalid"),
        ([CONFIG_FLAG, "--wordir=w"], "Did you mean: workdir ?"),
        ([CONFIG_FLAG], "--workdir is missing; give a folder"),
        ([CONFIG_FLAG, "--workdir=w", "--config.sizes=(1,'b')"], "config.sizes[1]='b' is a str"),
        ([CONFIG_FLAG, "--workdir=w", "--config.num_steps=-1"], "No such file or directory"),
    ],
)
def test_a_mistake_of_the_user_ends_in_one_clean_error(program, arguments, message):
    code, _, err = program(*arguments)
    assert code == 2
    assert message in err
    assert err.count("error: ") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("rows=7 must be even", "--rows=7 must be even"),
        ("--rows=7, other.rows=7, 'rows=7' and /a/rows=7 stay", None),
        ("lr=2 is too large", "--config.stage_1.lr=2 is too large"),
        ("stage_1.lr=2 is too large", "--config.stage_1.lr=2 is too large"),
        ("seed=1 may be that of two stages, quiet=1 was not given", None),
        ("stage_2.seed=1 cannot", "--config.stage_2.seed=1 cannot"),
    ],
)
def test_an_argument_that_came_from_a_flag_is_called_by_it(monkeypatch, message, named):
    values = flags.FlagValues()
    for name in (
        "rows",
        "quiet",
        "config.stage_1.lr",
        "config.stage_1.seed",
        "config.stage_2.seed",
    ):
        flags.DEFINE_integer(name, 0, "A number.", flag_values=values)
    given = ["--rows=7", "--config.stage_1.lr=2", "--config.stage_1.seed=1"]
    values(["program", *given, "--config.stage_2.seed=1"])
    monkeypatch.setattr("experiments.common.flags.FLAGS", values)
    assert name_flags(message) == (named or message)


def test_debug_shows_the_traceback(program):
    code, _, err = program(CONFIG_FLAG, "--workdir=w", "--config.num_steps=-1", "--debug")
    assert code == 1 and "Traceback" in err


def test_a_mistake_of_the_program_keeps_its_traceback(program):
    code, _, err = program(CONFIG_FLAG, "--workdir=w", "--config.num_steps=0")
    assert code == 1 and "Traceback" in err and "a mistake in the program" in err


def test_help_lists_the_shared_flags(program):
    code, out, _ = program("--help")
    assert code == 0 and "'None'" not in out
    for flag in ("--config", "--workdir", "print_config", "--coordinator", "--compilation_cache"):
        assert flag in out


@pytest.mark.parametrize(
    ("program_file", "first", "others"),
    [
        ("ndv/reproduce.py", "configs/ndv/tiny.py", {"configs/ndv/smoke.py"}),
        ("ndv/train.py", "configs/ndv/learned.py", set()),
        (
            "chinese_clip/evaluate.py",
            "configs/chinese_clip/tiny.py",
            {"configs/chinese_clip/muge.py"},
        ),
    ],
)
def test_a_program_has_the_configs_of_its_system_and_verb(
    program_file, first, others, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # help is read anywhere
    found = config_files(CHECKOUT / "experiments" / program_file)
    assert found[0] == first and others <= set(found)
    assert {Path(name).parent for name in found} == {Path(first).parent}
    assert ("configs/ndv/learned.py" in found) == (program_file == "ndv/train.py")


def test_a_config_of_another_program_is_told():
    ablation = CHECKOUT / "configs/distillation/ablation.py"
    tiny = CHECKOUT / "configs/distillation/tiny.py"
    programs = CHECKOUT / "experiments/distillation"
    assert other_program(programs / "train.py", ablation) == "experiments.distillation.ablate"
    assert other_program(programs / "evaluate.py", ablation) == "experiments.distillation.ablate"
    assert other_program(programs / "ablate.py", tiny) == "experiments.distillation.train"
    assert not other_program(programs / "evaluate.py", tiny)
    assert not other_program(programs / "ablate.py", ablation)


def test_a_missing_config_is_told_with_one_of_the_program(program):
    code, _, err = program("--workdir=w")
    assert code == 2 and "--config is missing; give configs/toy/tiny.py" in err
    assert "get_config(): configs/toy/tiny.py; --config.NAME" in " ".join(
        program("--help")[1].split()
    )


def test_results_print_under_group_headings_with_columns_beside(capsys):
    results = {"b/r1": 31.456, "steps": 1200, "a/r1": 2.0, "b/r10": 70.0}
    print_results(results, "Recall", {"floor": {"b/r1": 24.1}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    words = [[word for word in line if word.strip("│┃┏━┓┡╇┩├┼┤└┴┘─┳")] for line in lines]
    words = [line for line in words if line]
    assert words == [
        ["Recall"],
        ["metric", "value", "floor"],
        ["steps", "1,200"],
        ["b"],
        ["r1", "31.46", "24.10"],
        ["r10", "70.00"],
        ["a"],
        ["r1", "2.00"],
    ]


def test_a_grid_that_is_piped_loses_no_column(capsys):
    row = {f"a heading of some length {index}": float(index) for index in range(20)}
    print_grid({"first": row}, "Wide")
    lines = capsys.readouterr().out.splitlines()
    assert all(name in lines[2] for name in row) and "…" not in "".join(lines)


def test_grid_has_one_line_a_row(capsys):
    print_grid({"unseen drawing": {"R@1": 31.0, "R@10": 71.0}, "chance": {"R@10": 0.5}}, "Levels")
    out = capsys.readouterr().out
    assert "R@1 " in out and "R@10" in out
    (line,) = [line for line in out.splitlines() if "chance" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["chance", "", "0.5"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (12345, "12,345"), (0.0, "0.00"), (-31.456, "-31.46"), (1e-7, "1e-07"), (None, "")],
)
def test_numbers_read_well(value, text):
    assert format_number(value) == text
