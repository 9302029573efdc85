"""Text to token ids.

Use::

    from jaxlab.text import WordPieceTokenizer

    tokenizer = WordPieceTokenizer()  # the Chinese BERT vocabulary, 21,128 entries
    ids = tokenizer.tokenize(["一只猫", "“iPhone” 手机壳"], clean=True)  # int32 (2, 52)
    ids, truncated = tokenizer.tokenize(texts, context_length=128, return_truncated=True)

Rooms: `wordpiece` (the tokenizer, `clean_text`), `vocabulary` (vocabulary files; the shipped one is
checked by SHA-256, its licence stands in `assets/README.md`).
"""

from jaxlab.text.vocabulary import load_chinese_vocabulary, read_vocabulary
from jaxlab.text.wordpiece import WordPieceTokenizer, clean_text

__all__ = ["WordPieceTokenizer", "clean_text", "load_chinese_vocabulary", "read_vocabulary"]
