"""Official file formats: read, held out, handed in, and refused with file and line."""

import csv
import json
import os
import warnings
from pathlib import Path

import pytest

from jaxlab.data.texts import (
    CLUE,
    GLUE,
    Answer,
    Columns,
    load_clue,
    load_conll,
    load_glue,
    load_sentences,
    load_squad,
    load_tables,
    load_text_data,
    read_table,
    write_clue_submission,
    write_glue_submission,
)

HEADS = {
    "sst2": ("sentence\tlabel", "index\tsentence"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
             "index\t#1 ID\t#2 ID\t#1 String\t#2 String"),
    "stsb": ("index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\t"
             "score",
             "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "id\tquestion1\tquestion2"),
    "mnli": ("index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
             "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
             "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
             "sentence1_parse\tsentence2_parse\tsentence1\tsentence2"),
    "qnli": ("index\tquestion\tsentence\tlabel", "index\tquestion\tsentence"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
}  # fmt: skip
"""Head lines of the official files: with labels, and of the test."""

COLUMNS = {
    "cola": (3, None, 1), "sst2": (0, None, 1), "mrpc": (3, 4, 0), "stsb": (7, 8, -1),
    "qqp": (3, 4, 5), "mnli": (8, 9, -1), "qnli": (1, 2, -1), "rte": (1, 2, -1), "wnli": (1, 2, -1),
}  # fmt: skip
"""Places of text, pair and label that the baselines of GLUE use."""


def write_glue(name, folder, rows=8):
    """Official files with texts that hold quotes and know their place; the rows of the dev file."""
    task = GLUE[name]
    target = folder / task.folder
    target.mkdir(parents=True)
    labels = task.label_names or ("0.0", "2.5", "5.0")
    text, pair, label = COLUMNS[name]
    for part, (file, *_) in task.parts.items():
        is_test = part.startswith("test")
        head = HEADS[name][is_test] if name in HEADS else "index\tsentence" if is_test else None
        width = 4 if head is None else len(head.split("\t"))
        lines = [] if head is None else [head]
        for i in range(rows):
            fields = [f"{part}{i}c{c}" for c in range(width)]
            if is_test:
                named = (head or "").split("\t")
                fields[named.index(task.text)] = f'"{part} {i} a'
                if task.pair:
                    fields[named.index(task.pair)] = f"{part} {i} b"
            else:
                fields[text] = f'"{part} {i} a'
                if pair is not None:
                    fields[pair] = f"{part} {i} b"
                fields[label] = labels[i % len(labels)]
            lines.append("\t".join(fields))
        (target / file).write_text("".join(f"{line}\n" for line in lines))
    return target


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_glue_takes_the_columns_of_the_baselines(name, tmp_path):
    inner = write_glue(name, tmp_path)
    data = load_glue(name, tmp_path)
    assert load_text_data(name, inner) == load_glue(name, inner)
    labels = GLUE[name].label_names
    for part, examples in data.parts.items():
        assert len(examples) == 8
        for i, example in enumerate(examples):
            assert example.text == f'"{part} {i} a'
            assert example.pair == (f"{part} {i} b" if GLUE[name].pair else None)
            if part.startswith("test"):
                assert example.label is None
            elif labels:
                assert example.label == i % len(labels)
            else:
                assert example.label == (0.0, 2.5, 5.0)[i % 3]
    ids = [e.id for examples in data.parts.values() for e in examples]
    assert sorted(ids) == list(range(8 * len(GLUE[name].parts)))
    assert set(data.info.checksums) == {files[0] for files in GLUE[name].parts.values()}
    if name == "mnli":
        assert set(data.others) == {"validation_mismatched", "test_mismatched"}


@pytest.mark.parametrize("place", ["MNLI/diagnostic.tsv", "AX/diagnostic.tsv"])
def test_the_diagnostic_set_is_a_part_of_mnli_where_it_is_there(place, tmp_path):
    inner = write_glue("mnli", tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    lines = "".join(f"{i}\tthe cat {i}\tno cat\n" for i in range(3))
    (tmp_path / place).write_text("index\tsentence1\tsentence2\n" + lines)
    for folder in (tmp_path, inner):
        data = load_glue("mnli", folder)
        found = data.parts["test_diagnostic"]
        assert [(e.text, e.pair, e.label) for e in found] == [
            (f"the cat {i}", "no cat", None) for i in range(3)
        ]
        assert [e.id for e in found] == [40, 41, 42]
        assert data.info.counts["test_diagnostic"] == 3


def test_all_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; wanted one with train.tsv"):
        load_glue("rte", tmp_path / "nowhere")
    target = write_glue("mnli", tmp_path)
    (target / "dev_mismatched.tsv").unlink()
    (target / "train.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="no train.tsv, no dev_mismatched.tsv; it has"):
        load_glue("mnli", tmp_path)


def test_wrong_labels_and_rows_name_file_and_line(tmp_path):
    target = write_glue("rte", tmp_path)
    text = (target / "dev.tsv").read_text().replace("not_entailment", "maybe", 1)
    (target / "dev.tsv").write_text(text)
    with pytest.raises(ValueError, match=r"dev.tsv:3: label 'maybe'"):
        load_glue("rte", tmp_path)
    (target / "dev.tsv").write_text(HEADS["rte"][0] + "\n0\ta\n1\ta\tb\tentailment\n2\n")
    with pytest.raises(ValueError, match=r"(?s)2 mistakes.*dev.tsv:2: 2 fields.*dev.tsv:4: 1 fi"):
        load_glue("rte", tmp_path)
    (target / "dev.tsv").write_text("index\tfirst\tsecond\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(ValueError, match="no column 'sentence1', 'sentence2'.*'first'"):
        load_glue("rte", tmp_path)
    (target / "dev.tsv").write_text(" \n")
    with pytest.raises(ValueError, match="dev.tsv is empty"):
        load_glue("rte", tmp_path)


def test_broken_rows_of_qqp_are_left_out_with_a_warning(tmp_path):
    target = write_glue("qqp", tmp_path, rows=30)
    with (target / "train.tsv").open("a") as file:
        file.write("31\t1\t2\tone question\n")
    with pytest.warns(UserWarning, match=r"1 rows left out.*train.tsv:32: 4 fields"):
        data = load_glue("qqp", tmp_path)
    assert len(data.train) == 30
    with (target / "test.tsv").open("a") as file:
        file.write("31\tone question\n")
    with (
        pytest.warns(UserWarning, match="1 rows left out"),  # of the training file
        pytest.raises(ValueError, match=r"1 mistake.*\n.*test.tsv:32: 2 fields"),
    ):
        load_glue("qqp", tmp_path)


def test_one_class_only_is_refused(tmp_path):
    target = write_glue("sst2", tmp_path)
    (target / "train.tsv").write_text("sentence\tlabel\nfine\t1\ngood\t1\n")
    with pytest.raises(ValueError, match="all 2 labelled examples are of the class '1'"):
        load_glue("sst2", tmp_path)


def test_what_is_handed_in_has_the_names_of_the_task_in_any_order(tmp_path):
    names = ("neutral", "contradiction", "entailment")
    paths = write_glue_submission(
        "mnli",
        tmp_path,
        {"test": [0, 2], "test_mismatched": [1], "test_diagnostic": [0]},
        label_names=names,
    )
    assert [path.name for path in paths] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    assert paths[2].read_text() == "index\tprediction\n0\tneutral\n"
    assert paths[0].read_text() == "index\tprediction\n0\tneutral\n1\tentailment\n"
    (path,) = write_glue_submission("stsb", tmp_path, {"test": [1.23456, 7.0, -1.0]})
    assert path.read_text() == "index\tprediction\n0\t1.235\n1\t5.000\n2\t0.000\n"
    (path,) = write_glue_submission("cola", tmp_path, {"test": [1, 0]})
    assert path.read_text() == "index\tprediction\n0\t1\n1\t0\n"
    with pytest.warns(UserWarning, match="also hands in .'test_diagnostic', 'test_mismatched'"):
        write_glue_submission("mnli", tmp_path, {"test": [0]})
    with pytest.raises(ValueError, match="prediction 3 of row 1 is not one of 3 classes"):
        write_glue_submission("mnli", tmp_path, {"test": [0, 3]})
    with pytest.raises(ValueError, match="wanted .*'entailment'.* in any order"):
        write_glue_submission("rte", tmp_path, {"test": [0]}, label_names=("yes", "no"))


CLUE_ROWS = {
    "afqmc": {"sentence1": "甲", "sentence2": "乙", "label": "1"},
    "tnews": {"label": "116", "label_desc": "news_game", "sentence": "甲", "keywords": ""},
    "iflytek": {"label": "118", "label_des": "其他", "sentence": "甲"},
    "cmnli": {"sentence1": "甲", "sentence2": "乙", "label": "entailment"},
    "ocnli": {
        "level": "easy", "sentence1": "甲", "sentence2": "乙", "label": "neutral",
        "label0": "neutral", "genre": "tv", "prem_id": "tv_1", "id": 7,
    },
    "wsc": {
        "target": {"span2_index": 3, "span1_index": 0, "span1_text": "小明", "span2_text": "他"},
        "idx": 0, "label": "true", "text": "小明说他饿了",
    },
    "csl": {"id": 1, "abst": "摘要", "keyword": ["词", "语"], "label": "1"},
}  # fmt: skip
CLUE_TEXTS = {
    "afqmc": ("甲", "乙"), "tnews": ("甲", None), "iflytek": ("甲", None), "cmnli": ("甲", "乙"),
    "ocnli": ("甲", "乙"), "wsc": ("_小明_说[他]饿了", None), "csl": ("词 语", "摘要"),
}  # fmt: skip


def write_clue(name, folder, extra=()):
    row = CLUE_ROWS[name]
    other = {**row, "label": CLUE[name].label_names[0]}
    lines = [json.dumps(r, ensure_ascii=False) for r in (row, other, *extra)]
    for file in (CLUE[name].train[0], "dev.json"):
        (folder / file).write_text("\n".join(lines), "utf-8")
    test = {key: value for key, value in row.items() if key != "label"}
    (folder / "test.json").write_text(json.dumps(test), "utf-8")


@pytest.mark.parametrize("name", CLUE)
@pytest.mark.filterwarnings("ignore:.*have no example to train on")
def test_every_task_of_clue(name, tmp_path):
    write_clue(name, tmp_path)
    data = load_clue(name, tmp_path)
    first = data.train[0]
    assert (first.text, first.pair) == CLUE_TEXTS[name]
    assert data.label_names[first.label] == CLUE_ROWS[name]["label"]
    assert data.test[0].label is None and data.test[0].text == first.text
    path = write_clue_submission(name, tmp_path / "out" / CLUE[name].submission, [first.label])
    assert json.loads(path.read_text()) == {"id": 0, "label": CLUE_ROWS[name]["label"]}


def test_a_pronoun_before_its_noun_is_marked_as_well(tmp_path):
    target = {"span2_index": 0, "span1_index": 3, "span1_text": "小明", "span2_text": "他"}
    write_clue("wsc", tmp_path, [{"target": target, "label": "true", "text": "他说，小明饿"}])
    assert load_clue("wsc", tmp_path).train[2].text == "[他]说，_小明_饿"


@pytest.mark.parametrize("name", ["cmnli", "ocnli"])
@pytest.mark.filterwarnings("ignore:.*have no example to train on")
def test_rows_without_a_label_that_counts_are_left_out_and_counted(name, tmp_path):
    write_clue(name, tmp_path, [{**CLUE_ROWS[name], "label": "-"}])
    data = load_clue(name, tmp_path)
    assert len(data.train) == 2 and data.info.counts["unlabelled"] == 2
    (tmp_path / "dev.json").write_text('{"a": 1}\nno json\n[1]\n')
    with pytest.raises(ValueError, match=r"(?s)2 mistakes.*dev.json:2:.*dev.json:3: a list"):
        load_clue(name, tmp_path)


def write_squad(path, articles, *, shift=0, impossible=False):
    data = []
    for i in range(articles):
        asked = {"id": f"{path.stem}{i}", "question": "Who?", "is_impossible": impossible,
                 "answers": [{"text": "Ada", "answer_start": 4 + shift}]}  # fmt: skip
        data.append({"title": "t", "paragraphs": [{"context": "Now Ada came.", "qas": [asked]}]})
    path.write_text(json.dumps({"version": "1.1", "data": data}))


def test_squad_holds_articles_out(tmp_path):
    write_squad(tmp_path / "train-v1.1.json", 12)
    write_squad(tmp_path / "dev-v1.1.json", 2)
    data = load_squad("squad", tmp_path)
    assert [len(part) for part in data.parts.values()] == [10, 2, 2]
    assert data.validation[1].name == "train-v1.110" and data.test[0].id == 12
    assert data.train[0].answers == (Answer("Ada", 4),) and data.num_outputs == 2
    write_squad(tmp_path / "train-v2.0.json", 2, impossible=True)
    write_squad(tmp_path / "dev-v2.0.json", 2)
    assert load_squad("squad2", tmp_path).train[0].answers == ()
    write_squad(tmp_path / "dev-v1.1.json", 2, shift=1)
    with pytest.raises(ValueError, match=r"(?s)2 mistakes.*'Ada' at 5, there is 'da '"):
        load_squad("squad", tmp_path)
    (tmp_path / "dev-v1.1.json").write_text('{"version": "1.1"}')
    with pytest.raises(ValueError, match="is no file of SQuAD"):
        load_squad("squad", tmp_path)


def test_tagged_sentences(tmp_path):
    text = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n"
    )
    for file in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / file).write_text(text)
    data = load_conll(tmp_path)
    assert data.label_names == ("O", "B-ORG", "B-PER") and data.task == "tagging"
    assert data.train[0].words == ("EU", "rejects") and data.train[0].tags == (1, 0)
    assert data.train[1].words == ("Peter",) and data.test[1].id == 5
    assert load_conll(tmp_path, column=1).label_names == ("NNP", "VBZ")
    (tmp_path / "test.txt").write_text("EU\nrejects VBZ B-VP O\n")
    with pytest.raises(ValueError, match="test.txt:1: 1 columns"):
        load_conll(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_of_ones_own(suffix, tmp_path):
    rows = [(f"text {i}", "yes" if i % 3 else "no") for i in range(40)]
    if suffix == "jsonl":
        lines = [json.dumps({"words": text, "is": label}) for text, label in rows]
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = [f"words{mark}is", *(f"{text}{mark}{label}" for text, label in rows)]
    (tmp_path / f"train.{suffix}").write_text("\n".join(lines))
    data = load_tables(tmp_path, Columns(text="words", label="is"))
    assert data.label_names == ("no", "yes")
    assert [len(part) for part in data.parts.values()] == [32, 4, 4]
    assert data.test[1].text == "text 10" and data.test[1].label == 1
    with pytest.raises(ValueError, match="no column 'text', 'label'.*'words'"):
        load_tables(tmp_path)


def test_own_tables_as_regression_with_ids_and_a_test_file_without_labels(tmp_path):
    rows = "".join(f'{i + 100},"a, ""b"" {i}",{i / 4}\n' for i in range(11))
    (tmp_path / "train.csv").write_text("id,text,label\n" + rows)
    (tmp_path / "test.csv").write_text("id,text\n5,x\n6,y\n")
    data = load_tables(tmp_path, Columns(id="id"), is_regression=True)
    assert data.task == "regression" and data.test[0].label is None and data.test[1].id == 6
    assert data.train[0].text == 'a, "b" 1' and data.train[0].label == 0.25
    (tmp_path / "test.csv").write_text("id,text\n100,x\n6,y\n")
    with pytest.warns(UserWarning, match="1 of 13 ids of column 'id' occur before"):
        data = load_tables(tmp_path, Columns(id="id"), is_regression=True)
    assert data.test[0].id == 11
    (tmp_path / "train.csv").write_text("id,text,label\n1,a,nan\n2,b,x\n")
    with pytest.raises(ValueError, match=r"(?s)2 mistakes; wanted a finite number.*csv:2.*csv:3"):
        load_tables(tmp_path, Columns(), is_regression=True)


def test_own_tables_say_what_is_empty_and_what_was_held_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="jaxlab.data.texts.tables")
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(19)]
    rows[4], rows[6] = " ,a", "text 6,"
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    with (
        pytest.warns(UserWarning, match="1 of 19 fields of column 'text' .*csv:6; they are kept"),
        pytest.warns(UserWarning, match="1 of 19 fields of column 'label' .*csv:8.* not known"),
    ):
        data = load_tables(tmp_path)
    assert data.label_names == ("a", "b")
    assert [e.label for part in data.parts.values() for e in part].count(None) == 1
    assert "has no file for test: 2 of 19 training rows" in caplog.text
    assert "has no file for validation: 2 of 17 training rows" in caplog.text
    (tmp_path / "train.csv").write_text("text,label\na,\nb,\n")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="column 'label' is empty in all 2 rows"),
    ):
        load_tables(tmp_path)


