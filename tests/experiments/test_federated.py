"""The federated commands: the smoke run, what its folder holds, going on, and mistakes."""

import csv
import dataclasses
import json
import re
import shlex
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import run_config, to_config_dict
from experiments.federated import (
    courses,
    data,
    learned,
    methods,
    metrics,
    rules,
    simulate,
    tables,
    tasks,
)
from experiments.federated.courses import Outcome, Point
from experiments.federated.progress import CourseProgress
from experiments.federated.settings import (
    AggregatorConfig,
    AlgorithmConfig,
    CompressionConfig,
    DataConfig,
    DevicesConfig,
    EarlyStopConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    PersonalConfig,
    RunConfig,
    ServerConfig,
    StrategyConfig,
    TaskConfig,
)
from jaxlab import training
from jaxlab.checkpoints.foreign import torch_zip
from jaxlab.checkpoints.foreign.safetensors import read_safetensors
from jaxlab.federated import ConfigError
from jaxlab.federated.datasets import CentralData, DataInfo
from jaxlab.parallel import make_mesh

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/federated/smoke.py"
TARGETS = {"sync/virtual_seconds_to_target", "async/virtual_seconds_to_target"}
ALGORITHMS = (
    "fed_avg", "ada_fed_prox", "scaffold", "fed_nova", "fed_dyn", "mime", "mime_lite", "q_fed_avg",
    "local_entropy", "fed_rep", "ditto", "pfedme", "fed_em", "atc",
)  # fmt: skip


