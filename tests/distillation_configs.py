"""Steps of the distillation configs, traced without weights and data: networks of named sizes."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.distillation.courses import make_course
from experiments.distillation.models import Network, student_config
from experiments.distillation.settings import LABELS_ALONE
from experiments.distillation.teachers import Teachers
from jaxlab import distillation as kd

SIZES = kd.SIZES
_ROBERTA = SIZES["roberta_base"]
# Weights that configs name -> their sizes; `teacher` is a place for a BERT that knows the task.
NETWORKS = {
    "teacher": SIZES["bert_base"],
    "bert-base-uncased": SIZES["bert_base"],
    "google/bert_uncased_L-4_H-512_A-8": SIZES["bert_small"],
    "General_TinyBERT_4L_312D": SIZES["tinybert4"],
    "ib_bert": SIZES["ib_bert_large"],
    "distilroberta-base": dataclasses.replace(
        _ROBERTA, encoder=dataclasses.replace(_ROBERTA.encoder, num_layers=6)
    ),
    **{name: SIZES[name] for name in ("minilm_l6", "minilm_l3", "mpnet_base")},
}
# Data -> classes; the others have two.
CLASSES = {"mnli": 3, "r8": 8, "r52": 52, "20ng": 20, "trec": 6, "trec_fine": 50}
LENGTH = 8


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def task_of(config):
    """Task and labels of a config's data; of plain text words, if they matter to a loss."""
    if config.data.name == "stsb":
        return "regression", 1
    if config.data.name in ("squad", "squad2"):
        return "span", 2
    if config.data.name == "conll2003":
        return "tagging", 9
    if config.data.name != "corpus":
        return "classification", CLASSES.get(config.data.name, 2)
    objectives = [stage.objective for stage in (config.stage_1, config.stage_2) if stage]
    predicts = any(o.response.is_used or o.hard.weight for o in objectives)
    return ("mlm" if predicts else "none"), 0


def abstract_network(sizes, task, num_labels):
    sizes = dataclasses.replace(sizes, task=task, num_labels=num_labels)
    params = jax.eval_shape(lambda: kd.init_params(sizes, jax.random.key(0)))
    return Network(sizes, params)


def networks_of(config):
    """Teachers and student of a config."""
    task = task_of(config)
    teachers = tuple(abstract_network(NETWORKS[n], *task) for n in config.teacher.all_weights)
    student, sizes = config.student, teachers[0].config
    if student.weights in NETWORKS and student.weights != "teacher":
        sizes = NETWORKS[student.weights]
    if student.weights in ("teacher", "random") or student.num_layers:
        sizes = student_config(student, sizes)
    return Teachers(teachers), abstract_network(sizes, *task)


def stages_of(config):
    """The stages of a config with what trains in them, and what it learns from."""
    teachers, student = networks_of(config)
    found = [(config.teacher.stage, teachers.first, None), (config.hard_stage, student, None)]
    found += [(stage, student, teachers) for stage in (config.stage_1, config.stage_2)]
    return [each for each in found if each[0] is not None]


def program_of(config):
    """What decides the programs of a config: objectives and networks, not data, rates, lengths."""

    def plain_sizes(network):  # how many classes there are does not matter
        few = min(network.config.num_labels, 2)
        return dataclasses.replace(network.config, num_labels=few)

    stages = [
        (s.objective, s.method, s.lower_factor, s.num_microbatches, plain_sizes(student),
         None if teachers is None else plain_sizes(teachers.first))
        for s, student, teachers in stages_of(config)
    ]  # fmt: skip
    plain = [each for each in stages if each[0] != LABELS_ALONE or each[1] == "theseus"]
    return tuple(plain or stages)


def abstract_batch(config, rows):
    task, _ = task_of(config)
    tokens = {name: shape(rows, LENGTH, dtype=jnp.int32) for name in ("ids", "types")}
    sizes = {"mlm": (rows, LENGTH), "tagging": (rows, LENGTH), "span": (rows, 2)}.get(task, (rows,))
    return {
        **tokens,
        "mask": shape(rows, LENGTH, dtype=jnp.bool_),
        "label": shape(*sizes, dtype=jnp.float32 if task == "regression" else jnp.int32),
        "has_label": shape(rows, dtype=jnp.bool_),
    }


def distillation_steps(config):
    """The step of every stage, with the shapes of what it takes: state, frozen, batch, key."""
    task, _ = task_of(config)
    key, steps = jax.eval_shape(lambda: jax.random.key(0)), []
    config = dataclasses.replace(config, scan=True)  # layers are all alike: trace one of them
    for stage, student, teachers in stages_of(config):
        stage = stage.with_steps(10_000)
        objective = kd.compile_objective(
            stage.objective, student.shape, teachers and teachers.shape, task=task
        )

        def course(params, stage=stage, objective=objective, student=student, teachers=teachers):
            own = student._replace(params=params)
            return make_course(config, stage, objective, own, teachers)

        state = jax.eval_shape(lambda p, k, course=course: course(p).init(k), student.params, key)
        found = course(student.params)
        batch = abstract_batch(config, 2 * stage.num_microbatches)
        steps.append((found.step, (state, found.frozen, batch, key)))
    return steps
