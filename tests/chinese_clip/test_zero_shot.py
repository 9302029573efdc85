import numpy as np
import pytest

from jaxlab.chinese_clip.zero_shot import (
    GENERAL_TEMPLATES,
    fill_templates,
    make_classifier,
    zero_shot_logits,
    zero_shot_probabilities,
)

FEATURES = {
    "a": [3.0, 0.0, 0.0],
    "b": [0.0, 0.5, 0.0],
    "c": [0.0, 0.0, 2.0],
    "zero": [0.0, 0.0, 0.0],
}


def encode(texts):
    return np.array([FEATURES[text] for text in texts], np.float32)


def test_a_class_is_the_normalised_mean_of_normalised_prompts():
    """Without the second normalisation the first row would have length 0.707."""
    got = make_classifier([["a", "b"], ["c"], ["a", "a", "b"]], encode)
    expected = [[2**-0.5, 2**-0.5, 0], [0, 0, 1], [2 / 5**0.5, 1 / 5**0.5, 0]]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_prompt_without_features_is_finite():
    np.testing.assert_allclose(make_classifier([["a", "zero"]], encode), [[1, 0, 0]])


def test_all_prompts_are_encoded_in_one_call():
    calls = []
    make_classifier([["a", "b"], ["c"]], lambda texts: (calls.append(texts), encode(texts))[1])
    assert calls == [["a", "b", "c"]]


def test_logits_are_a_hundred_times_the_cosines():
    classifier = make_classifier([["a"], ["b"], ["a", "b"]], encode)
    image = np.array([[2.0, 0.0, 0.0], [0.3, 0.4, 0.0]], np.float32)
    expected = 100 * np.array([[1, 0, 2**-0.5], [0.6, 0.8, 1.4 * 2**-0.5]])
    np.testing.assert_allclose(zero_shot_logits(image, classifier), expected, rtol=1e-5)
    probabilities = zero_shot_probabilities(image, classifier)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert probabilities.argmax(axis=1).tolist() == [0, 2]
    odds = np.exp(100 * (1 - 2**-0.5))
    assert probabilities[0, 0] / probabilities[0, 2] == pytest.approx(odds, rel=1e-3)


@pytest.mark.parametrize("prompts", [[], [["a"], []]])
def test_classes_without_prompts_are_refused(prompts):
    with pytest.raises(ValueError, match="needs at least one text"):
        make_classifier(prompts, encode)


def test_templates_are_filled_and_cleaned():
    got = fill_templates(["“iPhone”", "{猫}"], ["{}的照片", "一张{}", "{}的照片"])
    assert got == (
        ('"iphone"的照片', '一张"iphone"', '"iphone"的照片'),
        ("{猫}的照片", "一张{猫}", "{猫}的照片"),
    )
    assert fill_templates(["“A”"], ["{}"], clean=False) == (("“A”",),)


@pytest.mark.parametrize("templates", [[], ["照片"], ["{}", "{}和{}"]])
def test_templates_without_one_place_for_the_name_are_refused(templates):
    with pytest.raises(ValueError, match=r"exactly one '\{\}'"):
        fill_templates(["猫"], templates)


def test_general_templates_are_usable():
    prompts = fill_templates(["猫"], GENERAL_TEMPLATES)
    assert len(set(prompts[0])) == len(GENERAL_TEMPLATES)
    assert all("猫" in text for text in prompts[0])
