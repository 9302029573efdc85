"""Federated learning driven by messages: simulated at compiled speed, synchronous or not.

A course is a server and clients that answer messages. Roles are data: which function answers which
message, and which condition sets off what. Pace (synchronous, over-selected, asynchronous), virtual
time, staleness and failures belong to the server; what is learned belongs to an `Algorithm`, pure
functions that know neither messages nor devices. In a simulation the clients that start from the
same model are one compiled program, sharded over the devices; the result does not depend on that.

Use::

    from jaxlab import federated, parallel

    schedule = federated.Schedule(batch_size=10, amount=1)  # one epoch a round
    task = federated.classification(model, jax.ShapeDtypeStruct((784,), jnp.float32))
    algorithm = federated.fed_avg(task, optax.sgd(0.1), schedule)
    data = federated.gather_clients({"x": images, "y": labels}, indices_of_each_client)
    strategy = federated.Strategy(
        kind="goal_achieved", cohort_size=50, min_updates=20, max_staleness=10,
        broadcast="after_receiving", staleness_exponent=0.5,
    )  # FedBuff
    config = federated.CourseConfig(num_clients=1000, num_rounds=100, strategy=strategy)
    simulation = federated.make_simulation(
        config, algorithm, data, task.init(jax.random.key(0)),
        mesh=parallel.make_mesh(), devices=devices, splits={"test": test},
    )
    state = federated.run_course(simulation.course, simulation.start())
    simulation.variables(state), state.server.evaluations, simulation.report(state)

Example:
  A course whose clients send numbers and whose server adds them up:

  >>> from jaxlab import federated
  >>> config = federated.CourseConfig(
  ...     num_clients=3, num_rounds=2, strategy=federated.Strategy(cohort_size=3)
  ... )
  >>> program = federated.ServerProgram(
  ...     broadcast=lambda model, round: model,
  ...     aggregate=lambda model, updates, round: (model + sum(u.content for u in updates), ()),
  ...     evaluation=lambda model, round: model,
  ...     merge=lambda model, metrics, round: {"model": model},
  ...     final=lambda model: model,
  ... )
  >>> sampler = federated.make_uniform_sampler()
  >>> client = federated.make_client(federated.ClientProgram(
  ...     train=lambda client, model, round: federated.Answer(client, duration_us=1000 * client),
  ...     evaluate=lambda client, model, round: {},
  ...     info={},
  ... ))
  >>> course = federated.Course(federated.make_server(config, program, sampler), client)
  >>> start = federated.start_course(course, federated.init_server(config, 0, sampler), 3)
  >>> end = federated.run_course(course, start)
  >>> end.server.model, end.server.clock_us
  (12, 6000)

Rooms: `messages`, `wire` (their bytes), `roles`, `completeness` (the check of the graph);
`strategy`, `devices`, `samplers`; `server_state`, `server`, `client`, `exchange` (clients that tell
each other something), `simulation` (on virtual time); `tasks`, `labelled`, `simclr`, `views`,
`probe`, `rankings`, `client_data`, `local` (what a client computes), `algorithm`, `fedavg`,
`algorithms` (a file each), `hooks`; `aggregators`, `robust`, `trust`, `clusters`, `compression`;
`cohort`, `padding`, `width`, `store`, `executor` (many clients as one program), `traffic` (bytes),
`forms` (of what is sent), `course_parts`, and `learning`, which puts them together; `checks` (of
numbers and optimizers); `checkpoint` (of a whole course), `fingerprint` (of its algorithm),
`records`; `monitoring` (reports, fairness), `stopping`, `evaluation`, `dissimilarity`,
`system_metrics`, `results_log`, `baselines` (clients alone, all data in one place); `splitters`,
`split_summary`, `feature_shift` (who holds what), and the packages `datasets`, `models` and
`deployment` (real machines), imported by name.

References:
  Xie, Wang, Gao, Chen, Yao, Kuang, Li, Ding, Zhou 2023, "FederatedScope: A Flexible Federated
  Learning Platform for Heterogeneity", PVLDB 16(5), arXiv:2204.05011.
"""

