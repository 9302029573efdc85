"""Texts with classes, numbers, tags or answers, from files and packages; no tokenizer is needed.

Use::

    from jaxlab.data.texts import load_text_data

    data = load_text_data("trec")  # from a published package, kept in the cache
    len(data.train), data.train[0].text, data.label_names[data.train[0].label]
    data = load_text_data("mnli", "GLUE")  # official files that lie in a folder
    data = load_text_data("tables", "my_texts", columns=Columns(text="review", label="stars"))

Rooms: `examples` (the types, holding out), `packages`, `glue`, `clue`, `squad`, `conll`,
`sentences`, `tables` and `corpus` (the formats), `files` and `labels` (what they share), `loading`
(by name).
"""

from jaxlab.data.texts.clue import CLUE, load_clue, write_clue_submission
from jaxlab.data.texts.conll import load_conll, read_conll
from jaxlab.data.texts.corpus import load_corpus
from jaxlab.data.texts.examples import (
    Answer,
    AnyExample,
    QuestionExample,
    TaggedExample,
    TextData,
    TextExample,
    TextInfo,
    hold_out,
)
from jaxlab.data.texts.glue import GLUE, load_glue, write_glue_submission
from jaxlab.data.texts.loading import FOLDER_NAMES, load_text_data
from jaxlab.data.texts.packages import PACKAGED, load_packaged
from jaxlab.data.texts.sentences import SENTENCES, load_sentences
from jaxlab.data.texts.squad import load_squad, read_squad
from jaxlab.data.texts.tables import Columns, load_tables, read_table

__all__ = [
    "CLUE",
    "FOLDER_NAMES",
    "GLUE",
    "PACKAGED",
    "SENTENCES",
    "Answer",
    "AnyExample",
    "Columns",
    "QuestionExample",
    "TaggedExample",
    "TextData",
    "TextExample",
    "TextInfo",
    "hold_out",
    "load_clue",
    "load_conll",
    "load_corpus",
    "load_glue",
    "load_packaged",
    "load_sentences",
    "load_squad",
    "load_tables",
    "load_text_data",
    "read_conll",
    "read_squad",
    "read_table",
    "write_clue_submission",
    "write_glue_submission",
]
