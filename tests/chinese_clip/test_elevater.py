"""The metrics of the benchmark and its submission file."""

import json

import numpy as np
import pytest

from jaxlab.chinese_clip import MODELS
from jaxlab.chinese_clip.elevater import (
    DATASETS,
    make_submission,
    measure,
    metric_of,
    read_index,
)
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.metrics import eleven_point_average_precision, roc_auc


def softmax(rng, rows, classes):
    weights = np.exp(rng.standard_normal((rows, classes)))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def test_the_table_of_data_sets():
    assert len(DATASETS) == 20
    assert sum(d.num_images for d in DATASETS.values()) == 192_677
    by_metric = {m: {k for k, d in DATASETS.items() if d.metric == m} for m in (
        "mean_per_class", "roc_auc", "eleven_point_map", "accuracy",
    )}  # fmt: skip
    assert by_metric["mean_per_class"] == {
        *("caltech-101", "fgvc-aircraft-2013b-variants102"),
        *("oxford-flower-102", "oxford-iiit-pets"),
    }
    assert by_metric["roc_auc"] == {"hateful-memes"}
    assert by_metric["eleven_point_map"] == {"voc-2007-classification"}
    assert len(by_metric["accuracy"]) == 14
    assert metric_of("my own") == "accuracy"
    assert metric_of("my own", multi_label=True) == "eleven_point_map"


def test_two_classes_have_all_four_metrics():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng, 40, 2), rng.integers(0, 2, 40)
    found = measure(probabilities, labels)
    guesses = probabilities.argmax(axis=1)
    hits = guesses == labels
    assert found["accuracy"] == hits.mean()
    assert found["mean_per_class"] == (hits[labels == 0].mean() + hits[labels == 1].mean()) / 2
    assert found["roc_auc"] == roc_auc(probabilities[:, 1], labels)
    each = [eleven_point_average_precision(probabilities[:, c], labels == c) for c in (0, 1)]
    assert found["eleven_point_map"] == pytest.approx(np.mean(each))


def test_many_classes_have_no_roc_and_empty_ones_no_precision():
    probabilities = softmax(np.random.default_rng(1), 30, 4)
    labels = np.random.default_rng(2).integers(0, 3, 30)  # class 3 has no pictures
    found = measure(probabilities, labels)
    assert found.keys() == {"accuracy", "mean_per_class", "eleven_point_map"}
    each = [eleven_point_average_precision(probabilities[:, c], labels == c) for c in range(3)]
    assert found["eleven_point_map"] == pytest.approx(np.mean(each))


def test_pictures_of_several_classes_are_measured_by_their_precision():
    rng = np.random.default_rng(3)
    probabilities, labels = softmax(rng, 30, 3), rng.uniform(size=(30, 3)) < 0.4
    found = measure(probabilities, labels)
    assert found == {"eleven_point_map": eleven_point_average_precision(probabilities, labels)}


def test_labels_that_do_not_fit_are_refused():
    probabilities = np.full((2, 3), 1 / 3, np.float32)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2\) and probabilities \(2, 3\)"):
        measure(probabilities, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="label 3 of row 1"):
        measure(probabilities, np.array([0, 3]))


def original_dump(data):
    """The rounding of the original: every number of the JSON text with a point, to 6 decimals."""
    return json.dumps(json.loads(json.dumps(data), parse_float=lambda x: round(float(x), 6)))


def test_the_submission_is_the_originals_file():
    params = abstract_variables(MODELS["ViT-B-16"])["params"]
    probabilities = softmax(np.random.default_rng(4), 5, 3)
    probabilities[0] = [1e-7, 0.5, 0.4999999]
    index = [4, 0, 1, 3, 2]
    expected = original_dump(
        {
            "model_name": "CN-CLIP-ViT-B-16",
            "dataset_name": "mnist",
            "num_trainable_params": 0,
            "num_params": 188_262_913,
            "num_visual_params": 86_192_640,
            "num_backbone_params": 188_262_913,
            "n_shot": 0,
            "rnd_seeds": [123],
            "predictions": [probabilities[index].tolist()],
        }
    )
    assert (
        json.dumps(make_submission("ViT-B-16", "mnist", params, probabilities, index)) == expected
    )
    plain = make_submission("ViT-B-16", "mnist", params, probabilities)["predictions"]
    np.testing.assert_allclose(plain, [probabilities], atol=5e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 1", "malformed JSON"),
        ('{"0": 1}', "index is a dict"),
        ("[0, 1, 1]", "2 different rows in 3"),
        ("[0, 1]", "2 different rows in 2; expected each of 0 to 2"),
        ("[0, 1, 3]", "it holds 3"),
        ('[0, 1, "2"]', "it holds '2'"),
    ],
)
def test_an_index_that_is_no_permutation_names_its_file(tmp_path, content, message):
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"index.json.*{message}"):
        read_index(path, 3)


def test_an_index_is_read(tmp_path):
    (tmp_path / "index.json").write_text("[2, 0, 1]")
    assert read_index(tmp_path / "index.json", 3) == [2, 0, 1]
    with pytest.raises(FileNotFoundError, match="expected a JSON list"):
        read_index(tmp_path / "none.json", 3)
