"""The commands of evaluation on a tiny random model: extract, retrieve, score, zero_shot."""

import functools
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.chinese_clip.confusion import confusion_shares, draw_confusion, worst_confusions
from experiments.chinese_clip.published_results import (
    RETRIEVAL,
    SIZES,
    ZERO_SHOT,
    ZERO_SHOT_AVERAGE,
    model_name,
    published_recalls,
    zero_shot_accuracy,
)
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.elevater import DATASETS
from jaxlab.chinese_clip.model import MODELS, abstract_variables
from jaxlab.data.emoji import composite, load_emoji
from jaxlab.data.pairs import (
    ImageRecord,
    TextRecord,
    read_features,
    read_predictions,
    write_images_tsv,
    write_texts,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig

CONFIG = clip.ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 32, 2, 32, 8),
    BertConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=8),
    context_length=8,
)
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folder of published weights of a random model."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
        abstract_variables(CONFIG),
    )
    folder = tmp_path_factory.mktemp("weights") / "model"
    clip.save_published(folder, variables, CONFIG)
    return folder


@functools.cache
def drawings():
    return load_emoji().images("google")


def png(number):
    data = io.BytesIO()
    Image.fromarray(composite(drawings()[number])).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def muge(tmp_path_factory):
    """A retrieval set in the published formats: 12 emoji, two of them with one text."""
    folder = tmp_path_factory.mktemp("data") / "MUGE"
    folder.mkdir()
    names = load_emoji().names_zh
    images = [ImageRecord(100 + i, png(10 * i)) for i in range(NUM_IMAGES)]
    texts = [TextRecord(i, names[10 * i], (100 + i,)) for i in range(2, NUM_IMAGES)]
    texts.append(TextRecord(50, "两个表情", (100, 101)))
    write_images_tsv(folder / "valid_imgs.tsv", images)
    write_texts(folder / "valid_texts.jsonl", texts)
    return folder


def run(run_program, verb, *arguments):
    code, output, errors = run_program(f"chinese_clip.{verb}", *map(str, arguments))
    assert code == 0, errors
    return output


@pytest.fixture
def features(run_program, tmp_path, weights, muge):
    run(
        run_program, "extract", f"--weights={weights}", f"--output={tmp_path / 'f'}", "--jsonl",
        f"--images={muge / 'valid_imgs.tsv'}", f"--texts={muge / 'valid_texts.jsonl'}",
        "--batch_size=8",
    )  # fmt: skip
    return tmp_path / "f"


def test_extract_retrieve_score_and_evaluate_agree(
    run_program, tmp_path, weights, muge, features, monkeypatch
):
    images = read_features(features / "valid_imgs.img_feat.npy", "image")
    assert images.ids.tolist() == list(range(100, 112))
    for name, kind in (("valid_imgs.img_feat", "image"), ("valid_texts.txt_feat", "text")):
        lines, array = (read_features(features / f"{name}{e}", kind) for e in (".jsonl", ".npy"))
        np.testing.assert_array_equal(lines.features, array.features)
        np.testing.assert_array_equal(lines.ids, array.ids)
        np.testing.assert_allclose(np.linalg.norm(array.features, axis=1), 1.0, rtol=1e-5)

    # Once more: nothing is left to do, and other weights or data are not mixed in.
    again = (f"--images={muge / 'valid_imgs.tsv'}", f"--output={features}",
             f"--workdir={weights.parent}")  # fmt: skip
    before = (features / "valid_imgs.img_feat.npy").stat().st_mtime_ns
    run(run_program, "extract", *again)
    assert (features / "valid_imgs.img_feat.npy").stat().st_mtime_ns == before
    code, _, errors = run_program("chinese_clip.extract", *again, "--dtype=bfloat16")
    assert code == 2 and "holds features of another run" in errors and "bfloat16" in errors

    run(run_program, "retrieve", f"--images={features / 'valid_imgs.img_feat.npy'}",
        f"--texts={features / 'valid_texts.txt_feat.jsonl'}",
        f"--output={tmp_path}")  # fmt: skip
    assert set(read_predictions(tmp_path / "valid_tr_predictions.jsonl", "image")) == set(
        range(100, 112)
    )
    scores = {}
    for direction, name in (("text_to_image", ""), ("image_to_text", "_tr")):
        output = run(
            run_program, "score", f"--predictions={tmp_path / f'valid{name}_predictions.jsonl'}",
            f"--truth={muge / 'valid_texts.jsonl'}", f"--output={tmp_path / 'score.json'}",
        )  # fmt: skip
        result = json.loads((tmp_path / "score.json").read_text())
        assert result["success"] and "mean_recall" in output
        scores |= {f"valid/{direction}_r{k}": result["scoreJson"][f"r{k}"] for k in (1, 5, 10)}

    # As if it were a published size, so that the published numbers stand beside.
    monkeypatch.setattr(
        "experiments.chinese_clip.published_results.model_name", lambda _: "ViT-B-16"
    )
    output = run(
        run_program, "evaluate", "--config=configs/chinese_clip/smoke.py",
        f"--workdir={tmp_path / 'run'}", "--config.data=pairs", "--config.stage_1=None",
        f"--config.pairs.folder={muge}", f"--weights={weights}",
    )  # fmt: skip
    evaluated = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {name: evaluated[name] for name in scores} == pytest.approx(scores)
    assert "published zero-shot" in output and "52.10" in output and "58.40" in output


