"""One way to every text data set, by name."""

from pathlib import Path
from typing import Any

from jaxlab.data.texts.clue import CLUE, load_clue
from jaxlab.data.texts.conll import load_conll
from jaxlab.data.texts.corpus import load_corpus
from jaxlab.data.texts.examples import TextData
from jaxlab.data.texts.glue import GLUE, load_glue
from jaxlab.data.texts.packages import PACKAGED, load_packaged
from jaxlab.data.texts.sentences import SENTENCES, load_sentences
from jaxlab.data.texts.squad import load_squad
from jaxlab.data.texts.tables import load_tables

FOLDER_NAMES = (*GLUE, *CLUE, *SENTENCES, "squad", "squad2", "conll2003", "tables", "corpus")
"""Names of the sets that are read from a folder."""


def load_text_data(name: str, folder: str | Path | None = None, **options: Any) -> TextData:
    """A text data set.

    Args:
      name: one of `PACKAGED` (nothing else is needed), or of `FOLDER_NAMES`: a task of GLUE or
        CLUE, a set of sentences, `squad`, `squad2`, `conll2003`, `tables` for one's own files, or
        `corpus` for plain text.
      folder: where the files of the latter lie.
      **options: of `load_conll`, `load_tables` and `load_corpus`.

    Raises:
      ValueError: listing all names, or if a folder is missing or too many.
      FileNotFoundError: if files are missing, or offline and the package is not in the cache.
      RuntimeError: if a package cannot be fetched.
    """
    if name in PACKAGED:
        if folder is not None or options:
            raise ValueError(
                f"{name!r} comes with a package; give neither folder nor options, or the name "
                "'tables' for files of one's own"
            )
        return load_packaged(name)
    if name not in FOLDER_NAMES:
        names = ", ".join((*PACKAGED, *FOLDER_NAMES))
        raise ValueError(f"no text data set {name!r}; there are {names}")
    if folder is None:
        raise ValueError(f"{name!r} is read from files; give the folder that they are in")
    if options and name not in ("conll2003", "tables", "corpus"):
        raise ValueError(f"{name!r} takes no options; got {sorted(options)}")
    if name in GLUE:
        return load_glue(name, folder)
    if name in CLUE:
        return load_clue(name, folder)
    if name in SENTENCES:
        return load_sentences(name, folder)
    if name == "conll2003":
        return load_conll(folder, **options)
    if name == "corpus":
        return load_corpus(folder, **options)
    return load_tables(folder, **options) if name == "tables" else load_squad(name, folder)
