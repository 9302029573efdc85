"""The ClientApp: hands what has come to the node's own program, and its answer back.

Flower starts this anew for every message. The node's program (`experiments.federated.join`) stays,
with its data loaded and its training compiled.
"""

import socket

import pipe
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
@app.evaluate()
@app.query()
def answer(message: Message, context: Context) -> Message:
    """What the node answers."""
    arrays = message.content["messages"]
    head = {
        "settings": context.run_config["settings"],
        "course": dict(message.content["course"]),
        "arrays": {name: array.stype for name, array in arrays.items()},
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(context.node_config["socket"]))
        with connection.makefile("rwb") as file:
            pipe.send(file, head, [array.data for array in arrays.values()])
            head, parts = pipe.receive(file)
    if "error" in head:
        raise RuntimeError(head["error"])
    named = zip(head["arrays"].items(), parts, strict=True)
    answers = {name: Array("uint8", (len(data),), kind, data) for (name, kind), data in named}
    records = {"course": ConfigRecord(head["course"]), "messages": ArrayRecord(answers)}
    return Message(RecordDict(records), reply_to=message)