def read_json(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a smoke run that has ended."""
    return tmp_path_factory.mktemp("federated") / "run"


@pytest.mark.smoke
def test_the_smoke_config_runs_and_writes_what_it_promises(run_program, finished, caplog):
    code, output, errors = run_program("federated.simulate", CONFIG, f"--workdir={finished}")
    assert code == 0, errors
    results = read_json(finished / "results.json")
    scores = {f"{split}{seen}/accuracy" for split in ("val", "test") for seen in ("", "_unseen")}
    assert results.keys() == scores | TARGETS | {"clients_per_second"}
    assert results["test/accuracy"] > 0.6 and results["clients_per_second"] > 0
    assert results["async/virtual_seconds_to_target"] < results["sync/virtual_seconds_to_target"]
    assert (finished / "accuracy.png").stat().st_size > 5_000
    for name, num_rounds in (("sync", 12), ("async", 24)):
        records = training.read_metrics(finished / name)
        assert records[-1]["step"] == num_rounds
        assert (
            records[-1]["test/accuracy"]
            == read_json(finished / "report.json")[name]["test/accuracy"]
        )
        assert [r["virtual_seconds"] for r in records] == sorted(
            r["virtual_seconds"] for r in records
        )
    assert "clients_per_second" in output and "bottom decile" in output
    assert max(map(len, output.splitlines())) <= 110 and "best round by val/accuracy" in output
    assert "round 0/24, compiling ..." in caplog.text and "with 2 classes; 20 cl" in caplog.text
    assert re.search(r"async: round 24/24, .* val/accuracy 0\.\d+ \(round 24\)", caplog.text)
    of_course = read_json(finished / "report.json")["async"]
    assert results["clients_per_second"] == of_course["clients_per_second"]
    with (finished / "async" / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = [float(row["accuracy"]) for row in rows if row["split"] == "test"]
    assert len(rows) == 2 * 20 and {row["examples"] for row in rows} == {"100"}
    # All clients test on as many examples, so that the mean of clients is that of examples.
    assert np.mean(seen) == pytest.approx(results["test/accuracy"], abs=1e-6)


@pytest.mark.smoke
def test_a_run_that_has_ended_is_not_run_again(run_program, finished):
    results, course = read_json(finished / "results.json"), finished / "async" / "course.json"
    written = course.stat().st_mtime_ns
    code, output, _ = run_program("federated.simulate", CONFIG, f"--workdir={finished}")
    assert code == 0 and "clients_per_second" in output
    assert read_json(finished / "results.json") == results
    assert course.stat().st_mtime_ns == written
    other = ("--config.local.learning_rate=0.2", f"--workdir={finished}")
    assert_one_error(
        run_program("federated.simulate", CONFIG, *other),
        "has a run of another config (there -> now): local.learning_rate: 0.5 -> 0.2",
    )


class StopSoon:
    """Signals of which one arrives after some rounds."""

    def __init__(self):
        self.num_asked = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    @property
    def requested(self):
        self.num_asked += 1
        return self.num_asked > 20


@pytest.mark.smoke
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    run_program, finished, monkeypatch, tmp_path, caplog
):
    arguments = ("federated.simulate", CONFIG, "--config.beside=None", f"--workdir={tmp_path}")
    with monkeypatch.context() as patched:
        patched.setattr(courses, "StopSignals", StopSoon)
        code, _, errors = run_program(*arguments)
    assert code == training.TrainingInterrupted(0, "").code, errors
    assert re.search(r"async: stopped after step \d+, saved in .*; run it again", caplog.text)
    assert 0 < training.read_metrics(tmp_path / "async")[-1]["step"] < 20
    assert not (tmp_path / "results.json").exists()
    code, _, errors = run_program(*arguments)
    assert code == 0, errors
    for name in ("metrics.jsonl", "model.safetensors", "clients.csv"):
        resumed, straight = (folder / "async" / name for folder in (tmp_path, finished))
        assert resumed.read_bytes() == straight.read_bytes(), name
    assert read_json(tmp_path / "results.json").keys() < read_json(finished / "results.json").keys()


@pytest.mark.smoke
def test_evaluating_a_finished_run_gives_its_last_numbers(run_program, finished):
    arguments = (CONFIG, f"--workdir={finished}", "--course=sync")
    code, output, errors = run_program("federated.evaluate", *arguments)
    assert code == 0, errors
    found, last = (read_json(finished / name) for name in ("evaluation.json", "report.json"))
    assert found == {name: pytest.approx(last["sync"][name], rel=1e-6) for name in found}
    assert "bottom decile" in output
    assert (finished / "evaluation.csv").read_text() == (finished / "sync/clients.csv").read_text()
    assert_one_error(
        run_program("federated.evaluate", CONFIG, f"--workdir={finished}", "--course=late"),
        "--course=late is not in this run; it has sync, async",
    )


ONE_CLIENT = (
    "beside=None", "num_unseen=0", "num_rounds=3", "data.num_clients=1", "devices.kind=none",
    "strategy.kind=synchronous", "strategy.cohort_size=1", "strategy.min_updates=0",
    "strategy.max_staleness=0", "strategy.broadcast=after_aggregating",
    "evaluation.every_rounds=1", "evaluation.splits=('test',)",
    "evaluation.by_server=('test',)", "baselines=('local','global')",
)  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a run with baselines that has ended, and its arguments."""
    folder = tmp_path_factory.mktemp("federated") / "compared"
    return folder, (CONFIG, f"--workdir={folder}", *(f"--config.{each}" for each in ONE_CLIENT))


@pytest.mark.smoke
def test_with_one_client_the_baselines_and_the_server_have_its_numbers(run_program, compared):
    folder, arguments = compared
    code, output, errors = run_program("federated.simulate", *arguments)
    assert code == 0, errors
    found, results = (read_json(folder / name) for name in ("report.json", "results.json"))
    assert found.keys() == {"sync", "local", "global"}
    scores = {f"{place}test/accuracy" for place in ("", "local/", "global/")}
    assert results.keys() >= scores | {"test_server/accuracy"}
    assert len({results[name] for name in scores}) == 1
    loss = pytest.approx(found["sync"]["test/loss"], rel=1e-6)
    assert found["sync"]["test_server/loss"] == loss
    for kind in ("local", "global"):
        assert found[kind]["test/loss"] == loss
        assert "bytes_up" not in found[kind] and found[kind]["rounds"] == 3
    assert "global" in output and not (folder / "local/model.safetensors").exists()


@pytest.mark.smoke
def test_baselines_that_have_ended_are_not_run_again_and_the_server_evaluates(
    run_program, compared
):
    folder, arguments = compared
    written = (folder / "local/course.json").stat().st_mtime_ns
    code, _, errors = run_program("federated.simulate", *arguments)
    assert code == 0, errors
    assert (folder / "local/course.json").stat().st_mtime_ns == written
    code, _, errors = run_program("federated.evaluate", *arguments)
    assert code == 0, errors
    evaluated = read_json(folder / "evaluation.json")
    loss = pytest.approx(read_json(folder / "report.json")["sync"]["test/loss"], rel=1e-6)
    assert evaluated["test/loss"] == loss == evaluated["test_server/loss"]


def test_a_run_that_is_not_there_is_told_and_not_begun(run_program, tmp_path):
    ended = run_program("federated.evaluate", CONFIG, f"--workdir={tmp_path / 'typo'}")
    assert_one_error(ended, "typo is no folder; give that of a run of simulate, or --checkpoint")
    assert not (tmp_path / "typo").exists()


def guide_commands(verb):
    """The arguments of every call of a program in the guide."""
    guide = (CHECKOUT / "jaxlab/federated/README.md").read_text("utf-8")
    start = f"    python -m experiments.federated.{verb} "
    lines = guide.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix(start)) for line in lines if line.startswith(start)]


