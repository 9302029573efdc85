"""The ClientApp: what Flower runs on a node, anew for every message."""

from pathlib import Path
from typing import Any

from course import make_node

from jaxlab.federated import deployment


def place(context: Any) -> deployment.NodePlace:
    """The node, as the `--node-config` of its SuperNode says."""
    node = context.node_config
    return make_node(int(node["client"]), Path(node["data"]), Path(node["folder"]))


app = deployment.make_client_app(place)
