import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxlab.distillation.initializers import (
    HeadCounts,
    StudentStart,
    layers_of_start,
    shared_vocabulary,
    start_from_distilled,
    start_student,
)
from jaxlab.layers.bert import BertConfig, BertEncoder

TEACHER = BertConfig(
    vocab_size=40, num_layers=4, width=24, num_heads=4, mlp_width=48, max_positions=16
)
NARROW = dataclasses.replace(TEACHER, num_layers=2, width=12, num_heads=2, mlp_width=20)
IDS = jnp.asarray([[5, 9, 31, 0], [7, 8, 2, 1]])


def draw(config, seed, classes=3):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(BertEncoder(config).init, jax.random.key(seed), IDS)["params"]

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    # Norms and biases are drawn, too: they then tell where they come from.
    encoder = jax.tree.map(lambda leaf: normal(*leaf.shape), shapes)
    return {
        "encoder": encoder,
        "pooler": {"kernel": normal(config.width, config.width), "bias": normal(config.width)},
        "head": {"kernel": normal(config.width, classes), "bias": normal(classes)},
        "lm_head": {"bias": normal(config.vocab_size)},
    }


TEACHER_PARAMS = draw(TEACHER, 0)
SHALLOW_PARAMS = draw(dataclasses.replace(TEACHER, num_layers=2), 1)


@pytest.mark.parametrize(
    ("layers", "sizes", "teachers"),
    [
        ("first", (12, 4), (0, 1, 2, 3)),
        ("bottom", (12, 4), (0, 1, 2, 3)),
        ("last", (12, 4), (8, 9, 10, 11)),
        ("gap", (12, 4), (2, 5, 8, 11)),
        ("uniform_top", (12, 5), (1, 4, 6, 9, 11)),
        ("distilbert", (12, 6), (0, 2, 4, 7, 9, 11)),
        ((3, 1), (4, 2), (3, 1)),
        ("random", (4, 2), ()),
    ],
)
def test_a_start_names_a_teacher_layer_for_every_layer(layers, sizes, teachers):
    assert layers_of_start(StudentStart(layers), *sizes) == tuple(
        (t, i) for i, t in enumerate(teachers)
    )


def test_a_start_copies_what_it_names_and_draws_the_rest():
    found = start_student(SHALLOW_PARAMS, TEACHER_PARAMS, StudentStart((3, 1), ("embeddings",)))
    encoder = found.params["encoder"]
    for i, layer in enumerate((3, 1)):
        jax.tree.map(
            np.testing.assert_array_equal,
            encoder[f"layer_{i}"],
            TEACHER_PARAMS["encoder"][f"layer_{layer}"],
        )
    for name in ("word_embeddings", "position_embeddings", "type_embeddings", "embeddings_norm"):
        jax.tree.map(np.testing.assert_array_equal, encoder[name], TEACHER_PARAMS["encoder"][name])
    for name in ("pooler", "head", "lm_head"):
        jax.tree.map(np.testing.assert_array_equal, found.params[name], SHALLOW_PARAMS[name])
    assert set(found.drawn) == {
        "pooler/kernel", "pooler/bias", "head/kernel", "head/bias", "lm_head/bias"
    }  # fmt: skip
    assert len(found.copied) + len(found.drawn) == len(flatten_dict(SHALLOW_PARAMS))
    assert found.num_shared_pieces == 40


def test_random_layers_under_the_teachers_head():
    start = StudentStart("random", ("pooler", "head", "lm_head"))
    found = start_student(SHALLOW_PARAMS, TEACHER_PARAMS, start)
    jax.tree.map(np.testing.assert_array_equal, found.params["encoder"], SHALLOW_PARAMS["encoder"])
    jax.tree.map(np.testing.assert_array_equal, found.params["head"], TEACHER_PARAMS["head"])


def test_a_student_with_all_layers_computes_what_the_teacher_does():
    student = draw(TEACHER, 5)
    found = start_student(student, TEACHER_PARAMS, StudentStart("first"))
    outputs = [
        BertEncoder(TEACHER).apply({"params": params["encoder"]}, IDS)[0]
        for params in (found.params, TEACHER_PARAMS)
    ]
    np.testing.assert_array_equal(*outputs)


