"""What a run trains on: the emoji set, or image-text pairs of one's own.

A `Task` holds all that depends on the data: batches, what the device does to their images, the
features of a locked tower computed beforehand, and the evaluation.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab import parallel
from jaxlab.chinese_clip import ChineseClip, ChineseClipConfig, Encoders, zero_shot
from jaxlab.chinese_clip.data import (
    PairDataConfig,
    RetrievalSet,
    make_cached_transform,
    make_pair_transform,
    prepare_pixels,
    training_view,
)
from jaxlab.chinese_clip.emoji import (
    RECALL_KS,
    EmojiConcepts,
    category_prompts,
    compose_inputs,
    evaluate_emoji,
    make_emoji_sampler,
    make_prepare,
)
from jaxlab.chinese_clip.evaluate import encode, encode_all, make_encoders
from jaxlab.chinese_clip.feature_cache import (
    CachedPairs,
    CachePlan,
    FeatureCache,
    compute_features,
    file_size,
    tower_fingerprint,
)
from jaxlab.chinese_clip.texts import encode_texts
from jaxlab.chinese_clip.train import Prepare
from jaxlab.data.emoji import (
    STYLES,
    EmojiSet,
    EmojiSplit,
    category_floor,
    load_emoji,
    pixel_floor,
    standard_split,
)
from jaxlab.data.images import normalize as normalize_pixels
from jaxlab.data.pairs import PairSource, open_pairs
from jaxlab.data.pipeline import PipelineConfig, make_train_batches
from jaxlab.metrics import two_way_recalls
from jaxlab.text import WordPieceTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

ENCODE_BATCH = 256

Batches = Callable[[int], Iterator[dict[str, Any]]]


class Floors(NamedTuple):
    """What is reached without a model.

    Attributes:
      metrics: by names of their own, for `results.json`.
      beside: the same numbers by the names of the metrics that are to beat them, for the table.
    """

    metrics: dict[str, float]
    beside: dict[str, float]


class Evaluation(NamedTuple):
    """What is measured on a model.

    Attributes:
      metrics: names and numbers of `results.json`.
      draw: the picture shown at the end of a run, None where there is nothing to show.
    """

    metrics: dict[str, float]
    draw: "Callable[[], Image] | None" = None


class Task(NamedTuple):
    """The part of a run that knows its data.

    Attributes:
      prepare: what the device does to the images of a batch, see `make_loss_fn`.
      make_batches: `(stage, cached features or None) -> (start step -> batches)`.
      cache_features: `(model, variables, stage, folder for them) -> cached features`.
      evaluate: `(model, variables) -> Evaluation`, at the end of a run.
      floors: what needs no model, see `Floors`.
      steps_per_epoch: `stage -> updates of one pass over the data`.
      validate: `(model, variables) -> metrics`, what is measured while training.
    """

    prepare: Prepare | None
    make_batches: Callable[[StageConfig, Any], Batches]
    cache_features: Callable[[ChineseClip, PyTree, StageConfig, Path], Any]
    evaluate: Callable[[ChineseClip, PyTree], Evaluation]
    floors: Callable[[], Floors]
    steps_per_epoch: Callable[[StageConfig], int]
    validate: Callable[[ChineseClip, PyTree], dict[str, float]]


class EmojiFeatures(NamedTuple):
    """Normalised features of the whole set.

    Attributes:
      images: (style, emoji, dim).
      names: (emoji, dim).
      categories: the zero-shot classifier, (categories, dim).
    """

    images: np.ndarray
    names: np.ndarray
    categories: np.ndarray


def make_task(config: RunConfig, mesh: Mesh | None = None) -> Task:
    """The task that a run's settings name.

    Args:
      config: the settings.
      mesh: devices that evaluations are spread over; by default they run on one.

    Raises:
      FileNotFoundError: if the data are missing.
      ValueError: if they are broken or empty.
    """
    return _emoji_task(config) if config.data == "emoji" else _pairs_task(config, mesh)


def load_drawings(emoji: EmojiSet) -> np.ndarray:
    """All drawings, uint8 RGBA (style, emoji, 64, 64, 4)."""
    return np.stack([emoji.images(style) for style in STYLES])


def encode_emoji(
    model: ChineseClip, variables: PyTree, emoji: EmojiSet, drawings: np.ndarray, language: str
) -> EmojiFeatures:
    """Normalised features of all drawings, names and categories.

    Args:
      model: the two towers.
      variables: their variables.
      emoji: the set.
      drawings: see `load_drawings`.
      language: `zh` or `en`.
    """
    size, length = model.config.vision.image_size, model.config.context_length
    encoders = make_encoders(model, lambda images: compose_inputs(images, size))
    tokenizer = WordPieceTokenizer()

    def encode_texts(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer.tokenize(texts, context_length=length, clean=True)
        return encode_all(lambda batch: encoders.text(variables, batch), ids, ENCODE_BATCH)

    flat = drawings.reshape(-1, *drawings.shape[2:])
    images = encode_all(lambda batch: encoders.image(variables, batch), flat, ENCODE_BATCH)
    return EmojiFeatures(
        images.reshape(*drawings.shape[:2], -1),
        encode_texts(emoji.names_zh if language == "zh" else emoji.names_en),
        zero_shot.make_classifier(category_prompts(emoji, language), encode_texts),
    )


def _emoji_task(config: RunConfig) -> Task:
    emoji, tokenizer = load_emoji(), WordPieceTokenizer()
    split, drawings = standard_split(emoji), load_drawings(emoji)
    concepts = EmojiConcepts(emoji, split)
    size, length = config.model.vision.image_size, config.model.context_length
    prepare = make_prepare(config.emoji.augment, size)

    def tokenize(texts: Any) -> np.ndarray:
        return tokenizer.tokenize(texts, context_length=length, clean=True)

    def make_batches(stage: StageConfig, features: np.ndarray | None) -> Batches:
        table = {"image": drawings} if features is None else {"image_features": features}
        sampler = make_emoji_sampler(emoji, concepts, config.emoji, tokenize, table)
        return lambda start_step: make_train_batches(
            concepts,
            seed=stage.seed,
            global_batch_size=stage.global_batch_size,
            start_step=start_step,
            random_transform=sampler,
            # A batch across two epochs could hold a concept twice.
            config=PipelineConfig(remainder="drop"),
        )

    def cache_features(
        model: ChineseClip, variables: PyTree, stage: StageConfig, folder: Path
    ) -> np.ndarray:
        del folder  # small enough for memory
        return cache_views(model, variables, prepare, drawings, split, stage)

    def evaluate(model: ChineseClip, variables: PyTree) -> Evaluation:
        language = config.emoji.language
        features = encode_emoji(model, variables, emoji, drawings, language)

        def draw() -> "Image":
            from experiments.chinese_clip.pictures import draw_emoji_retrieval

            return draw_emoji_retrieval(
                emoji, split, drawings, features.images, features.names, language=language
            )

        return Evaluation(evaluate_emoji(emoji, split, *features), draw)

    return Task(
        prepare,
        make_batches,
        cache_features,
        evaluate,
        lambda: emoji_floors(emoji, split, drawings),
        lambda stage: len(concepts) // stage.global_batch_size,
        lambda model, variables: evaluate(model, variables).metrics,
    )


def emoji_floors(emoji: EmojiSet, split: EmojiSplit, drawings: np.ndarray) -> Floors:
    """The pixel nearest neighbour where it can find anything, chance elsewhere, in percent.

    Args:
      emoji: the set.
      split: its split.
      drawings: see `load_drawings`.
    """
    pixel, category = pixel_floor(emoji, split, drawings), category_floor(emoji, split)
    metrics = {f"floor/unseen_drawing_{name}": value for name, value in pixel.items()}
    metrics |= {f"floor/category_{name}": value for name, value in category.items()}
    beside = {f"unseen_drawing/image_to_text_{name}": value for name, value in pixel.items()}
    for k in RECALL_KS:
        num_names = len(split.levels["unseen_concept"].text_gallery)
        beside[f"unseen_concept/image_to_text_r{k}"] = 100.0 * k / num_names
        beside[f"unseen_combination/image_to_text_r{k}"] = 0.0
    beside["unseen_concept/category_mean_per_class"] = category["chance"]
    beside["unseen_concept/category_plain"] = category["largest"]
    return Floors(metrics, beside)


def cache_views(
    model: ChineseClip,
    variables: PyTree,
    prepare: Prepare,
    drawings: np.ndarray,
    split: EmojiSplit,
    stage: StageConfig,
) -> np.ndarray:
    """Features of augmented views of every training drawing, by a locked image tower.

    Args:
      model: the two towers.
      variables: their variables.
      prepare: the augmentation.
      drawings: see `load_drawings`.
      split: decides the training drawings; the features of the others stay zero.
      stage: number of views, and the seed of their augmentation.

    Returns:
      float32 (view, style, emoji, dim), normalised.
    """

    @jax.jit
    def encode_view(variables: PyTree, key: jax.Array, images: np.ndarray) -> jax.Array:
        return encode(model, variables, prepare(key, images), "encode_image")

    rows, variables = split.train, jax.device_put(variables)
    table = np.zeros((stage.cached_views, *drawings.shape[:2], model.config.embed_dim), np.float32)
    keys = jax.random.split(jax.random.key(stage.seed), stage.cached_views)
    for view, key in enumerate(keys):
        for start in range(0, len(rows), ENCODE_BATCH):
            # The last batch is filled up with the first drawings, so that one shape compiles.
            chosen = np.take(rows, np.arange(start, start + ENCODE_BATCH), axis=0, mode="wrap")
            styles, items = chosen[:, 0], chosen[:, 1]
            batch_key = jax.random.fold_in(key, start)
            table[view, styles, items] = encode_view(variables, batch_key, drawings[styles, items])
    return table


def _pairs_task(config: RunConfig, mesh: Mesh | None) -> Task:
    settings, tokenizer = config.pairs, WordPieceTokenizer()
    # Before the training: a mistake in these files must not show hours later.
    splits = {
        name: _open_eval_split(settings, name)
        for name in (settings.eval_split, settings.test_split)
        if name
    }
    size, length = config.model.vision.image_size, config.model.context_length
    with_image_id = config.loss.equal_images_match
    transform = make_pair_transform(settings, tokenizer, size, length, with_image_id=with_image_id)
    measure = _make_retrieval(settings, tokenizer, size, length, mesh)
    pipeline = PipelineConfig(
        corrupt=settings.on_error, remainder=settings.remainder, num_threads=settings.num_threads
    )

    @functools.cache
    def source() -> PairSource:
        return open_pairs(settings.folder, settings.train_split, on_error=settings.on_error)

    def make_batches(stage: StageConfig, features: FeatureCache | None) -> Batches:
        if features is None:
            examples, random_transform = source(), transform
        else:
            examples = CachedPairs(source(), features)
            random_transform = make_cached_transform(
                features, tokenizer, length, with_image_id=with_image_id
            )
        return lambda start_step: make_train_batches(
            examples,
            seed=stage.seed,
            global_batch_size=stage.global_batch_size,
            start_step=start_step,
            random_transform=random_transform,
            config=pipeline,
        )

    def cache_features(
        model: ChineseClip, variables: PyTree, stage: StageConfig, folder: Path
    ) -> FeatureCache:
        return cache_pairs(config, source(), model, variables, stage, folder)

    def evaluate(model: ChineseClip, variables: PyTree) -> Evaluation:
        results = (measure(model, variables, name, split) for name, split in splits.items())
        return Evaluation({name: value for each in results for name, value in each.items()})

    def validate(model: ChineseClip, variables: PyTree) -> dict[str, float]:
        name = settings.eval_split
        return measure(model, variables, name, splits[name]) if name else {}

    def steps_per_epoch(stage: StageConfig) -> int:
        return count_steps(len(source()), stage, settings.remainder)

    return Task(
        prepare_pixels, make_batches, cache_features, evaluate, lambda: Floors({}, {}),
        steps_per_epoch, validate,
    )  # fmt: skip


def cache_pairs(
    config: RunConfig,
    source: PairSource,
    model: ChineseClip,
    variables: PyTree,
    stage: StageConfig,
    folder: Path,
) -> FeatureCache:
    """Features of augmented views of all training images, on disk; what is there is not redone.

    Args:
      config: the settings of the run.
      source: the training pairs.
      model: the two towers.
      variables: their variables, on the host.
      stage: number of views, and the seed of their augmentation.
      folder: where the features lie, unless the stage names another.
    """
    settings, size = config.pairs, config.model.vision.image_size
    augmentation = repr(settings.augmentation) if settings.augment else "none"
    image_ids = dict.fromkeys(source.pairs[int(i)].image_id for i in source.kept)
    plan = CachePlan(
        Path(stage.cache_folder).expanduser() if stage.cache_folder else folder,
        np.fromiter(image_ids, np.int64, len(image_ids)),
        stage.cached_views,
        stage.seed,
        {
            "tower": tower_fingerprint(variables),
            "compute_dtype": np.dtype(config.dtype).name,
            "augmentation": f"{augmentation}, {settings.compat}, exif {settings.apply_exif}",
            "image_size": size,
            "file_bytes": file_size(source.images.path),
        },
        stage.cache_dtype,
    )
    # Every process works on files of its own, with its own devices.
    mesh = parallel.make_mesh(devices=jax.local_devices())
    image_tower = parallel.place(mesh, _image_part(variables))
    encoders = make_encoders(model, normalize_pixels)
    batch_size = -(-settings.eval_batch_size // mesh.size) * mesh.size
    return compute_features(
        plan,
        lambda image_id, rng: training_view(
            source.images.read(image_id), rng, settings, size, example_id=f"image_id {image_id}"
        ),
        lambda pixels: encoders.image(image_tower, parallel.shard_batch(mesh, pixels)),
        image_size=size,
        batch_size=batch_size,
        num_threads=settings.num_threads,
        on_error=settings.on_error,
    )


def _image_part(variables: PyTree) -> dict[str, Any]:
    """The variables of the image tower alone."""
    return {**variables, "params": {"visual": variables["params"]["visual"]}}


def count_steps(num_examples: int, stage: StageConfig, remainder: str) -> int:
    """Updates of one pass over the data, at least 1.

    The original counts batches of a micro-batch each, the last one filled up, and makes an update
    of every k of them: `floor(ceil(n / micro-batch) / k)`. With one micro-batch a step that is the
    number of batches that "wrap" gives; "drop" gives the whole ones only.

    Args:
      num_examples: n.
      stage: gives the sizes of batch and micro-batch.
      remainder: see `PipelineConfig`.
    """
    if remainder == "drop":
        return max(1, num_examples // stage.global_batch_size)
    parts = stage.num_microbatches
    return max(1, -(-num_examples // (stage.global_batch_size // parts)) // parts)


Retrieval = Callable[[ChineseClip, PyTree, str, RetrievalSet], dict[str, float]]


def _make_retrieval(
    settings: PairDataConfig,
    tokenizer: WordPieceTokenizer,
    size: int,
    length: int,
    mesh: Mesh | None,
) -> Retrieval:
    """`(model, variables, name, split) -> recalls` of a split, by names that begin with its own."""
    batch_size = settings.eval_batch_size

    @functools.cache  # one program a model, however often it is measured
    def encoders_of(config: ChineseClipConfig, scan: bool, dtype: Any) -> Encoders:
        return make_encoders(ChineseClip(config, scan=scan, dtype=dtype), normalize_pixels)

    def spread(encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if mesh is None or batch_size % mesh.shape[parallel.DATA_AXIS]:
            return encode
        sharding = parallel.batch_sharding(mesh)
        return lambda batch: parallel.to_host(encode(parallel.place(sharding, batch)))

    def measure(
        model: ChineseClip, variables: PyTree, name: str, split: RetrievalSet
    ) -> dict[str, float]:
        encoders = encoders_of(model.config, model.scan, model.dtype)
        if mesh is not None:
            variables = jax.tree.map(functools.partial(_placed, mesh), variables)
        encode_image = spread(lambda batch: encoders.image(variables, batch))
        encode_text = spread(lambda batch: encoders.text(variables, batch))
        images = np.concatenate(
            [
                encode_all(
                    encode_image,
                    split.read_images(
                        start,
                        start + batch_size,
                        size,
                        compat=settings.compat,
                        apply_exif=settings.apply_exif,
                    ),
                    batch_size,
                )
                for start in range(0, len(split), batch_size)
            ]
        )
        ids = tokenizer.tokenize(split.texts, context_length=length, clean=True)
        texts = encode_texts(encode_text, ids, batch_size)
        recall = two_way_recalls(images, texts, split.images_of_text)
        # What the original reports of MUGE, whose queries are texts only.
        one_way = {
            f"{way}_mean_recall": float(np.mean([recall[f"{way}_r{k}"] for k in RECALL_KS]))
            for way in ("text_to_image", "image_to_text")
        }
        return {f"{name}/{metric}": value for metric, value in (recall | one_way).items()}

    return measure


def _placed(mesh: Mesh, leaf: Any) -> jax.Array:
    """An array on the mesh: where it lies already, or a copy on every device."""
    if isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh:
        return leaf
    return parallel.place(mesh, leaf)


def _open_eval_split(settings: PairDataConfig, split: str) -> RetrievalSet:
    return RetrievalSet(
        open_pairs(settings.folder, split, on_error=settings.on_error, verify_images=True)
    )
