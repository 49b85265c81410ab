import pytest
import torch
from torch.func import functional_call

from clients.fedsage import FedSage
from clients.fedsage_generator import Generation, lesson
from clients.sgd import SGD
from fedsim.arrays import to_params
from fedsim.backbones.vision import Flatten
from fedsim.functional.neighbour_generation import reconstruction
from fedsim.seeding import generator
from scenarios.graph_streams import NewNodes
from strategies.fedsage import FedSage as Server
from strategies.mean import Mean
from tests.clients.graph_case import SAMPLERS, run, setting, training
from tests.fedsim.builders import small_setting
from tests.scenarios.graph_toy import scenario

STEPS = 2
ROUNDS = 2 * STEPS + 3
CODES = {"codes", "counts"}


def fedsage(base=None, **options):
    options = {"widths": (8,), "hidden": 0.3, "epochs": 5, "neighbours": 2, **options}
    return FedSage(base or setting(ROUNDS), training=training(), generation=Generation(**options))


def messages(grid):
    """Way, client, round and tensors of every message; the round is None on the way up."""
    return [
        (
            way,
            client,
            content["config"]["server-round"] if way == "down" else None,
            {name: to_params(record) for name, record in content.array_records.items()},
        )
        for way, client, content in grid.seen
    ]


def ups(grid, round_):
    """Records of the clients' uploads of a round."""
    sent = [records for way, _, _, records in messages(grid) if way == "up"]
    return sent[4 * (round_ - 1) : 4 * round_]


def downs(grid, round_):
    """Records that the clients got in a round."""
    return [records for way, _, r, records in messages(grid) if way == "down" and r == round_]


@pytest.fixture(scope="module")
def ran():
    client = fedsage()
    return client, *run(client, Server(**SAMPLERS, steps=STEPS))


def test_what_travels_is_generators_codes_gradients_and_the_model(ran):
    client, _, _, grid = ran
    for round_ in range(1, ROUNDS + 1):
        for me, (sent, got) in enumerate(zip(ups(grid, round_), downs(grid, round_), strict=True)):
            others = [other for other in range(4) if other != me]
            theirs = {f"{part}.{other}" for part in ("generator", "codes") for other in others}
            gradient = {"gradient"} if round_ in (3, 5) else set()
            if round_ > 2 * STEPS:
                assert sent.keys() == {"arrays"}
                assert got.keys() == {"arrays"} | gradient
            elif round_ % 2:
                assert sent.keys() == {"generator", "codes"}
                assert got.keys() == {"arrays"} | gradient
            else:
                assert sent.keys() == {f"gradient.{other}" for other in others}
                assert got.keys() == {"arrays"} | theirs
    names = client.generator.features.state_dict().keys()
    for sent in ups(grid, 1):
        assert sent["generator"].keys() == names
        assert sent["codes"].keys() == CODES
        assert sent["codes"]["codes"].shape == (len(sent["codes"]["counts"]), 8)
        assert 0 < len(sent["codes"]["counts"]) <= client.generation.sample


def test_no_message_holds_a_nodes_features_or_its_code_without_noise(ran):
    client, _, _, grid = ran
    features = {tuple(row) for row in client.scenario.dataset.data.x.tolist()}
    rows = 0
    for _, _, _, records in messages(grid):
        for params in records.values():
            for tensor in params.values():
                if tensor.dim() == 2 and tensor.shape[1] == 4:
                    rows += len(tensor)
                    assert not features & {tuple(row) for row in tensor.tolist()}
    assert rows > 0, "the first convolution has that width, so the check looked at something"
    for me, sent in enumerate(ups(grid, 1)):
        held = to_params(grid.store.get(me)["neighbour_generator"])
        own = client._lesson(me)
        with torch.no_grad():
            codes = functional_call(
                client.generator.encoder, _part(held, "encoder."), (own.graph,), {}
            )
        gaps = torch.cdist(sent["codes"]["codes"], codes)
        assert gaps.min() > 0.1


def _part(params, prefix):
    return {n.removeprefix(prefix): t for n, t in params.items() if n.startswith(prefix)}


def test_gradients_are_those_of_the_distance_to_the_senders_nodes(ran):
    client, _, _, grid = ran
    first = ups(grid, 1)
    me, other = 1, 3
    sent = {name: t.clone().requires_grad_() for name, t in first[other]["generator"].items()}
    codes = first[other]["codes"]
    made = functional_call(client.generator.features, sent, (codes["codes"],))
    own = client.scenario.dataset.data.x[client.scenario.nodes(me)]
    expected = torch.autograd.grad(reconstruction(made, codes["counts"], own), list(sent.values()))
    got = ups(grid, 2)[me][f"gradient.{other}"]
    for name, gradient in zip(sent, expected, strict=True):
        assert torch.allclose(got[name], gradient)
    total = [ups(grid, 2)[c][f"gradient.{other}"] for c in (0, 1, 2)]
    for name, tensor in downs(grid, 3)[other]["gradient"].items():
        assert torch.allclose(tensor, sum(part[name] for part in total))


