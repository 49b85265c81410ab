"""The client of ``on_flower``, which Ray's processes import."""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workloads import LR, WORKLOADS, examples, network


@cache
def loaded(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Model and data, once in a process."""
    torch.set_num_threads(1)
    return network(WORKLOADS[name])(), *examples(WORKLOADS[name])


def client_app(name: str) -> ClientApp:
    """Trains one epoch on the data of its partition."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, inputs, targets = loaded(name)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        client, size = int(context.node_config["partition-id"]), WORKLOADS[name].batch
        batches = zip(inputs[client].split(size), targets[client].split(size), strict=True)
        for x, y in batches:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(targets[client])}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app
