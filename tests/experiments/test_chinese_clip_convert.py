"""The convert command, and towers of other models as the start of a run."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from experiments.chinese_clip import train
from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab import chinese_clip as clip
from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.positions import resize_positions
from jaxlab.layers.vit import VisionTransformerConfig

MODEL = clip.ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 64, 1, 24, 12),
    BertConfig(vocab_size=30, num_layers=1, width=64, num_heads=1, mlp_width=24, max_positions=20),
    context_length=20,
)


def draw(seed, config=MODEL):
    rng = np.random.default_rng(seed)
    shapes = variable_shapes(config)
    return unflatten({p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of the original, and what is in it."""
    variables = draw(0)
    path = tmp_path_factory.mktemp("original") / "clip_cn.pt"
    clip.save_original(path, variables, MODEL)
    return path, variables


@pytest.fixture
def convert(run_program, monkeypatch):
    """Runs the command, whose flags other programs have too: they are its own for one call."""

    def call(*arguments):
        monkeypatch.delitem(sys.modules, "experiments.chinese_clip.convert", raising=False)
        with flagsaver.flagsaver():
            return run_program("chinese_clip.convert", *arguments)

    return call


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_model_goes_through_all_forms_and_comes_back(model, convert, tmp_path):
    source, variables = model
    steps = (
        ("published", [], "a file of the original's names", "published"),
        ("hf", ["--format=huggingface"], "a folder of published weights", "huggingface"),
        ("b.safetensors", [], "a folder of Hugging Face's ChineseCLIPModel", "original"),
        ("c.pt", ["--format=original"], "a file of the original's names", "original"),
    )
    for name, arguments, read, form in steps:
        output = tmp_path / name
        code, text, _ = convert(f"--input={source}", f"--output={output}", *arguments)
        assert code == 0
        assert f"Read: {source} ({read}): a model of its own sizes" in text
        assert f"Written: {output} ({form})" in text
        source = output
    weights = clip.load_weights(source)
    assert weights.config == MODEL
    assert_equal(weights.variables, variables)


def test_positions_are_resized_on_the_way(model, convert, tmp_path):
    source, variables = model
    output = tmp_path / "larger"
    assert convert(f"--input={source}", f"--output={output}", "--image_size=32")[0] == 0
    weights = clip.load_weights(output)
    assert weights.config.vision.image_size == 32
    np.testing.assert_array_equal(
        weights.variables["params"]["visual"]["positional_embedding"],
        resize_positions(variables["params"]["visual"]["positional_embedding"], 4),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input={file}"], "--output=None; wanted what to read and where to write it"),
        (["--input={file}", "--output={new}.onnx"], "ONNX files are written by the program export"),
        (["--input=absent", "--output={new}"], "absent does not exist; give a folder with model"),
        (["--input={file}", "--output={file}"], "is the input itself; give another place"),
        (
            ["--input={file}", "--output={new}", "--format=original"],
            "for --format=original; wanted a file that ends in .pt or .safetensors",
        ),
        (
            ["--input={file}", "--output={new}.pt", "--format=huggingface"],
            "for --format=huggingface; wanted a folder",
        ),
        (
            ["--input={file}", "--output={new}", "--image_size=20"],
            "error: --image_size=20 is not a multiple of patch_size=8",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, model, convert, tmp_path):
    places = {"file": model[0], "new": tmp_path / "new"}
    code, _, errors = convert(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_run_starts_from_towers_of_other_models(model, tmp_path, monkeypatch):
    """From two files: the image tower and temperature of one model, the text tower of another."""

    def drawn_by_numpy(config, key, *, image_tower):  # compiles nothing
        params = draw(2, config)["params"]
        return {"params": {n: tree for n, tree in params.items() if image_tower or n != "visual"}}

    monkeypatch.setattr(clip, "initialize", drawn_by_numpy)
    path, image = model
    text = draw(1)
    body = {"params": {"bert": text["params"]["bert"]}}
    clip.save_published(tmp_path / "bert", body, MODEL)
    larger = dataclasses.replace(
        MODEL,
        vision=dataclasses.replace(MODEL.vision, image_size=24),
        text=dataclasses.replace(MODEL.text, max_positions=16),
        context_length=16,
    )
    config = RunConfig(
        model=larger,
        image_tower=str(path),
        text_tower=str(tmp_path / "bert"),
        stage_1=StageConfig(num_steps=1, global_batch_size=2),
    )
    params = train.initial_variables(config)["params"]
    assert params["logit_scale"] == image["params"]["logit_scale"]
    np.testing.assert_array_equal(
        params["visual"]["projection"], image["params"]["visual"]["projection"]
    )
    np.testing.assert_array_equal(
        params["visual"]["positional_embedding"],
        resize_positions(image["params"]["visual"]["positional_embedding"], 3),
    )
    assert_equal(params["bert"]["layer_0"], text["params"]["bert"]["layer_0"])
    np.testing.assert_array_equal(
        params["bert"]["position_embeddings"], text["params"]["bert"]["position_embeddings"][:16]
    )
    assert not np.array_equal(params["text_projection"], text["params"]["text_projection"])
    with pytest.raises(FileNotFoundError, match="robrta does not exist"):
        train.initial_variables(dataclasses.replace(config, text_tower="robrta"))
