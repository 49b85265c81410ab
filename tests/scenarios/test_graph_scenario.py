import math
import subprocess
import sys

import pytest
import torch
from torch_geometric.data import Data

from scenarios.graph_data import GraphDataset
from scenarios.graph_partition import Metis, OverlappingMetis
from scenarios.graph_proxy import block_graph
from scenarios.graph_split import RandomSplit
from scenarios.graph_streams import NewClasses, NewNodes
from scenarios.order import ShuffledOrder
from scenarios.partition import IID
from tests.scenarios.graph_toy import scenario

SPLITS = ("train", "val", "test")


def test_a_clients_graph_holds_its_nodes_and_the_links_among_them():
    s = scenario()
    whole = {tuple(pair) for pair in s.dataset.data.edge_index.t().tolist()}
    for client_id in range(4):
        graph = s.graph(client_id)
        nodes = s.nodes(client_id)
        assert graph.n_id.tolist() == nodes.tolist()
        assert torch.equal(graph.x, s.dataset.data.x[graph.n_id])
        links = {(int(graph.n_id[u]), int(graph.n_id[v])) for u, v in graph.edge_index.t().tolist()}
        own = set(nodes.tolist())
        assert links == {(u, v) for u, v in whole if u in own and v in own}
        masks = graph.train_mask.int() + graph.val_mask.int() + graph.test_mask.int()
        assert masks.tolist() == [1] * len(nodes)


def test_references_are_all_links_of_a_clients_nodes_foreign_ends_included():
    data = scenario()
    links = set(map(tuple, data.dataset.data.edge_index.t().tolist()))
    inner = 0
    for client in range(4):
        nodes, rows, others = data.references(client)
        assert nodes.tolist() == data.nodes(client).tolist()
        found = list(zip(nodes[rows].tolist(), others.tolist(), strict=True))
        assert sorted(found) == sorted((u, v) for u, v in links if u in nodes)
        inner += sum(v in nodes for _, v in found)
    assert 0 < inner < len(links), "some links lead to other clients"


def test_splits_are_disjoint_and_a_shard_is_one_full_batch():
    s = scenario()
    seen = []
    for split in SPLITS:
        shard = s.shard(1, 0, split)
        (batch,) = list(shard.batches(2, torch.Generator()))
        assert batch.inputs.mask.sum() == len(shard) == len(batch.targets)
        assert torch.equal(batch.targets, batch.inputs.y[batch.inputs.mask])
        assert torch.equal(batch.targets, s.targets(split)[torch.from_numpy(shard.indices)])
        assert shard.indices.tolist() == s.indices(1, 0, split).tolist()
        assert batch.inputs.to("cpu").x.shape == (20, 4)
        assert batch.tasks is None
        assert shard.nbytes >= batch.inputs.x.numel() * 4
        seen += shard.indices.tolist()
    assert sorted(seen) == s.nodes(1).tolist()


def test_a_shard_without_rows_gives_no_batch():
    s = scenario(num_experiences=4, stream=NewClasses(class_order="sorted"), partition=Metis())
    shards = [s.shard(c, e, "train") for c in range(4) for e in range(4)]
    empty = [shard for shard in shards if len(shard) == 0]
    assert empty
    assert all(list(shard.batches(0)) == [] for shard in empty)


def test_pooled_data_is_the_disjoint_union_of_the_clients():
    s = scenario()
    pool = s.shard(None, 0, "test")
    parts = [s.shard(c, 0, "test") for c in range(4)]
    assert len(pool) == sum(len(part) for part in parts)
    assert pool.inputs.edge_index.shape[1] == sum(p.inputs.edge_index.shape[1] for p in parts)
    assert torch.equal(pool.targets, torch.cat([part.targets for part in parts]))
    own = torch.repeat_interleave(torch.arange(4), torch.tensor([len(p.inputs.y) for p in parts]))
    assert torch.equal(own[pool.inputs.edge_index[0]], own[pool.inputs.edge_index[1]])
    assert sorted(pool.indices.tolist()) == s.indices(None, 0, "test").tolist()


