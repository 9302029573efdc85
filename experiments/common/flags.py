"""The flags that all experiments share, and a reading of them with errors for people."""

import difflib
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from experiments.common.configs import unknown_key

FLAGS = flags.FLAGS
_SHARED = (
    "config",
    "print_config",
    "workdir",
    "debug",
    "compilation_cache",
    "coordinator",
    "num_processes",
    "process_id",
)
WORKDIR_HELP = "Folder of the run; made if absent, a run found in it is continued."
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?$", re.DOTALL)
_CONFIG = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)


def define_flags(*, config: bool, workdir: bool, workdir_help: str = WORKDIR_HELP) -> None:
    """Define the shared flags; a second call defines only what the first left out.

    Args:
      config: whether the program takes `--config` and `--print_config`.
      workdir: whether it takes `--workdir`.
      workdir_help: what it says about that.
    """
    if config and "config" not in FLAGS:
        config_flags.DEFINE_config_file(
            "config",
            None,
            "Config file with get_config(), such as configs/chinese_clip/tiny.py; "
            "--config.NAME=VALUE changes one value of it, --config.NAME=None unsets it.",
        )
        flags.DEFINE_boolean(
            "print_config", False, "Print every value with its documentation, and exit."
        )
    if workdir and "workdir" not in FLAGS:
        flags.DEFINE_string("workdir", None, workdir_help)
    if "debug" not in FLAGS:
        flags.DEFINE_boolean("debug", False, "Show the whole traceback of an error.")
        flags.DEFINE_string(
            "compilation_cache",
            "auto",
            "Folder (or bucket) in which compiled programs are kept for the next run; 'auto' is a "
            "folder of the library's cache directory, 'off' keeps none.",
        )
        flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, for a run of several processes."
        )
        flags.DEFINE_integer("num_processes", None, "Number of processes of the run.", 1)
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", 0)
    for name in _SHARED:
        if name in FLAGS:  # so that --help lists it among the program's own
            FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])


def parse_flags(argv: Sequence[str]) -> None:
    """Parse a command line into absl's flags.

    The config file and the keys that are changed are looked at first, so that a mistyped path or
    key is named together with the nearest one that exists.

    Args:
      argv: the program's name and its arguments; `--flagfile` is followed.

    Raises:
      FileNotFoundError: if the config file does not exist.
      ValueError: if a config key or flag does not exist, a value has the wrong type, or an argument
        is no flag; all unknown keys at once.
    """
    argv = FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    unset: list[str] = []
    if "config" in FLAGS:
        given = _value_of(argv, _CONFIG)
        if given is not None:
            valid = config_paths(load_config(given))
            check_overrides(argv, valid)
            argv, unset = _take_unset(argv)
        elif any(_OVERRIDE.match(argument) for argument in argv):
            raise ValueError(f"--config.NAME=VALUE is given without a config file; {_choices()}")
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest[1:]:
        raise ValueError(f"got {' '.join(rest[1:])!r}; wanted flags only, as --name=value")
    for path in unset:
        FLAGS.config.update_from_flattened_dict({path: None})


def load_config(argument: str) -> config_dict.ConfigDict:
    """The config that a file's `get_config` returns.

    Args:
      argument: `path/to/file.py`, or `path/to/file.py:text` to call `get_config("text")`.

    Returns:
      A new config dict.

    Raises:
      FileNotFoundError: if the file does not exist, naming the nearest that does.
      ValueError: if the file has no `get_config`.
    """
    path, colon, text = argument.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config={path} is no file here ({Path.cwd()}); {_choices(path)}")
    members = runpy.run_path(path)
    if not callable(members.get("get_config")):
        raise ValueError(f"--config={path} has no get_config(); see configs/ for examples")
    return members["get_config"](*([text] if colon else []))


def config_paths(config: config_dict.ConfigDict, name: str = "config") -> list[str]:
    """The dotted path of every key of a config dict, parents before their children.

    Args:
      config: a config dict.
      name: the first component of every path.
    """
    paths = []
    for key, value in config.items():
        paths.append(f"{name}.{key}")
        if isinstance(value, config_dict.ConfigDict):
            paths.extend(config_paths(value, f"{name}.{key}"))
    return paths


def check_overrides(argv: Sequence[str], valid: Sequence[str]) -> None:
    """Refuse the arguments that set a key which the config does not have.

    Args:
      argv: a command line.
      valid: dotted paths that exist, each beginning with `config.`.

    Raises:
      ValueError: one line for each unknown key, with the nearest valid one.
    """
    keys = [match.group(1) for argument in argv if (match := _OVERRIDE.match(argument))]
    unknown = [key for key in keys if "config." + key.split("[")[0] not in valid]
    if unknown:
        raise ValueError("\n".join("--" + unknown_key(f"config.{key}", valid) for key in unknown))


def name_flags(message: str) -> str:
    """A message in which what came from the command line is called by its flag.

    The library says `image_size=7`, the argument of its function; who gave `--image_size` or
    `--config.stage_1.image_size` should read that. A name that several flags end in stays as it is.

    Args:
      message: text of an error.
    """
    given = [name for name in FLAGS if FLAGS[name].present]
    endings = [name.rpartition(".")[2] for name in given]
    called = {ending: name for ending, name in zip(endings, given, strict=True)}
    called = {ending: name for ending, name in called.items() if endings.count(ending) == 1}
    called |= {name.removeprefix("config."): name for name in given}
    return re.sub(
        r"(?<![\w.\-/'\"])([\w.]+)=",
        lambda match: f"--{called[match[1]]}=" if match[1] in called else match[0],
        message,
    )


def _value_of(argv: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    """The value of a flag in a command line, written `--flag=value` or `--flag value`."""
    for index, argument in enumerate(argv):
        if argument == "--":
            break
        if match := pattern.match(argument):
            return match.group(1) if match.group(1) is not None else "".join(argv[index + 1 :][:1])
    return None


def _take_unset(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without its `--config.NAME=None` arguments, and their names."""
    unset: list[str] = []
    rest: list[str] = []
    for argument in argv:
        match: Any = _OVERRIDE.match(argument)
        if match and match.group(2) == "None":
            unset.append(match.group(1))
        else:
            rest.append(argument)
    return rest, unset


def _choices(path: str = "") -> str:
    """What to give as a config file: the nearest to a mistyped path, else some that exist."""
    files = sorted(str(file) for file in Path("configs").glob("*/[!_]*.py"))
    if not files:
        return "run from the checkout and give a file such as configs/chinese_clip/tiny.py"
    close = difflib.get_close_matches(path, files, n=1)
    return f"the nearest is {close[0]}" if close else f"give one of {', '.join(files)}"
