"""Courses between real machines, on Flower: the roles of a simulation, driven in real time.

The server and every node make an `Agreement` of the same settings; `make_learner` is the server's
side of it and `make_node` that of a client with its own data. `make_server_app` and
`make_client_app` make of them what Flower runs (`pip install "jaxlab[flower]"`)::

    # server_app.py
    app = deployment.make_server_app(
        lambda context: deployment.ServerPlace(deployment.make_learner(agreement), Path("run"))
    )

    # client_app.py
    app = deployment.make_client_app(
        lambda context: deployment.NodePlace(
            deployment.make_node(
                agreement, my_examples, {"test": my_test_examples},
                number=context.node_config["client"],
            ),
            Path(context.node_config["folder"]),
        )
    )

Rooms: `agreement` (what all know), `codec` (messages as bytes), `learner` (the server), `node` and
`memory` (a client, and what it keeps), `transport`, `live` (the server's loop),
`server_checkpoint`, `extras` (what may not be installed), and `flower`, which alone knows Flower.
"""

from jaxlab.federated.deployment.agreement import Agreement
from jaxlab.federated.deployment.flower import (
    NodePlace,
    ServerPlace,
    make_client_app,
    make_server_app,
    run_server,
)
from jaxlab.federated.deployment.learner import Learner, make_learner
from jaxlab.federated.deployment.live import LiveConfig, LiveState, NotJoinedError, run_live
from jaxlab.federated.deployment.memory import Memory
from jaxlab.federated.deployment.node import Node, answer, make_node
from jaxlab.federated.deployment.server_checkpoint import ServerCheckpoint
from jaxlab.federated.deployment.transport import Delivery, Transport

__all__ = [
    "Agreement",
    "Delivery",
    "Learner",
    "LiveConfig",
    "LiveState",
    "Memory",
    "Node",
    "NodePlace",
    "NotJoinedError",
    "ServerCheckpoint",
    "ServerPlace",
    "Transport",
    "answer",
    "make_client_app",
    "make_learner",
    "make_node",
    "make_server_app",
    "run_live",
    "run_server",
]
