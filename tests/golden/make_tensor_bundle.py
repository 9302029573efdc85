"""Makes checkpoints of TensorFlow: `python tests/golden/make_tensor_bundle.py`.

Needs tensorflow 2.21.0. Writes into tensor_bundle:

* types.ckpt with two files of data: variables of every type that is read, a scalar, an empty one, a
  text and many more;
* bert_model.ckpt with bert_config.json: a BERT of two layers of width 4 under the names of Google's
  checkpoints, beside moments of its optimizer.
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

FOLDER = Path(__file__).with_name("tensor_bundle")
TYPES = ("float32", "float64", "int32", "uint8", "int16", "int8", "int64", "bool", "bfloat16")
LAYERS, WIDTH, HEADS, MLP, VOCABULARY, POSITIONS, MANY = 2, 4, 2, 8, 11, 16, 150


def of_every_type() -> dict[str, tf.Tensor]:
    numbers = np.arange(6).reshape(2, 3)
    made = {f"types/{name}": tf.cast(tf.constant(numbers), name) for name in TYPES}
    made |= {
        f"types/{name}": tf.cast(tf.constant(numbers), name)
        for name in ("uint16", "float16", "uint32", "uint64")
    }
    made["types/scalar"] = tf.constant(2.5)
    made["types/empty"] = tf.zeros((0, 3))
    made["types/text"] = tf.constant(["left", "out"])
    return made | {f"many/variable_{i:03d}": tf.constant(i) for i in range(MANY)}


def of_bert() -> dict[str, tf.Tensor]:
    shapes = {
        "embeddings/word_embeddings": (VOCABULARY, WIDTH),
        "embeddings/position_embeddings": (POSITIONS, WIDTH),
        "embeddings/token_type_embeddings": (2, WIDTH),
        "embeddings/LayerNorm/gamma": (WIDTH,),
        "embeddings/LayerNorm/beta": (WIDTH,),
        "pooler/dense/kernel": (WIDTH, WIDTH),
        "pooler/dense/bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        dense = {f"attention/self/{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")}
        dense |= {
            "attention/output/dense": (WIDTH, WIDTH),
            "intermediate/dense": (WIDTH, MLP),
            "output/dense": (MLP, WIDTH),
        }
        for name, shape in dense.items():
            shapes[f"encoder/layer_{layer}/{name}/kernel"] = shape
            shapes[f"encoder/layer_{layer}/{name}/bias"] = shape[1:]
        for name in ("attention/output/LayerNorm", "output/LayerNorm"):
            shapes[f"encoder/layer_{layer}/{name}/gamma"] = (WIDTH,)
            shapes[f"encoder/layer_{layer}/{name}/beta"] = (WIDTH,)
    made, rng = {}, np.random.default_rng(0)
    for name, shape in shapes.items():
        made[f"bert/{name}"] = tf.constant(rng.standard_normal(shape, dtype=np.float32))
        for moment in ("adam_m", "adam_v"):
            made[f"bert/{name}/{moment}"] = tf.zeros(shape)
    made["global_step"] = tf.constant(1000, tf.int64)
    return made


def save(prefix: Path, variables: dict[str, tf.Tensor]) -> None:
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=list(variables.values()),
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    every, parts = list(of_every_type().items()), []
    for i in range(2):
        parts.append(FOLDER / f"types.part{i}")
        save(parts[i], dict(every[i::2]))
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(part) for part in parts],
        destination_prefix=str(FOLDER / "types.ckpt"),
    )
    save(FOLDER / "bert_model.ckpt", of_bert())
    sizes = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
    }
    (FOLDER / "bert_config.json").write_text(json.dumps(sizes, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
