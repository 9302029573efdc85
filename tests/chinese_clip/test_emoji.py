"""What is drawn from the emoji set, and the numbers of the three levels of unseen."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxlab.chinese_clip.emoji import (
    CATEGORY_PROMPTS,
    EmojiConcepts,
    EmojiDataConfig,
    category_prompts,
    compose_inputs,
    evaluate_emoji,
    make_emoji_sampler,
    make_prepare,
)
from jaxlab.data.device_augment import NO_AUGMENTATION
from jaxlab.data.emoji import category_floor, load_emoji, standard_split
from jaxlab.data.images import IMAGE_MEAN, IMAGE_STD
from jaxlab.data.pipeline import PipelineConfig, make_train_batches

LEVELS = ("unseen_drawing", "unseen_combination", "unseen_concept")
RECALLS = {
    f"{level}/{direction}_r{k}"
    for level in LEVELS
    for direction in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
}
CATEGORY = "unseen_concept/category_mean_per_class"
PLAIN = "unseen_concept/category_plain"


@functools.cache
def emoji_and_split():
    emoji = load_emoji()
    return emoji, standard_split(emoji), EmojiConcepts(emoji, standard_split(emoji))


class Draws:
    """Examples whose image says which drawing it is, and whose ids say which text."""

    def __init__(self, num_rounds, views=None, **settings):
        self.emoji, self.split, self.concepts = emoji_and_split()
        where = np.stack(np.meshgrid(range(2), range(self.emoji.num_emoji), indexing="ij"), -1)
        image_of = {"image": where}
        if views:
            view = np.broadcast_to(np.arange(views)[:, None, None, None], (views, *where.shape))
            image_of = {"image_features": np.concatenate([view[..., :1], [where] * views], -1)}
        self.texts = []

        def tokenize(texts):
            self.texts.extend(texts)
            return np.arange(len(texts), dtype=np.int32)[:, None]

        self.sample = make_emoji_sampler(
            self.emoji, self.concepts, EmojiDataConfig(**settings), tokenize, image_of
        )
        rng = np.random.default_rng(0)
        found = [
            self.sample(self.concepts[i], rng)
            for _ in range(num_rounds)
            for i in range(len(self.concepts))
        ]
        (name,) = image_of
        self.images = np.stack([example[name] for example in found])
        self.drawn = [self.texts[int(example["ids"][0])] for example in found]
        assert found[0].keys() == {"ids", name}


@functools.cache
def draws():
    return Draws(12)


def test_concepts_hold_exactly_the_training_drawings():
    emoji, split, concepts = emoji_and_split()
    assert len(concepts) == emoji.num_concepts - len(split.unseen_concepts) == 1720
    rows = np.concatenate(list(concepts.drawings.values()))
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, split.train.tolist()))
    for i in range(len(concepts)):
        example = concepts[i]
        assert example == {"example_id": example["concept"], "concept": example["concept"]}
        drawings, num_base = (
            part[example["concept"]] for part in (concepts.drawings, concepts.num_base)
        )
        assert (emoji.concepts[drawings[:, 1]] == example["concept"]).all()
        is_base = emoji.is_base[drawings[:, 1]]
        assert num_base == is_base.sum() > 0 and is_base[:num_base].all()


def test_nothing_unseen_is_ever_drawn():
    emoji, split, _ = emoji_and_split()
    styles, items = draws().images.T
    assert not np.isin(emoji.concepts[items], split.unseen_concepts).any()
    assert not np.isin(items, split.unseen_combinations).any()
    hidden = dict(zip(split.unseen_drawing_concepts, split.unseen_drawing_styles, strict=True))
    for concept, style in zip(emoji.concepts[items], styles, strict=True):
        assert hidden.get(concept) != style
    train = set(map(tuple, split.train.tolist()))
    assert set(map(tuple, draws().images.tolist())) <= train
    # Every text is one of its drawing's own, so that no name of an unseen item is read either.
    for item, text in zip(items, draws().drawn, strict=True):
        assert text in emoji.texts(item)


def test_base_drawings_and_keywords_come_as_often_as_asked():
    # Four standard deviations: a correct sampler would miss one of these bars in 6 of 100,000
    # seeds, and this seed is fixed.
    emoji, _, concepts = emoji_and_split()
    items = draws().images[:, 1]
    has_variations = np.array(
        [len(concepts.drawings[c]) > concepts.num_base[c] for c in emoji.concepts[items]]
    )
    is_base = emoji.is_base[items]
    assert is_base[~has_variations].all()
    check_share(is_base[has_variations], 0.5)

    named = np.array([emoji.names_zh[i] == t for i, t in zip(items, draws().drawn, strict=True)])
    has_keywords = np.array([len(emoji.keywords_zh[i]) > 0 for i in items])
    assert named[~has_keywords].all()
    check_share(~named[has_keywords], 0.2)


def check_share(hits, wanted):
    assert len(hits) > 2000
    assert abs(hits.mean() - wanted) < 4 * (wanted * (1 - wanted) / len(hits)) ** 0.5


@pytest.mark.parametrize(
    ("settings", "all_base", "all_names"),
    [
        ({"base_probability": 1.0, "keyword_probability": 0.0}, True, True),
        ({"base_probability": 0.0, "keyword_probability": 1.0, "language": "en"}, False, False),
    ],
)
def test_probabilities_of_0_and_1_are_certain(settings, all_base, all_names):
    found = Draws(1, **settings)
    emoji, _, concepts = emoji_and_split()
    names = emoji.names_en if settings.get("language") == "en" else emoji.names_zh
    keywords = emoji.keywords_en if settings.get("language") == "en" else emoji.keywords_zh
    for item, text in zip(found.images[:, 1], found.drawn, strict=True):
        concept = emoji.concepts[item]
        variations = len(concepts.drawings[concept]) > concepts.num_base[concept]
        assert emoji.is_base[item] == (all_base or not variations)
        assert (text == names[item]) == (all_names or not keywords[item])


def test_all_drawings_of_a_concept_and_all_views_take_part():
    found = Draws(60, views=3)
    views, styles, items = found.images.T
    assert set(views) == {0, 1, 2}
    check_share(views == 1, 1 / 3)
    emoji, split, concepts = emoji_and_split()
    # One concept with all its drawings: each of the 60 draws is the base with 1/2.
    concept = next(c for c, rows in concepts.drawings.items() if 8 <= len(rows) <= 12)
    mine = emoji.concepts[items] == concept
    drawn = set(zip(styles[mine].tolist(), items[mine].tolist(), strict=True))
    assert drawn == set(map(tuple, concepts.drawings[concept].tolist()))


def test_a_batch_within_an_epoch_holds_distinct_concepts():
    emoji, split, concepts = emoji_and_split()
    batches = make_train_batches(
        concepts, seed=0, global_batch_size=256, num_threads=0,
        config=PipelineConfig(remainder="drop"),
    )  # fmt: skip
    epoch = [next(batches)["example_id"] for _ in range(6)]
    assert len(np.unique(np.concatenate(epoch))) == 6 * 256
    for _ in range(12):
        assert len(np.unique(next(batches)["concept"])) == 256


def oracle():
    """Features by which every drawing knows its name, and every item its category."""
    emoji, _, _ = emoji_and_split()
    rng = np.random.default_rng(0)
    own = rng.normal(size=(emoji.num_emoji, 32)).astype(np.float32)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    kinds = np.eye(len(emoji.category_names), dtype=np.float32)
    names = np.concatenate([own, kinds[emoji.categories]], axis=1) / np.sqrt(2)
    classifier = np.concatenate([np.zeros((len(kinds), 32)), kinds], axis=1).astype(np.float32)
    return np.stack([names, names]), names, classifier


def test_perfect_features_give_100_by_exactly_these_names():
    emoji, split, _ = emoji_and_split()
    results = evaluate_emoji(emoji, split, *oracle())
    assert set(results) == {*RECALLS, CATEGORY, PLAIN}
    assert set(results.values()) == {100.0}


def test_constant_features_find_nothing_because_ties_count_against():
    emoji, split, _ = emoji_and_split()
    images, names, classifier = (np.zeros_like(a) for a in oracle())
    for features in (images, names, classifier):
        features[..., 0] = 1.0
    results = evaluate_emoji(emoji, split, images, names, classifier)
    assert all(results[name] == 0.0 for name in RECALLS)
    # Always the same category: chance per class, and the share of that category.
    assert results[CATEGORY] == pytest.approx(category_floor(emoji, split)["chance"])
    labels = emoji.categories[split.levels["unseen_concept"].image_queries[:, 1]]
    assert results[PLAIN] == pytest.approx(100 * (labels == 0).mean())


def test_each_level_and_direction_is_measured_on_its_own_queries():
    # One unseen concept that looks and reads like another: it misses in both directions.
    emoji, split, _ = emoji_and_split()
    images, names, classifier = oracle()
    one, other = split.levels["unseen_concept"].text_gallery[:2]
    images[0, one] = images[0, other]
    results = evaluate_emoji(emoji, split, images, names, classifier)
    level = split.levels["unseen_concept"]
    assert results["unseen_concept/image_to_text_r1"] == pytest.approx(
        100 * (1 - 1 / len(level.image_queries))
    )
    # The name of `one` has lost its Google drawing, that of `other` ties with a wrong one.
    assert results["unseen_concept/text_to_image_r1"] == pytest.approx(
        100 * (1 - 2 / len(level.text_queries))
    )
    assert results["unseen_concept/image_to_text_r5"] < 100.0
    assert all(results[name] == 100.0 for name in RECALLS if name.startswith("unseen_drawing"))


def test_category_metrics_weigh_classes_or_drawings_alike():
    emoji, split, _ = emoji_and_split()
    images, names, classifier = oracle()
    labels = emoji.categories[split.levels["unseen_concept"].image_queries[:, 1]]
    present, counts = np.unique(labels, return_counts=True)
    lost = present[counts.argmax()]
    classifier[lost] = 0.0
    results = evaluate_emoji(emoji, split, images, names, classifier)
    assert results[CATEGORY] == pytest.approx(100 * (1 - 1 / len(present)))
    assert results[PLAIN] == pytest.approx(100 * (1 - counts.max() / counts.sum()))
    assert results[PLAIN] == pytest.approx(100 - category_floor(emoji, split)["largest"])


def test_every_category_has_prompts_in_both_languages():
    emoji, _, _ = emoji_and_split()
    chinese, english = category_prompts(emoji, "zh"), category_prompts(emoji, "en")
    assert set(CATEGORY_PROMPTS) == set(emoji.category_names)
    assert len(chinese) == len(english) == len(emoji.category_names)
    assert all(prompts and len(set(prompts)) == len(prompts) for prompts in (*chinese, *english))
    assert chinese[emoji.category_names.index("Flags")] == ("旗", "旗帜", "国旗")
    assert english[emoji.category_names.index("Food & Drink")] == ("food", "drink")


def test_inputs_of_the_tower_with_and_without_augmentation():
    rng = np.random.default_rng(0)
    drawings = rng.integers(0, 256, (3, 64, 64, 4)).astype(np.uint8)
    drawings[2] = 0  # transparent: white
    prepared = jax.jit(make_prepare(NO_AUGMENTATION, 32))(jax.random.key(0), drawings)
    inputs = jax.jit(compose_inputs, static_argnums=1)(drawings, 32)
    assert prepared.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(prepared, inputs, atol=2e-5)
    white = (1 - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD)
    np.testing.assert_allclose(inputs[2], np.broadcast_to(white, (32, 32, 3)), rtol=1e-5)


def test_augmentation_depends_on_the_key():
    augment = dataclasses.replace(NO_AUGMENTATION, background_probability=1.0)
    prepare = jax.jit(make_prepare(augment, 8))
    drawings = np.zeros((2, 64, 64, 4), np.uint8)
    found = [np.asarray(prepare(jax.random.key(seed), drawings)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.1
    assert np.abs(found[0][0] - found[0][1]).max() > 0.1, "one colour for all"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_probability": 1.5}, r"base_probability=1\.5 is a probability; use 0 to 1"),
        ({"keyword_probability": -0.1}, r"keyword_probability=-0\.1 is a probability"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EmojiDataConfig(**fields)
