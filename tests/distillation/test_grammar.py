"""The line that says what is matched: what it means, what it refuses, and the way back."""

import dataclasses

import pytest

from jaxlab.distillation.grammar import (
    LayerPair,
    Match,
    format_matches,
    from_textbrewer,
    parse_matches,
)

HIDDEN = {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse"}


def pairs_of(line, teacher, student):
    matches = parse_matches(line)
    return [tuple(pair) for match in matches for pair in match.layer_pairs(teacher, student)]


def test_the_line_of_the_original_toolkit_is_read():
    first, second = parse_matches("first:attention_mse_sum:encoder,first:attention_mse_sum:decoder")
    assert first == Match("attention_mse_sum", "first")
    assert second == Match("attention_mse_sum", "first", stack="decoder")


def test_hidden_states_bring_the_embeddings_along():
    assert pairs_of("gap:hidden_mse", 12, 3) == [
        ((-1,), (-1,)), ((3,), (0,)), ((7,), (1,)), ((11,), (2,)),
    ]  # fmt: skip


@pytest.mark.parametrize("knowledge", ["cos", "pkd", "attention_mse", "value_relation"])
def test_other_knowledge_does_not(knowledge):
    assert ((-1,), (-1,)) not in pairs_of(f"gap:{knowledge}", 12, 3)


def test_embeddings_can_be_asked_for_and_left_out():
    assert pairs_of("last1:cos[emb=yes]", 4, 2) == [((-1,), (-1,)), ((3,), (1,))]
    assert pairs_of("last1:hidden_mse[emb=no]", 4, 2) == [((3,), (1,))]


def test_knowledge_of_pairs_of_layers_takes_a_layer_twice():
    assert pairs_of("last1:mmd[emb=no]", 4, 2) == [((3, 3), (1, 1))]


def test_pairs_are_listed_from_the_teacher_to_the_student():
    assert pairs_of("emb-emb+3-0+7-1:hidden_mse", 12, 3) == [
        ((-1,), (-1,)), ((3,), (0,)), ((7,), (1,)),
    ]  # fmt: skip
    assert pairs_of("emb/3-emb/1:gram", 4, 2) == [((-1, 3), (-1, 1))]


def test_weights_options_and_projections_are_read():
    match = parse_matches("gap:hidden_mse[emb=no,schedule=decay]@2.5e-1->relu/fit")[0]
    assert match == Match(
        "hidden_mse", "gap", weight=0.25, schedule="decay", projection="relu", shared="fit",
        embeddings=False,
    )  # fmt: skip
    assert parse_matches("last1:query_relation[heads=48]")[0].num_relation_heads == 48
    assert parse_matches("gap:attention_mse[of=probabilities]")[0].probabilities


@pytest.mark.parametrize(
    "line",
    [
        "",
        "gap:hidden_mse,last1:value_relation",
        "3-0+7-1:cos@0.5->linear",
        "emb/3-emb/1:gram[norm=textbrewer]->tanh/both",
        "gap:attention_mse:decoder[of=probabilities]@3",
        "last1:query_relation[heads=48,schedule=growth]",
        "last1:query_relation[norm=bertdistiller]@0.333333333333",
        "3-0:attention_ce[norm=textbrewer_unmasked]@1e-07",
    ],
)
def test_a_line_comes_back_from_its_matches(line):
    assert format_matches(parse_matches(line)) == line


@pytest.mark.parametrize(
    "line, message",
    [
        ("gap", "cannot be read"),
        ("gap:colour", "'colour' is no knowledge"),
        ("gap:cos:middle", "stack='middle' is not one of encoder"),
        ("gap:cos@much", "'much' is no number"),
        ("gap:cos@-1", "weight=-1.0 must be a finite number, 0 or more"),
        ("gap:cos@inf", "weight=inf must be a finite number"),
        ("gap:cos->linear@2", "write layers:knowledge:stack[options]@weight->projection"),
        ("gap:cos->wide", "projection='wide' is not one of linear, relu"),
        ("gap:cos[head=3]", "option 'head' is not one of heads"),
        ("gap:cos[heads=few]", "heads='few': wanted a number"),
        ("gap:cos[emb=maybe]", "emb='maybe': wanted yes"),
        ("gap:cos[schedule=soon]", "schedule='soon' is not one of constant"),
        ("gap:cos[norm=own]", "convention='own' is not one of exact"),
        ("gap:cos[norm=bertdistiller]", "it has: exact, textbrewer, textbrewer_unmasked"),
        ("last1:attention_kl[norm=textbrewer]", "is not one that it has: exact"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_item(line, message):
    with pytest.raises(ValueError) as told:
        parse_matches(f"last1:cos,{line}")
    assert message in str(told.value)
    assert repr(line)[1:-1] in str(told.value)


def test_spaces_say_nothing():
    spaced = "gap : hidden_mse [ emb = no ] @ 0.5 -> linear , last1:cos"
    assert parse_matches(spaced) == parse_matches("gap:hidden_mse[emb=no]@0.5->linear,last1:cos")


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"layer 12 of the teacher, which has layers 0 to 11"):
        parse_matches("12-0:cos")[0].layer_pairs(12, 3)
    with pytest.raises(ValueError, match="takes 2 layers a side, got 1"):
        parse_matches("3-0:mmd")[0].layer_pairs(12, 3)
    with pytest.raises(ValueError, match="layer emb of the teacher, which has layers 0 to 11 of"):
        parse_matches("emb-emb:attention_mse")[0].layer_pairs(12, 3)


def test_a_match_has_either_a_strategy_or_pairs():
    with pytest.raises(ValueError, match="either a strategy or pairs"):
        Match("cos")
    with pytest.raises(ValueError, match="either a strategy or pairs"):
        Match("cos", "gap", pairs=(LayerPair((0,), (0,)),))


def test_matches_of_textbrewer_are_read():
    hidden, gram, attention = from_textbrewer(
        [
            {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 2,
             "proj": ["linear", 312, 768, {"lr": 1e-3}]},
            {"layer_T": [0, 4], "layer_S": [0, 1], "feature": "hidden", "loss": "fsp"},
            {"layer_T": 11, "layer_S": 2, "feature": "attention", "loss": "attention_ce"},
        ]
    )  # fmt: skip
    assert hidden.pairs == (LayerPair((7,), (1,)),)
    assert (hidden.weight, hidden.projection, hidden.convention) == (2.0, "linear", "textbrewer")
    assert gram.pairs == (LayerPair((-1, 3), (-1, 0)),)
    assert attention == dataclasses.replace(
        Match("attention_ce", pairs=(LayerPair((11,), (2,)),)), convention="textbrewer"
    )


def test_what_the_adaptors_of_textbrewer_give_is_said_beside_the_matches():
    matches = [
        {"layer_T": 8, "layer_S": 2, "feature": "hidden", "loss": "cos"},
        {"layer_T": 7, "layer_S": 1, "feature": "attention", "loss": "attention_mse"},
    ]
    hidden, attention = from_textbrewer(matches, probabilities=True, masked=False)
    assert attention.probabilities and not hidden.probabilities
    assert {hidden.convention, attention.convention} == {"textbrewer_unmasked"}


@pytest.mark.parametrize(
    "match, message",
    [
        ({"layer_T": 1, "layer_S": 1, "feature": "hidden"}, "has no loss"),
        ({"layer_T": 1, "layer_S": 1, "feature": "keys", "loss": "cos"}, "an unknown feature"),
        ({**HIDDEN, "loss": "cosine"}, "'cosine' is no knowledge"),
        ({**HIDDEN, "loss": "attention_kl"}, "convention='textbrewer' is not one that it has"),
        ({**HIDDEN, "proj": ["gelu", 8, 12]}, "projection='gelu' is not one of"),
        ({**HIDDEN, "proj": ["linear"]}, "wanted proj="),
        ({**HIDDEN, "proj": ["linear", 12, 8]}, "proj is from 12 to 8.*are 8 and 12 wide"),
    ],
    ids=["missing", "feature", "loss", "convention", "projection", "no widths", "widths"],
)
def test_a_broken_match_of_textbrewer_is_told_with_its_place(match, message):
    fine = {**HIDDEN, "proj": ["linear", 8, 12]}
    with pytest.raises(ValueError, match=rf"intermediate_matches\[1\].*{message}"):
        from_textbrewer([fine, match])


def test_projections_of_textbrewer_have_the_widths_of_the_networks():
    match = {**HIDDEN, "proj": ["linear", 312, 768]}
    assert from_textbrewer([match, HIDDEN], widths=(312, 768))[0].projection == "linear"
    with pytest.raises(ValueError, match="from 312 to 768.*are 384 and 768 wide"):
        from_textbrewer([match], widths=(384, 768))
