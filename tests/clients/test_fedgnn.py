import pytest
import torch

from clients.fedgnn import FedGNN
from clients.sgd import SGD
from fedsim.arrays import to_params
from fedsim.backbones.vision import Flatten
from fedsim.client import initial_model
from fedsim.wire import Download
from scenarios.graph_streams import NewNodes
from strategies.fedgnn import FedGNN as Server
from strategies.mean import Mean
from tests.clients.graph_case import SAMPLERS, run, setting, training
from tests.fedsim.builders import small_setting
from tests.scenarios.graph_toy import scenario

FIRST = {"arrays", "holdings"}


def messages(grid, direction, round_=None):
    """Names and tensors of the array records that went one way."""
    return [
        (client, {name: to_params(r) for name, r in content.array_records.items()})
        for way, client, content in grid.seen
        if way == direction
        and (round_ is None or way == "up" or content["config"]["server-round"] == round_)
    ]


def test_links_travel_once_as_pseudonyms_and_no_features_ever():
    client = FedGNN(setting(), training=training())
    logs, _, grid = run(client, Server(**SAMPLERS, at_least=1))
    ups = messages(grid, "up")
    assert [records.keys() for _, records in ups[:4]] == [FIRST] * 4
    assert all(records.keys() == {"arrays", "embeddings"} for _, records in ups[4:])
    down = [records.keys() for _, records in messages(grid, "down")]
    assert (
        down
        == [{"arrays"}] * 4 + [{"arrays", "wanted"}] * 4 + [{"arrays", "wanted", "neighbours"}] * 4
    )
    names = [records["holdings"]["own"] for _, records in ups[:4]]
    assert len(torch.cat(names).unique()) == 80, "a name for every node"
    assert torch.cat(names).min() > 1e6, "which is not its number"
    for client_id, records in ups[4:]:
        sent = records["embeddings"]
        assert sent.keys() == {"rows", "values"}
        assert sent["values"].shape == (len(sent["rows"]), 8), "hidden width, not features"
        assert sent["rows"].max() < len(client.scenario.nodes(client_id))
    assert logs[-1].measures["foreign_neighbours"] > 1


def test_foreign_embeddings_are_those_of_the_nodes_that_share_neighbours():
    client = FedGNN(setting(), training=training())
    _, _, grid = run(client, Server(**SAMPLERS, at_least=1, limit=3))
    sent = {c: r["embeddings"] for c, r in messages(grid, "up")[4:8]}  # of round 2
    (got,) = [r["neighbours"] for c, r in messages(grid, "down", 3) if c == 0]
    whole = client.scenario.dataset.data
    near = {n: set(whole.edge_index[1][whole.edge_index[0] == n].tolist()) for n in range(80)}
    own = client.scenario.nodes(0)
    theirs = {
        tuple(values.tolist()): int(client.scenario.nodes(c)[row])
        for c, part in sent.items()
        for row, values in zip(part["rows"], part["values"], strict=True)
    }
    for row, source in zip(got["rows"], got["sources"], strict=True):
        other = theirs[tuple(got["embeddings"][source].tolist())]
        assert other not in own
        assert near[int(own[row])] & near[other]
    assert torch.bincount(got["rows"]).max() == 3


def test_without_foreign_neighbours_it_is_averaging():
    base = setting()
    _, plain, _ = run(SGD(base, training=training()), Mean(**SAMPLERS, weighting="clients"))
    _, same, grid = run(FedGNN(base, training=training()), Server(**SAMPLERS, limit=0))
    assert all(torch.equal(t, to_params(same)[n]) for n, t in to_params(plain).items())
    assert all(records.keys() == {"arrays"} for _, records in messages(grid, "up"))
    _, other, _ = run(FedGNN(base, training=training()), Server(**SAMPLERS, at_least=1))
    assert any(not torch.equal(t, to_params(other)[n]) for n, t in to_params(plain).items())


def test_a_node_alone_is_classified_by_its_neighbours_mean():
    base = setting()
    client = FedGNN(base, training=training())
    shard = client.scenario.shard(0, 0, "test")
    (batch,) = shard.batches(0)
    arrays = dict(initial_model(base).state_dict())
    client.load_arrays(arrays)
    client.model.eval()
    row = int(shard.inputs.mask.nonzero()[0, 0])
    backbone = client.model.backbone
    foreign = torch.full((1, 8), 2.0)
    neighbours = {
        "embeddings": foreign, "rows": torch.tensor([row]), "sources": torch.tensor([0]),
    }  # fmt: skip
    down = Download(
        client_id=0,
        tick=base.clock.at(1, 0),
        records={"arrays": arrays, "neighbours": neighbours},
    )
    with torch.no_grad():
        got = client.predict(client.model, batch, down, {})
        mean = (backbone.embed(shard.inputs)[row] + foreign[0]) / 2
        assert torch.allclose(got[0], client.model.head(torch.relu(mean)))
        assert torch.allclose(got[1:], client.model(batch.inputs)[1:])


def test_images_and_arriving_nodes_are_refused():
    with pytest.raises(ValueError, match="graph scenario"):
        FedGNN(small_setting(backbone=Flatten), training=training())
    arriving = scenario(num_experiences=2, stream=NewNodes(visible="seen"))
    with pytest.raises(ValueError, match="all nodes at once"):
        FedGNN(setting(data=arriving), training=training())