def test_no_array_is_shared_with_the_teacher():
    found = start_student(SHALLOW_PARAMS, TEACHER_PARAMS, StudentStart("first"))
    before = np.asarray(TEACHER_PARAMS["encoder"]["layer_0"]["mlp_in"]["kernel"]).copy()
    jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(found.params)
    after = TEACHER_PARAMS["encoder"]["layer_0"]["mlp_in"]["kernel"]
    np.testing.assert_array_equal(after, before)
    assert not SHALLOW_PARAMS["head"]["kernel"].is_deleted()


def test_a_narrow_student_gets_leading_features_and_whole_heads():
    student = draw(NARROW, 2)
    start = StudentStart("last", ("embeddings", "pooler", "head"))
    found = start_student(student, TEACHER_PARAMS, start, heads=HeadCounts(4, 2)).params
    own, teacher = found["encoder"]["layer_1"], TEACHER_PARAMS["encoder"]["layer_3"]
    for name in ("query", "key", "value"):
        kernel = np.asarray(teacher["attention"][name]["kernel"])
        np.testing.assert_array_equal(own["attention"][name]["kernel"], kernel[:12, :12])
        bias = teacher["attention"][name]["bias"]
        np.testing.assert_array_equal(own["attention"][name]["bias"], bias[:12])
    out = teacher["attention"]["out"]
    np.testing.assert_array_equal(own["attention"]["out"]["kernel"], out["kernel"][:12, :12])
    np.testing.assert_array_equal(own["mlp_in"]["kernel"], teacher["mlp_in"]["kernel"][:12, :20])
    np.testing.assert_array_equal(own["mlp_out"]["kernel"], teacher["mlp_out"]["kernel"][:20, :12])
    np.testing.assert_array_equal(own["output_norm"]["scale"], teacher["output_norm"]["scale"][:12])
    np.testing.assert_array_equal(found["head"]["kernel"], TEACHER_PARAMS["head"]["kernel"][:12])


def test_heads_of_another_size_are_cut_one_by_one_if_asked():
    config = dataclasses.replace(NARROW, num_heads=4)
    student, start = draw(config, 2), StudentStart("first", (), cut_heads=True)
    found = start_student(student, TEACHER_PARAMS, start, heads=HeadCounts(4, 4)).params
    features = np.concatenate([6 * head + np.arange(3) for head in range(4)])
    own = found["encoder"]["layer_0"]["attention"]
    teacher = TEACHER_PARAMS["encoder"]["layer_0"]["attention"]
    np.testing.assert_array_equal(own["key"]["kernel"], teacher["key"]["kernel"][:12][:, features])
    np.testing.assert_array_equal(own["key"]["bias"], teacher["key"]["bias"][features])
    np.testing.assert_array_equal(own["out"]["kernel"], teacher["out"]["kernel"][features][:, :12])


def test_pieces_of_another_vocabulary_keep_their_rows():
    config = dataclasses.replace(TEACHER, num_layers=2, vocab_size=6)
    student = draw(config, 3)
    vocabulary = np.array([4, -1, 0, 39, 2, -1], np.int32)
    start = StudentStart("first", ("embeddings", "lm_head"))
    found = start_student(student, TEACHER_PARAMS, start, vocabulary=vocabulary)
    words = found.params["encoder"]["word_embeddings"]
    for i, teacher_id in enumerate(vocabulary):
        source = (student, i) if teacher_id < 0 else (TEACHER_PARAMS, teacher_id)
        np.testing.assert_array_equal(words[i], source[0]["encoder"]["word_embeddings"][source[1]])
        wanted = source[0]["lm_head"]["bias"][source[1]]
        assert found.params["lm_head"]["bias"][i] == wanted
    assert found.num_shared_pieces == 4


def test_positions_that_only_the_teacher_counts_are_skipped():
    config = dataclasses.replace(TEACHER, num_layers=2, max_positions=14)
    found = start_student(draw(config, 3), TEACHER_PARAMS, StudentStart(), skipped_positions=2)
    np.testing.assert_array_equal(
        found.params["encoder"]["position_embeddings"],
        TEACHER_PARAMS["encoder"]["position_embeddings"][2:],
    )
    with pytest.raises(ValueError, match=r"position_embeddings: \(14, 24\) there, \(16, 24\) here"):
        start_student(SHALLOW_PARAMS, TEACHER_PARAMS, StudentStart(), skipped_positions=2)


