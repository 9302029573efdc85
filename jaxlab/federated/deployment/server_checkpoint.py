"""The server of a deployment on disk, so that a course goes on when its server is started again.

All that the server knows is kept: model and optimizer, round, clock, who has joined, who works on
what, the sampler, what has been received, evaluations and counts. It goes on exactly as it would
have, except that clients whose answer was under way are asked again.
"""

import collections
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.federated import wire
from jaxlab.federated.deployment.learner import Learner, name_on_host
from jaxlab.federated.deployment.memory import write_whole
from jaxlab.federated.server_state import (
    Aggregation,
    Evaluating,
    Evaluation,
    Received,
    Request,
    ServerState,
)

FILE, FORMAT = "server.bin", 1


class ServerCheckpoint:
    """The file of a server."""

    def __init__(self, folder: str | os.PathLike[str], learner: Learner) -> None:
        """Touch nothing yet.

        Args:
          folder: where the file lies; made if absent.
          learner: the server's side of the course.
        """
        self.path = Path(folder) / FILE
        self._learner = learner

    def save(self, course: str, server: ServerState) -> None:
        """Writes the state of a server; the file is there whole or as it was before.

        Args:
          course: its name.
          server: its state.
        """
        kept = {
            "format": FORMAT,
            "course": course,
            "num_clients": self._learner.agreement.config.num_clients,
            "server": server_to_tree(server),
        }
        write_whole(self.path, wire.pack(kept))

    def load(self) -> tuple[str, ServerState] | None:
        """The name and the state of the course that is found, None if there is none.

        Raises:
          ValueError: if the file is damaged, or of a course with other settings.
        """
        if not self.path.exists():
            return None
        try:
            kept = wire.unpack(self.path.read_bytes())
            wanted = self._learner.agreement.config.num_clients
            if kept["format"] != FORMAT or kept["num_clients"] != wanted:
                raise ValueError(
                    f"it is of format {kept['format']} and of {kept['num_clients']} clients; "
                    f"wanted format {FORMAT} and {wanted} clients"
                )
            return kept["course"], tree_to_server(kept["server"], self._learner)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} cannot be continued: {error}. Give the settings that the course was "
                "begun with, or another folder to begin anew"
            ) from error


def server_to_tree(server: ServerState) -> dict[str, Any]:
    """The state of a server as a tree of plain values and arrays."""
    simple = {name: getattr(server, name) for name in _SIMPLE}
    return simple | {
        "model": name_on_host(server.model),
        "sampler": np.asarray(server.sampler),
        "info": server.info,
        "excluded": sorted(server.excluded),
        "busy": {client: list(request) for client, request in server.busy.items()},
        "fresh": [list(received) for received in server.fresh],
        "stale": [list(received) for received in server.stale],
        "refused": list(server.refused),
        "evaluating": [
            [e.round, e.time_us, e.request, e.metrics, sorted(e.silent)] for e in server.evaluating
        ],
        "evaluations": [[e.round, e.time_us, dict(e.metrics)] for e in server.evaluations],
        "aggregations": [_plain(aggregation) for aggregation in server.aggregations],
        "counts": dict(server.counts),
    }


def tree_to_server(tree: dict[str, Any], learner: Learner) -> ServerState:
    """The state of a server from a tree.

    Args:
      tree: what `server_to_tree` gave.
      learner: the server's side of the course.

    Raises:
      ValueError: if the model has another form.
      KeyError: if a value is missing.
    """
    model = wire.restore_leaves(tree["model"], learner.forms.server, "the server's model")
    return ServerState(
        model=jax.tree.map(jnp.asarray, model),
        sampler=tree["sampler"],
        info={int(client): dict(told) for client, told in tree["info"].items()},
        excluded=set(tree["excluded"]),
        busy={int(client): Request(*request) for client, request in tree["busy"].items()},
        fresh=[Received(*received) for received in tree["fresh"]],
        stale=[Received(*received) for received in tree["stale"]],
        refused=list(tree["refused"]),
        evaluating=[
            Evaluating(number, time_us, request, dict(metrics), set(silent))
            for number, time_us, request, metrics, silent in tree["evaluating"]
        ],
        evaluations=[Evaluation(*evaluation) for evaluation in tree["evaluations"]],
        aggregations=[
            Aggregation(
                number, time_us, tuple(fresh), tuple((r, c) for r, c in stale), dropped,
                tuple(rejected),
            )
            for number, time_us, fresh, stale, dropped, rejected in tree["aggregations"]
        ],
        counts=collections.Counter(tree["counts"]),
        **{name: tree[name] for name in _SIMPLE},
    )  # fmt: skip


def _plain(aggregation: Aggregation) -> list[Any]:
    stale = [list(pair) for pair in aggregation.stale]
    return [
        aggregation.round, aggregation.time_us, list(aggregation.fresh), stale,
        aggregation.dropped, list(aggregation.rejected),
    ]  # fmt: skip


_SIMPLE = (
    "round", "clock_us", "deadline_us", "started", "dropped", "refills", "num_draws",
    "num_requests", "failures_in_a_row", "timeouts_in_a_row", "finished",
)  # fmt: skip
