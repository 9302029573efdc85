# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Search pictures in Chinese
#
# Chinese CLIP (Yang et al. 2022, [arXiv:2211.01335](https://arxiv.org/abs/2211.01335)) puts
# pictures and Chinese texts into one space: what belongs together lies close. This notebook loads
# a model, searches in pictures, classifies without training, and trains on data of one's own. It
# runs on a CPU, a Colab machine or a TPU host.
#
# 1. A model.
# 2. What fits: similarities.
# 3. Search in a folder of pictures.
# 4. Zero-shot classification.
# 5. Fine-tuning on your own pairs.
# 6. Probabilities that mean something.

# %% [markdown]
# ## 0. Setup
#
# In the checkout of the project this cell only looks around. Elsewhere, as on Colab, put the git
# address of the project into `SOURCE`: it is fetched and installed.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = ""  # git address of the project, where this notebook does not lie in a checkout of it


def find_checkout() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents, here / "jaxlab-checkout"):
        if (folder / "experiments" / "notebooks").is_dir():
            return folder
    if not SOURCE:
        raise FileNotFoundError(f"{here} is in no checkout: set SOURCE to the git address")
    target = here / "jaxlab-checkout"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", SOURCE, str(target)], check=True)
    return target


checkout = find_checkout()
if any(importlib.util.find_spec(name) is None for name in ("jaxtyping", "flax", "absl")):
    packages = [sys.executable, "-m", "pip", "install", "--quiet", "-e", str(checkout)]
    subprocess.run(packages, check=True)
sys.path.insert(0, str(checkout))

# %%
import jax

print(jax.device_count(), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## 1. A model
#
# `MODEL` is the name of a released model (`ViT-B-16`, `ViT-L-14`, `ViT-L-14-336`, `ViT-H-14`,
# `RN50`), fetched once and kept; or the path of weights. Left empty, a small model is trained here
# on 3,786 emoji with Chinese names that come with the library, in about a minute on a CPU: enough
# to see everything below at work, far from the quality of the released ones.

# %%
import tempfile

MODEL = ""
work = Path(tempfile.mkdtemp())


def train_small_model() -> Path:
    command = [
        *(sys.executable, "-m", "experiments.chinese_clip.train", f"--workdir={work / 'emoji'}"),
        "--config=configs/chinese_clip/smoke.py",
    ]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return work / "emoji" / "model"


from jaxlab import chinese_clip as clip

model = clip.load(MODEL or train_small_model())
print(f"{model.name}: pictures of {model.config.vision.image_size} px, {model.embed_dim} numbers")

# %% [markdown]
# ## 2. What fits
#
# Pictures may be paths, bytes, Pillow images or arrays. Below, two emoji: dumplings and a rabbit.

# %%
import numpy as np
from PIL import Image

from jaxlab.data.emoji import load_emoji

emoji = load_emoji()
google, twitter = (emoji.encoded_images(style) for style in ("google", "twitter"))
names = list(emoji.names_zh)
shown = [names.index("饺子"), names.index("兔子")]
found = model.similarity([google[i] for i in shown], ["饺子", "兔子", "飞机", "红色的花"])
print(np.round(found.cosines, 3))
print(np.round(found.probabilities, 3), "rows sum to 1: which text fits best, not whether one does")

# %% [markdown]
# As in the original's API, features can be taken by themselves:
# `model.encode_image(...)` and `model.encode_text(...)`, of length 1 unless `normalized=False`.

# %% [markdown]
# ## 3. Search in a folder
#
# `FOLDER` may be a folder of your own pictures. Here every fourth emoji is written into one.
# Calling `update_index` again encodes only what is new or has changed.

# %%
FOLDER = ""


def emoji_folder() -> Path:
    folder = work / "pictures"
    folder.mkdir()
    for i in range(0, len(names), 4):
        (folder / f"{names[i].replace('/', '_')}.webp").write_bytes(google[i])
    return folder


index, report = clip.update_index(work / "index", FOLDER or emoji_folder(), model, int8=True)
print(f"{len(index):,} pictures, {report.added:,} new, {len(report.skipped)} damaged")

# %%
from experiments.common.pictures import PictureResult, TextQuery, draw_search


def draw(query: str, hits: list) -> Image.Image:
    pictures = [np.asarray(Image.open(index.to_path(hit.row)).convert("RGBA")) for hit in hits]
    results = zip(pictures, hits, strict=True)
    return draw_search(
        TextQuery(query, tuple(PictureResult(p, Path(h.path).stem, h.cosine) for p, h in results))
    )


query = "红色的水果"
draw(query, index.find(model, text=query, k=6))

# %% [markdown]
# A picture finds pictures like it.

# %%
draw("like this picture", index.find(model, row=0, k=6))

# %% [markdown]
# The same as a web page on your machine, with thumbnails and search by picture:
#
#     python -m experiments.chinese_clip.serve --index=INDEX
#
# ## 4. Zero-shot classification
#
# Prompts of every class become one vector, pictures go to the nearest class.

# %%
from jaxlab.chinese_clip import zero_shot

classes = ["食物", "动物", "旗帜", "人脸", "建筑", "运动"]
prompts = zero_shot.fill_templates(classes, zero_shot.GENERAL_TEMPLATES)
classifier = zero_shot.make_classifier(prompts, model.encode_text)
chosen = np.random.default_rng(0).choice(len(names), 5, replace=False)
shares = zero_shot.zero_shot_probabilities(
    model.encode_image([twitter[i] for i in chosen]), classifier
)
for i, row in zip(chosen, shares, strict=True):
    print(f"{names[i]:16}{classes[int(row.argmax())]:6}{row.max():.2f}")

# %% [markdown]
# ## 5. Fine-tuning on your own pairs
#
# Pictures and their texts: here the flags of 258 countries and regions in one drawing style, with
# texts that the model has not seen. It is tested on drawings of another style.

# %%
flags = [i for i in range(len(names)) if names[i].startswith("旗: ")]
pictures = [google[i] for i in flags]
texts = [names[i].removeprefix("旗: ") + "的国旗" for i in flags]
unseen_style = [twitter[i] for i in flags]

from jaxlab.metrics import ranks_blockwise, recall_table


def recalls(tuned: clip.LoadedModel) -> dict[str, float]:
    """How often the right text is among the first 1, 5, 10 of all, for drawings not trained on."""
    truth = [[i] for i in range(len(flags))]
    image, text = tuned.encode_image(unseen_style), tuned.encode_text(texts)
    return recall_table(ranks_blockwise(image, text, truth, ties="against"))


before = recalls(model)
print({name: round(value, 1) for name, value in before.items()})

# %% [markdown]
# As in the first stage of the paper, the image tower stays locked, so the features of the pictures
# are computed once; the text tower is trained towards them. A step is one function of parameters,
# optimizer state and batch.

# %%
import dataclasses

import optax

STEPS, BATCH = 80, 128
network = clip.ChineseClip(model.config)
locked = model.encode_image(pictures)
ids = model.tokenize(texts, clean=True)
parts = ("bert", "text_projection", "logit_scale")
params = {name: model.variables["params"][name] for name in parts}
learning_rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 8, STEPS)
tx = optax.adamw(learning_rate, b2=0.98, eps=1e-6)


