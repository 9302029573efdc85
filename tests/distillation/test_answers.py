"""Windows over contexts: nothing is lost, answers come back, the null answer."""

import numpy as np
import pytest

from jaxlab.data.texts import Answer, QuestionExample
from jaxlab.distillation.answers import best_answers, make_windows
from jaxlab.distillation.data import BatchConfig, make_eval_batches
from jaxlab.metrics import squad_scores
from tests.distillation import tiny_texts

CONTEXT = " ".join(tiny_texts.WORDS[i] for i in np.random.default_rng(0).integers(10, size=60))


def question(name="q", text="the cat", begin=30, end=37):
    begin = CONTEXT.index(" ", begin) + 1
    end = CONTEXT.index(" ", end)
    answers = (Answer(CONTEXT[begin:end], begin),)
    return QuestionExample(0, name, text, CONTEXT, answers)


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request):
    return tiny_texts.bert() if request.param == "bert" else tiny_texts.mpnet()


def windows_of(tokenizer, questions, **options):
    return make_windows(questions, tokenizer, max_length=32, stride=8, max_question=6, **options)


def test_windows_cover_the_context_and_know_their_answer(tokenizer):
    asked = question()
    windows = windows_of(tokenizer, [asked])
    answer = asked.answers[0]
    seen, learnt, best = set(), 0, []
    for row in range(len(windows.rows)):
        first, last = windows.rows.begin(row), int(windows.rows.ends[row])
        assert last - first <= 32
        spans = list(zip(windows.begin[first:last], windows.end[first:last], strict=True))
        seen |= {span for span in spans if span[0] >= 0}
        best += [s for s, b in zip(spans, windows.is_best[first:last], strict=True) if b]
        ids = windows.rows.ids[first:last]
        assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
        for i, (begin, end) in zip(ids, spans, strict=True):
            if begin >= 0:
                assert tokenizer.vocabulary[i] == CONTEXT[begin:end]
        start, stop = windows.rows.label[row]
        if (start, stop) != (0, 0):
            learnt += 1
            assert CONTEXT[spans[start][0] : spans[stop][1]] == answer.text
    assert seen == set(tokenizer.pieces(CONTEXT).spans)
    # Every piece has exactly one best window.
    assert sorted(best) == sorted(seen) and 0 < learnt < len(windows.rows)


def test_answers_come_back_from_perfect_scores(tokenizer):
    asked = [question("a"), question("b", "dog ran", 100, 120), question("c", "mat", 0, 5)]
    windows = windows_of(tokenizer, asked)
    batches = make_eval_batches(windows.rows, BatchConfig(32, eval_batch_size=4))
    starts, ends = [], []
    for batch in batches:
        assert batch["label"].shape == (4, 2)
        length = batch["ids"].shape[1]
        starts.append(10.0 * (np.arange(length) == batch["label"][:, :1]) - 5)
        ends.append(10.0 * (np.arange(length) == batch["label"][:, 1:]) - 5)
    found = best_answers(windows, batches.in_order(starts), batches.in_order(ends))
    predictions = {name: answers[0].text for name, answers in found.items()}
    truth = {q.name: [a.text for a in q.answers] for q in asked}
    assert squad_scores(predictions, truth)["exact_match"] == 1
    assert all(len(answers) > 1 and answers[0].score == 10 for answers in found.values())


def test_no_answer_wins_only_above_the_threshold():
    asked = [QuestionExample(0, "q", "the cat", CONTEXT)]
    windows = windows_of(tiny_texts.bert(), asked)
    assert (windows.rows.label == 0).all() and windows.rows.has_label.all()
    assert not windows_of(tiny_texts.bert(), asked, is_labelled=False).rows.has_label.any()
    length = int(windows.rows.lengths.max())
    scores = np.zeros((len(windows.rows), length))
    scores[:, 0] = 1.0
    scores[0, 0] = 0.75  # the window that is least sure of none decides
    for threshold, is_none in ((None, False), (1.0, True), (1.6, False)):
        ((first, *_),) = best_answers(windows, scores, scores, null_threshold=threshold).values()
        assert (first.text == "") == is_none
        assert first.score == (1.5 if is_none else 0.0)


def test_answers_have_a_length_at_most_and_do_not_end_before_they_begin():
    windows = windows_of(tiny_texts.bert(), [question()])
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, len(windows.rows), 32))
    (answers,) = best_answers(windows, *scores, num_best=50, max_answer=3).values()
    assert 0 < len(answers) <= 50
    assert all(1 <= len(answer.text.split()) <= 3 for answer in answers)
    ranked = [answer.score for answer in answers]
    assert ranked == sorted(ranked, reverse=True)
    assert len({answer.text for answer in answers[:1]}) == 1


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="0 questions"):
        windows_of(tiny_texts.bert(), [])
    with pytest.raises(ValueError, match="room for 23 pieces"):
        make_windows([question()], tiny_texts.bert(), 32, 24, 6)
    windows = windows_of(tiny_texts.bert(), [question()])
    with pytest.raises(ValueError, match=r"wanted at least \(\d+, 32\) of both"):
        best_answers(windows, np.zeros((2, 32)), np.zeros((2, 32)))
