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
CHECKOUT = Path(__file__).resolve().parents[2]
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
_NAMED_CONFIGS = 4
_CONFIG = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)


def config_files(program: Path) -> list[str]:
    """The config files that a program is run with, the one to try first before the others.

    They are those of its system, `configs/SYSTEM/*.py`, whose `VERB` is the program's name; where
    none is, those that `train` takes (they have no other `VERB`), which programs share.

    Args:
      program: file of the program, `experiments/SYSTEM/VERB.py`.

    Returns:
      Paths below the current folder, or below the checkout; of all systems if there are none.
    """
    files = _files_of_system(program)
    for verb in (program.stem, "train"):
        if own := [name for name, path in files.items() if _verb_of(path) == verb]:
            return sorted(own, key=lambda name: (not name.endswith("/tiny.py"), name))
    return list(files or _files_below(Path(), "*/[!_]*.py"))


def other_program(program: Path, config: Path) -> str:
    """The program of a system that a config file is for, if it is another than this one; else "".

    Args:
      program: file of this program, `experiments/SYSTEM/VERB.py`.
      config: the config file.
    """
    verbs = {_verb_of(path) for path in _files_of_system(program).values()}
    wanted, verb = (program.stem if program.stem in verbs else "train"), _verb_of(config)
    return "" if verb == wanted else f"experiments.{program.parent.name}.{verb}"


def _files_of_system(program: Path) -> dict[str, Path]:
    """The config files of a program's system, by their path below the current folder or ours."""
    found = (_files_below(root, f"{program.parent.name}/[!_]*.py") for root in (Path(), CHECKOUT))
    return next(filter(None, found), {})


def _files_below(root: Path, pattern: str) -> dict[str, Path]:
    folder = root / "configs"
    return {str(Path("configs") / p.relative_to(folder)): p for p in sorted(folder.glob(pattern))}


def _verb_of(path: Path) -> str:
    """What a config is for; read, not run: it may import the program."""
    found = re.search(r'^VERB = "(\w+)"', path.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else "train"


def define_flags(
    *,
    config: bool,
    workdir: bool,
    configs: Sequence[str] = (),
    workdir_help: str = WORKDIR_HELP,
) -> None:
    """Define the shared flags; a second call defines only what the first left out.

    Args:
      config: whether the program takes `--config` and `--print_config`.
      workdir: whether it takes `--workdir`.
      configs: config files of the program, to name as examples.
      workdir_help: what it says about that.
    """
    if config and "config" not in FLAGS:
        config_flags.DEFINE_config_file(
            "config",
            None,
            f"Config file with get_config(): {some_of(configs)}; "
            "--config.NAME=VALUE changes one value of it, --config.NAME=None unsets it.",
        )
        FLAGS["config"].default_as_str = None  # or help tells that it is the text 'None'
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


def parse_flags(argv: Sequence[str], configs: Sequence[str] = ()) -> None:
    """Parse a command line into absl's flags.

    The config file and the keys that are changed are looked at first, so that a mistyped path or
    key is named together with the nearest one that exists.

    Args:
      argv: the program's name and its arguments; `--flagfile` is followed.
      configs: config files of the program, to name in errors.

    Raises:
      FileNotFoundError: if the config file does not exist.
      ValueError: if a config key or flag does not exist, a value has the wrong type, or an argument
        is no flag; all unknown keys at once.
    """
    argv = _last_of_each(FLAGS.read_flags_from_files(list(argv), force_gnu=False))
    unset: list[str] = []
    if "config" in FLAGS:
        given = _value_of(argv, _CONFIG)
        if given is not None:
            valid = config_paths(load_config(given, configs))
            check_overrides(argv, valid)
            argv, unset = _take_unset(argv)
        elif any(_OVERRIDE.match(argument) for argument in argv):
            raise ValueError(
                f"--config.NAME=VALUE is given without a config file; give {some_of(configs)}"
            )
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if rest[1:]:
        raise ValueError(f"got {' '.join(rest[1:])!r}; wanted flags only, as --name=value")
    for path in unset:
        FLAGS.config.update_from_flattened_dict({path: None})


def load_config(argument: str, configs: Sequence[str] = ()) -> config_dict.ConfigDict:
    """The config that a file's `get_config` returns.

    Args:
      argument: `path/to/file.py`, or `path/to/file.py:text` to call `get_config("text")`.
      configs: config files to name if there is none like it.

    Returns:
      A new config dict.

    Raises:
      FileNotFoundError: if the file does not exist, naming the nearest that does.
      ValueError: if the file has no `get_config`.
    """
    path, colon, text = argument.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"--config={path} is no file here ({Path.cwd()}); {_nearest(path, configs)}"
        )
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


def given_settings() -> set[str]:
    """The dotted names, without `config.`, of the settings that the command line gives."""
    return {
        name.removeprefix("config.")
        for name in FLAGS
        if name.startswith("config.") and FLAGS[name].present
    }


def _value_of(argv: Sequence[str], pattern: re.Pattern[str]) -> str | None:
    """The value of a flag in a command line, written `--flag=value` or `--flag value`."""
    for index, argument in enumerate(argv):
        if argument == "--":
            break
        if match := pattern.match(argument):
            return match.group(1) if match.group(1) is not None else "".join(argv[index + 1 :][:1])
    return None


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """The command line without `--config.NAME=VALUE` that a later one changes again.

    Without this, values of a tuple would be joined.
    """
    matches = [_OVERRIDE.match(argument) for argument in argv]
    keys = [match.group(1) if match and match.group(2) is not None else None for match in matches]
    return [
        argument
        for i, (argument, key) in enumerate(zip(argv, keys, strict=True))
        if key is None or key not in keys[i + 1 :]
    ]


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


def _nearest(path: str, configs: Sequence[str]) -> str:
    """What to give as a config file: the nearest to a mistyped path, else the program's own."""
    files = list(_files_below(Path(), "*/[!_]*.py"))
    if not files:
        return f"run from the checkout and give {some_of(configs)}"
    close = difflib.get_close_matches(path, files, n=1)
    return f"the nearest is {close[0]}" if close else f"give {some_of(configs or files)}"


def some_of(configs: Sequence[str]) -> str:
    """A few config files as a list in a sentence.

    Args:
      configs: their paths.
    """
    if not configs:
        return "a file such as configs/SYSTEM/tiny.py"
    rest = " or another of that folder" if len(configs) > _NAMED_CONFIGS else ""
    return ", ".join(configs[:_NAMED_CONFIGS]) + rest
