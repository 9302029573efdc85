"""Teachers and students: a text encoder of the BERT family with the head of a task.

The heads are those of each family's own code (transformers', and for TinyBERT that of its authors),
so that published weights give the numbers that they give there. Sizes by name are in `sizes`.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.means import mean_of_tokens
from jaxlab.distillation.terms import Shape
from jaxlab.layers.activations import ACTIVATIONS
from jaxlab.layers.attention import AttentionImplementation
from jaxlab.layers.bert import BertConfig, BertEncoder, RunBlocks
from jaxlab.layers.dense import Dense
from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertEncoder
from jaxlab.layers.normalization import LayerNorm
from jaxlab.layers.stacking import LAYER_PREFIX

FAMILIES = ("bert", "tinybert", "roberta", "mpnet", "electra", "distilbert", "mobilebert")
TASKS = ("none", "classification", "regression", "tagging", "span", "mlm")
POOLINGS = ("first", "mean")

_SENTENCE_TASKS = ("none", "classification", "regression")
_LEAST_LABELS = {"classification": 2, "regression": 1, "tagging": 2}
_WITH_POOLER = ("bert", "tinybert")

EncoderConfig = BertConfig | MobileBertConfig


@dataclasses.dataclass(frozen=True)
class TextModelConfig:
    """An encoder, the head on it, and how a text becomes one vector.

    Attributes:
      encoder: sizes and conventions of the encoder.
      family: whose head: `bert` (MiniLM, too), `tinybert` (ReLU before the classifier), `roberta`,
        `mpnet`, `electra`, `distilbert`, or `mobilebert` where the encoder is one.
      task: `none` gives no logits, `classification` and `regression` one row a text, `tagging` one
        row a token, `span` (start, end) a token as SQuAD has it, `mlm` one number a word a token.
      num_labels: width of the logits of classification, regression and tagging; 2 for `span`,
        0 for `none` and `mlm`.
      pooling: `first` takes the first token as the family's head does; `mean` the mean over the
        real tokens, as sentence-transformers do, and then dropout and one dense layer.
      with_pooler: `first` of BERT and TinyBERT goes through a dense layer and tanh; without a task
        that of RoBERTa and MPNet does, too. Turn it off for checkpoints that lack it, as the
        published MobileBERT.
      head_dropout: dropout rate before the dense layers of a head; `None` is that of the hidden
        states, or the 0.2 of DistilBERT's classifier.
    """

    encoder: EncoderConfig
    family: str = "bert"
    task: str = "none"
    num_labels: int = 0
    pooling: str = "first"
    with_pooler: bool = True
    head_dropout: float | None = None

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
          ValueError: listing all that is wrong.
        """
        problems = [
            f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}"
            for name, known in (("family", FAMILIES), ("task", TASKS), ("pooling", POOLINGS))
            if getattr(self, name) not in known
        ]
        wanted = {"span": 2, "none": 0, "mlm": 0}.get(self.task)
        least = _LEAST_LABELS.get(self.task, 0)
        if (wanted is not None and self.num_labels != wanted) or self.num_labels < least:
            needs = f"at least {least}" if wanted is None else str(wanted)
            problems.append(f"num_labels={self.num_labels}; task={self.task!r} takes {needs}")
        if self.head_dropout is not None and not 0.0 <= self.head_dropout < 1.0:
            problems.append(f"head_dropout={self.head_dropout} is a rate; use one in [0, 1)")
        if isinstance(self.encoder, MobileBertConfig) != (self.family == "mobilebert"):
            problems.append(
                f"family={self.family!r} with a {type(self.encoder).__name__}; mobilebert has a "
                "MobileBertConfig, every other family a BertConfig"
            )
        elif isinstance(self.encoder, MobileBertConfig) and self.task == "mlm":
            sizes = self.encoder
            if sizes.width < sizes.embedding_width:
                problems.append(
                    f"embedding_width={sizes.embedding_width} of a MobileBERT that puts out words "
                    f"is more than its width={sizes.width}; use as much at most"
                )
        if self._needs_pooler and not self.with_pooler:
            problems.append(
                f"a {self.family} for {self.task} on its first token needs its pooler: set "
                "with_pooler=True, or pooling='mean'"
            )
        if problems:
            raise ValueError("TextModelConfig: " + "; ".join(problems))

    @property
    def shape(self) -> Shape:
        """What an objective has to know of the model."""
        inner = getattr(self.encoder, "bottleneck_width", None)
        return Shape(self.encoder.num_layers, self.encoder.width, self.encoder.num_heads, inner)

    @property
    def is_sentence_level(self) -> bool:
        """Whether a text becomes one vector."""
        return self.task in _SENTENCE_TASKS

    @property
    def has_pooler(self) -> bool:
        """Whether there are parameters of a pooler."""
        if not self.with_pooler or not self.is_sentence_level or self.pooling != "first":
            return False
        alone = self.family in ("roberta", "mpnet") and self.task == "none"
        return self.family in (*_WITH_POOLER, "mobilebert") or alone

    @property
    def dropout_of_head(self) -> float:
        """The rate that the head drops with."""
        if self.head_dropout is not None:
            return self.head_dropout
        is_distilbert = self.family == "distilbert" and self.pooling == "first"
        if is_distilbert and self.task in ("classification", "regression"):
            return 0.2
        return self.encoder.hidden_dropout

    @property
    def _needs_pooler(self) -> bool:
        on_first = self.task in ("classification", "regression") and self.pooling == "first"
        return on_first and self.family in _WITH_POOLER