from jaxlab.federated.aggregators import (
    Aggregator,
    LinearAggregator,
    ModelAggregator,
    StackAggregator,
    weighted_mean,
)
from jaxlab.federated.algorithm import Algorithm, EvaluationInput, LocalResult
from jaxlab.federated.algorithms.adafedprox import ada_fed_prox
from jaxlab.federated.algorithms.atc import clustered
from jaxlab.federated.algorithms.ditto import ditto
from jaxlab.federated.algorithms.entries import is_normalization, named, train_only
from jaxlab.federated.algorithms.feddyn import fed_dyn
from jaxlab.federated.algorithms.fedem import fed_em, init_models
from jaxlab.federated.algorithms.fedgc import fed_gc
from jaxlab.federated.algorithms.fednova import fed_nova
from jaxlab.federated.algorithms.fedrep import fed_rep
from jaxlab.federated.algorithms.local_entropy import local_entropy
from jaxlab.federated.algorithms.mime import mime, mime_lite
from jaxlab.federated.algorithms.personal import fine_tuned, keep_local
from jaxlab.federated.algorithms.pfedme import pfedme
from jaxlab.federated.algorithms.qfedavg import q_fed_avg
from jaxlab.federated.algorithms.sam import sharpness_aware
from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.algorithms.server_optimizers import fed_adagrad, fed_adam, fed_yogi
from jaxlab.federated.algorithms.swa import stochastic_averaging
from jaxlab.federated.baselines import make_global_simulation, make_local_simulation, train_alone
from jaxlab.federated.checkpoint import (
    find_checkpoints,
    has_checkpoint,
    restore_course,
    save_course,
)
from jaxlab.federated.client import Answer, ClientProgram, ClientState, Failure, make_client
from jaxlab.federated.client_data import ClientData, ClientView, Schedule, gather_clients
from jaxlab.federated.clusters import clustered_means, nearest, same_group
from jaxlab.federated.completeness import (
    CompletenessReport,
    IncompleteCourseError,
    check_completeness,
    require_complete,
)
from jaxlab.federated.compression import (
    Codec,
    chain,
    compressed,
    dequantize_state_dict,
    is_original_entry,
    quantize,
    quantize_state_dict,
    rotate,
    top_k,
)
from jaxlab.federated.devices import (
    Device,
    answer_time_us,
    assign_devices,
    load_devices,
    slowness,
)
from jaxlab.federated.dissimilarity import (
    local_dissimilarity,
    measured,
    stacked_mean,
    update_norms,
)
from jaxlab.federated.evaluation import merge_clients
from jaxlab.federated.feature_shift import add_client_noise, rotate_client_images
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.hooks import hook_rounds, hook_task
from jaxlab.federated.labelled import classification, multi_label, regression
from jaxlab.federated.learning import Simulation, make_simulation
from jaxlab.federated.local import Limits, make_sgd_step, run_steps, train_client
from jaxlab.federated.messages import Message, check_content
from jaxlab.federated.monitoring import (
    Report,
    check_metric,
    fairness,
    is_larger_better,
    mean_metrics,
    metric_values,
)
from jaxlab.federated.results_log import append_row, read_rows
from jaxlab.federated.robust import (
    bulyan,
    centered_clipping,
    geometric_median,
    krum,
    median,
    multi_krum,
    norm_bounding,
    trimmed_mean,
)
from jaxlab.federated.roles import Event, Role
from jaxlab.federated.samplers import (
    NotEnoughClientsError,
    Sampler,
    make_group_sampler,
    make_responsiveness_sampler,
    make_uniform_sampler,
)
from jaxlab.federated.server import init_server, make_server
from jaxlab.federated.server_state import (
    Aggregation,
    CourseConfig,
    Evaluation,
    ServerProgram,
    ServerState,
    TooManyFailuresError,
    Update,
)
from jaxlab.federated.simclr import contrastive, nt_xent
from jaxlab.federated.simulation import Course, CourseState, run_course, start_course, step
from jaxlab.federated.split_summary import SplitSummary, summarize_split
from jaxlab.federated.splitters import (
    split_by_dirichlet,
    split_by_key,
    split_by_quantity,
    split_by_shards,
    split_iid,
    split_like,
)
from jaxlab.federated.stopping import EarlyStop, best_evaluation, performance_drop
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError, Strategy, staleness_weight
from jaxlab.federated.system_metrics import ModelCost, count_flops, measure_model
from jaxlab.federated.tasks import LossOutput, Task, supervised
from jaxlab.federated.traffic import MessageSizes, Traffic, message_sizes
from jaxlab.federated.trust import fl_trust
from jaxlab.federated.width import use_cpu_cores
from jaxlab.federated.wire import (
    WireError,
    name_leaves,
    pack,
    pack_message,
    packed_size,
    restore_leaves,
    unpack,
    unpack_message,
)

