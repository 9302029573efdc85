"""The server of a deployment on disk, so that a course goes on when its server is started again.

All that the server knows is kept: model and optimizer, round, clock, who has joined, who works on
what, the sampler, what has been received, evaluations and counts. It goes on exactly as it would
have, except that clients whose answer was under way are asked again.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.federated import records, wire
from jaxlab.federated.deployment.learner import Learner, name_on_host
from jaxlab.federated.deployment.memory import write_whole
from jaxlab.federated.server_state import ServerState

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
            "server": _to_tree(server),
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
            return kept["course"], _to_server(kept["server"], self._learner)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} cannot be continued: {error}. Give the settings that the course was "
                "begun with, or another folder to begin anew"
            ) from error


def _to_tree(server: ServerState) -> dict[str, Any]:
    """The state of a server as a tree that has bytes."""
    return {
        "model": name_on_host(server.model),
        "state": records.to_tree(dataclasses.replace(server, model=None)),
    }


def _to_server(tree: dict[str, Any], learner: Learner) -> ServerState:
    """The state of a server from a tree."""
    model = wire.restore_leaves(tree["model"], learner.forms.server, "the server's model")
    state: ServerState = records.from_tree(tree["state"])
    return dataclasses.replace(state, model=jax.tree.map(jnp.asarray, model))
