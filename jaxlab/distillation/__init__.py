"""Unified knowledge distillation of transformers: what a student can learn from its teacher.

After Lu et al. 2022, arXiv:2206.14366, and the systems that it compares: a distillation is a choice
of knowledge (`knowledge`), of which layer learns from which (`matching`), of a distance
(`responses`, `hidden`, `attentions`, `relations`) and of weights and temperatures over time
(`schedules`). Around that: labels (`hard_losses`), weights of terms (`fusion`), a student's start
(`initializers`), structure (`theseus`, `progressive`), matchings that move (`soft_matching`) and
advice on them (`advisor`), teachers on disk (`teacher_cache`) and several of them (`ensembles`).
`rows` and `data` make batches of texts, `augment` more texts, `answers` windows over passages,
`vocabularies` bring labels and ids of two models together; `load` makes a trained model ready for
texts::

    import jax.numpy as jnp

    from jaxlab import distillation as kd

    teacher, student = jnp.ones((4, 16, 768)), jnp.zeros((4, 16, 768))
    mask = jnp.ones((4, 16), bool)
    kd.match_layers("gap", 12, 4)  # ((2, 0), (5, 1), (8, 2), (11, 3))
    kd.hidden_mse(student, teacher, mask).value  # 1.0

Every loss is a `Mean`, a sum and a count over the real tokens of the global batch: padding, the
number of devices and microbatches (`pool`) do not change it.
"""

