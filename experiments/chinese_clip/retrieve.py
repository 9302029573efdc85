r"""The best images of every text and the best texts of every image, from files of features.

    python -m experiments.chinese_clip.retrieve --output=DIR \
        --images=DIR/valid_imgs.img_feat.npy --texts=DIR/valid_texts.txt_feat.npy

Features are `.npy` files of `extract` or the original's `.jsonl`. DIR gets
`{split}_predictions.jsonl` (text to image) and `{split}_tr_predictions.jsonl` (image to text),
which `score` and the original's evaluation scripts read.
"""

from pathlib import Path

from absl import flags

from experiments.common import run, start
from jaxlab.data.pairs import Features, read_features, write_predictions
from jaxlab.data.pairs.features import Kind
from jaxlab.metrics import top_k_blockwise
from jaxlab.parallel import is_main_process

_IMAGES = flags.DEFINE_string("images", None, "Features of the images, .npy, .npz or .jsonl.")
_TEXTS = flags.DEFINE_string("texts", None, "Features of the texts, .npy, .npz or .jsonl.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the predictions.")
_TOP_K = flags.DEFINE_integer("top_k", 10, "How many items a query gets.", lower_bound=1)
_DIRECTION = flags.DEFINE_enum(
    "direction", "both", ["both", "text_to_image", "image_to_text"], "What looks for what."
)


def main() -> None:
    """Search, write, tell where."""
    paths = {"images": _IMAGES.value, "texts": _TEXTS.value, "output": _OUTPUT.value}
    if missing := [f"--{name}" for name, value in paths.items() if not value]:
        raise ValueError(f"{', '.join(missing)} missing; see --help")
    mesh = start()
    images, texts, output = (Path(str(path)).expanduser() for path in paths.values())
    features = {"image": read_features(images, "image"), "text": read_features(texts, "text")}
    split = texts.name.split("_texts")[0].split(".")[0]
    output.mkdir(parents=True, exist_ok=True)
    kinds: dict[Kind, str] = {"text": "predictions", "image": "tr_predictions"}
    for kind, name in kinds.items():
        if not _DIRECTION.value.startswith(("both", kind)):
            continue
        queries = features[kind]
        gallery = features["text" if kind == "image" else "image"]
        found = predict(queries, gallery, _TOP_K.value, mesh if mesh.size > 1 else None)
        if is_main_process():
            path = output / f"{split}_{name}.jsonl"
            write_predictions(path, found, kind)
            print(f"{len(found):,} {kind} queries in {len(gallery.ids):,} items: {path}")


def predict(queries: Features, gallery: Features, k: int, mesh=None) -> dict[int, list[int]]:
    """The ids of the best items of every query, best first.

    Args:
      queries: features and ids.
      gallery: features and ids.
      k: how many; a smaller gallery gives all of it.
      mesh: devices that share the gallery.
    """
    found = top_k_blockwise(queries.features, gallery.features, k, mesh=mesh)
    ids = gallery.ids[found.indices]
    return dict(zip(queries.ids.tolist(), ids.tolist(), strict=True))


if __name__ == "__main__":
    run(main)
