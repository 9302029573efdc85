"""ONNX files run by ONNX Runtime: any batch, every tower and precision, the original's names."""

import json

import jax
import numpy as np
import pytest

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip import onnx_builder, published
from jaxlab.layers.activations import ACTIVATIONS
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

pytestmark = pytest.mark.onnx

TEXT = BertConfig(
    vocab_size=50, num_layers=2, width=32, num_heads=4, mlp_width=64, max_positions=20
)
VIT = clip.ChineseClipConfig(
    VisionTransformerConfig(24, 8, 2, 32, 4, 64, 12), TEXT, context_length=8
)
# An odd size: every pool leaves out a last row. Blocks with and without a shortcut.
RESNET = clip.ChineseClipConfig(
    ModifiedResNetConfig(
        image_size=39, stem_width=8, stages=(2, 1), expansion=2, num_heads=2, output_dim=12
    ),
    TEXT,
    context_length=8,
)
GROUPS = clip.ChineseClipConfig(
    ModifiedResNetConfig(
        image_size=16, stem_width=16, stages=(1, 1), expansion=2, num_heads=2, output_dim=12,
        norm="group", stem_stride=1, stem_pool=1,
    ),
    TEXT,
    context_length=8,
)  # fmt: skip
CONFIGS = {"vit": VIT, "resnet": RESNET, "groups": GROUPS}