class SentenceHead(nn.Module):
    """One row of logits from what a text was pooled to.

    Parameters: `out`, and for RoBERTa, MPNet, ELECTRA and DistilBERT on the first token `dense`.

    Attributes:
      config: family, pooling and sizes.
      train: apply dropout.
    """

    config: TextModelConfig
    train: bool = False

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch width"]) -> Float[Array, "batch labels"]:
        """Compute the logits.

        Args:
          pooled: of any floating type.

        Returns:
          float32.
        """
        config, x = self.config, pooled
        init = nn.initializers.normal(config.encoder.init_std)
        drop = nn.Dropout(config.dropout_of_head, deterministic=not self.train)
        dense = Dense(config.encoder.width, x.dtype, init, name="dense")
        family = "bert" if config.pooling == "mean" else config.family
        if family == "tinybert":
            x = jax.nn.relu(x)  # and no dropout: TinyBERT's transformer/modeling.py
        elif family == "distilbert":
            x = drop(jax.nn.relu(dense(x)))
        elif family == "electra":
            x = drop(ACTIVATIONS["gelu"](dense(drop(x))))
        elif family in ("roberta", "mpnet"):
            x = drop(jnp.tanh(dense(drop(x))))
        else:
            x = drop(x)
        return Dense(config.num_labels, jnp.float32, init, name="out")(x)