@pytest.mark.parametrize("verb", ["simulate", "evaluate"])
def test_the_settings_of_the_commands_in_the_guide_are_valid(run_program, verb):
    commands = guide_commands(verb)
    assert commands
    for arguments in commands:
        code, output, errors = run_program(f"federated.{verb}", *arguments, "--print_config")
        assert code == 0 and "config.strategy.kind" in output, errors


def assert_one_error(ended, *parts):
    code, _, errors = ended
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in errors, errors
    for part in parts:
        assert part in errors


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("strategy.kind=goal_acheived",),
            "config.strategy.kind='goal_acheived' is not one of 'synchronous', 'goal_achieved', "
            "'time_up'; the nearest is 'goal_achieved'",
        ),
        (
            ("strategy.cohortsize=3",),
            "--config.strategy.cohortsize does not exist; the nearest valid key is "
            "config.strategy.cohort_size",
        ),
        (
            ("devices.kind=none",),
            "strategy.kind='goal_achieved' needs devices.kind='drawn' or 'file': without them",
        ),
        (
            ("strategy.kind=time_up",),
            "time_budget_s=0.0 must be at least a microsecond for kind='time_up'",
        ),
        (("strategy.max_staleness=-1",), "max_staleness=-1 must be an integer, 0 or more"),
        (
            ("strategy.min_updates=7",),
            "min_updates=7 must be at least 1 and at most cohort_size=4",
        ),
        (("strategy.cohort_size=19",), "cohort_size=19 of 18 clients that train"),
        (
            ("algorithm.name=fed_nova", "algorithm.prox_mu=0.1"),
            "prox_mu=0.1 changes nothing with name='fed_nova'; it is for fed_avg",
        ),
        (
            ("algorithm.name=scaffold", "local.momentum=0.9"),
            "algorithm.name='scaffold' takes plain gradient steps; got local.optimizer='sgd', "
            "--config.local.momentum=0.9",
        ),
        (
            ("aggregator.name=krum", "aggregator.num_byzantine=2"),
            "needs 5 updates, and the course aggregates 2; raise strategy.min_updates",
        ),
        (("evaluation.metric=test/acuracy",), "is not measured; there are val/accuracy"),
        (("evaluation.splits=('dev',)",), "splits=('dev',) must be some of train, val, test"),
        (("model.name=convnet2",), "is for pictures, (height, width, channels); synthetic has"),
        (
            ("data.splitter=iid",),
            "splitter='iid' changes nothing with name='synthetic'; it is for mnist, emnist, "
            "cifar10, cifar100, table, csv, npz and own: leave it at 'own', or choose another name",
        ),
        (
            ("data.name=npz", "data.path=a.npz", "data.client=who", "data.splitter=iid"),
            "client='who' says whose a row is, and --config.data.splitter='iid' shares rows out",
        ),
        (
            ("evaluation.target=92.",),
            "evaluation.target=92 is above 1, and val/accuracy is a share",
        ),
        (
            ("evaluation.target=None",),
            "target=None, and it has no state without a value; its defau",
        ),
        (("data.folder=x",), "config.data.folder does not exist; valid keys are config.data.alpha"),
        (
            ("evaluation.every_rounds=0", "early_stop.patience=2"),
            "early_stop with evaluation.every_rounds=0, which evaluates the last model only",
        ),
        (
            ("task.factory=a:b", "evaluation.scores=('f1',)"),
            "evaluation.scores=('f1',) changes nothing with task.factory='a:b'",
        ),
        (("num_unseen=20",), "num_unseen=20 of data.num_clients=20 leaves no client that trains"),
        (
            ("personal.local_norms=True",),
            "keep_local: 0 of 2 entries match; wanted some, but not all, of params/fc/bias",
        ),
        (("averaging.start_round=30",), "averaging.start_round=30 must be below num_rounds=24"),
        (("data.name=femnist", "data.num_clients=0"), "path is missing: name='femnist' needs it"),
        (("baselines=('locla',)",), "baselines[0]='locla' is not one of 'local', 'global'; the"),
        (("baselines=('local','local')",), "baselines=('local', 'local') names one twice"),
        (("baseline_rounds=3",), "baseline_rounds=3 changes nothing without baselines"),
        (("evaluation.splits=()",), "splits=() must be some of train, val, test"),
        (("evaluation.by_server=('dev',)",), "by_server=('dev',) must be some of train, val, test"),
        (
            ("evaluation.by_server=('test',)", "algorithm.name=ditto"),
            "evaluation.by_server=('test',) with algorithm.name='ditto': clients evaluate with "
            "models of their own, which the server does not have; set it to ()",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(run_program, tmp_path, settings, sentence):
    arguments = [f"--config.{setting}" for setting in settings]
    ended = run_program("federated.simulate", CONFIG, *arguments, f"--workdir={tmp_path / 'run'}")
    code, _, errors = ended
    assert code == 2 and "Traceback" not in errors, errors
    # Settings that came from the command line are called by their flags.
    assert without_paths(sentence) in without_paths(errors)


@pytest.mark.parametrize(
    ("file", "given", "told", "kept"),
    [
        (
            {"data.splitter": "dirichlet", "data.alpha": 0.3, "data.num_clients": 500},
            {"data.name": "npz", "data.path": "a.npz", "data.client": "who"},
            ["data.splitter='own' (was 'dirichlet')", "data.alpha=0.5 (was 0.3)"],
            {"data.client": "who", "data.num_clients": 0},
        ),
        (
            {"data.splitter": "dirichlet", "data.alpha": 0.3, "data.num_clients": 500},
            {"data.splitter": "iid"},
            ["data.alpha=0.5 (was 0.3)"],
            {"data.num_clients": 500},
        ),
        (
            {"devices.kind": "drawn", "devices.compute_ms": 7.0},
            {"devices.kind": "none", "devices.compute_ms": 7.0},
            [],
            {"devices.compute_ms": 7.0},
        ),
        (
            {"server.optimizer": "sgd", "server.momentum": 0.9, "server.learning_rate": 0.5},
            {"server.optimizer": "adam"},
            ["server.momentum=0.0 (was 0.9)"],
            {"server.learning_rate": 0.5},
        ),
    ],
)
def test_what_nothing_reads_after_a_change_is_reset_but_not_what_was_given(
    file, given, told, kept, caplog
):
    start = RunConfig(data=DataConfig(name="mnist", splitter="iid", num_clients=5), num_rounds=3)
    config = to_config_dict(start)
    config.update_from_flattened_dict({**file, **given})
    with caplog.at_level("INFO"):
        RunConfig.adapt(config, given)
    assert all(clause in caplog.text for clause in told)
    assert ("nothing reads these" in caplog.text) == bool(told)
    for name, value in kept.items():
        group, _, key = name.partition(".")
        assert config[group][key] == value
    if told:
        run_config(config, RunConfig)
    else:
        with pytest.raises(ValueError, match="compute_ms=7.0 changes nothing with kind='none'"):
            run_config(config, RunConfig)


def course_state(round_, evaluations=()):
    server = types.SimpleNamespace(
        round=round_, clock_us=0, evaluations=list(evaluations),
        aggregations=[types.SimpleNamespace(fresh=(1, 2), stale=(), rejected=())],
    )  # fmt: skip
    return types.SimpleNamespace(server=server)


def test_progress_tells_the_round_of_its_metric_and_no_rate_of_the_first_round():
    shown = CourseProgress("sync", 12, course_state(0), "test/accuracy")
    assert shown.line(course_state(0)) == "sync: round 0/12, compiling ..."
    shown.update(course_state(1))
    assert shown.line(course_state(1)) == "sync: round 1/12"
    for number in (2, 3, 4):
        shown.update(course_state(number))
    evaluated = types.SimpleNamespace(round=3, metrics={"test/accuracy": 0.6506})
    line = shown.line(course_state(4, [evaluated]))
    assert re.fullmatch(
        r"sync: round 4/12, [\d.,e+]+ clients/s, test/accuracy 0.6506 \(round 3\)", line
    )
    assert shown.timed[0] == 4  # two clients of each of the last two rounds


def test_the_best_round_is_told_by_the_validation_examples_where_there_are_some():
    def watched(**evaluation):
        return metrics.watched_metric(RunConfig(evaluation=EvaluationConfig(**evaluation)), 2)

    assert watched() == "test/accuracy"
    assert watched(splits=("val", "test")) == "val/accuracy" == watched(splits=("test", "val"))
    assert watched(splits=("test",), by_server=("val",)) == "val_server/accuracy"
    assert watched(splits=("val",), by_server=("test",)) == "val/accuracy"
    assert watched(metric="test/loss", target=3.0) == "test/loss"
    config = RunConfig(task=TaskConfig("a:b"))
    assert metrics.watched_metric(config, 2, ["f1"]) == "test/f1"
    assert metrics.watched_metric(config, 2, []) == "test/loss"
    with pytest.raises(ConfigError, match="name does not tell whether it is better where it is la"):
        metrics.watched_metric(config, 2, ["top"])


def test_with_0_rounds_between_evaluations_the_last_model_alone_is_evaluated(problem):
    config = dataclasses.replace(SMALL, evaluation=EvaluationConfig(every_rounds=0))
    assert tasks.plan_course(config, problem).config.eval_every_rounds == 0


def test_tables_are_no_wider_than_a_terminal(capsys):
    numbers = metrics.ClientNumbers(("weighted_avg", "avg", "fairness"))
    found = {}
    for name in ("val", "val_unseen", "test", "test_unseen", "train"):
        found |= numbers.summarize(name, {"correct": np.array([[1.0, 4.0], [9.0, 12.0]])})
    tables.print_spread(found, "sync: the last model over the clients")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("bottom decile" in line for line in lines) == 2  # five scores in two tables


def without_paths(text):
    return re.sub(r"(--)?(\w+\.)+(\w+=)", r"\3", text)


def test_all_mistakes_are_told_at_once():
    config = to_config_dict(RunConfig())
    config.update_from_flattened_dict(
        {"num_rounds": 0, "local.batch_size": 0, "strategy.min_updates": 99}
    )
    with pytest.raises(ValueError) as error:
        run_config(config, RunConfig)
    assert "batch_size=0 must be at least 1" in str(error.value)
    assert "min_updates=99 must be at least 1 and at most cohort_size=10" in str(error.value)
    with pytest.raises(
        ConfigError, match=r"num_rounds=0 must be at least 1; algorithm.name='mime'"
    ):
        RunConfig(
            num_rounds=0,
            algorithm=AlgorithmConfig(name="mime"),
            strategy=StrategyConfig(kind="goal_achieved"),
            devices=DevicesConfig(kind="drawn"),
        )


def central(num_examples=60, test=0):
    rng = np.random.default_rng(0)

    def draw(count):
        x = rng.normal(size=(count, 3)).astype(np.float32)
        return {"x": x, "y": (x[:, 0] > 0).astype(np.int32)}

    return CentralData(
        DataInfo("drawn", "here", "", 2), draw(num_examples), draw(test) if test else None
    )


@pytest.mark.parametrize("splitter", ["iid", "dirichlet", "shards", "quantity"])
def test_every_splitter_gives_all_examples_to_the_clients(splitter):
    config = DataConfig(
        name="npz", path="any", num_clients=5, splitter=splitter, shares=(0.5, 0.25, 0.25),
        alpha=5.0 if splitter in ("dirichlet", "quantity") else 0.5,
    )  # fmt: skip
    shared = data.share_out(central(), config)
    parts = [np.asarray(part.sizes).sum() for part in (shared.train, shared.val, shared.test)]
    assert shared.num_clients == 5 and sum(parts) == 60
    assert min(np.asarray(shared.train.sizes)) > 0


def test_a_part_of_clients_or_examples_is_taken():
    assert len(data.take_examples(central(), 0.25, 0).train["y"]) == 15
    config = DataConfig(name="npz", path="any", num_clients=6, splitter="iid")
    whole = data.share_out(central(), config)
    taken = data.take_clients(whole, 0.5, 0)
    assert taken.num_clients == 3 and set(taken.names) <= set(whole.names)
    client = whole.names.index(taken.names[1])
    start, size = int(whole.train.offsets[client]), int(whole.train.sizes[client])
    own = np.asarray(taken.train.examples["x"])[int(taken.train.offsets[1]) :][:size]
    np.testing.assert_array_equal(own, np.asarray(whole.train.examples["x"])[start : start + size])


SMALL = RunConfig(
    model=ModelConfig(name="mlp", widths=(4,)),
    local=LocalConfig(batch_size=4),
    strategy=StrategyConfig(cohort_size=5),
)


@pytest.fixture(scope="module")
def problem():
    """Six clients with a small model."""
    shared = data.share_out(
        central(), DataConfig(name="npz", path="any", num_clients=6, splitter="iid")
    )
    return tasks.make_problem(SMALL, shared)


def test_a_model_of_every_client_is_simulated_by_command(run_program, tmp_path):
    code, _, errors = run_program(
        "federated.simulate", "--config=configs/federated/deployed.py", "--config.num_rounds=2",
        "--config.algorithm.name=atc", "--config.algorithm.num_groups=2",
        "--config.evaluation.every_rounds=2", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert code == 0, errors
    assert "test/accuracy" in read_json(tmp_path / "results.json")
    models = read_safetensors(tmp_path / "sync" / "model.safetensors").tensors
    assert models and all(len(leaf) == 3 for leaf in models.values())


@pytest.mark.parametrize(
    ("algorithm", "changes", "told"),
    [
        ({}, {}, "atc needs one of them"),
        ({"num_nearest": (0,)}, {}, "must be at least 1 each"),
        ({"num_groups": 2}, {"num_unseen": 1}, "never trains"),
        ({"num_groups": 2}, {"aggregator": AggregatorConfig(name="median")}, "rule of its own"),
        ({"num_groups": 2}, {"strategy": StrategyConfig(kind="goal_achieved")}, "synchronous"),
        (
            {"num_groups": 2},
            {"evaluation": EvaluationConfig(by_server=("test",))},
            "which the server does not have",
        ),
    ],
    ids=["none", "zero", "unseen", "aggregator", "asynchronous", "by_server"],
)
def test_what_contradicts_a_model_of_every_client_is_told(algorithm, changes, told):
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(SMALL, algorithm=AlgorithmConfig(name="atc", **algorithm), **changes)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_be_configured_and_traced(name, problem):
    needs = {"fed_rep": {"head": ("linear_1",)}, "atc": {"num_nearest": (2,)}}.get(name, {})
    personal = PersonalConfig()
    if name in ("fed_avg", "ditto", "fed_em", "atc"):  # what can be combined, combined
        personal = PersonalConfig(local_entries=("linear_1",), tune_amount=1, tune_rate=0.2)
    config = dataclasses.replace(
        SMALL, algorithm=AlgorithmConfig(name=name, **needs), personal=personal
    )
    if name == "fed_em":
        models = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), problem.variables)
        problem = problem._replace(variables=models)
    plan = tasks.plan_course(config, problem)
    # Bytes of the exchange are known before the start: a round is traced.
    simulation = tasks.make_simulation(problem, plan, make_mesh(devices=jax.devices()[:1]))
    assert simulation.course.server.rules.keys() >= {"model_para", "metrics"}


