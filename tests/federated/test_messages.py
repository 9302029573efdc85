import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.messages import Message, check_content


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        2.5,
        "text",
        True,
        np.float32(1),
        np.arange(3),
        jnp.ones(2, jnp.bfloat16),
        [1, [2.0, "x"]],
        (10, {"params": {"kernel": np.zeros((2, 2))}}),
        {1: "one", 2: None},
    ],
    ids=str,
)
def test_trees_of_numbers_texts_and_arrays_are_content(content):
    check_content(content)


@pytest.mark.parametrize(
    "content, place",
    [
        ({1, 2}, "content is a set"),
        ({"a": [0, object()]}, r"content\['a'\]\[1\] is a object"),
        (np.array([None]), "content is a ndarray"),
        (np.array(["text"]), "content is a ndarray"),
        (b"bytes", "content is a bytes"),
        (lambda: 0, "content is a function"),
        ({"a": {1: 2, "b": 3}}, r"content\['a'\] has keys of the types \['int', 'str'\]"),
        ({(1, 2): 3}, r"keys of the types \['tuple'\]"),
        (jax.random.key(0), "content is a PRNGKeyArray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_refused_by_its_place(content, place):
    with pytest.raises(TypeError, match=place):
        check_content(content)


def test_messages_arrive_by_time_then_round_then_serial():
    late, early = Message("m", 1, (0,), time_us=2), Message("m", 1, (0,), time_us=1, round=5)
    older = Message("m", 1, (0,), time_us=2, round=-1, serial=9)
    second = Message("m", 1, (0,), time_us=2, serial=1)
    ordered = sorted([second, late, early, older], key=lambda m: m.delivery_order)
    assert ordered == [early, older, late, second]


def test_a_reply_goes_back_with_the_round_the_request_and_the_time_that_it_took():
    asked = Message("model_para", 0, (7,), round=3, time_us=100, request=12)
    assert asked.reply("failure", "no power", 50) == Message(
        "failure", 7, (0,), "no power", 3, 150, request=12
    )
    with pytest.raises(ValueError, match=r"for \[1, 2\] has no one who could reply"):
        Message("model_para", 0, (1, 2)).reply("failure")
