r"""Measure distillation: beside TextBrewer, with a cached teacher, several students at once.

    python -m experiments.distillation.benchmark --suite=speed --json=speed.json
    python -m experiments.distillation.benchmark --suite=cache
    python -m experiments.distillation.benchmark --suite=sweep --device=gpu --dtype=bfloat16

Suites: `speed` (steps a second of ours and of TextBrewer, in an environment of `.ci/peer_env
parity`), `cache` (a student of logits beside its teacher, and with what that has said), `sweep`
(students trained together and one by one: time and memory).
"""

from absl import flags

from experiments.common import print_grid, run
from experiments.common.json_file import json_target, write_json
from experiments.distillation.benchmark_speed import cache, speed
from experiments.distillation.benchmark_sweep import sweep
from experiments.distillation.benchmark_work import DEVICES, Sizes, Work

SUITES = ("speed", "cache", "sweep")
_SUITE = flags.DEFINE_enum("suite", None, SUITES, "What to measure.")
_TEACHER = flags.DEFINE_list("teacher", ["12", "768", "12", "3072"], "Layers,width,heads,mlp.")
_STUDENT = flags.DEFINE_list("student", ["3", "768", "12", "3072"], "Layers,width,heads,mlp.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 30522, "Tokens.", 2)
_BATCH = flags.DEFINE_integer("batch", 32, "Texts of a batch.", 1)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of a text.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed steps, of which the median counts.", 1)
_THREADS = flags.DEFINE_integer("threads", 2, "Processors of each process; 0: all.", 0)
_DEVICE = flags.DEFINE_enum("device", "cpu", list(DEVICES), "Of the computation.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of ours.")
_DROPOUT = flags.DEFINE_float("dropout", 0.1, "Rate of the student.", 0.0, 0.9)
_STUDENTS = flags.DEFINE_integer("students", 4, "Of a sweep.", 2)
_AT_ONCE = flags.DEFINE_list("at_once", ["1", "2", "4"], "Students of a sweep side by side.")

flags.declare_key_flag("json")


def main() -> None:
    """Run a suite, print its table, save its numbers."""
    if _SUITE.value is None:
        raise ValueError("--suite is missing; give speed, cache or sweep")
    target = json_target()
    work = Work(
        teacher=_sizes("teacher", _TEACHER.value),
        student=_sizes("student", _STUDENT.value),
        vocab_size=_VOCABULARY.value,
        batch_size=_BATCH.value,
        length=_LENGTH.value,
        rounds=_ROUNDS.value,
        threads=_THREADS.value,
        device=_DEVICE.value,
        dtype=_DTYPE.value,
        dropout=_DROPOUT.value,
    )
    if _SUITE.value == "sweep":
        rows = sweep(work, _STUDENTS.value, _integers("at_once", _AT_ONCE.value))
    else:
        rows = {"speed": speed, "cache": cache}[_SUITE.value](work)
    title = (
        f"{_SUITE.value}: {work.teacher.num_layers} to {work.student.num_layers} layers of "
        f"{work.student.width}, {work.batch_size} texts of {work.length} tokens, {work.dtype}, "
        f"{work.device}"
    )
    print_grid(rows, title)
    if target is not None:
        write_json(target, {title: rows})


def _sizes(name: str, values: list[str]) -> Sizes:
    numbers = _integers(name, values)
    if len(numbers) != 4:
        raise ValueError(f"--{name}={','.join(values)}: wanted layers,width,heads,mlp")
    return Sizes(*numbers)


def _integers(name: str, values: list[str]) -> list[int]:
    if wrong := [text for text in values if not text.isdecimal() or int(text) < 1]:
        raise ValueError(f"--{name}={','.join(values)} has {wrong}; wanted integers from 1")
    return [int(text) for text in values]


if __name__ == "__main__":
    run(main)
