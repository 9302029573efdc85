"""The methods that settings name, in the command: what they train, export, report and refuse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import ablate
from experiments.distillation import train as train_command
from experiments.distillation.checks import check_stage
from experiments.distillation.courses import make_optimizer
from experiments.distillation.evaluate import (
    open_model,
    predictions_of_teachers,
    teacher_folders,
)
from experiments.distillation.models import (
    Network,
    make_student,
    open_network,
    student_config,
)
from experiments.distillation.own_vocabulary import (
    TwoVocabularies,
    in_words_of,
    student_vocabulary,
    with_student_vocabulary,
)
from experiments.distillation.settings import (
    LABELS_ALONE,
    AblationConfig,
    StudentConfig,
    TeacherConfig,
    TextsConfig,
)
from experiments.distillation.tasks import load_problem
from experiments.distillation.teachers import Teachers, open_teachers
from experiments.distillation.variants import parse_variant
from jaxlab import distillation as kd
from jaxlab import parallel
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.distillation import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.distillation.evaluate import in_order, predict
from jaxlab.layers import BertConfig
from jaxlab.training import OptimizerConfig
from tests.experiments.distillation_runs import (
    LABELS,
    SOFT,
    SPECIAL,
    WORDS,
    settings,
    stage,
    train,
    write_teacher,
    write_tuned,
)


def metrics_of(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def differs(first, second):
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), first, second)))


def test_layers_that_take_the_place_of_blocks_become_an_ordinary_student(tmp_path):
    config = settings(
        tmp_path,
        student=StudentConfig(num_layers=1, layers="first", copy_head=True),
        stage_1=stage(LABELS_ALONE, method="theseus"),
    )
    teachers, students = train(tmp_path, config)
    found = kd.load_pretrained(tmp_path / "run" / "model")
    assert found.config.encoder.num_layers == 1 and found.label_names == LABELS
    trained, teacher = students["distilled"].params, teachers.first.params
    assert_same(found.params, trained)
    for name in ("pooler", "head"):
        assert_same(trained[name], teacher[name])
    for name in ("word_embeddings", "embeddings_norm"):
        assert_same(trained["encoder"][name], teacher["encoder"][name])
    assert differs(trained["encoder"]["layer_0"], teacher["encoder"]["layer_0"])
    # One layer alone is replaced at every step.
    assert metrics_of(tmp_path / "run" / "stage_1")[-1]["train/replaced"] == 1.0


def test_two_teachers_are_averaged_and_the_student_is_cut_from_the_first(tmp_path):
    config = settings(tmp_path)
    other = write_tuned(tmp_path / "other", labels=LABELS[::-1], seed=7)
    both = TeacherConfig(weights=f"{config.teacher.weights}, {other}")
    config = settings(tmp_path, teacher=both, stage_2=stage())
    teachers, students = train(tmp_path, config)
    assert len(teachers.networks) == 2
    # The second has its labels in the other order, and was turned.
    raw = kd.load_pretrained(other).params["head"]["out"]["kernel"]
    assert_same(teachers.networks[1].params["head"]["out"]["kernel"], raw[:, ::-1])
    batch = next(iter(load_problem(config).batches("test")))
    forward = teachers.forward(config)
    each = [
        run(kd.make_forward(kd.TextModel(network.config)), network.params, batch)
        for network in teachers.networks
    ]
    found = run(forward, teachers.params, batch)
    np.testing.assert_allclose(found, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-6)
    words = "word_embeddings"
    first = teachers.first.params["encoder"][words]
    # Four steps of at most 0.003 each, by Adam.
    assert np.abs(students["distilled"].params["encoder"][words] - first).max() < 0.02


def run(forward, params, batch):
    """Logits of a batch on the host."""
    fields, _ = parallel.split_host_fields(batch)
    on_device = jax.tree.map(jnp.asarray, (params, fields))
    return np.asarray(jax.jit(forward)(*on_device).logits)


def test_evaluation_takes_the_mean_of_the_teachers_that_a_run_has_taught(tmp_path):
    config = settings(tmp_path)
    other = write_tuned(tmp_path / "other", seed=7)
    both = TeacherConfig(
        f"{config.teacher.weights},{other}", mixing="probabilities", stage=stage(LABELS_ALONE)
    )
    config = settings(tmp_path, teacher=both, stage_2=stage())
    problem, mesh = load_problem(config), parallel.make_mesh()
    teachers = Teachers(open_teachers(config, problem), "probabilities")
    # As a run of that teacher.stage leaves them.
    for folder, network in zip(
        ("teacher_model", "teacher_model_2"), teachers.networks, strict=True
    ):
        train_command.keep(problem, network, tmp_path / "run" / folder)
    folders = teacher_folders(tmp_path / "run", config)
    assert [folder.name for folder in folders] == ["teacher_model", "teacher_model_2"]
    found = predictions_of_teachers(folders, config, problem, "test", mesh)
    forward = teachers.forward(config, config.temperature)
    wanted = predict(forward, teachers.params, problem.batches("test"), mesh)
    np.testing.assert_array_equal(found.example_ids, wanted.example_ids)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-6)
    first = open_model(problem, tmp_path / "run" / "teacher_model", mesh)[1]("test")
    assert differs(found.logits, first.logits)
    assert teacher_folders(tmp_path / "nowhere", config) == []


@pytest.mark.parametrize("mixing", ["probabilities", "confidence"])
def test_teachers_are_mixed_by_what_they_say(tmp_path, mixing):
    config = settings(tmp_path)
    other = write_tuned(tmp_path / "other", seed=7)
    both = TeacherConfig(weights=f"{config.teacher.weights},{other}", mixing=mixing)
    config = settings(tmp_path, teacher=both, stage_2=stage())
    problem = load_problem(config)
    teachers = Teachers(open_teachers(config, problem), mixing)
    batch = next(iter(problem.batches("test")))
    each = np.stack([
        run(kd.make_forward(kd.TextModel(n.config)), n.params, batch) for n in teachers.networks
    ])  # fmt: skip
    logs = np.array(jax.nn.log_softmax(each, axis=-1), np.float64)
    if mixing == "probabilities":
        wanted = np.log(np.exp(logs).mean(axis=0))
    else:
        label = np.where(batch["has_label"], batch["label"], 0)
        unsure = -np.take_along_axis(logs, label[None, :, None], -1)[..., 0]
        shares = np.exp(-unsure) / np.exp(-unsure).sum(axis=0)
        wanted = (shares[..., None] * each).sum(axis=0)
    rows = batch["has_label"]
    found = run(teachers.forward(config), teachers.params, batch)
    np.testing.assert_allclose(found[rows], wanted[rows], rtol=1e-4, atol=1e-6)


def test_several_teachers_refuse_matches_of_layers_and_other_vocabularies(tmp_path):
    config = settings(tmp_path)
    other = write_tuned(tmp_path / "other")
    both = TeacherConfig(weights=f"{config.teacher.weights},{other}")
    hidden = stage(ObjectiveConfig("last1:hidden_mse", ResponseConfig("kl")))
    with pytest.raises(ValueError, match="2 teachers are averaged in their logits, and hidden_mse"):
        train(tmp_path, settings(tmp_path, teacher=both, stage_2=hidden))
    (other / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS[::-1])) + "\n", "utf-8")
    with pytest.raises(ValueError, match="teachers are averaged on the same tokens"):
        train(tmp_path, settings(tmp_path, teacher=both, stage_2=stage()))


def test_the_student_of_one_run_is_the_teacher_of_the_next(tmp_path):
    first = settings(tmp_path, student=StudentConfig(num_layers=2), stage_2=stage())
    _, students = train(tmp_path, first)
    assistant = tmp_path / "run" / "model"
    second = settings(tmp_path, teacher=TeacherConfig(weights=str(assistant)), stage_2=stage())
    teachers, _ = train(tmp_path, second, "next")
    assert_same(teachers.first.params, students["distilled"].params)
    assert kd.load_pretrained(tmp_path / "next" / "model").config.encoder.num_layers == 1


def test_a_stage_that_has_ended_tells_of_other_settings(tmp_path, caplog):
    config = settings(tmp_path, stage_2=stage())
    train(tmp_path, config)
    train(tmp_path, dataclasses.replace(config, hard_stage=None))
    assert "settings have changed" not in caplog.text
    train(tmp_path, dataclasses.replace(config, stage_2=stage(log_every_steps=1)))
    assert "settings have changed since: stage_2.log_every_steps: 2 -> 1" in caplog.text


def test_logits_of_a_head_that_nobody_taught_are_not_learnt(tmp_path):
    config = settings(tmp_path)
    bare = TeacherConfig(weights=str(write_teacher(tmp_path / "bare")))
    with pytest.raises(
        ValueError, match="no head for this task .head/out/bias, .* set teacher.sta"
    ):
        train(tmp_path, dataclasses.replace(config, teacher=bare))
    problem = load_problem(config)
    (network,) = open_teachers(dataclasses.replace(config, teacher=bare), problem)
    hidden = ObjectiveConfig("last1:hidden_mse", ResponseConfig("none"), HardConfig(1.0))
    for objective, drawn in ((hidden, network.drawn), (SOFT, ())):
        compiled = kd.compile_objective(objective, network.shape, network.shape)
        teachers = Teachers((network._replace(drawn=drawn),))
        check_stage(problem, stage(objective), compiled, network, teachers)


def test_texts_longer_than_the_positions_are_refused_before_training(tmp_path):
    config = settings(tmp_path)
    data = dataclasses.replace(config.data, max_length=33)
    with pytest.raises(ValueError, match="max_length=33 is more than the 32 tokens that a network"):
        train(tmp_path, dataclasses.replace(config, data=data))


def test_learnt_weights_and_moving_matches_train_and_are_not_exported(tmp_path):
    objective = ObjectiveConfig(
        "random:hidden_mse[every=2],emd:hidden_mse", ResponseConfig("kl"), HardConfig(1.0),
        weighting="uncertainty",
    )  # fmt: skip
    train(tmp_path, settings(tmp_path, stage_2=stage(objective)))
    last = metrics_of(tmp_path / "run" / "stage_2")[-1]
    names = {"hidden_mse/random", "hidden_mse/emd", "response", "hard"}
    assert {f"train/{kind}/{name}" for kind in ("loss", "weight") for name in names} <= set(last)
    assert set(kd.load_pretrained(tmp_path / "run" / "model").params) == {
        "encoder", "pooler", "head"
    }  # fmt: skip


def test_lower_layers_learn_by_less_than_the_one_whose_turn_it_is():
    encoder = BertConfig(11, 2, 8, 2, 16)
    network = Network(kd.TextModelConfig(encoder), {})
    objective = ObjectiveConfig("gap:hidden_mse[schedule=progressive]", transfer_share=0.5)
    slow = stage(objective, num_steps=8, lower_factor=0.1)
    tx = make_optimizer(slow, network)
    names = ("word_embeddings", "layer_0", "layer_1")
    params = {
        "student": {"encoder": dict.fromkeys(names, jnp.ones(())), "head": jnp.ones(())},
        "projections": jnp.ones(()),
    }
    state, moved = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(params, state, params)
        moved.append([float(updates["student"]["encoder"][name]) for name in names])
        ends = [float(updates["student"]["head"]), float(updates["projections"])]
        np.testing.assert_allclose(ends, moved[-1][2], rtol=1e-5)
    factors = np.array(moved) / np.array(moved)[:, 2:]
    # Two steps of the lower layer, two of the upper one, and then all alike.
    np.testing.assert_allclose(factors[:, 0], [1, 1, 0.1, 0.1, 1, 1, 1, 1], rtol=1e-5)
    np.testing.assert_array_equal(factors[:, 0], factors[:, 1])


def test_a_new_student_may_have_the_sizes_of_a_published_network():
    teacher = Network(kd.TextModelConfig(BertConfig(11, 4, 16, 2, 32), "bert", "mlm"), {})
    sized = StudentConfig(weights="random", sizes="mobilebert_tiny", num_layers=2)
    found = student_config(sized, teacher.config)
    assert (found.family, found.task, found.has_pooler) == ("mobilebert", "mlm", False)
    encoder = dataclasses.replace(kd.SIZES["mobilebert_tiny"].encoder, vocab_size=11, num_layers=2)
    assert found.encoder == encoder
    whole = student_config(dataclasses.replace(sized, num_layers=None), teacher.config)
    assert whole.encoder.num_layers == 24
    with pytest.raises(ValueError, match=r"student.sizes='bert_tinny' is unknown; use one of bert"):
        StudentConfig(weights="random", sizes="bert_tinny")
    with pytest.raises(ValueError, match=r"set student.weights='random', or give student.num_lay"):
        StudentConfig(sizes="bert_tiny")


def test_the_head_learns_by_its_factor_of_the_rate():
    params = {"student": {"encoder": {"layer_0": jnp.ones(3)}, "head": {"out": jnp.ones(3)}}}
    network = Network(kd.TextModelConfig(BertConfig(11, 1, 8, 2, 16)), {})
    tx = make_optimizer(stage(LABELS_ALONE, num_steps=8, head_factor=20.0), network)
    updates = jax.jit(tx.update)(params, tx.init(params), params)[0]["student"]
    np.testing.assert_allclose(updates["head"]["out"], 20 * updates["encoder"]["layer_0"])
    tx = make_optimizer(stage(LABELS_ALONE, num_steps=8, projection_factor=2.0), network)
    params["projections"] = {"hidden_mse/1-0": jnp.ones(3)}
    updates = jax.jit(tx.update)(params, tx.init(params), params)[0]
    projected = updates["projections"]["hidden_mse/1-0"]
    np.testing.assert_allclose(projected, 2 * updates["student"]["head"]["out"])
    with pytest.raises(ValueError, match=r"head_factor=0.0 must be more than 0"):
        stage(LABELS_ALONE, head_factor=0.0)
    with pytest.raises(ValueError, match=r"head_factor=2.0 changes updates that .*ema_decay=0.9"):
        stage(LABELS_ALONE, head_factor=2.0, optimizer=OptimizerConfig(ema_decay=0.9))


def write_shifted(folder, **changes):
    """A network whose vocabulary is that of the small world in another order."""
    write_tuned(folder, **changes)
    entries = (*SPECIAL, *WORDS[::-1])
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return folder


def test_a_student_keeps_the_vocabulary_of_its_weights(tmp_path):
    own = write_shifted(tmp_path / "own", seed=3)
    objective = ObjectiveConfig("last1:hidden_mse", ResponseConfig("kl"))
    config = settings(tmp_path, student=StudentConfig(weights=str(own)), stage_2=stage(objective))
    problem = with_student_vocabulary(load_problem(config), config.student)
    assert isinstance(problem, TwoVocabularies) and problem.is_aligned
    batch = next(iter(problem.batches("test")))
    names = [[problem.tokenizer, "ids"], [problem.student_tokenizer, "student_ids"]]
    teacher, student = (
        [[tokenizer.vocabulary[i] for i in row] for row in batch[name]] for tokenizer, name in names
    )
    assert teacher == student and (batch["ids"] != batch["student_ids"]).any()
    _, students = train(tmp_path, config)
    folder = tmp_path / "run" / "model"
    kept = (folder / "vocab.txt").read_text("utf-8")
    assert kept == (own / "vocab.txt").read_text("utf-8")
    single = in_words_of(load_problem(config), folder)
    alone = open_model(single, folder, parallel.make_mesh())[1]("test")
    student = students["distilled"]
    forward = kd.make_forward(kd.TextModel(student.config), prefix="student_")
    beside = predict(forward, student.params, problem.batches("test"))
    assert_same(in_order(beside, alone.example_ids).logits, alone.logits)


def test_a_student_is_cut_from_its_teacher_into_another_vocabulary(tmp_path):
    own = write_shifted(tmp_path / "own")
    student = StudentConfig(num_layers=1, vocabulary=str(own))
    config = settings(tmp_path, student=student, stage_2=stage(num_steps=1))
    teachers, students = train(tmp_path, config)
    size = len(SPECIAL)
    rows = [trained["encoder"]["word_embeddings"] for trained in (
        teachers.first.params, students["distilled"].params
    )]  # fmt: skip
    turned = np.concatenate([rows[0][:size], rows[0][size:][::-1]])
    # One step of Adam at 0.003.
    assert np.abs(turned - rows[1]).max() < 0.0031


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [({}, True), ({"num_layers": 1}, False), ({"weights": "teacher"}, False)],
)
def test_projections_stay_with_layers_that_only_get_another_vocabulary(tmp_path, changes, is_kept):
    other = write_tuned(tmp_path / "other", seed=3)
    own = write_shifted(tmp_path / "own")
    tensors = dict(read_safetensors(other / "model.safetensors").tensors)
    fitted = {"fit_dense.weight": np.ones((24, 16)), "fit_dense.bias": np.ones(24)}
    write_safetensors(other / "model.safetensors", {**tensors, **fitted})
    given = {"weights": str(other), "vocabulary": str(own), "num_layers": 2}
    student = StudentConfig(**{**given, **changes})
    config = settings(tmp_path, student=student)
    problem = with_student_vocabulary(load_problem(config), student)
    vocabulary = student_vocabulary(config, problem)
    teacher = open_network(str(other), task="classification", num_labels=2)
    found = make_student(config, teacher, seed=0, vocabulary=vocabulary)
    assert len(teacher.fit_dense) == 1 and len(found.fit_dense) == is_kept


def test_a_vocabulary_may_lie_alone(tmp_path):
    vocabulary = tmp_path / "words"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS[:5])) + "\n", "utf-8")
    student = StudentConfig(num_layers=1, weights="random", vocabulary=str(vocabulary))
    config = settings(tmp_path, student=student)
    problem = with_student_vocabulary(load_problem(config), student)
    assert student_vocabulary(config, problem).size == len(SPECIAL) + 5
    with pytest.raises(FileNotFoundError, match="student.vocabulary='nowhere' is no folder"):
        with_student_vocabulary(problem, dataclasses.replace(student, vocabulary="nowhere"))


def test_texts_that_are_cut_differently_leave_no_tokens_to_compare(tmp_path):
    own = write_shifted(tmp_path / "own")
    pieces = (*SPECIAL, *WORDS[:-3], "t", "##he", "is", "a")
    (own / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    student = StudentConfig(num_layers=1, weights="random", vocabulary=str(own))
    hidden = stage(ObjectiveConfig("last1:hidden_mse,last1:pkd", ResponseConfig("kl")))
    config = settings(tmp_path, student=student, stage_2=hidden)
    with pytest.raises(ValueError, match="has 18 entries, the teacher's 17.*hidden_mse have no"):
        train(tmp_path, config)
    texts = stage(ObjectiveConfig("last1:pkd", ResponseConfig("kl")), num_steps=1)
    _, students = train(tmp_path, settings(tmp_path, student=student, stage_2=texts))
    assert students["distilled"].config.encoder.vocab_size == 18


def test_students_of_an_ablation_have_a_vocabulary_of_their_own(tmp_path):
    own = write_shifted(tmp_path / "own")
    pieces = (*SPECIAL, *WORDS[:-3], "t", "##he", "is", "a")
    (own / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    run = settings(tmp_path)
    config = AblationConfig(
        data=run.data,
        teacher=run.teacher,
        student=StudentConfig(num_layers=1, vocabulary=str(own)),
        stage=stage(),
        variants=("hard = hard", "kd = response~2"),
        sharding="fsdp",
    )
    problem = with_student_vocabulary(load_problem(config), config.student)
    mesh = parallel.make_mesh()
    (teacher,) = open_teachers(config, problem)
    with pytest.raises(ValueError, match="hidden_mse have no common tokens"):
        hidden = parse_variant("hidden = last1:hidden_mse")
        ablate.compile_students(config, problem, [hidden], teacher)
    variants = [parse_variant(line) for line in config.variants]
    compiled = ablate.compile_students(config, problem, variants, teacher)
    run = (config, problem, variants, compiled, 0, teacher, teacher, tmp_path, mesh)
    found = ablate.run_seed(*run)
    assert found[0].config.encoder.vocab_size == 18
    theirs = ablate.predictions_of(problem, teacher, mesh)
    rows = ablate.measure(problem, variants, 0, found, theirs)
    assert [row["variant"] for row in rows] == ["hard", "kd"]
    assert all(0.0 <= row["test/accuracy"] <= 1.0 and row["test/kl"] > 0.0 for row in rows)


def test_a_teacher_may_learn_from_more_texts_than_its_student(tmp_path, monkeypatch):
    run = settings(tmp_path)
    teacher = dataclasses.replace(run.teacher, stage=stage(LABELS_ALONE), fraction=1.0)
    few = dataclasses.replace(run.data, fraction=0.25)
    seen = []

    def run_stage(config, stage, problem, workdir, mesh, network):
        seen.append(len(problem.examples("train")))
        return network

    for command in (ablate, train_command):
        monkeypatch.setattr(command, "run_stage", run_stage)
    for wanted, fraction in ((4, 1.0), (1, None)):
        config = dataclasses.replace(
            run, data=few, teacher=dataclasses.replace(teacher, fraction=fraction)
        )
        problem = load_problem(config)
        (network,) = open_teachers(config, problem)
        ablate.teach(config, problem, network, tmp_path, None)
        train_command.teach(config, problem, (network,), tmp_path, None)
        students = len(problem.examples("train"))
        assert seen == [wanted * students] * 2
        seen.clear()
    with pytest.raises(ValueError, match=r"teacher.fraction=2.0 is not in \(0, 1\]"):
        TeacherConfig(fraction=2.0)


def test_the_validation_texts_are_learnt_where_nothing_is_measured_on_them(tmp_path):
    run = settings(tmp_path)
    data = dataclasses.replace(run.data, with_validation=True)
    config = dataclasses.replace(run, data=data)
    problem = load_problem(config)
    parts = problem.data.parts
    assert problem.examples("train") == (*parts["train"], *parts["validation"])
    assert problem.examples("validation") == parts["validation"]
    with pytest.raises(ValueError, match="eval_every_steps=2 measure on the validation texts"):
        train(tmp_path, dataclasses.replace(config, stage_2=stage(eval_every_steps=2)))
    (network,) = open_teachers(config, problem)
    unlabelled = dataclasses.replace(problem, data=dataclasses.replace(problem.data, test=()))
    given = (Teachers((network,)), {"distilled": network})
    for case, is_scored in ((problem, True), (unlabelled, False)):
        folder = tmp_path / str(is_scored)
        folder.mkdir()
        train_command.report(config, case, *given, folder, parallel.make_mesh(), 1.0)
        results = json.loads((folder / "results.json").read_text("utf-8"))
        assert ("distilled/accuracy" in results) == is_scored
    with pytest.raises(ValueError, match="data.with_validation: variants are measured on these"):
        AblationConfig(data=data, stage=stage())


def test_a_student_does_not_begin_with_the_head_of_its_teacher(tmp_path):
    bare = write_teacher(tmp_path / "bare")
    teacher = open_network(str(bare), task="classification", num_labels=2)
    for student in (StudentConfig(num_layers=1), StudentConfig(weights=str(bare))):
        begin = make_student(settings(tmp_path, student=student), teacher, seed=0)
        assert differs(begin.params["head"], teacher.params["head"])
        same = begin.params["encoder"]["word_embeddings"], teacher.params["encoder"]
        assert_same(same[0], same[1]["word_embeddings"])


def test_a_student_with_another_order_of_labels_is_turned(tmp_path):
    own = write_tuned(tmp_path / "own", labels=LABELS[::-1], seed=3)
    student = StudentConfig(weights=str(own), copy_head=True)
    slow = stage(num_steps=1, optimizer=OptimizerConfig(learning_rate=0.0, schedule="constant"))
    _, students = train(tmp_path, settings(tmp_path, student=student, stage_2=slow))
    raw = kd.load_pretrained(own).params["head"]["out"]["kernel"]
    assert_same(students["distilled"].params["head"]["out"]["kernel"], raw[:, ::-1])


def test_other_labels_are_named(tmp_path):
    config = settings(tmp_path, stage_2=stage())
    write_tuned(tmp_path / "tuned", labels=("colour", "beast"))
    with pytest.raises(ValueError, match="beast"):
        train(tmp_path, config)


def rewrite_texts(tmp_path, lines, part="train"):
    (tmp_path / "texts" / f"{part}.tsv").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "train.tsv"),
        (["text\tlabel"], "train.tsv"),
        (
            ["text\tlabel", "red is\tcolour", "blue is\tcolour"],
            "all 2 labelled examples are of the class",
        ),
    ],
    ids=["empty", "no_rows", "one_class"],
)
def test_files_without_anything_to_learn_are_refused(tmp_path, lines, message):
    config = settings(tmp_path, stage_2=stage())
    for part in ("train", "validation", "test"):
        rewrite_texts(tmp_path, lines, part)
    with pytest.raises(ValueError, match=message):
        train(tmp_path, config)


def settings_of_numbers(tmp_path, **changes):
    """As `settings`, of a regression."""
    settings(tmp_path)
    for part in ("train", "validation", "test"):
        rewrite_texts(tmp_path, ["text\tlabel", *(f"red is\t{i}.5" for i in range(12))], part)
    teacher = write_teacher(tmp_path / "number", task="regression", num_labels=1)
    data = TextsConfig(
        name="tables", folder=str(tmp_path / "texts"), max_length=16, regression=True
    )
    given = {"teacher": TeacherConfig(weights=str(teacher)), "stage_2": stage()}
    return settings(tmp_path, data=data, **{**given, **changes})


def test_a_regression_refuses_distributions(tmp_path):
    config = settings_of_numbers(tmp_path)
    with pytest.raises(ValueError, match="the task is a regression; use response.kind='mse'"):
        train(tmp_path, config)


def test_teachers_of_a_regression_are_averaged_in_their_numbers(tmp_path):
    both = TeacherConfig(
        weights=f"{tmp_path / 'number'},{tmp_path / 'number'}", mixing="confidence"
    )
    squares = ObjectiveConfig(response=ResponseConfig("mse"))
    config = settings_of_numbers(tmp_path, teacher=both, stage_2=stage(squares))
    with pytest.raises(ValueError, match="teacher.mixing='confidence' is of distributions"):
        train(tmp_path, config)


def test_labels_are_not_learnt_where_there_are_none(tmp_path):
    config = settings(tmp_path, stage_2=stage(ObjectiveConfig(hard=HardConfig(0.5))))
    problem = load_problem(config)
    object.__setattr__(problem.data, "train", tuple(
        type(e)(e.id, e.text) for e in problem.data.train
    ))  # fmt: skip
    network = Teachers(open_teachers(config, problem))
    objective = kd.compile_objective(config.stage_2.objective, network.shape, network.shape)
    with pytest.raises(ValueError, match="hard.weight=0.5 is of labels, and none of 60 training"):
        check_stage(problem, config.stage_2, objective, network.first, network)


def test_labels_that_no_class_has_are_told_before_training(tmp_path):
    config = settings(tmp_path, stage_2=stage(ObjectiveConfig(hard=HardConfig(0.5))))
    problem = load_problem(config)
    network = Teachers(open_teachers(config, problem))
    objective = kd.compile_objective(config.stage_2.objective, network.shape, network.shape)

    def check(label):
        first, *others = problem.data.train
        train = (dataclasses.replace(first, label=label), *others)
        other = dataclasses.replace(problem, data=dataclasses.replace(problem.data, train=train))
        check_stage(other, config.stage_2, objective, network.first, network)

    check(-1)
    with pytest.raises(ValueError, match=r"num_labels=2, classes 0 to 1; got 2 \(1 times\)"):
        check(2)


@pytest.mark.parametrize("cached", [True, False])
def test_a_broken_teacher_stops_the_run_with_the_examples(tmp_path, cached):
    config = settings(tmp_path, stage_2=stage(), cache_teacher=cached)
    found = kd.load_pretrained(tmp_path / "tuned")
    broken = jax.tree.map(np.array, found.params)
    broken["encoder"]["word_embeddings"][5 + WORDS.index("moon")] = np.nan
    kd.save_pretrained(tmp_path / "tuned", broken, found.config, label_names=LABELS)
    with pytest.raises(
        (ValueError, FloatingPointError), match=r"example_ids? \d|examples? .*\d|ids .*\d"
    ):
        train(tmp_path, config)
