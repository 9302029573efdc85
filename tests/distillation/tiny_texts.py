"""A small vocabulary and texts made of it, for tests of rows and batches."""

import numpy as np

from jaxlab.data.texts import TextExample
from jaxlab.text import MPNET_TOKENS, BertTokenizer

WORDS = ("the", "cat", "dog", "sat", "ran", "far", "away", "from", "red", "mat")
ENTRIES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", ".")


def bert():
    return BertTokenizer(ENTRIES)


def mpnet():
    entries = ["<s>", "<pad>", "</s>", "<unk>", *ENTRIES, "<mask>"]
    return BertTokenizer(entries, MPNET_TOKENS, "roberta")


def examples(count, longest=30, seed=0, pairs=False):
    """Examples of 1 to `longest` words with the labels 0, 1, 2 and, every seventh, none."""
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, longest)))

    return [
        TextExample(100 + i, text(), text() if pairs else None, None if i % 7 == 6 else i % 3)
        for i in range(count)
    ]