def test_pieces_are_matched_by_text_and_special_ones_by_use():
    student = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "cat", "##s", "owl"]
    teacher = ["<s>", "<pad>", "</s>", "<unk>", "##s", "cat", "cat", "<mask>"]
    assert shared_vocabulary(student, teacher).tolist() == [1, 0, 2, 3, 7, 5, 4, -1]
    assert shared_vocabulary(teacher, student).tolist() == [1, 0, 2, 3, 6, 5, 5, 4]
    # MPNet's vocabulary keeps entries of BERT's special pieces, which no text becomes.
    both = ["<s>", "<pad>", "</s>", "<unk>", *student, "<mask>"]
    assert shared_vocabulary(student, both).tolist() == [1, 0, 2, 3, 12, 9, 10, 11]
    assert shared_vocabulary(both, both).tolist() == list(range(13))
    with pytest.raises(ValueError, match="none of 1 pieces"):
        shared_vocabulary(["owl"], teacher)


def test_an_earlier_student_is_taken_up_without_its_projections():
    earlier = {**draw(dataclasses.replace(TEACHER, num_layers=2), 7), "projections": {"w": 1}}
    found = start_from_distilled(SHALLOW_PARAMS, earlier)
    jax.tree.map(
        np.testing.assert_array_equal, found.params, {k: earlier[k] for k in SHALLOW_PARAMS}
    )
    body = start_from_distilled(SHALLOW_PARAMS, earlier, with_head=False)
    jax.tree.map(np.testing.assert_array_equal, body.params["head"], SHALLOW_PARAMS["head"])
    other = draw(dataclasses.replace(TEACHER, num_layers=3), 7, classes=5)
    del other["pooler"]
    with pytest.raises(
        ValueError,
        match=r"(?s)pooler/kernel: missing.*head/kernel: \(24, 5\) there, \(24, 3\).*3 layers",
    ):
        start_from_distilled(SHALLOW_PARAMS, other)


def test_everything_that_cannot_be_cut_is_listed():
    config = dataclasses.replace(NARROW, mlp_width=96, vocab_size=50)
    student = draw(config, 2, classes=5)
    start = StudentStart("first", ("embeddings", "pooler", "head"))
    teacher = {name: TEACHER_PARAMS[name] for name in ("encoder", "head")}
    with pytest.raises(ValueError) as raised:
        start_student(student, teacher, start, heads=HeadCounts(4, 1))
    message = str(raised.value)
    for part in (
        "encoder/layer_1/mlp_in/kernel: (24, 48) there, (12, 96) here, which is larger",
        "encoder/layer_0/attention/query/kernel: heads of 6 features there, of 12 here",
        "such as 2 heads of 6",
        "encoder/word_embeddings: 40 pieces there, 50 here: pass `vocabulary`",
        "pooler/kernel: the teacher has no pooler/kernel",
        "head/bias: the teacher has 3 classes and the student 5",
    ):
        assert part in message
    with pytest.raises(ValueError, match="pass `heads`"):
        start_student(draw(NARROW, 2), TEACHER_PARAMS, StudentStart())
    with pytest.raises(ValueError, match="maps 3 pieces to ids up to 9"):
        start_student(
            SHALLOW_PARAMS, TEACHER_PARAMS, StudentStart(), vocabulary=np.array([1, 9, 2])
        )


def test_layers_that_are_not_there_are_told():
    with pytest.raises(ValueError, match=r"6 teacher layers for a student of 2.*\[4, 7, 9, 11\]"):
        layers_of_start(StudentStart("distilbert"), 4, 2)
    with pytest.raises(ValueError, match="is no strategy"):
        layers_of_start(StudentStart("middle"), 4, 2)
    with pytest.raises(ValueError, match=r"layers \[0, 2\] under 'encoder'"):
        start_student({"encoder": {"layer_0": {}, "layer_2": {}}}, TEACHER_PARAMS, StudentStart())