def test_scores_are_those_of_the_settings(problem):
    scores = EvaluationConfig(scores=("hits@2", "f1", "correct"))
    config = dataclasses.replace(SMALL, evaluation=scores)
    problem = tasks.make_problem(config, problem.data)
    plan = tasks.plan_course(config, problem)
    simulation = tasks.make_simulation(problem, plan, make_mesh(devices=jax.devices()[:1]))
    assert simulation.forms.sums["test"].keys() == {"loss", "hits@2", "f1@0", "f1@1", "correct"}
    sums = {name: np.array([[1.0, 4.0]]) for name in simulation.forms.sums["test"]}
    found = metrics.ClientNumbers(("weighted_avg",)).summarize("test", sums)
    assert found.keys() == {f"test/{name}" for name in ("loss", "hits@2", "f1", "accuracy")}
    assert simulate.scores(found) == {n: v for n, v in found.items() if n != "test/loss"}
    assert metrics.watched_metric(config, 2) == "test/hits@2"
    with pytest.raises(ConfigError, match="there are test/hits@2, test/f1, test/accuracy, test/lo"):
        wrong = dataclasses.replace(scores, metric="test/f2")
        metrics.watched_metric(dataclasses.replace(config, evaluation=wrong), 2)
    with pytest.raises(ConfigError, match="the score 'f2' is not one of"):
        wrong = dataclasses.replace(scores, scores=("f2",))
        tasks.make_problem(dataclasses.replace(config, evaluation=wrong), problem.data)


