"""Image-text pairs in the file formats of Chinese-CLIP: read, write, and serve by position.

Use::

    from jaxlab.data.pairs import open_pairs

    source = open_pairs("MUGE", "train", on_error="skip")
    source[0]  # {"example_id": 0, "image_id": ..., "text_id": ..., "image": b"...", "text": "..."}
    source.num_skipped

A folder holds, for each split, `{split}_imgs.tsv` (one line per picture: id, tab, the file
in Base64) and `{split}_texts.jsonl` (a line a text: `{"text_id": 8428, "text": "...",
"image_ids": [1076345]}`), or both as LMDB in `lmdb/{split}`, or the pictures as ArrayRecord in
`records/{split}`.

References:
  Yang et al. 2022, arXiv:2211.01335; data formats of github.com/OFA-Sys/Chinese-CLIP.
"""

from jaxlab.data.pairs.array_records import RecordImages, write_array_records
from jaxlab.data.pairs.captions import Caption, Captions, make_records, read_captions
from jaxlab.data.pairs.feature_store import FeatureWriter
from jaxlab.data.pairs.features import (
    Features,
    read_features,
    read_predictions,
    write_features,
    write_predictions,
)
from jaxlab.data.pairs.filters import PUBLISHED_FILTER, PairFilter, read_black_list
from jaxlab.data.pairs.jsonl import (
    Texts,
    read_image_truth,
    read_text_truth,
    read_texts,
    write_image_truth,
    write_texts,
)
from jaxlab.data.pairs.lmdb import LmdbImages, LmdbPairs, write_lmdb
from jaxlab.data.pairs.records import (
    ImageRecord,
    Pair,
    TextRecord,
    flatten_pairs,
    texts_of_images,
)
from jaxlab.data.pairs.source import (
    ImageStore,
    PairSource,
    open_lmdb_pairs,
    open_pairs,
    open_record_pairs,
    open_tsv_pairs,
)
from jaxlab.data.pairs.tsv import TsvImages, write_images_tsv

__all__ = [
    "PUBLISHED_FILTER",
    "Caption",
    "Captions",
    "FeatureWriter",
    "Features",
    "ImageRecord",
    "ImageStore",
    "LmdbImages",
    "LmdbPairs",
    "Pair",
    "PairFilter",
    "PairSource",
    "RecordImages",
    "TextRecord",
    "Texts",
    "TsvImages",
    "flatten_pairs",
    "make_records",
    "open_lmdb_pairs",
    "open_pairs",
    "open_record_pairs",
    "open_tsv_pairs",
    "read_black_list",
    "read_captions",
    "read_features",
    "read_image_truth",
    "read_predictions",
    "read_text_truth",
    "read_texts",
    "texts_of_images",
    "write_array_records",
    "write_features",
    "write_image_truth",
    "write_images_tsv",
    "write_lmdb",
    "write_predictions",
    "write_texts",
]