def test_documents_of_any_length_are_read_from_csv(tmp_path, monkeypatch):
    long, limit = "word " * 40_000, csv.field_size_limit()
    rows = "".join(f'"{long if i == 3 else i}",{"ab"[i % 2]}\n' for i in range(12))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    data = load_tables(tmp_path)
    assert [e.text for part in data.parts.values() for e in part].count(long) == 1
    assert csv.field_size_limit() == limit
    monkeypatch.setattr(csv, "field_size_limit", lambda *_: limit)
    with pytest.raises(ValueError, match=r"train.csv:5: field larger .*; wanted fields separated"):
        load_tables(tmp_path)


def test_own_tables_tell_of_what_could_be_meant_otherwise(tmp_path, caplog):
    caplog.set_level("INFO", logger="jaxlab.data.texts.tables")
    labels = [0, "1", 1, True] * 5
    rows = [{"text": f"text {i % 11}", "label": label} for i, label in enumerate(labels)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(
        UserWarning, match=r"several types, such as 1 \(int\) and '1' \(str\) and True"
    ):
        data = load_tables(tmp_path)
    assert data.label_names == ("0", "1", "True")
    assert data.info.counts["also_in_test"] == 1
    assert "1 further rows have texts of those: left out of training" in caplog.text
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(30))
    )
    with pytest.warns(UserWarning, match=r"has train.csv and train.jsonl: train.csv is read"):
        assert load_tables(tmp_path).label_names == ("0", "1")
    (tmp_path / "validation.csv").write_text("text,label\nu,0\nv,NO\nw,NO\nx,2\n")
    (tmp_path / "train.csv").write_text("text,label\n" + "a,yes\nb,no\n" * 9)
    (tmp_path / "train.jsonl").unlink()
    twice = "csv:3 and 1 further rows: label 'NO', perhaps 'no'"
    message = rf"(?s)3 mistakes; .*classes of the training file.*csv:2: label '0'.*{twice}.*csv:5"
    with pytest.raises(ValueError, match=message):
        load_tables(tmp_path)


