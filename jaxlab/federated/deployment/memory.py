"""What a node keeps between two messages: who it is, and the state of its client.

A node may be stopped at any time, and Flower starts its program anew for every message; so all of
it lies in a file of the node, written whole or not at all.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.checkpoints.foreign.files import replacing
from jaxlab.federated import wire
from jaxlab.federated.algorithm import Tree
from jaxlab.federated.client import ClientState

CLIENT_FILE, FINAL_FILE = "client.bin", "final.bin"
_FIELDS = tuple(field.name for field in dataclasses.fields(ClientState))


class Memory:
    """The file of a client in one course."""

    def __init__(self, folder: str | os.PathLike[str], form: Tree) -> None:
        """Read what is there.

        Args:
          folder: of the node and the course; made if absent.
          form: of what the client keeps from round to round; `{}` if nothing.

        Raises:
          ValueError: if the file is damaged or of another course.
        """
        self._folder, self._form = Path(folder), form
        self._kept: dict[str, Any] = {"client": {}, "training": None, "before": {}, "after": None}
        path = self._folder / CLIENT_FILE
        if path.exists():
            try:
                self._kept = wire.unpack(path.read_bytes())
            except ValueError as error:
                raise ValueError(
                    f"{path}: {error}. Remove the file to let the client begin anew"
                ) from error

    def client(self, number: int) -> ClientState:
        """The client's state, as it was left.

        Args:
          number: of a client that has none yet.
        """
        return ClientState(**(self._kept["client"] or {"id": number}))

    def keep_client(self, state: ClientState) -> None:
        """Replace the client's state."""
        new = {name: getattr(state, name) for name in _FIELDS}
        if new != self._kept["client"]:
            self._kept["client"] = new
            self._save()

    def state(self, initial: Tree, training: tuple[int, int] | None = None) -> Tree:
        """What the client keeps from round to round.

        Args:
          initial: before its first round.
          training: (round, request) of the training that it is for. What was asked before, and is
            asked again since the answer was lost, starts from where it started then.
        """
        kept = self._kept
        is_again = training is not None and kept["training"] == list(training)
        named = kept["before"] if is_again else kept["after"]
        if named is None:
            return initial
        return wire.restore_leaves(named, self._form, "the state of the client")

    @property
    def last_round(self) -> int:
        """The round of the last training; -1 if there was none."""
        return self._kept["training"][0] if self._kept["training"] else -1

    def keep_state(self, training: tuple[int, int], before: Tree, after: Tree) -> None:
        """Replace what the client keeps.

        Args:
          training: (round, request) that led from the one to the other.
          before: the state that it started from.
          after: the state that it left.
        """
        self._kept |= {
            "training": list(training),
            "before": wire.name_leaves(before),
            "after": wire.name_leaves(after),
        }
        self._save()

    def keep_final(self, content: Mapping[str, Any]) -> None:
        """Write what the course has learned, which the server sends at its end."""
        write_whole(self._folder / FINAL_FILE, wire.pack(dict(content)))

    def _save(self) -> None:
        write_whole(self._folder / CLIENT_FILE, wire.pack(self._kept))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole, or as it was before.

    Args:
      path: the file; its folder is made if absent.
      data: what it shall hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)
