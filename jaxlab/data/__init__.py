"""Data: file formats, images and pipelines, and the real data that ships with the library.

* `emoji`: 3,786 emoji drawn in two styles, with Chinese and English names and keywords.
* `class_folders`: pictures sorted into one folder a class.
* `pairs`: image-text pairs in the TSV, JSONL and LMDB formats of Chinese-CLIP.
* `texts`: texts with classes, numbers, tags or answers from published packages and files.
* `images`, `augment`: decoding, resizing, normalising and augmenting pictures.
* `identity`: what stored results were made from, compared before they are used.
* `record_log`: records of bytes by id, continued after a kill.
* `pipeline`: shuffled, sharded, resumable batches of any random-access source.
"""
