import pytest

from jaxlab.federated.client import ClientProgram, make_client
from jaxlab.federated.completeness import (
    IncompleteCourseError,
    check_completeness,
    require_complete,
)
from jaxlab.federated.messages import FINISH, METRICS, MODEL
from jaxlab.federated.samplers import make_uniform_sampler
from jaxlab.federated.server import init_server, make_server
from jaxlab.federated.server_state import CourseConfig, ServerProgram
from jaxlab.federated.simulation import Course, run_course, start_course
from jaxlab.federated.strategy import Strategy

STRATEGIES = [
    Strategy(cohort_size=2),
    Strategy(kind="goal_achieved", cohort_size=2, broadcast="after_receiving"),
    Strategy(kind="time_up", cohort_size=2, time_budget_s=1.0),
]


def nothing(*arguments):
    raise AssertionError("the check runs nothing")


def keep(state, message):
    return state, []


def roles(strategy=STRATEGIES[0]):
    program = ServerProgram(nothing, nothing, nothing, nothing, nothing)
    server = make_server(CourseConfig(4, 1, strategy), program, make_uniform_sampler())
    return server, make_client(ClientProgram(nothing, nothing, {}))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind)
def test_the_default_course_passes(strategy):
    report = check_completeness(*roles(strategy))
    assert (report.verdict, report.problems) == ("pass", ())
    assert ("server.when(all_metrics)", "server->client:finish") in report.edges


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind)
def test_a_server_that_cannot_take_updates_is_an_error(strategy):
    server, client = roles(strategy)
    report = check_completeness(server.without(MODEL), client)
    assert report.verdict == "error"
    assert "client.on(model_para) may send 'model_para', which no server handles" in report.problems


def test_a_course_that_cannot_reach_the_end_says_so():
    server, client = roles()
    report = check_completeness(server, client.on(MODEL, keep))
    assert report.verdict == "error"
    assert report.problems[0].startswith(
        "no path leads from the clients' 'join_in' to the server's 'finish'"
    )
    # Nothing would ever be received, and so nothing aggregated or evaluated.
    assert any("server.when(all_received) can never run" in p for p in report.problems)


def test_an_incomplete_course_is_not_started_unless_asked_for():
    server, client = roles()
    course = Course(server.without(METRICS), client)
    state = init_server(CourseConfig(4, 1, STRATEGIES[0]), 0, make_uniform_sampler())
    with pytest.raises(IncompleteCourseError, match="no server handles.*\n.*role.on") as caught:
        start_course(course, state, 4)
    assert caught.value.report.verdict == "error"
    assert len(start_course(course, state, 4, check_complete=False).to_server) == 4


def test_roles_that_were_replaced_are_looked_at_before_the_first_message():
    config, (server, client) = CourseConfig(4, 1, STRATEGIES[0]), roles()
    course = Course(server, client)
    state = start_course(course, init_server(config, 0, make_uniform_sampler()), 4)
    curious = course._replace(client=client.on(MODEL, keep, may_send=("curve", MODEL)))
    with pytest.raises(IncompleteCourseError, match="may send 'curve', which no server handles"):
        run_course(curious, state)
    assert len(state.to_server) == 4  # nothing has been handled
    with pytest.raises(AssertionError, match="runs nothing"):  # the program has been asked
        run_course(curious, state, check_complete=False)


def test_a_handler_that_nobody_sends_to_is_a_warning():
    server, client = roles()
    report = require_complete(server.on("gradient", keep), client)
    assert report.verdict == "warning"
    assert report.problems == (
        "server.on(gradient) can never run: nothing that happens leads to it",
    )


def test_clients_may_write_to_each_other():
    server, client = roles()
    sharing = client.on(MODEL, keep, may_send_peers=("ss_model_para",))
    report = check_completeness(server, sharing)
    assert "client.on(model_para) may send 'ss_model_para', which no client handles" in (
        report.problems
    )
    sharing = sharing.on("ss_model_para", keep, (MODEL,))
    assert check_completeness(server, sharing).verdict == "pass"


def test_a_client_that_does_not_know_the_end_is_an_error():
    server, client = roles()
    assert check_completeness(server, client.without(FINISH)).verdict == "error"
