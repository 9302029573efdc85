"""From the settings of a distillation and the sizes of two networks to its `Objective`.

All that does not fit is told at once, before anything is computed.
"""

from jaxlab.distillation.compared import Task
from jaxlab.distillation.grammar import format_matches, parse_matches
from jaxlab.distillation.objective import Objective
from jaxlab.distillation.objective_config import HardConfig, ObjectiveConfig
from jaxlab.distillation.terms import Shape, features_of, terms_of, with_unique_names


def compile_objective(
    config: ObjectiveConfig,
    student: Shape,
    teacher: Shape | None,
    *,
    task: Task = "classification",
) -> Objective:
    """The objective of settings for two networks of known sizes.

    Args:
      config: the settings.
      student: sizes of the student.
      teacher: sizes of the teacher; `None` where labels are all there is.
      task: what the models put out: a loss between distributions needs classes.

    Raises:
      ValueError: listing every match that does not fit the sizes, and what would.
    """
    matches = parse_matches(config.matches)
    if teacher is None and (matches or config.response.is_used):
        raise ValueError("the objective compares with a teacher, and there is none")
    problems, terms = [], []
    if task == "regression" and config.response.is_used and config.response.kind != "mse":
        problems.append(
            f"response.kind={config.response.kind!r} compares distributions over classes, and the "
            "task is a regression; use response.kind='mse', with response.temperature=1, as it "
            "divides the numbers"
        )
    if task == "regression" and config.hard.r_drop:
        problems.append(
            f"hard.r_drop={config.hard.r_drop} compares distributions over classes, and the task "
            "is a regression; set it to 0"
        )
    problems += _unused(config.hard, task)
    if task in ("tagging", "span", "mlm"):
        problems += [
            f"{match.knowledge!r} is of texts as a whole, and models of task {task!r} pool none; "
            "match hidden states, such as last1:hidden_mse"
            for match in matches
            if match.kind.is_pooled
        ]
    for match in matches:
        assert teacher is not None, "checked"
        line = format_matches([match])
        if match.stack == "cross" and "hidden" in features_of(match):
            problems.append(
                f"{line}: {match.knowledge!r} is of hidden states, and the attention between the "
                "stacks has none; match those of the decoder, or of the encoder"
            )
            continue
        try:
            terms += terms_of(match, student, teacher)
        except ValueError as error:
            problems.append(f"{line}: {error}")
    terms = with_unique_names(terms)
    trained: dict[str, set[int]] = {}
    for term in terms:
        if term.match.projection not in ("", "pca"):
            trained.setdefault(term.projection, set()).add(term.num_joined)
    fixed = {term.projection for term in terms if term.match.projection == "pca"}
    problems += [
        f"{name!r} is the name of a projection that trains and of principal components, which do "
        "not; give each a name of its own"
        for name in trained
        if name in fixed
    ]
    problems += [
        f"{name!r} is the name of projections of {' and of '.join(map(str, sorted(layers)))} "
        "layers at once; give each a name of its own"
        for name, layers in trained.items()
        if len(layers) > 1
    ]
    if problems:
        raise ValueError("the objective does not fit: " + "; ".join(problems))
    widths = (student.width, 0 if teacher is None else teacher.width)
    taps = frozenset(feature for term in terms for feature in features_of(term.match))
    taps -= {"pooled"}  # shown untapped
    return Objective(
        config=config,
        task=task,
        terms=tuple(terms),
        teacher_taps=taps,
        student_taps=taps,
        projections=tuple((name, n * widths[0], n * widths[1]) for name, (n,) in trained.items()),
        student=student,
        teacher=teacher,
    )


def _unused(config: HardConfig, task: Task) -> list[str]:
    """Settings of a loss against labels that the loss of a task does not have."""
    if not config.weight > 0:
        return []
    tasks = {
        "drop_worst": ("classification",),
        "label_smoothing": ("classification", "tagging", "mlm"),
    }
    return [
        f"hard.{name}={getattr(config, name)} is of {' or '.join(of)}, and the task is {task!r}; "
        "set it to 0"
        for name, of in tasks.items()
        if getattr(config, name) and task not in (*of, "none")
    ]
