"""One way to run an experiment: flags from `main`'s parameters, errors for people, exit codes."""

import dis
import inspect
import logging
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from absl import app, flags
from ml_collections import config_flags

from experiments.common.configs import run_config
from experiments.common.documentation import describe_config
from experiments.common.flags import (
    CHECKOUT,
    WORKDIR_HELP,
    config_files,
    define_flags,
    given_settings,
    name_flags,
    other_program,
    parse_flags,
    some_of,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

FLAGS = flags.FLAGS
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
HELP = ("help", "helpshort", "helpfull", "helpxml", "?")
_FORMAT_WARNING = warnings.formatwarning
_PARAMETERS = ("config", "workdir")
_OWN_LOGGERS = ("jaxlab", "experiments", "__main__")


def run(main: Callable[..., int | None], *, workdir_help: str = WORKDIR_HELP) -> None:
    """Run an experiment's `main` from the command line and exit.

    The parameters of `main` are what its command line takes: `config`, annotated with the dataclass
    that it wants, gives `--config` and `--print_config` (a static `adapt(config, given)` of it may
    change the config dict first, told the settings of the command line); `workdir`, a `Path`, gives
    `--workdir`. Either may be left out where its annotation has `| None`. Flags of its own the
    program defines with absl.

    Exit codes: what `main` returns (None: 0); 2 for an error that the user can mend, told on one
    line (`--debug` shows where it comes from); 1 and a traceback for any other; 130 on Ctrl-C.

    Args:
      main: a function of `config`, `workdir`, both or neither.
      workdir_help: what `--help` says about `--workdir`.

    Raises:
      TypeError: if `main` has another parameter or `config` has no annotation.
    """
    config_class = config_class_of(main)
    parameters = inspect.signature(main).parameters
    configs = config_files(Path(inspect.getfile(main))) if config_class is not None else []
    define_flags(
        config="config" in parameters,
        workdir="workdir" in parameters,
        configs=configs,
        workdir_help=workdir_help,
    )

    def parse(argv: list[str]) -> list[str]:
        try:
            code = _guarded(lambda: parse_flags(argv, configs), debug="--debug" in argv)
        except SystemExit:  # absl ends a program that was asked for help as one that has failed
            if any(argument.lstrip("-") in HELP for argument in argv[1:]):
                sys.exit(0)
            raise
        if code:
            sys.exit(code)
        return argv[:1]

    app.run(
        lambda _: _guarded(lambda: _run_parsed(main, config_class, configs), debug=FLAGS.debug),
        flags_parser=parse,
    )


def config_class_of(main: Callable[..., int | None]) -> type | None:
    """The dataclass that `main` is annotated to take as its config, or None if it takes none.

    Args:
      main: the `main` of an experiment.

    Raises:
      TypeError: if `main` has a parameter that `run` cannot give, or `config` has no annotation.
    """
    parameters = inspect.signature(main).parameters
    if unknown := [name for name in parameters if name not in _PARAMETERS]:
        raise TypeError(f"main takes {', '.join(unknown)}; it may take {' and '.join(_PARAMETERS)}")
    hints = typing.get_type_hints(main)
    if "config" in parameters and "config" not in hints:
        raise TypeError("main's config has no annotation; wanted the dataclass of its config")
    if "config" not in parameters:
        return None
    arms = typing.get_args(hints["config"]) or (hints["config"],)
    return next(arm for arm in arms if arm is not type(None))


def _may_lack(main: Callable[..., int | None], parameter: str) -> bool:
    """Whether a parameter of `main` may be None."""
    return type(None) in typing.get_args(typing.get_type_hints(main).get(parameter))


def start(data: int = -1, model: int = 1) -> "Mesh":
    """Start the processes that the flags (or the environment) describe, and make the mesh.

    Args:
      data: size of the mesh's data axis; -1 takes all that `model` leaves.
      model: size of its model axis.

    Returns:
      The mesh over the devices of all processes.

    Raises:
      ValueError: if the flags are incomplete or the mesh does not fit the devices.
      TimeoutError: if the other processes do not come.
    """
    from jaxlab import parallel

    config = parallel.ProcessConfig(
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
    )
    return parallel.start_processes(config, data=data, model=model)


def use_compilation_cache(folder: str) -> None:
    """Keep compiled programs on disk, so that the next run of the same program starts sooner.

    The folder may be emptied at any time; nothing depends on it.

    Args:
      folder: where; `auto` is `xla` in the library's cache directory, `off` changes nothing.
    """
    if folder == "off":
        return
    import jax

    from jaxlab import packages

    where = str(packages.cache_dir() / "xla") if folder == "auto" else folder
    jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def is_for_user(error: BaseException) -> bool:
    """Whether an error was raised on purpose for the user, rather than by a mistake in a program.

    On purpose are errors of the file system, and those whose innermost frame is a `raise` statement
    in a file of this checkout or of the installed library.

    Args:
      error: an exception with its traceback.
    """
    if isinstance(error, AssertionError | NotImplementedError):
        return False
    if isinstance(error, OSError):
        return True
    frame: TracebackType | None = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return False
    code = frame.tb_frame.f_code
    is_raise = code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and any(
        folder in Path(code.co_filename).resolve().parents for folder in _own_folders()
    )


def _own_folders() -> list[Path]:
    """The folders whose `raise` statements speak to the user."""
    import jaxlab

    return [
        CHECKOUT / "experiments",
        CHECKOUT / "configs",
        *(Path(folder) for folder in jaxlab.__path__),
    ]


def _guarded(call: Callable[[], int | None], debug: bool) -> int:
    """The exit code of a call, after telling its error."""
    try:
        return call() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug or not is_for_user(error):
            raise
        print(f"error: {name_flags(_message(error))}", file=sys.stderr)
        return EXIT_USER_ERROR


def _message(error: Exception) -> str:
    """An error's text, its further lines indented; a `KeyError`'s without the quotes it adds."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return re.sub(r"\n(?=[^\n])", "\n  ", text.strip()) or type(error).__name__


def _run_parsed(
    main: Callable[..., int | None], config_class: type | None, configs: Sequence[str]
) -> int | None:
    """Resolve the arguments of `main` from the parsed flags and call it."""
    _quiet_other_loggers()
    warnings.formatwarning = _format_warning
    arguments: dict[str, Any] = {}
    parameters = inspect.signature(main).parameters
    if config_class is not None and FLAGS.config is None:
        if FLAGS.print_config or not _may_lack(main, "config"):
            raise ValueError(f"--config is missing; give {some_of(configs)}")
        arguments["config"] = None
    elif config_class is not None:
        adapt = getattr(config_class, "adapt", None)
        if adapt is not None:
            adapt(FLAGS.config, given_settings())
        try:
            arguments["config"] = run_config(FLAGS.config, config_class)
        except ValueError as error:
            raise ValueError(f"{error}{_of_another_program(main, configs)}") from error
        if FLAGS.print_config:
            print(describe_config(arguments["config"]))
            return 0
    if "workdir" in parameters:
        if not FLAGS.workdir and not _may_lack(main, "workdir"):
            raise ValueError("--workdir is missing; give a folder for the run, such as runs/tiny")
        arguments["workdir"] = Path(FLAGS.workdir) if FLAGS.workdir else None
    use_compilation_cache(FLAGS.compilation_cache)
    return main(**arguments)


def _of_another_program(main: Callable[..., int | None], configs: Sequence[str]) -> str:
    """A line for who gives the config of another program of the system; else nothing."""
    file = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
    other = other_program(Path(inspect.getfile(main)), Path(file))
    return f"\n{file} is a config of {other}; here give {some_of(configs)}" if other else ""


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning for the user on one line; others, for programmers, with the place in the code."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return _FORMAT_WARNING(message, category, filename, lineno, line)


def _quiet_other_loggers() -> None:
    """Information from our own loggers only, unless `--verbosity` asks for more or less."""
    if FLAGS["verbosity"].present:
        return
    logging.getLogger().setLevel(logging.WARNING)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
