"""The ClientApp: what Flower runs on a node, anew for every message."""

from pathlib import Path

from course import make_node

from jaxlab.federated import deployment

app = deployment.make_client_app(
    lambda context: make_node(
        int(context.node_config["client"]),
        Path(str(context.node_config["data"])),
        Path(str(context.node_config["folder"])),
    )
)