def test_build_keeps_links_between_clients():
    s = scenario()
    shard = s.build(s.indices(0, 0, "test"), 0, "test")
    assert shard.inputs.edge_index.shape == s.dataset.data.edge_index.shape
    assert shard.indices.tolist() == s.indices(0, 0, "test").tolist()


def test_no_client_tests_on_anothers_training_node():
    s = scenario(partition=OverlappingMetis(), num_clients=10)
    train = set(s.indices(None, 0, "train").tolist())
    assert train.isdisjoint(s.indices(None, 0, "test").tolist())
    assert len(s.indices(None, 0, "train")) > len(train)  # shared nodes count for each client


def test_class_incremental_experiences_hold_their_classes():
    s = scenario(num_experiences=2, stream=NewClasses(class_order=[3, 1, 0, 2], task_labels=True))
    assert [s.classes(e) for e in range(2)] == [[1, 3], [0, 2]]
    shard = s.shard(0, 1, "train")
    assert set(shard.targets.tolist()) <= {0, 2}
    assert shard.tasks.tolist() == [1] * len(shard)
    assert s.task_classes.tolist() == [[False, True, False, True], [True, False, True, False]]
    assert len(shard.inputs.y) == 20  # all nodes stay visible


def test_seen_graphs_grow_in_the_clients_own_order():
    s = scenario(
        num_experiences=4,
        stream=NewClasses(class_order="sorted", visible="seen"),
        order=ShuffledOrder(),
    )
    order = [s.experience_at(2, i) for i in range(4)]
    assert sorted(order) == [0, 1, 2, 3]
    assert order != [0, 1, 2, 3]
    for position, experience in enumerate(order):
        graph = s.shard(2, experience, "test").inputs
        assert set(graph.y.tolist()) == set(order[: position + 1])
        assert set(graph.y[graph.mask].tolist()) <= {experience}


def test_arriving_nodes_partition_the_client():
    s = scenario(num_experiences=3, stream=NewNodes())
    rows = [n for e in range(3) for split in SPLITS for n in s.indices(0, e, split).tolist()]
    assert sorted(rows) == s.nodes(0).tolist()
    sizes = [len(s.shard(0, e, "train").inputs.y) for e in range(3)]
    assert sizes == [7, 14, 20]
    assert torch.equal(s.shard(0, 2, "val").inputs.n_id, s.graph(0).n_id)
    frozen = scenario(num_experiences=3, stream=NewNodes(visible="all"))
    assert len(frozen.shard(0, 0, "train").inputs.y) == 20


def test_avalanche_streams_carry_one_graph_per_experience():
    s = scenario(num_experiences=2, stream=NewClasses(class_order="sorted", task_labels=True))
    streams = s.streams(3)
    for split, stream in zip(
        SPLITS, (streams.train_stream, streams.val_stream, streams.test_stream), strict=True
    ):
        assert len(stream) == 2
        for position, experience in enumerate(stream):
            shard = s.shard(3, position, split)
            assert len(experience.dataset) == 1
            assert torch.equal(experience.dataset[0].mask, shard.inputs.mask)
            assert experience.classes_in_this_experience == sorted(set(shard.targets.tolist()))
            assert experience.task_labels == [position]
    second = streams.train_stream[1]
    assert second.previous_classes == streams.train_stream[0].classes_in_this_experience
    assert second.future_classes == []


def test_report_counts_a_path_by_hand():
    links = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    data = Data(x=torch.ones(4, 1), edge_index=links, y=torch.tensor([0, 0, 1, 0]))
    dataset = GraphDataset(name="path", data=data, num_classes=2)
    s = scenario(
        dataset=dataset, partition=Metis(), num_clients=2, split=RandomSplit(train=1.0, test=0.0)
    )
    report = s.report()
    assert (report.edges, report.lost_edges) == (3, 1)
    left, right = sorted(report.clients, key=lambda c: -c.homophily)
    assert (left.nodes, left.edges, left.cut_edges, left.train) == (2, 1, 1, 2)
    assert (left.homophily, right.homophily) == (1.0, 0.0)
    assert (left.classes, right.classes) == ((2, 0), (1, 1))


