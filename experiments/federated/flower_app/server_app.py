"""The ServerApp: the server of `experiments.federated.deploy`."""

from experiments.federated.deployed import make_app

app = make_app()