def test_other_clients_gradients_bring_a_generator_nearer_to_their_nodes():
    """The same run with and without them: distances to foreign nodes are smaller with them."""
    distances = []
    for exchange in (0.0, 10.0):
        client = fedsage(setting(31), exchange=exchange)
        _, _, grid = run(client, Server(**SAMPLERS, steps=15))
        last = ups(grid, 29)
        total = 0.0
        for me, sent in enumerate(last):
            codes = sent["codes"]
            made = functional_call(client.generator.features, sent["generator"], (codes["codes"],))
            foreign = [n for c in range(4) if c != me for n in client.scenario.nodes(c)]
            x = client.scenario.dataset.data.x[foreign]
            total += reconstruction(made, codes["counts"], x).item() / max(codes["counts"].sum(), 1)
        distances.append(total)
    assert distances[1] < distances[0]


def test_training_and_tests_see_the_mended_graph_with_the_same_rows(ran):
    client, _, _, grid = ran
    new = to_params(grid.store.get(0)["new_neighbours"])
    assert 0 < len(new["rows"]) == len(new["features"])
    assert torch.bincount(new["rows"]).max() <= 2
    shard = client.scenario.shard(0, 0, "test")
    down = type("Down", (), {"client_id": 0})
    mended = client._mended(shard, down, {"new_neighbours": new})
    assert len(mended.inputs.x) == len(shard.inputs.x) + len(new["rows"])
    assert mended.inputs.edge_index.shape[1] == shard.inputs.edge_index.shape[1] + 2 * len(
        new["rows"]
    )
    assert torch.equal(mended.inputs.x[mended.inputs.mask], shard.inputs.x[shard.inputs.mask])
    assert client._mended(shard, type("Down", (), {"client_id": None}), {}) is shard


def test_learning_alone_brings_generated_neighbours_nearer_to_hidden_ones():
    client = fedsage(epochs=200)
    own = client._lesson(0)
    torch.manual_seed(0)
    before = own.loss(client.generator, client.generation).item()
    run(client, Server(**SAMPLERS, steps=0))
    torch.manual_seed(0)
    assert own.loss(client.generator.eval(), client.generation).item() < before


def test_a_lesson_by_hand():
    data = scenario()
    graph = data.graph(0)
    found = lesson(graph, 0.25, generator(0, "x"))
    assert (len(found.graph.x), len(found.hidden)) == (15, 5)
    where = {tuple(row): node for node, row in enumerate(graph.x.tolist())}
    seen = [where[tuple(row)] for row in found.graph.x.tolist()]
    away = [where[tuple(row)] for row in found.hidden.tolist()]
    assert sorted(seen + away) == list(range(20))
    links = set(map(tuple, graph.edge_index.t().tolist()))
    for u, node in enumerate(seen):
        assert found.counts[u] == sum((node, other) in links for other in away)
        assert [bool(x) for x in found.linked[u]] == [(node, other) in links for other in away]
    inner = {(seen[a], seen[b]) for a, b in found.graph.edge_index.t().tolist()}
    assert inner == {(a, b) for a, b in links if a in seen and b in seen}


def test_without_generated_neighbours_it_is_averaging():
    base = setting(3)
    _, plain, _ = run(SGD(base, training=training()), Mean(**SAMPLERS, weighting="clients"))
    _, same, _ = run(fedsage(base, neighbours=0), Server(**SAMPLERS, steps=0))
    assert all(torch.equal(t, to_params(same)[n]) for n, t in to_params(plain).items())
    _, other, _ = run(fedsage(base), Server(**SAMPLERS, steps=0))
    assert any(not torch.equal(t, to_params(other)[n]) for n, t in to_params(plain).items())


def test_a_strategy_that_knows_nothing_of_it_gets_a_model_trained_on_a_mended_graph():
    client = fedsage()
    logs, _, grid = run(client, Mean(**SAMPLERS))
    assert {name for log in logs for name in log.upload_bytes} == {"arrays"}
    assert "new_neighbours" in grid.store.get(0)


def test_images_and_arriving_nodes_and_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="graph scenario"):
        fedsage(small_setting(backbone=Flatten))
    arriving = scenario(num_experiences=2, stream=NewNodes(visible="seen"))
    with pytest.raises(ValueError, match="all nodes at once"):
        fedsage(setting(data=arriving))
    for wrong in (
        {"hidden": 0.0},
        {"hidden": 1.0},
        {"sample": 0},
        {"widths": (0,)},
        {"epochs": -1},
    ):
        with pytest.raises(ValueError, match=r"client\.generation\."):
            Generation(**wrong)
