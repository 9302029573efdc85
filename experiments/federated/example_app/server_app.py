"""The ServerApp: what Flower runs beside the SuperLink."""

from pathlib import Path

from course import make_server

from jaxlab.federated import deployment

app = deployment.make_server_app(
    lambda context: make_server(Path(str(context.run_config["folder"])))
)
