"""How often words occur: columns with the long tail of natural language.

The counts are those of the dictionaries of the package `pyspellchecker` (MIT licence; the extra
`ndv` brings it), which its makers counted in film subtitles and other texts. They are read from the
installed package and never copied. The Basque one is whole: of its 91,295 words in 2,087,090 places
half occur once. The others were cut below 51 occurrences, and in some of them words that were added
by hand all have the count 50; they are columns without rare values.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np

from experiments.ndv.real_columns import Column, column_from_counts, installed_version

PACKAGE = "pyspellchecker"


def load_words(language: str) -> Column:
    """The column that a text has if every row is one of its words.

    Args:
      language: two letters, one of `real_columns.WORDS`.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      FileNotFoundError: if it has no such dictionary.
      ValueError: if the dictionary cannot be read.
    """
    installed_version(PACKAGE)
    spec = importlib.util.find_spec("spellchecker")
    assert spec is not None and spec.submodule_search_locations, "its version was found before"
    folder = Path(next(iter(spec.submodule_search_locations))) / "resources"
    path = folder / f"{language}.json.gz"
    if not path.is_file():
        found = sorted(file.name.removesuffix(".json.gz") for file in folder.glob("*.json.gz"))
        raise FileNotFoundError(f"{PACKAGE} has no words of {language!r}; it has {found}")
    try:
        counts = json.loads(gzip.decompress(path.read_bytes()))
        numbers = np.array(list(counts.values()), np.int64)
    except (ValueError, EOFError, OSError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; install {PACKAGE} again") from error
    return column_from_counts(language, "words", numbers[numbers > 0])