def test_a_prediction_file_that_cannot_be_scored_leaves_the_failure(run_program, tmp_path, muge):
    (tmp_path / "p.jsonl").write_text('{"text_id": "2", "image_ids": []}\n')
    code, _, errors = run_program(
        "chinese_clip.score", f"--predictions={tmp_path / 'p.jsonl'}",
        f"--truth={muge / 'valid_texts.jsonl'}", f"--output={tmp_path / 'score.json'}",
    )  # fmt: skip
    assert code == 2 and "text_id='2' is not an integer" in errors and "Traceback" not in errors
    result = json.loads((tmp_path / "score.json").read_text())
    assert result["success"] is False and result["score"] == 0 and result["scoreJson"] == {}


@pytest.fixture
def mnist(tmp_path):
    """A published zero-shot folder of two classes and an order for the server."""
    folder = tmp_path / "mnist"
    for label, numbers in ((0, (0, 10, 20)), (1, (900, 910))):
        (folder / "test" / str(label)).mkdir(parents=True)
        for number in numbers:
            (folder / "test" / str(label) / f"{number}.png").write_bytes(png(number))
    (folder / "label_cn.txt").write_text("笑脸\n食物\n", "utf-8")
    (folder / "index.json").write_text("[4, 0, 1, 2, 3]")
    return folder


def test_zero_shot_of_a_published_folder_and_its_submission(run_program, tmp_path, weights, mnist):
    common = (f"--weights={weights}", f"--workdir={tmp_path / 'out'}", "--batch_size=8")
    output = run(run_program, "zero_shot", f"--folder={mnist}", "--submission",
                 "--templates=plain", *common)  # fmt: skip
    results = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert set(results) == {"accuracy", "mean_per_class", "roc_auc", "eleven_point_map", "score"}
    assert results["score"] == 100 * results["accuracy"] and "score: accuracy" in output
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.width > 200

    submission = json.loads((tmp_path / "out" / "mnist.json").read_text())
    rows = np.array(submission["predictions"])
    assert rows.shape == (1, 5, 2) and submission["dataset_name"] == "mnist"
    np.testing.assert_allclose(rows.sum(axis=2), 1.0, atol=2e-6)
    labels = np.array([0, 0, 0, 1, 1])[[4, 0, 1, 2, 3]]
    assert np.mean(rows[0].argmax(axis=1) == labels) == results["accuracy"]

    # The same pictures in folders named by their classes give the same.
    (mnist / "test" / "0").rename(mnist / "test" / "笑脸")
    (mnist / "test" / "1").rename(mnist / "test" / "食物")
    # So do those weights as the model of a run.
    shutil.copytree(weights, tmp_path / "out" / "model")
    run(run_program, "zero_shot", f"--folder={mnist / 'test'}", "--templates=plain", *common[1:])
    plain = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert plain == pytest.approx(results)


def test_a_model_that_errs_nowhere_has_no_table_of_confusions(
    run_program, tmp_path, weights, mnist, monkeypatch
):
    right = np.eye(2)[[0, 0, 0, 1, 1]]
    monkeypatch.setattr(
        "jaxlab.chinese_clip.zero_shot.zero_shot_probabilities", lambda features, classifier: right
    )
    output = run(
        run_program, "zero_shot", f"--folder={mnist}", f"--weights={weights}", "--batch_size=8",
        f"--workdir={tmp_path / 'out'}", "--templates=plain",
    )  # fmt: skip
    assert "No picture is taken for another class." in output
    assert "Most frequent confusions" not in output


