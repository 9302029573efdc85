"""Makes wordpiece.npz: strings and the ids that the tokenizer of cn_clip 1.6.0 gives them.

    pip install --no-deps cn_clip==1.6.0 six
    npm pack cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    python tests/golden/make_wordpiece.py cldr-annotations-full-48.2.0.tgz \
        cldr-annotations-derived-full-48.2.0.tgz

The strings are every name and keyword of the CLDR annotations in five Chinese locales (Unicode
licence v3), fixtures, and odd cases drawn by NumPy from characters whose category has not changed
since Unicode 3.2, so that the file does not depend on the Python that reads it.
"""

import importlib.util
import json
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np

LOCALES = ("zh", "zh-Hant", "zh-Hant-HK", "yue", "yue-Hans")
FIXTURES = (
    "杰尼龟",
    "",
    "皮卡丘 Hello, 世界！😀 “引号”",
    "iPhone13手机壳",
    "a\u200bb",
    "[MASK]x",
    "[CLS] [SEP] [PAD] [UNK] [mask]",
    "un\u2028able\u2029re\x85turn\x1c\x0b\x0c\r\n\ttab\u00a0\u3000space",
    "\ufeffBOM\ufffd\0nul\u00ad",
    "カタカナ ガギグ 한국어 각",
    "Ünïcödé ÀÉÎÕÜ İstanbul Straße ﬁne ΑΣ ΌΣΟΣ",
    "\u037e\u1fef\u2126\u212b\u0340",
    "\ue000 private \U000f0000 use",
    "##able able##able # ## ###",
    "x" * 200,
    "x" * 201,
    "汉" * 600,
    "a" * 199 + "é",
    "é" * 200,
    "e\u0301" * 150,
    "don't stop-me_now $100 50% a+b=c <tag> {x|y} ~`^",
    "3.14159 2022年11月 １２３ ＡＢＣ ①②③ ½ ²",
    "㐀㐂𠀀𪜀𫝀豈⼀𛀀",
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🇨🇳 ❤️",
    "\u2028",
    " \t\n ",
)


def load_cn_clip_tokenizer():
    """The `FullTokenizer` of the installed cn_clip; its file is loaded alone, without torch."""
    package = importlib.util.find_spec("cn_clip").submodule_search_locations[0]
    path = Path(package) / "clip" / "bert_tokenizer.py"
    spec = importlib.util.spec_from_file_location("cn_clip_bert_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FullTokenizer()


def cn_clip_ids(tokenizer, text):
    """What cn_clip's `tokenize` puts between [CLS] and [SEP] when the context is long enough."""
    return tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))


def cldr_strings(archives):
    """All names and keywords of the Chinese locales, each once, sorted."""
    strings = set()
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if parts[-1] != "annotations.json" or parts[-2] not in LOCALES:
                    continue
                (root,) = json.load(tar.extractfile(member)).values()
                for entry in root["annotations"].values():
                    for words in entry.values():
                        strings.update(words)
    return sorted(strings)


def odd_strings():
    """Strings of 12 characters: every stable one but CJK and Hangul, and 2,000 of those."""
    old = unicodedata.ucd_3_2_0
    stable = [
        chr(c)
        for c in range(0x110000)
        if (category := unicodedata.category(chr(c))) == old.category(chr(c))
        and category not in ("Cn", "Cs", "Co")
        and unicodedata.normalize("NFD", chr(c)) == old.normalize("NFD", chr(c))
    ]
    many = [c for c in stable if unicodedata.name(c, "")[:3] in ("CJK", "HAN")]
    rng = np.random.default_rng(0)
    chars = sorted(set(stable) - set(many)) + rng.choice(many, 2000, replace=False).tolist()
    chars = rng.permutation(np.array(chars, dtype=object)).tolist()
    glue = ["", "", "", " ", "a", "1", "-", "的"]
    return [
        "".join(c + glue[rng.integers(len(glue))] for c in chars[i : i + 12])
        for i in range(0, len(chars), 12)
    ]


def main(archives):
    """Writes wordpiece.npz beside this script."""
    tokenizer = load_cn_clip_tokenizer()
    strings = [*FIXTURES, *cldr_strings(archives), *odd_strings()]
    ids = [cn_clip_ids(tokenizer, text) for text in strings]
    path = Path(__file__).with_name("wordpiece.npz")
    np.savez_compressed(
        path,
        strings=np.frombuffer(json.dumps(strings, ensure_ascii=False).encode(), np.uint8),
        ids=np.concatenate([np.array(row, np.uint16) for row in ids]),
        lengths=np.array([len(row) for row in ids], np.uint16),
        versions=np.array(
            ["cn_clip 1.6.0", "CLDR 48.2.0", f"unicodedata {unicodedata.unidata_version}"]
        ),
    )
    sys.stdout.write(f"{len(strings)} strings, {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1:])
