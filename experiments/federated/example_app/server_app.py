"""The ServerApp: what Flower runs beside the SuperLink."""

from pathlib import Path
from typing import Any

from course import make_server

from jaxlab.federated import deployment


def place(context: Any) -> deployment.ServerPlace:
    """The server, in the folder that `pyproject.toml` names."""
    return make_server(Path(context.run_config["folder"]))


app = deployment.make_server_app(place)