@jax.jit
def step(params, state, images, ids):
    def loss_fn(params):
        text = clip.normalize(network.apply({"params": params}, ids, method="encode_text"))
        return clip.contrastive_loss(images, text, params["logit_scale"])

    loss, gradient = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


state, rng = tx.init(params), np.random.default_rng(0)
for number in range(STEPS):
    rows = rng.choice(len(flags), BATCH, replace=False)
    params, state, loss = step(params, state, locked[rows], ids[rows])
    if number % 20 == 0 or number + 1 == STEPS:
        print(f"step {number:3}, loss {float(loss):.3f}")

variables = {**model.variables, "params": {**model.variables["params"], **params}}
tuned = dataclasses.replace(model, variables=variables, name="tuned on flags")
after = recalls(tuned)
print({name: round(value, 1) for name, value in after.items()})
print(f"R@10 of flags in a style not trained on: {before['r10']:.1f} % -> {after['r10']:.1f} %")

# %% [markdown]
# The tuned model can be saved, and loaded again with `clip.load`:
# `clip.save_published(folder, jax.device_get(tuned.variables), tuned.config)`.
#
# For both stages, several devices, checkpoints that survive a kill, and the original's data formats
# there is the training program:
#
#     python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py --workdir=DIR
#
# ## 6. Probabilities that mean something
#
# A cosine is no probability, and the softmax above says which text fits best, not whether one does.
# On pairs that were not trained on, one can fit what a cosine says about a match.

# %%
cosines = tuned.similarity(unseen_style, texts).cosines
half = len(flags) // 2
fit = clip.split_cosines(cosines[:half, :half], [[i] for i in range(half)])
test = clip.split_cosines(cosines[half:, half:], [[i] for i in range(len(flags) - half)])
calibration = clip.fit_calibration(*fit)
every = np.concatenate(test)
matches = np.arange(len(every)) < len(test.matching)
raw_error = clip.expected_calibration_error(np.clip(every, 0, 1), matches)
error = clip.expected_calibration_error(calibration.probability(every), matches)
print(f"calibration error: cosine itself {raw_error:.3f}, match probability {error:.3f}")
threshold = clip.threshold_for_precision(*fit, 0.9, prior=0.5)
print(f"from a cosine of {threshold:.2f} on, 9 of 10 match where half of the pairs do")

# %% [markdown]
# `model.with_calibration(calibration)` gives `match_probability`, an index built with it prints and
# shows probabilities, and `calibration.save("calibration.json")` beside the weights is found by
# `clip.load`.
