"""A course that learns nothing: what the server adds up are the numbers that clients send."""

import pytest

from jaxlab.federated.client import Answer, ClientProgram, make_client
from jaxlab.federated.samplers import make_uniform_sampler
from jaxlab.federated.server import init_server, make_server
from jaxlab.federated.server_state import CourseConfig, ServerProgram
from jaxlab.federated.simulation import Course, run_course, start_course


def _answer(client, content, number):
    return Answer(1, 1000 * client)


def play(
    strategy,
    num_clients=4,
    num_rounds=5,
    *,
    train=_answer,
    aggregate=None,
    evaluate=lambda client, content, number: {},
    change_client=lambda role: role,
    change_server=lambda role: role,
    sampler=None,
    excluded=(),
    is_converged=lambda evaluations: False,
    discarded=None,
    info=None,
    **config,
):
    """The state at the end of a course; `discarded` gets the contents that were thrown away."""
    config = CourseConfig(num_clients, num_rounds, strategy, **config)
    program = ServerProgram(
        broadcast=lambda model, number: model,
        aggregate=aggregate
        or (lambda model, updates, number: (model + sum(u.content for u in updates), ())),
        evaluation=lambda model, number: model,
        merge=lambda model, metrics, number: {"clients": len(metrics)},
        final=lambda model: model,
        discard=(lambda content: None) if discarded is None else discarded.append,
        is_converged=is_converged,
    )
    sampler = sampler or make_uniform_sampler()
    client = change_client(make_client(ClientProgram(train, evaluate, info or {})))
    server = change_server(make_server(config, program, sampler))
    course = Course(server, client, strategy.kind == "time_up")
    start = start_course(course, init_server(config, 0, sampler, excluded), num_clients)
    return run_course(course, start)


@pytest.fixture(name="play")
def play_fixture():
    return play
