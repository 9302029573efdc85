"""What every experiment's command line shares: configs, flags, one way to run, tables.

An experiment is a `main` whose parameters say what its command line takes::

    def main(config: TrainConfig, workdir: Path) -> None:
        ...

    if __name__ == "__main__":
        run(main)

`run` gives it `--config` (a file with `get_config()`, single values changed as
`--config.num_steps=64`), `--workdir`, `--print_config`, the flags of a start on several processes
and of the compilation cache, and turns the errors that a user can mend into one line. Inside,
`start()` starts the processes and makes the mesh.
"""

from experiments.common.configs import run_config, to_config_dict
from experiments.common.documentation import describe_config
from experiments.common.program import run, start
from experiments.common.tables import print_grid, print_results

__all__ = [
    "describe_config",
    "print_grid",
    "print_results",
    "run",
    "run_config",
    "start",
    "to_config_dict",
]
