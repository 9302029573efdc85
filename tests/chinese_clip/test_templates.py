"""The published prompts: how many there are, and which data set takes which."""

import pytest

from jaxlab.chinese_clip.templates import (
    imagenet_class_names,
    load_templates,
    template_names,
    templates_of_dataset,
)
from jaxlab.chinese_clip.zero_shot import fill_templates

COUNTS = {
    "general": 183,
    "plain": 1,
    "flowers": 32,
    "food": 21,
    "aircraft": 100,
    "satellite": 24,
    "country": 4,
    "cars": 7,
    "dtd": 6,
    "pets": 6,
    "cifar-100": 11,
    "caltech-101": 16,
    "fer": 5,
    "kitti": 3,
    "hateful-memes": 2,
    "patch": 3,
    "imagenet": 80,
}


def test_every_list_has_its_published_length_and_can_be_filled():
    assert {name: len(load_templates(name)) for name in template_names()} == COUNTS
    for name in template_names():
        (prompts,) = fill_templates(["猫"], load_templates(name))
        assert len(prompts) == COUNTS[name] and all("猫" in text for text in prompts)


def test_the_general_list_keeps_its_duplicates():
    general = load_templates()
    assert len(general) == 183 and len(set(general)) == 179
    assert general.count("{}的裁剪照片") == 2
    # 90 phrases, the same with a full stop, and three of their own kinds.
    assert general[0] == "{}的照片"
    assert general[-3:] == ("一种叫{}的花的照片", "一种叫{}的食物的照片", "{}的卫星照片")
    stopped = {text[:-1] for text in general if text.endswith("。")}
    assert stopped <= {text for text in general if not text.endswith("。")} and len(stopped) == 88


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "aircraft",
            {
                f"{start}{kind}的{picture}"
                for start in ("{}，", "一种叫{}的")
                for kind in (
                    *("飞机", "战斗机", "老飞机", "大飞机", "小飞机"),
                    *("军用飞机", "运输机", "公务机", "客机", "喷气机"),
                )
                for picture in ("照片", "高清图", "模糊图片", "缩放图片", "摄影图")
            },
        ),
        (
            "satellite",
            {
                f"{start}{{}}的{quality}{picture}"
                for start in ("", "一张")
                for quality in ("", "高清", "清晰的", "高质量的")
                for picture in ("卫星照片", "卫星图", "卫星图片")
            },
        ),
        (
            "food",
            {
                f"一种叫{{}}的{noun}的{picture}"
                for noun in ("食物", "美食", "菜")
                for picture in (
                    *("照片", "高清图", "模糊图片", "缩放图片", "摄影图"),
                    *("近距离照片", "裁剪照片"),
                )
            },
        ),
    ],
)
def test_regular_families_are_complete(name, expected):
    assert set(load_templates(name)) == expected and len(load_templates(name)) == len(expected)


def test_the_data_set_decides_the_list_as_in_the_original():
    special = {
        "fgvc-aircraft-2013b-variants102": "aircraft",
        "food-101": "food",
        "oxford-flower-102": "flowers",
        "eurosat_clip": "satellite",
        "resisc45_clip": "satellite",
        "country211": "country",
    }
    for dataset, name in special.items():
        assert templates_of_dataset(dataset) == load_templates(name)
    for dataset in ("cifar-10", "stanford-cars", "imagenet", "my own"):
        assert templates_of_dataset(dataset) == load_templates("general")


def test_imagenet_has_a_thousand_names():
    names = imagenet_class_names()
    assert len(names) == 1000 and names[:2] == ("丁鲷", "金鱼")
    assert [name for name in names if names.count(name) > 1] == ["太阳镜", "太阳镜"]


def test_an_unknown_list_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="'flower' do not exist; the nearest is 'flowers'"):
        load_templates("flower")