def test_of_numbers_the_error_is_a_score_and_nothing_of_classes(problem):
    toy = RunConfig(data=DataConfig(name="toy"), model=ModelConfig(name="linear"))
    assert metrics.watched_metric(toy, None) == "test/loss"
    config = dataclasses.replace(toy, evaluation=EvaluationConfig(scores=("mse",)))
    problem = tasks.make_problem(config)
    batch = {name: jnp.asarray(v[:4]) for name, v in problem.data.train.examples.items()}
    loss = problem.task.loss(
        problem.variables, {**batch, "mask": jnp.ones(4, bool)}, jax.random.key(0), False
    )
    np.testing.assert_array_equal(loss.scores["mse"], loss.per_example)
    assert metrics.watched_metric(config, None) == "test/mse"
    with pytest.raises(ConfigError, match=r"scores=\('f1',\): .* has numbers to predict, no clas"):
        tasks.make_problem(dataclasses.replace(toy, evaluation=EvaluationConfig(scores=("f1",))))


def test_what_travels_can_be_compressed(problem):
    large = dataclasses.replace(SMALL, model=ModelConfig(name="mlp", widths=(400,)))
    problem = tasks.make_problem(large, problem.data)
    codec = CompressionConfig(bits=8, top_share=0.5, rotate=True, down_bits=16)
    plain, small = (
        tasks.make_simulation(problem, tasks.plan_course(each, problem), make_mesh()).traffic.sizes
        for each in (large, dataclasses.replace(large, compression=codec))
    )
    assert small.up < 0.7 * plain.up and small.down < 0.7 * plain.down
    with pytest.raises(ConfigError, match="rotate=True changes nothing without bits"):
        CompressionConfig(rotate=True)