__all__ = [
    "Aggregation",
    "Aggregator",
    "Algorithm",
    "Answer",
    "ClientData",
    "ClientProgram",
    "ClientState",
    "ClientStore",
    "ClientView",
    "Codec",
    "CompletenessReport",
    "ConfigError",
    "Course",
    "CourseConfig",
    "CourseState",
    "Device",
    "EarlyStop",
    "Evaluation",
    "EvaluationInput",
    "Event",
    "Failure",
    "IncompleteCourseError",
    "Limits",
    "LinearAggregator",
    "LocalResult",
    "LossOutput",
    "Message",
    "MessageSizes",
    "ModelAggregator",
    "ModelCost",
    "NotEnoughClientsError",
    "Report",
    "Role",
    "Sampler",
    "Schedule",
    "ServerProgram",
    "ServerState",
    "Simulation",
    "SplitSummary",
    "StackAggregator",
    "Strategy",
    "Task",
    "TooManyFailuresError",
    "Traffic",
    "Update",
    "WireError",
    "ada_fed_prox",
    "add_client_noise",
    "answer_time_us",
    "append_row",
    "assign_devices",
    "best_evaluation",
    "bulyan",
    "centered_clipping",
    "chain",
    "check_completeness",
    "check_content",
    "check_metric",
    "classification",
    "clustered",
    "clustered_means",
    "compressed",
    "contrastive",
    "count_flops",
    "dequantize_state_dict",
    "ditto",
    "fairness",
    "fed_adagrad",
    "fed_adam",
    "fed_avg",
    "fed_dyn",
    "fed_em",
    "fed_gc",
    "fed_nova",
    "fed_rep",
    "fed_yogi",
    "find_checkpoints",
    "fine_tuned",
    "fl_trust",
    "gather_clients",
    "geometric_median",
    "has_checkpoint",
    "hook_rounds",
    "hook_task",
    "init_models",
    "init_server",
    "is_larger_better",
    "is_normalization",
    "is_original_entry",
    "keep_local",
    "krum",
    "load_devices",
    "local_dissimilarity",
    "local_entropy",
    "make_client",
    "make_global_simulation",
    "make_group_sampler",
    "make_local_simulation",
    "make_responsiveness_sampler",
    "make_server",
    "make_sgd_step",
    "make_simulation",
    "make_uniform_sampler",
    "mean_metrics",
    "measure_model",
    "measured",
    "median",
    "merge_clients",
    "message_sizes",
    "metric_values",
    "mime",
    "mime_lite",
    "multi_krum",
    "multi_label",
    "name_leaves",
    "named",
    "nearest",
    "norm_bounding",
    "nt_xent",
    "pack",
    "pack_message",
    "packed_size",
    "performance_drop",
    "pfedme",
    "q_fed_avg",
    "quantize",
    "quantize_state_dict",
    "read_rows",
    "regression",
    "require_complete",
    "restore_course",
    "restore_leaves",
    "rotate",
    "rotate_client_images",
    "run_course",
    "run_steps",
    "same_group",
    "save_course",
    "scaffold",
    "sharpness_aware",
    "slowness",
    "split_by_dirichlet",
    "split_by_key",
    "split_by_quantity",
    "split_by_shards",
    "split_iid",
    "split_like",
    "stacked_mean",
    "staleness_weight",
    "start_course",
    "step",
    "stochastic_averaging",
    "summarize_split",
    "supervised",
    "top_k",
    "train_alone",
    "train_client",
    "train_only",
    "trimmed_mean",
    "unpack",
    "unpack_message",
    "update_norms",
    "use_cpu_cores",
    "weighted_mean",
]