from jaxlab.distillation.advisor import (
    Advice,
    Compared,
    advise,
    best_monotone,
)
from jaxlab.distillation.answers import (
    FoundAnswer,
    Windows,
    best_answers,
    make_windows,
)
from jaxlab.distillation.api import LoadedModel, TextPredictions, load
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
from jaxlab.distillation.cached_features import cached_features
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.data import (
    BUCKETS,
    BatchConfig,
    EvalBatches,
    TrainBatches,
    make_eval_batches,
    make_train_batches,
    steps_per_epoch,
)
from jaxlab.distillation.ensembles import (
    confidence_weights,
    mean_logits,
    mean_probabilities,
    task_of_step,
    task_probabilities,
)
from jaxlab.distillation.evaluate import (
    Predictions,
    predict,
)
from jaxlab.distillation.fusion import (
    FixedWeights,
    Fused,
    GradientBalance,
    LogVariances,
    RunningMeans,
)
from jaxlab.distillation.grammar import (
    Match,
    format_matches,
    from_textbrewer,
    parse_matches,
)
from jaxlab.distillation.hard_losses import (
    check_labels,
    kept_share,
    label_ce,
    label_mse,
    r_drop,
    span_ce,
    token_ce,
)
from jaxlab.distillation.hidden import (
    Convention,
    feature_gram,
    hidden_cosine,
    hidden_mse,
    hidden_pkd,
    token_similarity,
)
from jaxlab.distillation.initializers import (
    HeadCounts,
    Started,
    StudentStart,
    shared_vocabulary,
    start_from_distilled,
    start_student,
)
from jaxlab.distillation.knowledge import (
    CATALOGUE,
    Features,
    Knowledge,
    find_knowledge,
)
from jaxlab.distillation.masking import MaskingConfig
from jaxlab.distillation.matching import (
    STRATEGIES,
    match_layers,
)
from jaxlab.distillation.means import (
    Mean,
    masked_mean,
    pool,
)
from jaxlab.distillation.model import (
    TextModel,
    TextModelConfig,
    init_params,
    mean_of_tokens,
)
from jaxlab.distillation.objective import (
    Losses,
    Objective,
)
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.principal import (
    fit_principal,
    uses_principal,
)
from jaxlab.distillation.programs import (
    read_program,
    write_program,
)
from jaxlab.distillation.progressive import (
    ProgressiveTransfer,
    scale_layer_gradients,
    scale_layer_updates,
)
from jaxlab.distillation.projections import (
    init_projection,
    principal_projection,
    project,
)
from jaxlab.distillation.published import (
    minilm_l3,
    minilm_l6,
    mpnet_base,
)
from jaxlab.distillation.relations import (
    example_relation,
    relation,
)
from jaxlab.distillation.responses import (
    logits_ce,
    logits_kl,
    logits_mse,
    shift_probability,
)
from jaxlab.distillation.rows import (
    TokenRows,
    map_rows,
    tokenize_tagged,
    tokenize_texts,
    without_labels,
)
from jaxlab.distillation.schedules import (
    SoftAndHard,
    annealing_factor,
    annealing_kd,
    constant,
    continuation_factor,
    continuation_kd,
    cwsm_temperature,
    decay,
    flsw_temperature,
    growth,
    piecewise,
)
from jaxlab.distillation.seq2seq import (
    load_seq2seq,
    save_seq2seq,
    seq2seq_shape,
)
from jaxlab.distillation.sizes import (
    SIZES,
    flops,
    num_params,
)
from jaxlab.distillation.soft_matching import (
    EmdMatching,
    LayerWeights,
    entropic_flow,
    exact_flow,
    layer_attention,
    random_teacher_layers,
)
from jaxlab.distillation.sweep import (
    Variants,
    init_sweep,
    make_sweep_step,
    make_variants,
    student_of,
)
from jaxlab.distillation.teacher_cache import (
    Kept,
    TeacherCache,
    TeacherCacheWriter,
    fill_cache,
    teacher_identity,
)
from jaxlab.distillation.terms import Shape, Term
from jaxlab.distillation.theseus import (
    draw_replaced,
    extract_successor,
    init_successors,
    make_theseus_step,
    mixed_stack,
    replacing_probability,
    theseus_features,
)
from jaxlab.distillation.top_logits import (
    TopLogits,
    rebuild_logits,
    top_logits,
)
from jaxlab.distillation.train import (
    Parts,
    distillation_extra,
    distillation_params,
    exported_params,
    losses_of,
    make_distillation_step,
    make_forward,
    make_seq2seq_forward,
)
from jaxlab.distillation.vocabularies import (
    map_labels,
    map_vocabulary,
)
from jaxlab.distillation.weights import (
    Pretrained,
    load_params,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "Advice",
    "AugmentConfig",
    "BUCKETS",
    "BatchConfig",
    "CATALOGUE",
    "Compared",
    "Convention",
    "EmdMatching",
    "EvalBatches",
    "Features",
    "FixedWeights",
    "FoundAnswer",
    "Fused",
    "GradientBalance",
    "HardConfig",
    "HeadCounts",
    "Kept",
    "Knowledge",
    "LayerWeights",
    "LoadedModel",
    "LogVariances",
    "Losses",
    "MaskingConfig",
    "Match",
    "Mean",
    "ModelCandidates",
    "NUM_COPIES",
    "NearestWords",
    "Objective",
    "ObjectiveConfig",
    "Parts",
    "Predictions",
    "Pretrained",
    "ProgressiveTransfer",
    "ResponseConfig",
    "RunningMeans",
    "SIZES",
    "STRATEGIES",
    "Shape",
    "SoftAndHard",
    "Started",
    "StudentStart",
    "TeacherCache",
    "TeacherCacheWriter",
    "Term",
    "TextModel",
    "TextModelConfig",
    "TextPredictions",
    "TokenRows",
    "TopLogits",
    "TrainBatches",
    "Variants",
    "Windows",
    "advise",
    "annealing_factor",
    "annealing_kd",
    "attention_ce",
    "attention_ce_mean",
    "attention_kl",
    "attention_mse",
    "attention_mse_mean",
    "attention_mse_sum",
    "attention_tinybert",
    "augment_tinybert",
    "best_answers",
    "best_monotone",
    "cached_features",
    "check_labels",
    "compile_objective",
    "confidence_weights",
    "constant",
    "continuation_factor",
    "continuation_kd",
    "cwsm_temperature",
    "decay",
    "distillation_extra",
    "distillation_params",
    "draw_replaced",
    "embedding_neighbours",
    "entropic_flow",
    "exact_flow",
    "example_relation",
    "exported_params",
    "extract_successor",
    "feature_gram",
    "fill_cache",
    "find_knowledge",
    "fit_principal",
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
    "init_successors",
    "init_sweep",
    "kept_share",
    "label_ce",
    "label_mse",
    "layer_attention",
    "load",
    "load_params",
    "load_pretrained",
    "load_seq2seq",
    "logits_ce",
    "logits_kl",
    "logits_mse",
    "losses_of",
    "make_distillation_step",
    "make_eval_batches",
    "make_forward",
    "make_seq2seq_forward",
    "make_sweep_step",
    "make_theseus_step",
    "make_train_batches",
    "make_variants",
    "make_windows",
    "map_labels",
    "map_rows",
    "map_vocabulary",
    "masked_mean",
    "match_layers",
    "mean_logits",
    "mean_of_tokens",
    "mean_probabilities",
    "minilm_l3",
    "minilm_l6",
    "mixed_stack",
    "mpnet_base",
    "num_params",
    "parse_matches",
    "piecewise",
    "pool",
    "predict",
    "principal_projection",
    "project",
    "r_drop",
    "random_teacher_layers",
    "read_glove",
    "read_program",
    "rebuild_logits",
    "relation",
    "replacing_probability",
    "save_pretrained",
    "save_seq2seq",
    "scale_layer_gradients",
    "scale_layer_updates",
    "scores_from_rows",
    "seq2seq_shape",
    "shared_vocabulary",
    "shift_probability",
    "span_ce",
    "start_from_distilled",
    "start_student",
    "steps_per_epoch",
    "student_of",
    "task_of_step",
    "task_probabilities",
    "teacher_identity",
    "theseus_features",
    "token_ce",
    "token_similarity",
    "tokenize_tagged",
    "tokenize_texts",
    "top_logits",
    "uses_principal",
    "without_labels",
    "write_program",
]