def test_baselines_train_on_those_who_train_and_start_from_one_model(problem):
    config = dataclasses.replace(
        SMALL, num_unseen=2, strategy=StrategyConfig(cohort_size=2), baselines=("local", "global"),
        algorithm=AlgorithmConfig(name="fed_em"), early_stop=EarlyStopConfig(patience=3),
        evaluation=EvaluationConfig(metric="test_unseen/avg/accuracy"),
    )  # fmt: skip
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, leaf]), problem.variables)
    of_three = problem._replace(variables=models)
    course, alone, whole = tasks.plan_run(config, of_three)
    assert (course.name, alone.name, whole.name) == ("sync", "local", "global")
    for plan in (alone, whole):
        jax.tree.map(np.testing.assert_array_equal, plan.variables, problem.variables)
    train, test = problem.data.train.sizes, problem.data.test.sizes
    assert whole.train.sizes.tolist() == [train[:4].sum()]
    sizes = {name: part.sizes.tolist() for name, part in whole.splits.items()}
    assert sizes == {"test": [test[:4].sum()], "test_unseen": [test[4:].sum()]}
    assert alone.config.num_unseen == 2 and alone.early_stop.metric == "test/correct"
    # What they are made of is checked when they are put together.
    for plan in (alone, whole):
        tasks.make_simulation(of_three, plan, make_mesh(devices=jax.devices()[:1]))


