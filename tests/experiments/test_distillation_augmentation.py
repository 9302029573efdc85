"""Variants of training texts: what they are made of, that only the student's stages have them."""

import dataclasses

import numpy as np
import pytest

from experiments.distillation import augmentation, train
from experiments.distillation.augmentation import augment_problem, make_candidates
from experiments.distillation.settings import (
    LABELS_ALONE,
    AugmentationConfig,
    NetworksConfig,
    RunConfig,
    StageConfig,
    TeacherConfig,
    TextsConfig,
)
from experiments.distillation.tasks import load_problem
from tests.experiments.distillation_runs import WORDS, write_teacher, write_texts

TEXTS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with texts, and a teacher with the head of a language model."""
    folder = tmp_path_factory.mktemp("augmentation")
    write_texts(folder / "texts", TEXTS)
    write_teacher(folder / "teacher", task="mlm")
    write_teacher(folder / "headless")
    lines = [
        f"{word} {' '.join(map(str, place))}" for word, place in zip(WORDS, CIRCLE, strict=True)
    ]
    (folder / "glove.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# Every word beside the next one, so that its nearest words are its neighbours in the list.
CIRCLE = [(float(np.cos(t)), float(np.sin(t))) for t in np.linspace(0.0, 1.5, len(WORDS))]


def settings(world, **augmentation):
    return NetworksConfig(
        data=TextsConfig(name="tables", folder=str(world / "texts"), max_length=16),
        teacher=TeacherConfig(weights=str(world / "teacher")),
        augmentation=AugmentationConfig(**{"num_copies": 4, **augmentation}),
    )


def varied(world, **augmentation):
    config = settings(world, **augmentation)
    problem = load_problem(config)
    return problem, augment_problem(config, problem, world / "run")


@pytest.mark.parametrize("kind", ["neighbours", "glove", "delete", "swap", "mask"])
def test_variants_are_new_texts_of_the_student_without_labels(world, kind):
    problem, found = varied(world, candidates=kind, glove=str(world / "glove.txt"))
    first, texts = found.examples("train"), {e.id: e for e in problem.examples("train")}
    variants = [e for e in first if e.id not in texts]
    assert len(first) - len(variants) == TEXTS and len(variants) > TEXTS
    every = {e.id for part in problem.data.parts.values() for e in part}
    assert not every & {e.id for e in variants} and len({e.id for e in first}) == len(first)
    assert all(e.label is None for e in variants)
    assert found.examples("validation") == problem.examples("validation")
    assert len(problem.examples("train")) == TEXTS
    again = varied(world, candidates=kind, glove=str(world / "glove.txt"))[1]
    np.testing.assert_array_equal(again.rows("train").ids, found.rows("train").ids)
    other = varied(world, candidates=kind, glove=str(world / "glove.txt"), seed=1)[1]
    assert not np.array_equal(other.rows("train").ids, found.rows("train").ids)


def test_masked_variants_have_the_mask_of_the_model(world):
    problem, found = varied(world, candidates="mask", probability=0.3)
    rows, mask = found.rows("train"), found.tokenizer.mask_id
    assert len(rows) == 5 * TEXTS
    for row in range(len(rows)):
        masked = (rows.ids[rows.begin(row) : rows.ends[row]] == mask).sum()
        assert masked == (
            0 if rows.has_label[row] else max(1, round(0.3 * (rows.lengths[row] - 2)))
        )
    assert not (found.rows("validation").ids == mask).any()
    assert not (problem.rows("train").ids == mask).any()


def test_words_of_vectors_are_the_nearest_in_the_file(world):
    config = AugmentationConfig(
        candidates="glove", glove=str(world / "glove.txt"), num_candidates=2
    )
    candidates = make_candidates(config, "not used")
    assert set(candidates(["a", WORDS[4]], 1)) == {WORDS[3], WORDS[5]}


def test_a_model_is_asked_for_words(world):
    config = AugmentationConfig(candidates="model", num_candidates=len(WORDS) + 5)
    found = make_candidates(config, str(world / "teacher"))(["a", "red", "fox"], 1)
    # All pieces that begin a word, in the order of the model: no special ones.
    assert sorted(found) == sorted(WORDS)
    few = dataclasses.replace(config, num_candidates=3)
    ranked = make_candidates(few, str(world / "teacher"))(["a", "red", "fox"], 1)
    assert len(ranked) <= 3 and list(found[: len(ranked)]) == list(ranked)


def test_variants_of_a_share_are_of_that_share(world):
    config = settings(world)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, fraction=0.5))
    problem = load_problem(config)
    found = augment_problem(config, problem, world / "run").examples("train")
    ids = {e.id for e in problem.examples("train")}
    assert {e.id for e in found if e.label is not None} == ids and len(ids) == TEXTS // 2
    data = dataclasses.replace(config.data, fraction=1.0, with_validation=True)
    problem = load_problem(dataclasses.replace(config, data=data))
    found = augment_problem(config, problem, world / "all").examples("train")
    labelled = [e.id for e in found if e.label is not None]
    assert labelled == [e.id for e in problem.examples("train")]


def test_labels_are_kept_where_asked(world):
    _, found = varied(world, candidates="delete", keep_labels=True)
    labels = {bool(set(e.text.split()) & set(WORDS[:3])): e.label for e in found.examples("train")}
    assert found.rows("train").has_label.all() and None not in labels.values()


def test_only_the_stages_of_the_student_see_variants(world, tmp_path, monkeypatch):
    stage = StageConfig(num_steps=1, global_batch_size=8, objective=LABELS_ALONE)
    config = RunConfig(
        **{f.name: getattr(settings(world), f.name) for f in dataclasses.fields(NetworksConfig)}
        | {"teacher": TeacherConfig(weights=str(world / "teacher"), stage=stage)},
        stage_1=stage, stage_2=stage, hard_stage=stage,
    )  # fmt: skip
    seen = {}

    def remember(config, stage, problem, workdir, mesh, student, teacher=None, **options):
        seen[workdir.name] = len(problem.examples("train"))
        return student

    monkeypatch.setattr(train, "run_stage", remember)
    monkeypatch.setattr(train, "make_student", lambda config, teacher, **options: teacher)
    monkeypatch.setattr(train, "keep", lambda *network: None)
    train.train_networks(config, load_problem(config), tmp_path, None)
    assert seen["teacher"] == seen["hard"] == TEXTS
    assert seen["stage_1"] == seen["stage_2"] > 2 * TEXTS


def test_variants_are_kept_and_made_anew_only_for_other_settings(world, tmp_path, monkeypatch):
    calls = []

    def count(*given):
        calls.append(given)
        return make_vary(*given)

    make_vary = augmentation.make_vary
    monkeypatch.setattr(augmentation, "make_vary", count)
    config = settings(world, candidates="delete")
    problem = load_problem(config)
    found = [augment_problem(config, problem, tmp_path).examples("train") for _ in range(2)]
    assert found[0] == found[1] and len(found[0]) > TEXTS and len(calls) == 1
    other = augment_problem(settings(world, candidates="delete", seed=1), problem, tmp_path)
    assert other.examples("train") != found[0] and len(calls) == 2


def test_a_model_without_the_head_is_refused_with_what_to_do(world):
    config = AugmentationConfig(num_copies=1, candidates="model")
    with pytest.raises(ValueError, match=r"no head of a language model \(lm_head.*augmentation"):
        make_candidates(config, str(world / "headless"))


def test_other_data_and_settings_are_refused(world):
    config = settings(world)
    problem = dataclasses.replace(load_problem(config), task="tagging")
    with pytest.raises(ValueError, match="texts is of tagging; set augmentation.num_copies=0"):
        augment_problem(config, problem, world)
    with pytest.raises(ValueError, match="needs the file of the vectors"):
        AugmentationConfig(candidates="glove")
    with pytest.raises(ValueError, match=r"num_copies=-1 .*probability=1.5"):
        AugmentationConfig(num_copies=-1, probability=1.5)
    assert augment_problem(settings(world, num_copies=0), problem, world) is problem

    class Other(type(problem)):
        """Data with a second vocabulary, say."""

    fields = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    other = Other(**{**fields, "task": "classification"})
    assert type(augment_problem(config, other, world)) is Other
    with pytest.raises(ValueError, match="tokens of one vocabulary"):
        augment_problem(settings(world, candidates="mask"), other, world)
