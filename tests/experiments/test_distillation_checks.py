"""What a run refuses before anything trains, and which model a stage ends with."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.common.stages import CHECKPOINTS
from experiments.distillation.evaluate import open_model
from experiments.distillation.models import make_student, open_network, student_sizes
from experiments.distillation.scores import headline
from experiments.distillation.settings import LABELS_ALONE, StudentConfig, TeacherConfig
from experiments.distillation.tasks import load_problem
from experiments.distillation.teachers import open_teachers
from jaxlab import parallel
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.distillation import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.layers import BertConfig
from jaxlab.training import OptimizerConfig
from tests.experiments.distillation_runs import (
    LABELS,
    WORDS,
    settings,
    stage,
    train,
    write_teacher,
    write_tuned,
)

WORDS_ALONE = ObjectiveConfig(response=ResponseConfig("kl"), hard=HardConfig(1.0))


def on_plain_text(tmp_path, **changes):
    """A run on lines of words, with a teacher that knows the head of a language model."""
    config = settings(tmp_path, **changes)
    texts = tmp_path / "corpus" / "texts.txt"
    if not texts.is_file():
        texts.parent.mkdir()
        texts.write_text("\n".join(" ".join(WORDS[i % 9 :]) for i in range(40)), "utf-8")
        write_teacher(tmp_path / "words", task="mlm")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name="corpus", folder=str(texts.parent)),
        teacher=TeacherConfig(weights=str(tmp_path / "words")),
    )


def test_what_does_not_go_together_is_told_before_the_teacher_learns(tmp_path):
    wide = StudentConfig(weights="random", num_layers=1, width=8)
    teacher = TeacherConfig(str(write_teacher(tmp_path / "bare")), stage=stage(LABELS_ALONE))
    hidden = stage(ObjectiveConfig("last1:hidden_mse", ResponseConfig("kl")))
    config = settings(tmp_path, student=wide, teacher=teacher, stage_2=hidden)
    with pytest.raises(ValueError, match="width"):
        train(tmp_path, config)
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_head_of_other_labels_is_drawn_anew_if_asked(tmp_path):
    weights = write_tuned(tmp_path / "other", labels=("cold", "warm"))
    taught = TeacherConfig(str(weights), stage=stage(LABELS_ALONE))
    config = settings(tmp_path, teacher=taught, stage_2=stage())
    problem = load_problem(config)
    with pytest.raises(
        ValueError, match=r"other: the labels differ.*teacher.fresh_head=True draws"
    ):
        open_teachers(config, problem)
    anew = dataclasses.replace(taught, fresh_head=True)
    (network,) = open_teachers(dataclasses.replace(config, teacher=anew), problem)
    assert network.label_names == LABELS
    assert any(path.startswith("head/") for path in network.drawn)
    with pytest.raises(ValueError, match="fresh_head=True needs teacher.stage"):
        TeacherConfig(str(weights), fresh_head=True)


def test_every_piece_of_a_vocabulary_needs_an_embedding(tmp_path):
    config = settings(tmp_path, stage_2=stage())
    with (tmp_path / "tuned" / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("violet\n")
    with pytest.raises(
        ValueError, match="a teacher has 17 embeddings .* vocabulary has 18 entries"
    ):
        train(tmp_path, config)
    with pytest.raises(ValueError, match="tuned has 17 embeddings of tokens, and"):
        open_model(load_problem(config), tmp_path / "tuned", parallel.make_mesh())


def test_an_untaught_head_is_not_kept_by_what_takes_the_place_of_layers(tmp_path):
    bare = TeacherConfig(weights=str(write_teacher(tmp_path / "bare")))
    replaced = stage(LABELS_ALONE, method="theseus")
    with pytest.raises(ValueError, match=r"is to keep its head, and .* have no head .*head/out"):
        train(tmp_path, settings(tmp_path, teacher=bare, stage_1=replaced))


def test_a_stage_of_another_length_wants_another_folder(tmp_path):
    train(tmp_path, settings(tmp_path, stage_2=stage(num_steps=2)))
    with pytest.raises(ValueError, match="ended after 2 steps, and .* have 3 now.*another --workd"):
        train(tmp_path, settings(tmp_path, stage_2=stage(num_steps=3)))


@pytest.mark.parametrize(
    ("changes", "stages", "message"),
    [
        ({"cache_teacher": True}, {}, "other tokens of it are masked at every step"),
        ({}, {"eval_every_steps": 1}, "eval_every_steps=1 measure predictions, and plain text"),
    ],
    ids=["cache", "evaluation"],
)
def test_plain_text_has_no_cache_and_no_scores(tmp_path, changes, stages, message):
    config = on_plain_text(tmp_path, stage_2=stage(WORDS_ALONE, **stages))
    with pytest.raises(ValueError, match=message):
        train(tmp_path, dataclasses.replace(config, **changes))


def test_what_counts_padding_has_no_cache(tmp_path):
    scores = ObjectiveConfig("last1:attention_tinybert", ResponseConfig("kl"))
    config = settings(tmp_path, stage_2=stage(scores))
    with pytest.raises(ValueError, match="attention_tinybert count padding"):
        train(tmp_path, dataclasses.replace(config, cache_teacher=True))


def test_plain_text_without_a_test_set_may_have_two_vocabularies(tmp_path):
    own = write_teacher(tmp_path / "own", seed=3)
    lines = (own / "vocab.txt").read_text("utf-8").split()
    (own / "vocab.txt").write_text("\n".join((*lines[:5], *lines[:4:-1])) + "\n", "utf-8")
    relations = ObjectiveConfig("last1:value_relation", ResponseConfig("none"))
    student = StudentConfig(num_layers=1, vocabulary=str(own))
    config = on_plain_text(tmp_path, student=student, stage_2=stage(relations, num_steps=1))
    _, students = train(tmp_path, config)
    assert students["distilled"].config.encoder.vocab_size == len(lines)


def test_the_head_over_words_is_taken_over(tmp_path):
    teacher = open_network(
        str(write_teacher(tmp_path / "words", task="mlm")), task="mlm", num_labels=0
    )
    for copied in (True, False):
        student = StudentConfig(num_layers=1, copy_head=copied)
        begin = make_student(settings(tmp_path, student=student), teacher, seed=0)
        own, theirs = (network.params["lm_head"]["dense"]["kernel"] for network in (begin, teacher))
        assert np.array_equal(own, theirs) == copied


def test_other_weights_keep_all_of_their_layers():
    source = BertConfig(11, 4, 8, 2, 16)
    for weights, layers in (("teacher", 2), ("random", 2), ("minilm_l6", 4)):
        assert student_sizes(StudentConfig(weights=weights), source).num_layers == layers


def test_a_stage_ends_with_its_best_model_where_asked(tmp_path):
    rates = OptimizerConfig(learning_rate=0.1, schedule="constant")
    best = stage(
        LABELS_ALONE, num_steps=4, eval_every_steps=1, optimizer=rates, keep_best=1,
        best_metric="validation/accuracy", best_mode="min", result="best",
    )  # fmt: skip
    config = settings(tmp_path, stage_1=best)
    _, students = train(tmp_path, config)
    folder = tmp_path / "run" / "stage_1" / CHECKPOINTS
    with RunCheckpoints(
        folder, keep_best=1, best_metric=best.best_metric, best_mode="min", read_only=True
    ) as kept:
        step, last = kept.best_step(), kept.latest_step()
        assert step is not None and step < last
        params = kept.restore_params(step)["student"]
    found = students["distilled"].params
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.asarray, params))


def test_evaluation_divides_over_any_number_of_devices(tmp_path, monkeypatch):
    problem = load_problem(settings(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 6)
    assert problem._config(12).eval_batch_size == 132


def test_costs_are_not_retained():
    scores = {"teacher": {"parameters": 4, "gflops": 2.0}, "distilled": {"parameters": 2}}
    assert headline(scores, 1.0) == {
        "teacher/parameters": 4, "teacher/gflops": 2.0, "distilled/parameters": 2, "seconds": 1.0
    }  # fmt: skip


@pytest.mark.parametrize("line", ["gap:hidden_mse->pca", "random:hidden_mse->pca/one"])
def test_the_teacher_comes_down_to_the_width_of_its_student(tmp_path, line):
    student = StudentConfig(weights="random", num_layers=1, width=8)
    matched = stage(ObjectiveConfig(line, ResponseConfig("kl")))
    config = settings(tmp_path, student=student, stage_2=matched)
    first = train(tmp_path, config)[1]["distilled"]
    assert first.config.encoder.width == 8 and "projections" not in first.params
    # Trained again in another folder it is the same: the components are, too.
    again = train(tmp_path, config, workdir="again")[1]["distilled"]
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
