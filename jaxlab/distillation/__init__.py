"""Unified knowledge distillation of transformers: what a student can learn from its teacher.

After Lu et al. 2022, arXiv:2206.14366, and the systems that it compares: a distillation is a choice
of knowledge (`knowledge`), of which layer learns from which (`matching`), of a distance
(`responses`, `hidden`, `attentions`, `relations`) and of weights and temperatures over time
(`schedules`)::

    import jax.numpy as jnp

    from jaxlab import distillation as kd

    teacher, student = jnp.ones((4, 16, 768)), jnp.zeros((4, 16, 768))
    mask = jnp.ones((4, 16), bool)
    kd.match_layers("gap", 12, 4)  # ((2, 0), (5, 1), (8, 2), (11, 3))
    kd.hidden_mse(student, teacher, mask).value  # 1.0

Every loss is a `Mean`, a sum and a count over the real tokens of the global batch: padding, the
number of devices and microbatches (`pool`) do not change it.
"""

from jaxlab.distillation.attentions import (
    attention_ce,
    attention_ce_mean,
    attention_kl,
    attention_mse,
    attention_mse_mean,
    attention_mse_sum,
    attention_tinybert,
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
from jaxlab.distillation.matching import STRATEGIES, match_layers
from jaxlab.distillation.means import Mean, masked_mean, pool
from jaxlab.distillation.mobilebert import load_mobilebert, save_mobilebert
from jaxlab.distillation.model import (
    SIZES,
    TextModel,
    TextModelConfig,
    flops,
    init_params,
    mean_of_tokens,
    num_params,
)
from jaxlab.distillation.published import minilm_l3, minilm_l6, mpnet_base
from jaxlab.distillation.relations import example_relation, relation
from jaxlab.distillation.responses import logits_ce, logits_kl, logits_mse, shift_probability
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
from jaxlab.distillation.seq2seq import load_seq2seq, save_seq2seq
from jaxlab.distillation.weights import (
    Pretrained,
    load_params,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "CATALOGUE",
    "SIZES",
    "STRATEGIES",
    "Convention",
    "Features",
    "Knowledge",
    "Mean",
    "Pretrained",
    "TextModel",
    "TextModelConfig",
    "annealing_factor",
    "attention_ce",
    "attention_ce_mean",
    "attention_kl",
    "attention_mse",
    "attention_mse_mean",
    "attention_mse_sum",
    "attention_tinybert",
    "constant",
    "continuation_factor",
    "cwsm_temperature",
    "decay",
    "example_relation",
    "feature_gram",
    "find_knowledge",
    "flops",
    "flsw_temperature",
    "growth",
    "hidden_cosine",
    "hidden_mse",
    "hidden_pkd",
    "init_params",
    "load_mobilebert",
    "load_params",
    "load_pretrained",
    "load_seq2seq",
    "logits_ce",
    "logits_kl",
    "logits_mse",
    "masked_mean",
    "match_layers",
    "mean_of_tokens",
    "minilm_l3",
    "minilm_l6",
    "mpnet_base",
    "num_params",
    "piecewise",
    "pool",
    "relation",
    "save_mobilebert",
    "save_pretrained",
    "save_seq2seq",
    "shift_probability",
    "token_similarity",
]