def test_texts_that_are_none_and_texts_that_are_all_the_same_are_refused(tmp_path):
    rows = [
        {"text": ["a", "b"] if i == 2 else f"text {i}", "label": "ab"[i % 2]} for i in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ValueError, match="(?s)wanted a text in.*jsonl:3: column 'text' holds a list"
    ):
        load_tables(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text("text,label\n" + "a,yes\na,no\n" * 10)
    with pytest.raises(ValueError, match="all 20 rows have texts that are held out"):
        load_tables(tmp_path)


def test_null_is_no_word(tmp_path):
    rows = [{"text": None if i == 4 else f"text {i}", "label": "ab"[i % 2]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="1 of 12 fields of column 'text' are empty.*jsonl:5"):
        data = load_tables(tmp_path)
    texts = {e.text for part in data.parts.values() for e in part}
    assert texts == {"", *(f"text {i}" for i in range(12) if i != 4)}
    write_clue("afqmc", tmp_path, [{**CLUE_ROWS["afqmc"], "sentence2": None}])
    assert load_clue("afqmc", tmp_path).train[2].pair == ""


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_that_is_no_utf_8_is_told_with_the_place(mark, tmp_path):
    rows = "".join(f"caf\xe9 {i},{'ab'[i % 2]}\n" for i in range(12))
    (tmp_path / "train.csv").write_bytes(mark + b"text,label\n" + rows.encode())
    with warnings.catch_warnings(action="error"):
        assert load_tables(tmp_path).train[0].text.startswith("caf\xe9")
    (tmp_path / "train.csv").write_bytes(mark + b"text,label\n" + rows.encode("latin-1"))
    with pytest.warns(UserWarning, match=rf"csv:2: .* 0xe9 at offset {14 + len(mark)} is no UTF-8"):
        rows = read_table(tmp_path / "train.csv")
    assert "caf\xe9 1" in rows[1].fields.values()


def test_loading_by_name_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="no text data set 'trek'; there are r8"):
        load_text_data("trek")
    with pytest.raises(ValueError, match="'mnli' is read from files; give the folder"):
        load_text_data("mnli")
    with pytest.raises(ValueError, match="comes with a package"):
        load_text_data("trec", tmp_path)
    with pytest.raises(ValueError, match="takes no options; got .'column'"):
        load_text_data("squad", tmp_path, column=1)


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("sentences_sst2", (6920, 872, 1821), 2),
        ("sentences_sst5", (8544, 1101, 2210), 5),
        ("sentences_trec", (4907, 545, 500), 6),
        ("sentences_mr", (8635, 960, 1067), 2),
        ("sentences_subj", (8100, 900, 1000), 2),
    ],
)
def test_collections_of_sentences_have_their_published_sizes(name, sizes, classes):
    folder = os.environ.get("JAXLAB_TEST_DATA")
    if folder is None or not (Path(folder) / "sentences").is_dir():
        pytest.skip("JAXLAB_TEST_DATA names no folder with sentences/")
    data = load_text_data(name, Path(folder) / "sentences")
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert len(data.label_names) == classes


def test_sentences_are_labels_and_texts(tmp_path):
    lines = "".join(f"{i % 2} sentence {i}\n" for i in range(20))
    (tmp_path / "subj.all").write_text(lines + "1 \n0 caf\xe9\n", "latin-1")
    with warnings.catch_warnings(action="error"):  # the sets are known to be Latin-1
        data = load_sentences("sentences_subj", tmp_path)
    assert data.test[2].text == "caf\xe9" and data.test[2].id == 20
    assert [len(part) for part in data.parts.values()] == [16, 2, 3]
    (tmp_path / "subj.all").write_text("positive\n")
    with pytest.raises(ValueError, match="subj.all:1: 'positive'"):
        load_sentences("sentences_subj", tmp_path)