class TokenHead(nn.Module):
    """One row of logits a token: tags, or where a span starts and ends.

    Attributes:
      config: task and sizes.
      train: apply dropout (tags only).
    """

    config: TextModelConfig
    train: bool = False

    @nn.compact
    def __call__(self, hidden: Float[Array, "batch time width"]) -> Float[Array, "batch time out"]:
        """Compute the logits, in float32."""
        config, x = self.config, hidden
        if config.task == "tagging":
            x = nn.Dropout(config.dropout_of_head, deterministic=not self.train)(x)
        init = nn.initializers.normal(config.encoder.init_std)
        return Dense(config.num_labels, jnp.float32, init, name="out")(x)


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary: dense, activation, norm, and the word embeddings transposed.

    MobileBERT's embeddings are narrower than what they are multiplied with: its output has further
    features of every word, `features` (width - embedding width, vocabulary).

    Parameters: `dense`, `norm`, `bias`, and `features` of MobileBERT.

    Attributes:
      config: family and sizes.
    """

    config: TextModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch time width"],
        embeddings: Float[Array, "vocabulary embedding_width"],
    ) -> Float[Array, "batch time vocabulary"]:
        """Compute the logits, in float32.

        Args:
          hidden: last hidden states.
          embeddings: the table of the encoder, which is the output's kernel, too.
        """
        sizes = self.config.encoder
        own = sizes.activation if self.config.family not in ("roberta", "mpnet", "electra") else ""
        init = nn.initializers.normal(sizes.init_std)
        is_mobile = isinstance(sizes, MobileBertConfig)
        width = sizes.width if is_mobile else sizes.embedding_dim
        x = Dense(width, hidden.dtype, init, name="dense")(hidden)
        x = LayerNorm(sizes.layer_norm_epsilon, name="norm")(ACTIVATIONS[own or "gelu"](x))
        bias = self.param("bias", nn.initializers.zeros, (sizes.vocab_size,))
        if is_mobile and width > sizes.embedding_width:
            shape = (width - sizes.embedding_width, sizes.vocab_size)
            embeddings = jnp.concatenate([embeddings, self.param("features", init, shape).T], 1)
        logits = jnp.einsum(
            "btd,vd->btv", x, embeddings.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + bias[None, None]


class TextModel(nn.Module):
    """Token ids to features: logits, pooled output, and what is tapped.

    Parameters: `encoder` (see `BertEncoder` and `MobileBertEncoder`), and as the config has them
    `pooler`, `head` and `lm_head`.

    Attributes:
      config: encoder, family, task.
      remat: recompute every block in the backward pass.
      scan: compile one block and scan over the stacked parameters.
      implementation: see `jaxlab.layers.attention`.
      dtype: type of the computation; norms, scores, softmax, pooling and logits are float32.
    """

    config: TextModelConfig
    remat: bool = False
    scan: bool = False
    implementation: AttentionImplementation = "einsum"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch time"],
        *,
        mask: Bool[Array, "batch time"] | None = None,
        types: Int[Array, "batch time"] | None = None,
        train: bool = False,
        taps: Collection[str] = (),
        run_blocks: RunBlocks | None = None,
    ) -> Features:
        """Run the model.

        Args:
          ids: token ids.
          mask: True for real tokens; `None` derives it from the id of padding.
          types: part of the text of each token; `None` is part 0.
          train: apply dropout (needs the `dropout` stream).
          taps: what else to return, of `hidden`, `scores`, `probabilities`, `queries`, `keys` and
            `values`.
          run_blocks: what runs in the place of the encoder's blocks, between its embeddings and the
            head.

        Returns:
          `logits` (unless the task is `none`), `pooled` (for tasks of whole texts: what the head
          takes), and what `taps` names.

        Raises:
          ValueError: if a text is too long, or a tap does not exist.
        """
        config = self.config
        is_mobile = isinstance(config.encoder, MobileBertConfig)
        make: Callable[..., Any] = MobileBertEncoder if is_mobile else BertEncoder
        encoder = make(
            config.encoder,
            remat=self.remat,
            scan=self.scan,
            implementation=self.implementation,
            dtype=self.dtype,
            name="encoder",
        )
        mask = ids != config.encoder.pad_id if mask is None else mask
        only_first = config.is_sentence_level and config.pooling == "first"
        hidden, tapped = encoder(
            ids,
            mask=mask,
            types=types,
            train=train,
            num_outputs=1 if only_first else None,
            taps=taps,
            run_blocks=run_blocks,
        )
        features = Features(**tapped._asdict())
        if config.task == "mlm":
            words = encoder.get_variable("params", "word_embeddings")
            head = LanguageModelHead(config, name="lm_head")
            return features._replace(logits=head(hidden, words))
        if not config.is_sentence_level:
            return features._replace(logits=TokenHead(config, train, name="head")(hidden))
        pooled = self._pool(hidden, mask)
        features = features._replace(pooled=pooled)
        if config.task == "none":
            return features
        return features._replace(logits=SentenceHead(config, train, name="head")(pooled))

    def _pool(self, hidden: Array, mask: Array) -> Array:
        if self.config.pooling == "mean":
            return mean_of_tokens(hidden, mask)
        if not self.config.has_pooler:
            return hidden[:, 0]
        init = nn.initializers.normal(self.config.encoder.init_std)
        pooler = Dense(self.config.encoder.width, self.dtype, init, name="pooler")
        return jnp.tanh(pooler(hidden[:, 0]))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: TextModelConfig, key: Key[Array, ""]) -> PyTree:
    """Parameters of a model that has learned nothing.

    Args:
      config: of the model.
      key: of the draw.
    """
    return TextModel(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.lru_cache(maxsize=32)
def param_shapes(config: TextModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a model.

    Args:
      config: of the model. One layer is traced, whatever their number is.
    """
    shallow = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, num_layers=1))
    traced = flatten(jax.eval_shape(functools.partial(init_params, shallow), jax.random.key(0)))
    of_layer, shapes = f"encoder/{LAYER_PREFIX}0/", {}
    for path, leaf in traced.items():
        if not path.startswith(of_layer):
            shapes[path] = leaf.shape
            continue
        for i in range(config.encoder.num_layers):
            name = path.removeprefix(of_layer)
            shapes[f"encoder/{LAYER_PREFIX}{i}/{name}"] = leaf.shape
    return MappingProxyType(shapes)
