"""Deploy a federated course: the server, which waits for nodes and shows how the course goes.

    python -m experiments.federated.make_keys --workdir=keys --clients=20 --host=fl.example.org
    python -m experiments.federated.deploy --config=configs/federated/smoke.py --workdir=DIR \
        --keys=keys --listen=0.0.0.0:9092

and on every node `experiments.federated.join`. The course is the one that `simulate` runs, with
real time instead of virtual time. DIR gets `progress.jsonl`, `results.json`, `model.safetensors`
and `server.bin`, from which a server that is started again goes on.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import print_results, run
from experiments.federated.deployed import (
    ERROR,
    JOINED,
    OUTCOME,
    PROGRESS,
    WORKDIR,
    Course,
    Settings,
    deployable,
    describe_joined,
    make_course,
    write_settings,
)
from experiments.federated.program_logs import Teller, interrupt_on_signals, leave_after
from experiments.federated.settings import RunConfig
from experiments.federated.superlink import (
    START_S,
    SuperLink,
    check_count,
    check_keys,
    register_nodes,
    run_app,
    run_status,
    split_address,
    start_superlink,
)
from jaxlab import training
from jaxlab.federated.deployment import LiveConfig, make_learner
from jaxlab.training.workdir import RESULTS, check_config, open_workdir, read_json, save_config

logger = logging.getLogger(__name__)

_KEYS = flags.DEFINE_string("keys", "keys", "Folder that make_keys has made.")
_LISTEN = flags.DEFINE_string("listen", "127.0.0.1:9092", "host:port to listen at.")
_ANSWER = flags.DEFINE_float(
    "answer_timeout_s",
    600.0,
    "Seconds that a client may take; then it, or another, is asked again.",
)
_JOIN = flags.DEFINE_float("join_timeout_s", 3600.0, "Seconds that nodes may take to join.")
_FINISH = flags.DEFINE_float("finish_timeout_s", 60.0, "Seconds that the end may take.")
_START = flags.DEFINE_float(
    "start_timeout_s", START_S, "Seconds that Flower's SuperLink may take to start."
)
_POLL = flags.DEFINE_float("poll_s", 0.5, "Seconds between two looks at what has come.")

STATUS_EVERY_S = 30.0


def main(config: RunConfig, workdir: Path) -> None:
    """Start, wait, report."""
    live = LiveConfig(_POLL.value, _JOIN.value, _FINISH.value, fixed_nodes=True)
    settings, keys = Settings(config, live, _ANSWER.value), Path(_KEYS.value).absolute()
    host, port = split_address("listen", _LISTEN.value)
    check_keys(keys)
    course = make_course(settings)
    check_count(keys, course.agreement.config.num_clients)
    if left_out := deployable(config)[1]:
        logger.warning("a deployed course leaves out %s", ", ".join(left_out))
    make_learner(course.agreement, **course.learner_options)  # whatever is wrong is told here
    workdir = open_workdir(workdir)
    with training.lock_workdir(workdir):
        check_config(workdir, config)
        save_config(workdir, config)
        if not read_json(workdir / OUTCOME):
            variables = {WORKDIR: str(workdir)}
            for name in (ERROR, JOINED):
                (workdir / name).unlink(missing_ok=True)
            logger.info(
                "starting the SuperLink at %s; on a busy machine this takes a minute or more. "
                "It writes to %s", _LISTEN.value, workdir / "superlink.log",
            )  # fmt: skip
            with start_superlink(workdir, keys, host, port, _START.value, **variables) as superlink:
                count = register_nodes(superlink, keys)
                number = run_app(superlink, write_settings(settings))
                logger.info("run %s has started; %d keys are known", number, count)
                follow(superlink, number, course)
        results = read_json(workdir / RESULTS)
    print_results(results or {}, title=str(workdir))
    print(f"Results: {workdir / RESULTS}")


def follow(superlink: SuperLink, number: str, course: Course) -> None:
    """Shows how a course goes until it has ended.

    Args:
      superlink: where it runs.
      number: of the run.
      course: what is learned.

    Raises:
      RuntimeError: if it fails, with the reason.
    """
    config = course.agreement.config
    workdir, looked, tell = superlink.workdir, time.monotonic(), Teller(logger)
    status, are_missing, before = "running", True, count_lines(workdir / PROGRESS)
    shown = before
    while status != "finished:completed":
        if are_missing and shown == before:
            text, are_missing = describe_joined(workdir / JOINED, config.num_clients)
            tell(text)
        time.sleep(1.0)
        shown = show(workdir / PROGRESS, shown, config.num_rounds, course.metric)
        if superlink.process.poll() is not None:
            raise RuntimeError(f"the SuperLink has ended; {superlink.log.explain()}")
        ended, error = read_json(workdir / OUTCOME) is not None, workdir / ERROR
        if ended or error.exists() or time.monotonic() - looked > STATUS_EVERY_S:
            looked, status = time.monotonic(), run_status(superlink, number)
        if status.startswith("finished") and not ended:
            reason = error.read_text("utf-8") if error.exists() else status
            raise RuntimeError(
                f"the course has ended before its time: {reason}. Run this again, and it goes on "
                f"where it was\n{superlink.log.explain()}"
            )


def count_lines(path: Path) -> int:
    """How many lines a file has; none if there is no such file."""
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def show(path: Path, shown: int, num_rounds: int, metric: str) -> int:
    """Logs the lines of a file that were not shown yet; gives how many there are."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for text in lines[shown:]:
        line: dict[str, Any] = json.loads(text)
        value = "" if metric not in line else f", {metric} {line[metric]:.4f}"
        logger.info("round %d/%d, %.0f s%s", line["round"], num_rounds, line["seconds"], value)
    return len(lines)


if __name__ == "__main__":
    interrupt_on_signals()
    leave_after(lambda: run(main))
