"""A trained model, ready for texts: by folder of a run or of a model, with labels by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import distillation as kd
from jaxlab.layers import BertConfig

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "sun", "moon")


def write_model(folder, task="classification", num_labels=3, labels=("a", "b", "c")):
    encoder = BertConfig(9, 1, 8, 2, 16, max_positions=12)
    config = kd.TextModelConfig(encoder, task=task, num_labels=num_labels)
    params = kd.init_params(config, jax.random.key(0))
    vocabulary = folder.parent / "vocabulary"
    vocabulary.mkdir(parents=True, exist_ok=True)
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n", "utf-8")
    (vocabulary / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), "utf-8")
    kd.save_pretrained(folder, params, config, label_names=labels, vocabulary=vocabulary)
    return config, params


def test_texts_get_labels_and_probabilities_in_their_order(tmp_path):
    config, params = write_model(tmp_path / "run" / "model")
    model = kd.load(tmp_path / "run", batch_size=2)
    assert model.label_names == ("a", "b", "c") and model.max_length == 12
    assert "1 layers of 8" in repr(model) and "array" not in repr(model)
    texts = ["Red sun", "moon", "blue blue sun"]
    found = model.predict(texts)
    np.testing.assert_array_equal(model.predict(np.array(texts)).logits, found.logits)
    ids = jnp.array([[2, 5, 7, 3, 0], [2, 8, 3, 0, 0], [2, 6, 6, 7, 3]])
    expected = kd.TextModel(config).apply({"params": params}, ids, mask=ids != 0).logits
    np.testing.assert_allclose(found.logits, expected, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(expected), atol=1e-6)
    assert found.labels == tuple("abc"[place] for place in np.argmax(expected, axis=1))


def test_pairs_and_regressions(tmp_path):
    write_model(tmp_path / "number", "regression", 1, ())
    model = kd.load(tmp_path / "number", max_length=8)
    alone, together = model.predict(["sun"]), model.predict(["sun"], ["moon"])
    assert alone.labels == () and alone.probabilities.shape == (1, 0)
    assert alone.logits.shape == (1, 1) and alone.logits != together.logits


def test_labels_without_names_are_numbered(tmp_path):
    write_model(tmp_path / "model", labels=())
    assert kd.load(tmp_path / "model").label_names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_what_cannot_be_loaded_or_predicted_is_told(tmp_path):
    write_model(tmp_path / "model")
    write_model(tmp_path / "bare", "none", 0, ())
    model = kd.load(tmp_path / "model")
    with pytest.raises(TypeError, match="takes a list of texts; got the text 'sun'"):
        model.predict("sun")
    with pytest.raises(TypeError, match=r"texts\[1\] is \('sun', 'moon'\); wanted a str"):
        model.predict(iter(["sun", ("sun", "moon")]))
    with pytest.raises(ValueError, match="2 texts and 1 second texts"):
        model.predict(["sun", "moon"], ["red"])
    with pytest.raises(ValueError, match="0 texts"):
        model.predict([])
    with pytest.raises(ValueError, match="bare has no head of a task; load is for classification"):
        kd.load(tmp_path / "bare")
    with pytest.raises(ValueError, match="max_length=13 is not between 3 and the model's 12"):
        kd.load(tmp_path / "model", max_length=13)
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run has no model/, which a run leaves at its end"):
        kd.load(tmp_path / "run")
    with (tmp_path / "model" / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("violet\n")
    with pytest.raises(ValueError, match="has 9 embeddings of tokens, and the vocabulary has 10"):
        kd.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="has none of vocab.txt"):
        kd.save_pretrained(tmp_path / "x", {}, model.config, vocabulary=tmp_path)


def test_another_number_of_labels_is_told_by_their_names(tmp_path):
    write_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"tells 3 labels apart \(a, b, c\), and 6 are wanted"):
        kd.load_pretrained(tmp_path / "model", num_labels=6)
    found = kd.load_pretrained(
        tmp_path / "model", num_labels=6, fresh_head=True, key=jax.random.key(1)
    )
    assert found.params["head"]["out"]["bias"].shape == (6,)
    assert "array" not in repr(found) and len(repr(found)) < 2000