def test_pictures_of_several_classes_are_scored_by_their_precision(
    run_program, tmp_path, weights, mnist
):
    """A picture in both folders, and prompts from a file."""
    (mnist / "test" / "1" / "20.png").write_bytes(png(20))
    (tmp_path / "prompts.txt").write_text("{}\n一个{}\n", "utf-8")
    output = run(
        run_program, "zero_shot", f"--folder={mnist}", "--multi_label", f"--weights={weights}",
        f"--workdir={tmp_path / 'out'}", f"--templates={tmp_path / 'prompts.txt'}",
        "--batch_size=8",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert set(results) == {"eleven_point_map", "score"} and "5 pictures, 2 classes" in output
    assert results["score"] == 100 * results["eleven_point_map"]


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("extract", ["--output=x", "--texts=y"], "give the model: either --weights=PATH"),
        ("extract", ["--output=x", "--texts=y", "--workdir={d}"], "no run has ended in --workdir="),
        ("extract", ["--output=x", "--texts=y", "--workdir={w}"], "give it as --weights={w}"),
        ("calibrate", ["--pairs=x"], "got neither; give the model: either --weights=PATH"),
        ("extract", ["--output=x", "--texts=y", "--workdir={d}", "--weights={w}"],
         "got --workdir={d} and --weights={w}; give the model"),
        ("extract", ["--output=x", "--weights={w}"], "give --images, --texts or both"),
        ("retrieve", ["--output=x"], "--images, --texts missing"),
        ("score", [], "--predictions and --truth are needed"),
        ("zero_shot", ["--weights={w}"], "--folder is missing"),
        ("zero_shot", ["--folder={d}"], "give the model: --weights=PATH"),
        ("zero_shot", ["--folder={d}", "--workdir={d}"], "no run has ended in --workdir="),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--dataset=mnst"], "the nearest is mnist"),
        ("zero_shot", ["--weights={w}", "--folder={d}/test/0/deep"],
         "has one class, 'a', and every picture would be of it; give a folder with"),
        ("zero_shot", ["--weights={w}", "--folder={d}/test/0"], "mean --folder={d}/test/0/deep?"),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--templates={d}/label_cn.txt"],
         "label_cn.txt has the lines ['笑脸', '食物']; wanted one prompt a line"),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--templates=shrt"], "list is short;"),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--submission"], "--workdir, which is"),
        ("zero_shot", ["--weights={w}", "--folder={d}/none"], "none is not a folder"),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--templates=flower"], "list is flowers;"),
        ("zero_shot", ["--weights={w}", "--folder={d}", "--submission", "--workdir={d}/out",
                       "--index={d}/label_cn.txt"], "label_cn.txt: malformed JSON"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run_program, weights, mnist, verb, arguments, message):
    (mnist / "test" / "0" / "deep" / "a").mkdir(parents=True)
    (mnist / "test" / "0" / "deep" / "a" / "1.png").write_bytes(png(1))
    filled = [argument.format(w=weights, d=mnist) for argument in arguments]
    code, _, errors = run_program(f"chinese_clip.{verb}", *filled)
    assert code == 2 and message.format(w=weights, d=mnist) in errors and "Traceback" not in errors


def test_confusions_are_counted_and_drawn():
    labels, guesses = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2])
    shares = confusion_shares(4, labels, guesses)
    np.testing.assert_allclose(shares[:2, :2], [[1 / 3, 2 / 3], [1 / 2, 1 / 2]])
    assert shares[2, 2] == 1 and shares[3].sum() == 0
    worst = worst_confusions("甲乙丙丁", labels, guesses)
    assert list(worst) == ["甲 as 乙", "乙 as 甲"]
    assert worst["甲 as 乙"] == {"pictures": 2, "percent": pytest.approx(200 / 3)}
    small = np.asarray(draw_confusion("甲乙丙丁", labels, guesses))
    assert (small == (30, 64, 175)).all(axis=2).sum() == 40 * 40  # one cell of share 1
    many = draw_confusion([str(i) for i in range(400)], np.arange(400), np.arange(400))
    assert 800 <= many.width < 900  # two pixels a class, no names


def test_published_results_are_found_by_size_and_data_set():
    assert [model_name(MODELS[name]) for name in SIZES] == list(SIZES)
    assert model_name(CONFIG) is None
    columns = published_recalls("flickr30k_cn", "test", "ViT-L-14-336")
    assert columns["published zero-shot"]["text_to_image_r1"] == 69.0
    assert columns["published fine-tuned"]["image_to_text_r10"] == 100.0
    muge = published_recalls("MUGE", "valid", "ViT-H-14")
    assert muge["published fine-tuned"]["text_to_image_r1"] == 68.9
    assert "image_to_text_r1" not in muge["published fine-tuned"]
    for question in (("MUGE", "test", "RN50"), ("mine", "valid", "RN50"), ("MUGE", "valid", None)):
        assert published_recalls(*question) is None
    assert zero_shot_accuracy("mnist", "RN50") == 50.2
    assert zero_shot_accuracy("mnist", None) is None and zero_shot_accuracy("x", "RN50") is None


def test_the_published_tables_are_complete_and_consistent():
    """Recalls grow with k and with the size at R@1; the printed average is that of the table."""
    assert set(ZERO_SHOT) == {*DATASETS, "imagenet"}
    values = np.array([ZERO_SHOT[name] for name in DATASETS])
    np.testing.assert_allclose(values.mean(axis=0), ZERO_SHOT_AVERAGE, atol=0.056)
    for directions in RETRIEVAL.values():
        for direction in directions.values():
            for table in direction:
                assert all(list(r) == sorted(r) for r in table.values())
    first = [RETRIEVAL["MUGE", "valid"]["text_to_image"].zero_shot[size][0] for size in SIZES]
    assert first == sorted(first)