RULES = (
    "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bounding", "geometric_median",
    "centered_clipping", "fl_trust",
)  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_every_aggregator_can_be_configured(name, problem):
    hostile = {"num_byzantine": 0} if name == "bulyan" else {}
    config = dataclasses.replace(SMALL, aggregator=AggregatorConfig(name=name, **hostile))
    assert tasks.plan_course(config, problem).aggregator is not None


def test_shares_of_clients_are_those_of_the_clients_that_train():
    strategy = StrategyConfig(cohort_share=0.2, min_updates_share=0.5, kind="goal_achieved")
    resolved = strategy.resolve(43)
    assert (resolved.cohort_size, resolved.num_updates) == (8, 4)


def test_devices_and_failures_are_drawn_from_their_seed():
    config = RunConfig(devices=DevicesConfig(kind="drawn", failure_rate=0.3, seed=1))
    one, two = (rules.make_devices(config, 2000) for _ in range(2))
    assert one == two
    compute = np.log([device.compute_ms for device in one])
    assert compute.mean() == pytest.approx(np.log(20), abs=0.1)
    assert compute.std() == pytest.approx(1, abs=0.1)
    fails = rules.make_failures(config)
    assert np.mean([fails(client, 3) for client in range(500)]) == pytest.approx(0.3, abs=0.06)
    assert [fails(7, n) for n in range(20)] == [fails(7, n) for n in range(20)]


def test_the_server_optimizer_is_the_one_of_the_settings():
    decayed = methods.make_server_optimizer(
        ServerConfig(optimizer="sgd", learning_rate=0.5, decay_every_rounds=2, decay=0.1)
    )
    gradient = np.ones((), np.float32)
    state, steps = decayed.init(gradient), []
    for _ in range(4):
        step, state = decayed.update(gradient, state)
        steps.append(float(step))
    assert steps == pytest.approx([-0.5, -0.5, -0.05, -0.05])
    assert methods.make_server_optimizer(ServerConfig()) is None