def draw(config):
    """Weights of about the size that keeps activations near 1; norms are not the identity."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, shape in published.variable_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if path.endswith(("scale", "var")):
            values = 1 + 0.2 * np.abs(values)
        else:
            values *= 0.3 if len(shape) < 2 else float(np.prod(shape[:-1])) ** -0.5
        flat[path] = values
    return published.unflatten(flat)


def inputs(config, tower, rows=64):
    rng = np.random.default_rng(1)
    size = config.vision.image_size
    if tower == "image":
        return rng.standard_normal((rows, 3, size, size), dtype=np.float32)
    ids = rng.integers(1, config.text.vocab_size, (rows, config.context_length))
    for row, length in enumerate(rng.integers(0, config.context_length + 1, rows)):
        ids[row, length:] = 0  # some rows are padding alone
    assert (ids == 0).all(axis=1).any()
    return ids


def module_features(config, variables, tower):
    model, x = clip.ChineseClip(config), inputs(config, tower)
    x = x.transpose(0, 2, 3, 1) if tower == "image" else x.astype(np.int32)
    return np.asarray(jax.jit(model.apply, static_argnames="method")(
        variables, x, method=f"encode_{tower}"
    ))  # fmt: skip


def start(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def cosines(a, b):
    return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def towers(prefix, precision):
    """(tower, its file, name of its output)."""
    return (
        ("image", f"{prefix}.img.{precision}.onnx", "unnorm_image_features"),
        ("text", f"{prefix}.txt.{precision}.onnx", "unnorm_text_features"),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_the_module_for_any_batch_in_every_precision(name, tmp_path):
    config, prefix = CONFIGS[name], tmp_path / "deploy" / name
    variables = draw(config)
    wanted = {tower: module_features(config, variables, tower) for tower in ("image", "text")}
    for precision, atol, bar in (
        ("fp32", 1e-5, 0.9999999),
        ("fp16", 0.03, 0.99999),
        ("int8", 1.0, 0.99),
    ):
        clip.export_onnx(prefix, variables, config, precision=precision)
        for tower, path, output in towers(prefix, precision):
            session, x = start(path), inputs(config, tower)
            for rows in (1, 5, 64):
                (found,) = session.run([output], {tower: x[:rows]})
                assert found.shape == (rows, 12) and found.dtype == np.float32
                np.testing.assert_allclose(found, wanted[tower][:rows], rtol=0, atol=atol)
                assert cosines(found, wanted[tower][:rows]).min() >= bar - 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_its_operators(activation, tmp_path):
    config = clip.ChineseClipConfig(
        VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12, activation),
        BertConfig(50, 1, 16, 2, 24, 20, activation=activation),
        context_length=8,
    )
    variables = draw(config)
    clip.export_onnx(tmp_path / "clip", variables, config)
    for tower, path, _ in towers(tmp_path / "clip", "fp32"):
        (found,) = start(path).run(None, {tower: inputs(config, tower)})
        wanted = module_features(config, variables, tower)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_names_and_types_are_those_of_the_original_and_the_batch_is_free(tmp_path):
    for precision in onnx_builder.PRECISIONS:
        clip.export_onnx(tmp_path / "vit", draw(VIT), VIT, precision=precision)
        for tower, path, output in towers(tmp_path / "vit", precision):
            session = start(path)
            (x,), (y,) = session.get_inputs(), session.get_outputs()
            assert (x.name, y.name, y.shape) == (tower, output, ["N", 12])
            types = {"image": "tensor(float)", "text": "tensor(int64)"}
            shapes = {"image": ["N", 3, 24, 24], "text": ["N", 8]}
            assert (x.type, x.shape, y.type) == (types[tower], shapes[tower], "tensor(float)")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("vit.img.fp16.onnx", "vit.img.fp16.onnx.extra_file", "vit.img.fp32.onnx"),
        *("vit.img.int8.onnx", "vit.txt.fp16.onnx", "vit.txt.fp16.onnx.extra_file"),
        *("vit.txt.fp32.onnx", "vit.txt.int8.onnx"),
    ]


def test_metadata_say_what_to_feed(tmp_path):
    (path, _) = clip.export_onnx(tmp_path / "vit", draw(VIT), VIT)
    found = start(path).get_modelmeta().custom_metadata_map
    assert (found["image_size"], found["context_length"], found["embed_dim"]) == ("24", "8", "12")
    assert json.loads(found["image_mean"]) == [0.48145466, 0.4578275, 0.40821073]
    assert json.loads(found["image_std"]) == [0.26862954, 0.26130258, 0.27577711]
    assert float(found["logit_scale"]) == float(draw(VIT)["params"]["logit_scale"])
    assert published.config_from_dict(json.loads(found["config"])) == VIT
    assert found["precision"] == "fp32" and found["model"] == ""


def read(path):
    """Initializers by name, those of the side file too."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_weights_are_stored_once_under_their_own_names(tmp_path):
    variables = draw(VIT)
    clip.export_onnx(tmp_path / "vit", variables, VIT)
    found = read(tmp_path / "vit.img.fp32.onnx")
    layer = variables["params"]["visual"]["layer_1"]
    kernel = layer["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(found["visual/layer_1/attention/query/kernel"], kernel)
    np.testing.assert_array_equal(found["visual/layer_1/ln_2/scale"], layer["ln_2"]["scale"])
    shapes = [s for p, s in published.variable_shapes(VIT).items() if p.startswith("params/visual")]
    stored = sum(array.size for name, array in found.items() if name.startswith("visual/"))
    # The class token has gone into its position.
    assert stored == sum(int(np.prod(shape)) for shape in shapes) - VIT.vision.width


def test_half_precision_is_in_a_side_file_and_norms_stay_float32(tmp_path):
    import onnx

    clip.export_onnx(tmp_path / "vit", draw(VIT), VIT, precision="fp16")
    for part in ("img", "txt"):
        path = tmp_path / f"vit.{part}.fp16.onnx"
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            is_large = int(np.prod(tensor.dims)) * 2 >= onnx_builder.EXTERNAL_THRESHOLD
            assert bool(entries) == is_large, tensor.name
            assert entries.get("location", f"{path.name}.extra_file") == f"{path.name}.extra_file"
        for name, array in read(path).items():
            is_norm = any(word in name for word in ("ln_", "norm"))
            if array.dtype != np.int64 and not name.startswith("constant"):
                assert array.dtype == (np.float32 if is_norm else np.float16), name


def test_a_model_too_large_for_one_file_gets_a_side_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_builder, "LARGEST_PROTO", 10_000)
    variables = draw(VIT)
    written = clip.export_onnx(tmp_path / "vit", variables, VIT)
    assert [p.name for p in written][:2] == ["vit.img.fp32.onnx", "vit.img.fp32.onnx.extra_file"]
    assert written[0].stat().st_size < written[1].stat().st_size
    (found,) = start(written[0]).run(None, {"image": inputs(VIT, "image")})
    wanted = module_features(VIT, variables, "image")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_int8_weights_have_a_scale_a_column_and_stay_in_seven_bits(tmp_path):
    variables = draw(VIT)
    clip.export_onnx(tmp_path / "vit", variables, VIT, precision="int8")
    found = read(tmp_path / "vit.txt.int8.onnx")
    for path, limit, axis in (
        ("bert/layer_0/mlp_in/kernel", 63, 0),
        ("text_projection", 63, 0),
        ("bert/word_embeddings", 127, 1),
    ):
        node = variables["params"]
        for name in path.split("/"):
            node = node[name]
        integers, scale = found[path], found[f"{path}/scale"]
        assert integers.dtype == np.int8
        np.testing.assert_array_equal(np.abs(integers.astype(int)).max(axis=axis), limit)
        assert (np.abs(integers * scale - node) <= 0.5001 * scale).all()
    kernel = read(tmp_path / "vit.img.int8.onnx")["visual/patch_embedding"]
    assert kernel.dtype == np.int8 and kernel.shape == (32, 3, 8, 8)


def test_a_tower_alone(tmp_path):
    params = draw(VIT)["params"]
    text = {"params": {name: params[name] for name in ("bert", "text_projection")}}
    (path,) = clip.export_onnx(tmp_path / "a" / "vit", text, VIT)
    assert path.name == "vit.txt.fp32.onnx"
    assert "logit_scale" not in start(path).get_modelmeta().custom_metadata_map


def test_a_failed_write_leaves_the_older_files(tmp_path, monkeypatch):
    (path, _) = clip.export_onnx(tmp_path / "vit", draw(VIT), VIT)
    before = path.read_bytes()

    def fail(self):
        raise OSError("no space left on device")

    monkeypatch.setattr(onnx_builder.Tensor, "to_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        clip.export_onnx(tmp_path / "vit", draw(VIT), VIT)
    assert path.read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]