def test_homophily_without_links_is_nan():
    data = Data(
        x=torch.ones(4, 1), edge_index=torch.zeros(2, 0).long(), y=torch.tensor([0, 0, 1, 1])
    )
    dataset = GraphDataset(name="dust", data=data, num_classes=2)
    s = scenario(dataset=dataset, num_clients=2, split=RandomSplit(train=1.0, test=0.0))
    assert all(math.isnan(client.homophily) for client in s.report().clients)


def test_proxy_is_a_block_model_that_the_seed_alone_decides():
    s = scenario()
    graph = s.proxy(7)
    assert graph.x.shape == (500, 4)
    source, target = graph.edge_index
    assert torch.equal(source // 100, target // 100)
    assert not (source == target).any()
    pairs = {(u, v) for u, v in graph.edge_index.t().tolist()}
    assert {(v, u) for u, v in pairs} == pairs
    assert abs(len(pairs) / (5 * 100 * 99) - 0.1) < 0.01
    assert abs(float(graph.x.mean())) < 0.1
    other = scenario(seed=3, num_clients=2).proxy(7)
    assert torch.equal(other.x, graph.x)
    assert torch.equal(other.edge_index, graph.edge_index)
    assert not torch.equal(s.proxy(8).x, graph.x)


def test_proxy_blocks_can_be_linked():
    graph = block_graph(2, torch.Generator(), num_blocks=2, block_size=3, p_in=0.0, p_out=1.0)
    assert graph.edge_index.shape[1] == 18
    with pytest.raises(ValueError, match="p_in"):
        block_graph(2, torch.Generator(), p_in=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        block_graph(2, torch.Generator(), num_blocks=0)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"partition": IID()}, TypeError, "partition of graphs"),
        ({"dataset": "cora"}, TypeError, "need a graph"),
        ({"num_experiences": 2}, ValueError, "num_experiences must be 1"),
        ({"num_experiences": 5, "stream": NewClasses()}, ValueError, "number of classes"),
        ({"num_experiences": 30, "stream": NewNodes()}, ValueError, "number of nodes of client 0"),
        ({"num_experiences": 0}, ValueError, "num_experiences"),
        ({"split": RandomSplit(train=0.02, test=0.3)}, ValueError, "none for training"),
        (
            {"stream": NewClasses(class_order=[0, 0, 1, 2]), "num_experiences": 2},
            ValueError,
            "each class 0..3 once",
        ),
    ],
)
def test_impossible_scenarios_say_what_to_change(changes, error, text):
    with pytest.raises(error, match=text):
        scenario(**changes)


def test_unknown_options_and_indices_are_refused():
    with pytest.raises(ValueError, match="visible"):
        NewNodes(visible="some")
    with pytest.raises(ValueError, match="class_order"):
        NewClasses(class_order="random")
    with pytest.raises(ValueError, match="client_id"):
        scenario().indices(4, 0, "train")
    with pytest.raises(ValueError, match="experience"):
        scenario().indices(0, 1, "train")


def test_shuffled_classes_depend_on_the_runs_seed():
    def classes(seed):
        s = scenario(seed=seed, num_experiences=4, stream=NewClasses())
        return [s.classes(e) for e in range(4)]

    assert classes(0) == classes(0)
    assert len({str(classes(seed)) for seed in range(5)}) > 1


def test_importing_the_scenario_does_not_import_avalanche_or_the_graph_library():
    heavy = ("avalanche", "torch_geometric", "networkx")
    code = (
        "import sys, scenarios.graph, scenarios.graph_datasets;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
