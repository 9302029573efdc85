"""The distillation commands on plain text, tagged sentences and questions."""

import csv
import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from experiments.distillation.evaluate import measure
from experiments.distillation.models import open_network
from experiments.distillation.predictions import write_predictions
from experiments.distillation.scores import compare, score
from experiments.distillation.settings import (
    LABELS_ALONE,
    NetworksConfig,
    StageConfig,
    TeacherConfig,
    TextsConfig,
)
from experiments.distillation.tasks import load_problem
from jaxlab import parallel
from jaxlab.data.texts import GLUE
from jaxlab.distillation import evaluate as distillation_evaluate
from jaxlab.distillation.evaluate import Predictions
from jaxlab.distillation.rows import IGNORED
from jaxlab.layers.mobilebert import MobileBertConfig
from tests.experiments.distillation_runs import ANIMALS, COLOURS, WORDS, write_teacher

RNG = np.random.default_rng(0)
SQUAD_LENGTH = 200
CONFIGS = Path(__file__).parents[2] / "configs/distillation"


def write_corpus(folder, number=40):
    """Two text files of a few words a line."""
    folder.mkdir()
    lines = [" ".join(RNG.choice(WORDS, RNG.integers(3, 12))) for _ in range(number)]
    (folder / "a.txt").write_text("\n".join(lines[::2]) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text("\n".join(lines[1::2]) + "\n", encoding="utf-8")
    return folder


def write_tagged(folder, number=24):
    """CoNLL files in which colours and an animal behind them are an entity."""
    folder.mkdir()
    for file in ("train.txt", "valid.txt", "test.txt"):
        sentences = []
        for _ in range(number):
            colour, animal = RNG.choice(COLOURS), RNG.choice(ANIMALS)
            sentences.append(f"the DT O O\n{colour} JJ O B-A\n{animal} NN O I-A\nis VBZ O O\n")
        (folder / file).write_text("\n".join(sentences), encoding="utf-8")
    return folder


def write_questions(folder, version, number=6, words=120):
    """SQuAD files: which animal is there in a long context; in 2.0 there may be none."""
    folder.mkdir()
    for part in ("train", "dev"):
        data = []
        for i in range(number):
            place, animal = int(RNG.integers(words)), str(RNG.choice(ANIMALS))
            context = ["sun"] * words
            impossible = version == "2.0" and i % 2 == 1
            if not impossible:
                context[place] = animal
            start = sum(len(word) + 1 for word in context[:place])
            asked = {
                "id": f"{part}{i}", "question": "is a star", "is_impossible": impossible,
                "answers": [] if impossible else [{"text": animal, "answer_start": start}],
            }  # fmt: skip
            data.append({"paragraphs": [{"context": " ".join(context), "qas": [asked]}]})
        path = folder / f"{part}-v{version}.json"
        path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return folder


def write_mnli(folder, number=6):
    """The files of MNLI with the diagnostic set; a colour entails, a star contradicts."""
    (folder / "MNLI").mkdir(parents=True)
    (folder / "AX").mkdir()
    names = ("contradiction", "entailment", "neutral")
    for file in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        columns = ("sentence1", "sentence2", *(() if file[:4] == "test" else ("gold_label",)))
        lines = ["\t".join(columns)]
        for i in range(number):
            fields = (
                f"the cat is {RNG.choice(WORDS)}",
                f"a dog is {RNG.choice(WORDS)}",
                names[i % 3],
            )
            lines.append("\t".join(fields[: len(columns)]))
        (folder / "MNLI" / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "AX" / "diagnostic.tsv").write_text(
        "index\tsentence1\tsentence2\n0\ta cat\tthe cat\n1\ta dog\tthe fox\n", encoding="utf-8"
    )
    return folder


def write_ocnli(folder):
    """The files of OCNLI, in words of the small world."""
    folder.mkdir()
    row = {"sentence1": "the cat", "sentence2": "a dog"}
    labelled = [{**row, "label": label} for label in ("neutral", "entailment", "-")]
    for file, rows in (("train", labelled), ("dev", labelled), ("test", [row] * 3)):
        (folder / f"{file}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def task_flags(tmp_path, name, folder):
    """Flags that evaluate a network on a task of three classes in another order of labels."""
    labels = ("neutral", "contradiction", "entailment")
    model = write_teacher(
        tmp_path / "model", task="classification", num_labels=3, labels=labels, seed=3
    )
    return [
        "--config=configs/distillation/vanilla_kd.py:mnli",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.name={name}",
        f"--config.data.folder={folder}",
        "--config.data.max_length=16",
        f"--config.teacher.weights={model}",
        f"--model={model}",
    ]


def test_both_parts_of_mnli_are_scored_and_all_of_it_is_handed_in(tmp_path, run_program):
    flags = task_flags(tmp_path, "mnli", write_mnli(tmp_path / "GLUE"))
    run_well(run_program, "evaluate", *flags, f"--submission={tmp_path / 'out'}")
    found = read_json(tmp_path / "run" / "evaluation.json")
    assert found["data"] == "mnli" and found["part"] == "validation"
    assert 0.0 <= found["accuracy"] <= 1.0
    handed_in = {path.name: path.read_text("utf-8") for path in (tmp_path / "out").iterdir()}
    rows = {name: len(text.splitlines()) - 1 for name, text in handed_in.items()}
    assert rows == {"MNLI-m.tsv": 6, "MNLI-mm.tsv": 6, "AX.tsv": 2}
    run_well(run_program, "evaluate", *flags, "--part=validation_mismatched")
    alone = read_json(tmp_path / "run" / "evaluation.json")
    assert alone["accuracy"] == found["mismatched/accuracy"]


@pytest.mark.filterwarnings("ignore:.*have no example to train on")
def test_a_task_of_clue_is_handed_in(tmp_path, run_program, caplog):
    flags = task_flags(tmp_path, "ocnli", write_ocnli(tmp_path / "ocnli"))
    flags += [f"--submission={tmp_path / 'out'}", "--part=test"]
    run_well(run_program, "evaluate", *flags)
    assert "no label of the part test is known: it is predicted, not scored" in caplog.text
    lines = (tmp_path / "out" / "ocnli_50k_predict.json").read_text("utf-8").splitlines()
    rows = list(map(json.loads, lines))
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert {row["label"] for row in rows} < {"neutral", "contradiction", "entailment"}


def test_every_process_predicts_what_is_handed_in(tmp_path, run_program, monkeypatch):
    predicted, predict = [], distillation_evaluate.predict

    def spy(forward, params, batches, mesh):
        found = predict(forward, params, batches, mesh)
        predicted.append(len(found.logits))
        return found

    flags = task_flags(tmp_path, "mnli", write_mnli(tmp_path / "GLUE"))
    monkeypatch.setattr(distillation_evaluate, "predict", spy)
    monkeypatch.setattr(parallel, "is_main_process", lambda: False)
    run_well(run_program, "evaluate", *flags, f"--submission={tmp_path / 'out'}")
    assert predicted == [6, 6, 6, 6, 2]  # two parts to score, three to hand in
    assert not (tmp_path / "out").exists()


def write_evaluation(folder, data, part="validation", **metrics):
    folder.mkdir(parents=True)
    text = json.dumps({"model": "model", "data": data, "part": part, **metrics})
    (folder / "evaluation.json").write_text(text, encoding="utf-8")


def test_the_average_of_glue_is_told_in_both_conventions(tmp_path, run_program):
    runs = tmp_path / "runs"
    code, _, errors = run_program("distillation.glue", f"--workdir={tmp_path}")
    assert code == 2 and "has no folder with evaluation.json of a task of GLUE" in errors
    for seed, accuracy in enumerate((0.5, 0.7, 0.6)):
        write_evaluation(runs / f"rte{seed}", "rte", accuracy=accuracy, kl=1.0)
    write_evaluation(runs / "mrpc", "mrpc", f1=0.9, accuracy=0.8)
    write_evaluation(runs / "mnli", "mnli", accuracy=0.84, **{"mismatched/accuracy": 0.86})
    write_evaluation(runs / "trec", "trec", part="test", accuracy=0.1)
    code, output, errors = run_program("distillation.glue", f"--workdir={runs}")
    assert code == 0, errors
    found = read_json(runs / "glue.json")
    np.testing.assert_allclose(found["leaderboard"], (0.6 + 0.85 + 0.85) / 3)
    np.testing.assert_allclose(found["papers"], (0.6 + 0.9 + 0.84) / 3)
    assert found["runs"] == {"mrpc": 1, "mnli": 1, "mnli_mismatched": 1, "rte": 3}
    assert found["missing"] == ["cola", "sst2", "stsb", "qqp", "qnli", "wnli"]
    assert "Average, leaderboard (mean of a task's metrics): 0.7667" in output
    assert "Average, papers (first metric of a task, MNLI matched): 0.7800" in output
    write_evaluation(runs / "qqp", "qqp", part="test")
    code, _, errors = run_program("distillation.glue", f"--workdir={runs}")
    assert code == 2 and "qqp/evaluation.json (part test): wanted all metrics" in errors


def problem_of(tmp_path, name, folder, **data):
    write_teacher(tmp_path / "teacher", length=max(data.get("max_length", 0), 32))
    texts = TextsConfig(name=name, folder=str(folder), **data)
    return load_problem(
        NetworksConfig(data=texts, teacher=TeacherConfig(str(tmp_path / "teacher")))
    )


def run_well(run_program, name, *flags):
    code, _, errors = run_program(f"distillation.{name}", *flags)
    assert code == 0, errors


def read_json(path):
    return json.loads(path.read_text("utf-8"))


SHORT = [
    "--config.data.max_length=16",
    "--config.data.buckets=()",
    "--config.stage_2.num_steps=2",
    "--config.stage_2.global_batch_size=8",
]
SMALL = ["--config.student.width=8", "--config.student.mlp_width=16"]
ONE, TWO = ([f"--config.student.num_layers={number}"] for number in (1, 2))
NO_WARMUP = "--config.stage_2.optimizer.warmup_steps=0"
MATCHES = "--config.stage_2.objective.matches"
IB_BERT = MobileBertConfig(
    num_layers=2, width=16, bottleneck_width=24, num_mlps=1, mlp_width=32, embedding_width=8,
    max_positions=32, norm="layer", attention_inputs="wide",
)  # fmt: skip
CORPUS_RUNS = {
    "distilbert": (
        "mlm",
        [*ONE, "--config.student.layers=first", "--config.stage_2.microbatch_size=8"],
        {"cos", "response", "hard"},
    ),
    "tinybert_general": (
        "none",
        [*SMALL, *ONE],
        {"attention_tinybert", "hidden_mse"},
    ),
    "minilm": (
        "none",
        [*SMALL, *ONE, NO_WARMUP, f"{MATCHES}=last1:attention_kl,last1:value_relation[heads=2]"],
        {"attention_kl", "value_relation"},
    ),
    "mobilebert": (
        "mlm",
        [*SMALL, *TWO, NO_WARMUP],
        {"hidden_mse", "attention_kl", "hard"},
    ),
    "mobilebert.py:mobilebert_tiny": (
        "mlm",
        ["--config.student.width=16", *TWO, NO_WARMUP],
        {"hidden_mse", "attention_kl", "response", "hard"},
    ),
}
"""Config -> what its models put out, flags that make it small, losses that it has."""


@pytest.mark.parametrize("config", CORPUS_RUNS)
def test_pretraining_recipes_run_on_a_folder_of_text(config, tmp_path, run_program):
    task, flags, losses = CORPUS_RUNS[config]
    encoder = IB_BERT if "mobilebert_tiny" in config else None
    teacher = write_teacher(tmp_path / "teacher", task="mlm", encoder=encoder)
    run_well(
        run_program,
        "train",
        f"--config=configs/distillation/{config if '.py' in config else config + '.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.folder={write_corpus(tmp_path / 'corpus')}",
        f"--config.teacher.weights={teacher}",
        *SHORT,
        *flags,
    )
    names = read_json(tmp_path / "run" / "stage_2" / "results.json")
    found = {n.removeprefix("train/loss/") for n in names if n.startswith("train/loss/")}
    assert {name.partition("/")[0].partition("[")[0] for name in found} == losses
    assert all(np.isfinite(names[f"train/loss/{name}"]) for name in found)
    architectures = read_json(tmp_path / "run" / "model" / "config.json")["architectures"]
    assert any("MaskedLM" in name for name in architectures) == (task == "mlm")
    evaluate = ("distillation.evaluate", f"--workdir={tmp_path / 'run'}")
    code, _, errors = run_program(*evaluate)
    assert code == 2 and "corpus is plain text without labels, on which nothing is" in errors
    if config == "minilm":
        code, _, errors = run_program(*evaluate, "--timing")
        assert code == 0, errors
        assert read_json(tmp_path / "run" / "evaluation.json")["latency/p50_ms"] > 0


def test_masked_texts_are_those_of_the_seed_and_the_step(tmp_path):
    problem = problem_of(tmp_path, "corpus", write_corpus(tmp_path / "corpus"), max_length=16)
    assert problem.task == "none" and not problem.is_scored
    assert next(iter(problem.batches("validation")))["label"].ndim == 1
    problem = dataclasses.replace(problem, task="mlm")
    stage = StageConfig(num_steps=9, global_batch_size=8, objective=LABELS_ALONE)
    make_batches = problem.training(stage)
    first = make_batches(0)
    batches = [next(first) for _ in range(6)]
    for name, values in next(make_batches(4)).items():
        np.testing.assert_array_equal(values, batches[4][name])
    hidden = np.concatenate([(b["label"] != IGNORED).ravel() for b in batches])
    ordinary = np.concatenate([(b["mask"].sum(1) - 2).clip(0) for b in batches]).sum()
    assert 0.1 < hidden.sum() / ordinary < 0.25  # 15 %, and one at least of every short text
    for one, other in zip(
        problem.batches("validation"), problem.batches("validation"), strict=True
    ):
        np.testing.assert_array_equal(one["ids"], other["ids"])
        assert (one["label"] != IGNORED).any(axis=1)[one["has_label"]].all()


def test_long_lines_of_a_corpus_are_cut_into_texts_where_the_settings_say_so(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = "".join(f"{' '.join(RNG.choice(WORDS, 30))}\n" for _ in range(20))
    (folder / "a.txt").write_text(lines, encoding="utf-8")
    whole = problem_of(tmp_path, "corpus", folder, max_length=12)
    assert whole.rows("train").num_truncated == len(whole.data.train) == 18
    cut = problem_of(tmp_path, "corpus", folder, max_length=12, max_words=10)
    assert cut.rows("train").num_truncated == 0
    rows = [cut.rows(part) for part in ("train", "validation")]
    assert sum(map(len, rows)) == 60
    assert sum(len(part.ids) - 2 * len(part) for part in rows) == 20 * 30
    with pytest.raises(ValueError, match="max_words=10 with data.name='trec': wanted 0, or of"):
        TextsConfig(name="trec", max_words=10)


def test_pieces_of_a_word_are_masked_together_where_the_settings_say_so(tmp_path):
    folder = write_corpus(tmp_path / "corpus", number=120)
    problem_of(tmp_path, "corpus", folder)  # writes the vocabulary
    path = tmp_path / "teacher" / "vocab.txt"
    path.write_text(path.read_text("utf-8").replace("green", "gre\n##en"), encoding="utf-8")
    texts = TextsConfig("corpus", str(folder), max_length=16, masking=0.5, whole_words=True)
    problem = load_problem(NetworksConfig(data=texts, teacher=TeacherConfig(str(path.parent))))
    problem = dataclasses.replace(problem, task="mlm")
    second = problem.tokenizer.vocabulary.index("##en")
    batch = next(iter(problem.batches("train")))
    truth = np.where(batch["label"] == IGNORED, batch["ids"], batch["label"])
    rows, places = np.nonzero(truth == second)
    hidden = batch["label"] != IGNORED
    np.testing.assert_array_equal(hidden[rows, places], hidden[rows, places - 1])
    assert hidden[rows, places].any() and not hidden[rows, places].all()


def written(path, problem, predictions):
    """The lines of the file of predictions."""
    write_predictions(path, problem, "test", predictions)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def one_hot_tags(rows, num_labels, length):
    """Logits that are right for every word."""
    logits = np.zeros((len(rows), length, num_labels), np.float32)
    for row in range(len(rows)):
        labels = rows.label[rows.begin(row) : rows.ends[row]]
        kept = np.flatnonzero(labels != IGNORED)
        logits[row, kept, labels[kept]] = 5.0
    return logits


def test_tags_are_scored_by_whole_entities(tmp_path):
    problem = problem_of(tmp_path, "conll2003", write_tagged(tmp_path / "tagged"), max_length=16)
    rows = problem.rows("test")
    assert problem.task == "tagging" and problem.num_labels == 3
    right = one_hot_tags(rows, 3, 16)
    found = Predictions(rows.example_id[::-1].copy(), right[::-1].copy())
    assert score(problem, "test", found) == {
        "precision": 1.0, "recall": 1.0, "f1": 1.0, "accuracy": 1.0
    }  # fmt: skip
    # The second word of the first sentence is no entity's: one of 24 is lost, 1 word of 96 wrong.
    wrong = right.copy()
    inside = problem.data.label_names.index("I-A")
    wrong[0, 3] = np.eye(3)[problem.data.label_names.index("O")]
    assert right[0, 3].argmax() == inside
    spoilt = Predictions(rows.example_id, wrong)
    scores = score(problem, "test", spoilt)
    np.testing.assert_allclose(scores["f1"], 23 / 24)
    np.testing.assert_allclose(scores["accuracy"], 95 / 96)
    lines = written(tmp_path / "predictions.csv", problem, spoilt)
    first = problem.examples("test")[0]
    assert len(lines) == 96 and [line["word"] for line in lines[:4]] == list(first.words)
    assert [line["prediction"] for line in lines[:4]] == ["O", "B-A", "O", "O"]
    assert lines[2]["label"] == "I-A" and lines[2]["id"] == str(first.id)
    agreed = compare(problem, "test", spoilt, Predictions(rows.example_id, right))
    np.testing.assert_allclose(agreed["agreement"], 95 / 96)


def test_words_behind_the_cut_count_as_outside(tmp_path):
    folder = write_tagged(tmp_path / "tagged", number=1)
    (folder / "test.txt").write_text(
        "the DT O O\nred JJ O B-A\ncat NN O I-A\nis VBZ O O\nblue JJ O B-A\nfox NN O I-A\n"
        "\nthe DT O O\nred JJ O B-A\ncat NN O I-A\nis VBZ O O\n",
        encoding="utf-8",
    )
    problem = problem_of(tmp_path, "conll2003", folder, max_length=6)
    rows = problem.rows("test")
    right = Predictions(rows.example_id, one_hot_tags(rows, 3, 6))
    # Of three entities one is behind the cut: two words of ten are wrong.
    assert score(problem, "test", right) == {
        "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "accuracy": 0.8
    }  # fmt: skip
    lines = written(tmp_path / "predictions.csv", problem, right)
    assert [line["word"] for line in lines[1:6]] == ["red", "cat", "is", "blue", "fox"]
    assert [line["prediction"] for line in lines[:6]] == ["O", "B-A", "I-A", "O", "O", "O"]
    assert [line["label"] for line in lines[:6]] == ["O", "B-A", "I-A", "O", "B-A", "I-A"]


def test_a_head_whose_labels_have_no_names_is_told(tmp_path, caplog):
    problem = problem_of(tmp_path, "conll2003", write_tagged(tmp_path / "tagged"), max_length=16)
    head = {"task": "tagging", "num_labels": 3}
    path = write_teacher(tmp_path / "unnamed", **head) / "config.json"
    kept = {k: v for k, v in read_json(path).items() if k not in ("id2label", "label2id")}
    path.write_text(json.dumps({**kept, "num_labels": 3}), encoding="utf-8")
    write_teacher(tmp_path / "named", labels=("I-A", "O", "B-A"), **head)
    for name in ("teacher", "named", "unnamed"):  # the first has no head
        network = open_network(str(tmp_path / name), **head)
        assert problem.align(network, name).label_names == ("O", "B-A", "I-A")
    told = [r.getMessage() for r in caplog.records if "no names" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("unnamed has a head") and "to be O, B-A, I-A, in" in told[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_tasks_of_glue_lie_in_one_folder(path):
    config = runpy.run_path(str(path))
    for kind in config.get("KINDS", ("",)):
        data = config["get_config"](*filter(None, [kind])).data
        assert (data.folder == "GLUE") == (data.name in GLUE), kind


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_answers_come_back_from_the_windows_of_long_contexts(tmp_path, version):
    folder = write_questions(tmp_path / "squad", version)
    name = "squad" if version == "1.1" else "squad2"
    problem = problem_of(tmp_path, name, folder, max_length=SQUAD_LENGTH)
    rows = problem.rows("test")
    assert problem.task == "span" and problem.num_labels == 2
    logits = np.zeros((len(rows), SQUAD_LENGTH, 2), np.float32)
    for row, (start, end) in enumerate(rows.label):
        logits[row, start, 0] = logits[row, end, 1] = 5.0
    right = Predictions(rows.example_id, logits)
    scores = score(problem, "test", right)
    assert scores["f1"] == scores["exact_match"] == 1.0
    assert ("no_answer_f1" in scores) == (version == "2.0")
    lines = written(tmp_path / "predictions.csv", problem, right)
    assert [line["id"] for line in lines] == [f"dev{i}" for i in range(6)]
    assert all(line["label"] == line["prediction"] for line in lines)
    assert {line["label"] for line in lines[::2]} <= set(ANIMALS)
    none = np.zeros_like(logits)
    none[:, 0] = 5.0
    empty = score(problem, "test", Predictions(rows.example_id, none))
    assert empty["f1"] == (0.5 if version == "2.0" else empty["f1"]) < 1.0
    same = compare(problem, "test", right, right)
    assert same["agreement"] == 1.0 and abs(same["kl"]) < 1e-6


@pytest.mark.parametrize("name", ["conll2003", "squad"])
def test_tags_and_answers_are_timed(name, tmp_path):
    if name == "squad":
        problem = problem_of(
            tmp_path, name, write_questions(tmp_path / name, "1.1"), max_length=SQUAD_LENGTH
        )
    else:
        problem = problem_of(tmp_path, name, write_tagged(tmp_path / name), max_length=16)
    network = open_network(
        str(tmp_path / "teacher"), task=problem.task, num_labels=problem.num_labels
    )
    found = measure(problem, network)
    assert found.keys() == {
        f"{what}{tokenizer}"
        for what in ("latency/p50_ms", "throughput/texts_per_s")
        for tokenizer in ("", "_with_tokenizer")
    }
    assert all(value > 0 for value in found.values())
    assert found["latency/p50_ms"] < found["latency/p50_ms_with_tokenizer"]
