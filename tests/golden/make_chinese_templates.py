"""Make `jaxlab/chinese_clip/assets/templates.json` from the package cn_clip 1.6.0.

    PYTHONPATH=. python tests/golden/make_chinese_templates.py     (in the parity environment)

The package keeps every template as a function of the class name; the file keeps the text with `{}`
where the name goes.
"""

import json
from importlib.metadata import version
from pathlib import Path

from cn_clip.eval import cvinw_zeroshot_templates, imagenet_zeroshot_templates

OUTPUT = Path("jaxlab/chinese_clip/assets/templates.json")
NAMES = {
    "general": "openai_templates",
    "plain": "normal_templates",
    "flowers": "flower_templates",
    "food": "food_templates",
    "aircraft": "aircraft_templates",
    "satellite": "eurosat_templates",
    "country": "country211_templates",
    "cars": "cars_templates",
    "dtd": "dtd_templates",
    "pets": "pet_templates",
    "cifar-100": "cifar100_templates",
    "caltech-101": "caltech101_templates",
    "fer": "fer_templates",
    "kitti": "kitti_templates",
    "hateful-memes": "hatefulmemes_templates",
    "patch": "patch_templates",
}


def main() -> None:
    """Write the file."""
    assert version("cn_clip") == "1.6.0"
    functions = {ours: getattr(cvinw_zeroshot_templates, theirs) for ours, theirs in NAMES.items()}
    functions["imagenet"] = imagenet_zeroshot_templates.openai_imagenet_template
    content = {
        "source": "cn_clip 1.6.0 (MIT), cn_clip/eval/cvinw_zeroshot_templates.py and "
        "imagenet_zeroshot_templates.py",
        "templates": {name: [f("{}") for f in listed] for name, listed in functions.items()},
        "imagenet_class_names": imagenet_zeroshot_templates.imagenet_classnames,
    }
    OUTPUT.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
