"""The export command on weights from a file: every format, precision and part, and its mistakes."""

import numpy as np
import pytest

from jaxlab import chinese_clip as clip
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip import published
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig

CONFIG = clip.ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12, activation="gelu"),
    BertConfig(vocab_size=30, num_layers=1, width=16, num_heads=2, mlp_width=24, max_positions=20),
    context_length=12,
)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    shapes = published.variable_shapes(CONFIG)
    return published.unflatten(
        {p: rng.standard_normal(s, dtype=np.float32) for p, s in shapes.items()}
    )


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "published"
    clip.save_published(folder, variables, CONFIG)
    return folder


@pytest.fixture
def export(run_program, weights):
    """`(*arguments) -> (exit code, output, errors)`; `--weights` is given."""
    return lambda *arguments: run_program("chinese_clip.export", f"--weights={weights}", *arguments)


def assert_equal(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert list(found) == list(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array)


def test_weights_of_a_file_become_a_file_of_the_original_and_a_folder_again(
    export, run_program, variables, tmp_path
):
    for name in ("clip.pt", "clip.safetensors"):
        code, output, errors = export(f"--output={tmp_path / name}")
        assert code == 0, errors
        assert f"Written: {tmp_path / name} (" in output
        assert_equal(clip.load_original(tmp_path / name).variables, variables)
    code, _, errors = run_program(
        "chinese_clip.export", f"--weights={tmp_path / 'clip.pt'}", f"--output={tmp_path / 'back'}"
    )
    assert code == 0, errors
    back = clip.load_published(tmp_path / "back")
    assert back.config == CONFIG
    assert_equal(back.variables, variables)


def test_published_in_half_precision_and_in_part(export, variables, tmp_path):
    arguments = (f"--output={tmp_path}", "--format=published", "--precision=fp16", "--parts=visual")
    code, _, errors = export(*arguments)
    assert code == 0, errors
    found = clip.load_published(tmp_path).variables["params"]
    assert set(found) == {"visual"}
    wanted = variables["params"]["visual"]["projection"].astype(np.float16)
    np.testing.assert_array_equal(found["visual"]["projection"], wanted)


def test_programs_of_one_tower_with_another_context(export, tmp_path):
    code, output, errors = export(
        *("--format=stablehlo", "--parts=bert,text_projection", "--context_length=6"),
        f"--output={tmp_path / 'programs'}",
    )
    assert code == 0, errors
    assert f"Written: {tmp_path / 'programs' / 'text.stablehlo'} (" in output
    programs = clip.load_stablehlo(tmp_path / "programs")
    assert programs.image is None and programs.description["context_length"] == 6
    assert programs.text(np.ones((3, 6), np.int64)).shape == (3, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=z", "--workdir=w"], "got --workdir=w and --weights="),
        (["--output=z", "--precision=int8"], "published can be written in fp32, fp16, bf16"),
        (
            ["--output=z", "--format=onnx", "--precision=bf16"],
            "--precision=bf16 and --format=onnx: onnx can be written in fp32, fp16, int8",
        ),
        (["--output=z.pt", "--precision=fp16"], "pt can be written in fp32"),
        (["--output=z.bin", "--format=pt"], "--format=pt: the file must end in .pt"),
        (["--output=z.onnx"], "ONNX files: --format=onnx and the beginning of their names"),
        (["--output=z", "--context_length=21"], "error: --context_length=21 must be at least 3"),
        (["--output=z", "--format=stablehlo", "--parts=bert"], "lacks ['text_projection']"),
        (["--output=z", "--format=stablehlo", "--parts=logit_scale"], "and no tower"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    export, tmp_path, monkeypatch, arguments, message
):
    place = [a.replace("--output=", f"--output={tmp_path}/") for a in arguments]
    code, output, errors = export(*place)
    assert code == 2, errors
    assert message in errors.splitlines()[-1] and "Traceback" not in errors + output
    assert not list(tmp_path.iterdir())


def test_parts_that_the_weights_lack_are_named(run_program, variables, tmp_path):
    tower = {"params": {"visual": variables["params"]["visual"]}}
    clip.save_published(tmp_path / "tower", tower, CONFIG)
    arguments = (f"--weights={tmp_path / 'tower'}", f"--output={tmp_path / 'z'}")
    code, _, errors = run_program("chinese_clip.export", *arguments, "--parts=bert")
    assert code == 2 and "--parts has ['bert']; the weights hold visual" in errors


@pytest.mark.onnx
def test_onnx_files_are_named_after_the_prefix_or_put_into_a_folder(export, tmp_path):
    code, output, errors = export("--format=onnx", f"--output={tmp_path / 'deploy' / 'small'}")
    assert code == 0, errors
    for name in ("small.img.fp32.onnx", "small.txt.fp32.onnx"):
        assert f"Written: {tmp_path / 'deploy' / name} (" in output
    arguments = ("--format=onnx", f"--output={tmp_path}", "--precision=fp16", "--parts=visual")
    assert export(*arguments)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("chinese-clip.img.fp16.onnx", "chinese-clip.img.fp16.onnx.extra_file", "deploy"),
    ]
