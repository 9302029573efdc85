"""Text to token ids.

Use::

    from jaxlab.text import WordPieceTokenizer

    tokenizer = WordPieceTokenizer()  # the Chinese BERT vocabulary, 21,128 entries
    ids = tokenizer.tokenize(["一只猫", "“iPhone” 手机壳"], clean=True)  # int32 (2, 52)
    ids, truncated = tokenizer.tokenize(texts, context_length=128, return_truncated=True)

    tokenizer = load_tokenizer("bert-base-uncased")  # a folder of a Hugging Face model
    tokenizer.encode("A man is eating.", "He eats.", max_length=128).ids

Rooms: `wordpiece` (the tokenizer of Chinese CLIP, `clean_text`), `vocabulary` (vocabulary files;
the shipped one is checked by SHA-256, its licence stands in `assets/README.md`), `bert_tokenizer`
(WordPiece of BERT and MPNet), `byte_pairs` (RoBERTa), `subwords` (what these share: special tokens,
pairs, truncation, places in the text), `huggingface` (`load_tokenizer`).
"""

from jaxlab.text.bert_tokenizer import MPNET_TOKENS, BertTokenizer, read_bert_vocabulary
from jaxlab.text.byte_pairs import ROBERTA_TOKENS, BytePairTokenizer
from jaxlab.text.huggingface import load_tokenizer
from jaxlab.text.subwords import Encoded, Pieces, SpecialTokens, TextTokenizer, cut_longest_first
from jaxlab.text.vocabulary import load_chinese_vocabulary, read_vocabulary
from jaxlab.text.wordpiece import WordPieceTokenizer, clean_text

__all__ = [
    "MPNET_TOKENS",
    "ROBERTA_TOKENS",
    "BertTokenizer",
    "BytePairTokenizer",
    "Encoded",
    "Pieces",
    "SpecialTokens",
    "TextTokenizer",
    "WordPieceTokenizer",
    "clean_text",
    "cut_longest_first",
    "load_chinese_vocabulary",
    "load_tokenizer",
    "read_bert_vocabulary",
    "read_vocabulary",
]
