"""Counted operations against those measured on the original's graphs."""

import pytest

from jaxlab.chinese_clip.flops import image_flops, text_flops, train_flops
from jaxlab.chinese_clip.model import MODELS

MEASURED = {  # 1e9 operations of the original in one forward pass, texts of 52 tokens
    "RN50": (12.22, 2.23),
    "ViT-B-16": (35.13, 8.93),
    "ViT-L-14": (162.03, 8.93),
    "ViT-L-14-336": (381.92, 8.93),
    "ViT-H-14": (334.59, 31.67),
}


def unused_tokens(tokens, width, mlp_width):
    """What the original's last block spends on the tokens that nobody reads."""
    of_a_token = 2 * width * width + 2 * tokens * width + 2 * width * mlp_width
    return 2 * (tokens - 1) * of_a_token / 1e9


@pytest.mark.parametrize("name", MEASURED)
def test_forward_passes_cost_what_was_measured(name):
    config = MODELS[name]
    image = image_flops(config.vision) / 1e9
    text = text_flops(config.text, 52, config.embed_dim) / 1e9
    if name == "RN50":
        # The original's attention pool computes the output of all 50 tokens and keeps the first.
        unused = 49 * 2048 * (2048 + 1024) + 2 * 49 * 50 * 2048
        assert image == pytest.approx(11.59, abs=0.01)
        image += 2 * unused / 1e9
    else:
        vision = config.vision
        image += unused_tokens(1 + vision.grid_size**2, vision.width, vision.mlp_width)
    text += unused_tokens(52, config.text.width, config.text.mlp_width)
    assert (image, text) == pytest.approx(MEASURED[name], rel=0.01)


def test_training_counts_what_trains_three_times():
    config = MODELS["ViT-B-16"]
    image = image_flops(config.vision)
    text = text_flops(config.text, 52, config.embed_dim)
    assert train_flops(config) == pytest.approx(3 * (image + text))
    assert train_flops(config, image_locked=True) == pytest.approx(image + 3 * text)
    assert train_flops(config, cached_features=True) == pytest.approx(3 * text)
    # Half of the patches is a little less than half of the work.
    masked = train_flops(config, mask_ratio=0.5) - 3 * text
    assert 0.47 < masked / (3 * image) < 0.51
    teacher = MODELS["ViT-L-14"]
    taught = train_flops(config, teacher=teacher, teacher_text=True)
    extra = image_flops(teacher.vision) + text_flops(teacher.text, 52, teacher.embed_dim)
    assert taught == pytest.approx(3 * (image + text) + extra)
    assert train_flops(MODELS["RN50"], mask_ratio=0.5) == train_flops(MODELS["RN50"])