def outcome(name, values, seconds=(1.0, 2.0, 3.0), metric="test/accuracy"):
    points = [
        Point(i + 1, t, {metric: v}) for i, (t, v) in enumerate(zip(seconds, values, strict=True))
    ]
    return Outcome(name, points, {"rounds": 3}, 30, 2.0)


def test_the_target_is_reached_at_the_first_evaluation_that_is_as_good():
    config = RunConfig(devices=DevicesConfig(kind="drawn"), evaluation=EvaluationConfig(target=0.8))
    courses_ = [outcome("sync", (0.5, 0.7, 0.79)), outcome("async", (0.7, 0.8, 0.75))]
    found = simulate.headline(config, courses_, (), "test/accuracy")
    assert found == {
        "test/accuracy": 0.75,
        "sync/virtual_seconds_to_target": None,
        "async/virtual_seconds_to_target": 2.0,
        "clients_per_second": 15.0,
    }
    losses = outcome("sync", (3.0, 1.0, 2.0), metric="test/loss")
    assert losses.reached("test/loss", 1.5).round == 2 and losses.best("test/loss").round == 2


def test_sums_of_clients_become_means_and_their_spread():
    numbers = metrics.ClientNumbers(("weighted_avg", "avg", "fairness"))
    sums = {
        "correct": np.array([[1.0, 4.0], [9.0, 12.0], [0.0, 0.0]]),
        "global/correct": np.array([[2.0, 4.0], [6.0, 12.0], [0.0, 0.0]]),
    }
    found = numbers.summarize("test", sums)
    assert found["test/accuracy"] == pytest.approx(10 / 16)
    assert found["test/global/accuracy"] == pytest.approx(8 / 16)
    row = metrics.spread(found)["test/accuracy"]
    assert row["mean of clients"] == pytest.approx(0.5)
    assert (row["min"], row["max"], row["std"]) == pytest.approx((0.25, 0.75, 0.25))


class TestCheckpoints:
    """The shared model goes to a file and back, and a file of the original is read."""

    EXAMPLE = jax.ShapeDtypeStruct((3,), np.float32)

    def test_the_model_comes_back_from_its_file(self, tmp_path):
        module = learned.models.MLP((4, 2), use_norm=False)
        variables = module.init(jax.random.key(0), jnp.zeros((1, 3)))
        learned.save_variables(tmp_path / "m.safetensors", module, self.EXAMPLE, variables, 0)
        found = learned.load_variables(str(tmp_path / "m.safetensors"), module, self.EXAMPLE)
        jax.tree.map(np.testing.assert_array_equal, dict(found), dict(variables))

    def test_evaluation_of_a_checkpoint_of_the_original(self, run_program, tmp_path):
        rng = np.random.default_rng(0)
        tensors = {
            "fc.weight": rng.normal(size=(2, 150)).astype(np.float32),
            "fc.bias": np.zeros(2, np.float32),
        }
        torch_zip.write_torch_zip(tmp_path / "m.pt", {"cur_round": 3, "model": tensors})
        code, output, errors = run_program(
            "federated.evaluate", CONFIG, f"--workdir={tmp_path / 'out'}",
            f"--checkpoint={tmp_path / 'm.pt'}",
        )  # fmt: skip
        assert code == 0, errors
        config = run_config(
            to_config_dict(RunConfig(data=DataConfig(num_clients=20, num_held_out=100))), RunConfig
        )
        held = data.load_data(config.data).test
        first = slice(0, 100 * 18)
        x, y = np.asarray(held.examples["x"])[first], np.asarray(held.examples["y"])[first]
        right = np.argmax(x @ tensors["fc.weight"].T, axis=1) == y
        found = read_json(tmp_path / "out" / "evaluation.json")
        assert found["test/accuracy"] == pytest.approx(right.mean(), abs=1e-6)
        by_client = right.reshape(18, 100).mean(axis=1)
        assert found["test/fairness/accuracy_std"] == pytest.approx(by_client.std(), abs=1e-6)
        assert "test_unseen/accuracy" in output and "bottom decile" in output
        wrong = {"fc.weight": tensors["fc.weight"][:, :9], "fc.bias": tensors["fc.bias"]}
        torch_zip.write_torch_zip(tmp_path / "w.pt", {"cur_round": 3, "model": wrong})
        assert_one_error(
            run_program(
                "federated.evaluate", CONFIG, f"--workdir={tmp_path / 'out'}",
                f"--checkpoint={tmp_path / 'w.pt'}",
            ),
            "fc.weight",
        )  # fmt: skip
