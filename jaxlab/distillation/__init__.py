"""Unified knowledge distillation of transformers: what a student can learn from its teacher.

After Lu et al. 2022, arXiv:2206.14366, and the systems that it compares: a distillation is a choice
of knowledge (`knowledge`), of which layer learns from which (`matching`), of a distance
(`responses`, `hidden`, `attentions`, `relations`) and of weights and temperatures over time
(`schedules`). `rows` and `data` make batches of texts, `augment` more texts, `answers` windows over
passages, `vocabularies` bring labels and ids of two models together::

    import jax.numpy as jnp

    from jaxlab import distillation as kd

    teacher, student = jnp.ones((4, 16, 768)), jnp.zeros((4, 16, 768))
    mask = jnp.ones((4, 16), bool)
    kd.match_layers("gap", 12, 4)  # ((2, 0), (5, 1), (8, 2), (11, 3))
    kd.hidden_mse(student, teacher, mask).value  # 1.0

Every loss is a `Mean`, a sum and a count over the real tokens of the global batch: padding, the
number of devices and microbatches (`pool`) do not change it.
"""

from jaxlab.distillation.answers import FoundAnswer, Windows, best_answers, make_windows
from jaxlab.distillation.attentions import (
    attention_ce,
    attention_ce_mean,
    attention_kl,
    attention_mse,
    attention_mse_mean,
    attention_mse_sum,
    attention_tinybert,
)
from jaxlab.distillation.augment import (
    NUM_COPIES,
    AugmentConfig,
    ModelCandidates,
    NearestWords,
    augment_tinybert,
    embedding_neighbours,
    read_glove,
    scores_from_rows,
)
from jaxlab.distillation.data import (
    BUCKETS,
    BatchConfig,
    EvalBatches,
    TrainBatches,
    make_eval_batches,
    make_train_batches,
    steps_per_epoch,
)
from jaxlab.distillation.hidden import (
    Convention,
    feature_gram,
    hidden_cosine,
    hidden_mse,
    hidden_pkd,
    token_similarity,
)
from jaxlab.distillation.knowledge import CATALOGUE, Features, Knowledge, find_knowledge
from jaxlab.distillation.masking import MaskingConfig
from jaxlab.distillation.matching import STRATEGIES, match_layers
from jaxlab.distillation.means import Mean, masked_mean, pool
from jaxlab.distillation.relations import example_relation, relation
from jaxlab.distillation.responses import logits_ce, logits_kl, logits_mse, shift_probability
from jaxlab.distillation.rows import (
    TokenRows,
    map_rows,
    tokenize_tagged,
    tokenize_texts,
    without_labels,
)
from jaxlab.distillation.schedules import (
    annealing_factor,
    constant,
    continuation_factor,
    cwsm_temperature,
    decay,
    flsw_temperature,
    growth,
    piecewise,
)
from jaxlab.distillation.vocabularies import map_labels, map_vocabulary

__all__ = [
    "BUCKETS",
    "CATALOGUE",
    "NUM_COPIES",
    "STRATEGIES",
    "AugmentConfig",
    "BatchConfig",
    "Convention",
    "EvalBatches",
    "Features",
    "FoundAnswer",
    "Knowledge",
    "MaskingConfig",
    "Mean",
    "ModelCandidates",
    "NearestWords",
    "TokenRows",
    "TrainBatches",
    "Windows",
    "annealing_factor",
    "attention_ce",
    "attention_ce_mean",
    "attention_kl",
    "attention_mse",
    "attention_mse_mean",
    "attention_mse_sum",
    "attention_tinybert",
    "augment_tinybert",
    "best_answers",
    "constant",
    "continuation_factor",
    "cwsm_temperature",
    "decay",
    "embedding_neighbours",
    "example_relation",
    "feature_gram",
    "find_knowledge",
    "flsw_temperature",
    "growth",
    "hidden_cosine",
    "hidden_mse",
    "hidden_pkd",
    "logits_ce",
    "logits_kl",
    "logits_mse",
    "make_eval_batches",
    "make_train_batches",
    "make_windows",
    "map_labels",
    "map_rows",
    "map_vocabulary",
    "masked_mean",
    "match_layers",
    "piecewise",
    "pool",
    "read_glove",
    "relation",
    "scores_from_rows",
    "shift_probability",
    "steps_per_epoch",
    "token_similarity",
    "tokenize_tagged",
    "tokenize_texts",
    "without_labels",
]
