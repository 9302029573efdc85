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
from jaxlab.distillation.grammar import Match, format_matches, from_textbrewer, parse_matches
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
from jaxlab.distillation.model import (
    SIZES,
    TextModel,
    TextModelConfig,
    flops,
    init_params,
    mean_of_tokens,
    num_params,
)
from jaxlab.distillation.objective import (
    HardConfig,
    Losses,
    Objective,
    ObjectiveConfig,
    ResponseConfig,
    Shape,
    Term,
    compile_objective,
)
from jaxlab.distillation.projections import init_projection, principal_projection, project
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
from jaxlab.distillation.sweep import (
    Variants,
    init_sweep,
    make_sweep_step,
    make_variants,
    student_of,
)
from jaxlab.distillation.train import (
    Parts,
    distillation_params,
    exported_params,
    losses_of,
    make_distillation_step,
    make_forward,
)
from jaxlab.distillation.weights import (
    Pretrained,
    load_params,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "CATALOGUE",
    "Convention",
    "Features",
    "HardConfig",
    "Knowledge",
    "Losses",
    "Match",
    "Mean",
    "Objective",
    "ObjectiveConfig",
    "Parts",
    "Pretrained",
    "ResponseConfig",
    "SIZES",
    "STRATEGIES",
    "Shape",
    "Term",
    "TextModel",
    "TextModelConfig",
    "Variants",
    "annealing_factor",
    "attention_ce",
    "attention_ce_mean",
    "attention_kl",
    "attention_mse",
    "attention_mse_mean",
    "attention_mse_sum",
    "attention_tinybert",
    "compile_objective",
    "constant",
    "continuation_factor",
    "cwsm_temperature",
    "decay",
    "distillation_params",
    "example_relation",
    "exported_params",
    "feature_gram",
    "find_knowledge",
    "flops",
    "flsw_temperature",
    "format_matches",
    "from_textbrewer",
    "growth",
    "hidden_cosine",
    "hidden_mse",
    "hidden_pkd",
    "init_params",
    "init_projection",
    "init_sweep",
    "load_params",
    "load_pretrained",
    "logits_ce",
    "logits_kl",
    "logits_mse",
    "losses_of",
    "make_distillation_step",
    "make_forward",
    "make_sweep_step",
    "make_variants",
    "masked_mean",
    "match_layers",
    "mean_of_tokens",
    "minilm_l3",
    "minilm_l6",
    "mpnet_base",
    "num_params",
    "parse_matches",
    "piecewise",
    "pool",
    "principal_projection",
    "project",
    "relation",
    "save_pretrained",
    "shift_probability",
    "student_of",
    "token_similarity",
]
