import builtins
import os
from pathlib import Path

import networkx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from scenarios.graph_data import GraphDataset, Preparation, node_classification, union
from scenarios.graph_datasets import digits_graph, networkx_graph, npz, ogbn, pyg, pyg_object
from scenarios.graph_files import COLLECTIONS, load_collection

PLAIN = Preparation()
OFFICIAL = Preparation(largest_component=True, normalize_features=True)


def triangle_and_pair(**more):
    """Nodes 0-1-2 form a triangle (1 -> 2 in one direction only), 3-4 a pair."""
    links = torch.tensor([[0, 1, 1, 0, 2, 3, 4], [1, 0, 2, 2, 0, 4, 3]])
    x = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 1.0], [5.0, 5.0], [1.0, 0.0]])
    return Data(x=x, edge_index=links, y=torch.tensor([0, 1, 0, 2, 1]), num_nodes=5, **more)


def test_preparation_keeps_the_component_before_normalising():
    graph = OFFICIAL(triangle_and_pair(train_mask=torch.ones(5).bool()), "toy")
    assert graph.x.tolist() == [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]]
    assert graph.y.tolist() == [0, 1, 0]
    assert graph.train_mask.tolist() == [True] * 3


def test_undirected_adds_the_missing_direction():
    graph = Preparation(undirected=True)(triangle_and_pair(), "toy")
    pairs = set(map(tuple, graph.edge_index.t().tolist()))
    assert (2, 1) in pairs
    assert len(pairs) == graph.edge_index.shape[1] == 8


def test_degree_features_are_one_hot_and_clipped():
    data = triangle_and_pair()
    data.x = None
    graph = Preparation(features="degree", num_features=2)(data, "toy")
    assert graph.x.argmax(1).tolist() == [1, 1, 1, 1, 1]
    graph = Preparation(features="degree", num_features=4)(data, "toy")
    assert graph.x.argmax(1).tolist() == [2, 2, 1, 1, 1]


def test_random_features_depend_on_their_seed():
    first, again, other = (
        Preparation(features="random", num_features=3, feature_seed=seed)(triangle_and_pair(), "t")
        for seed in (1, 1, 2)
    )
    assert first.x.shape == (5, 3)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_preparation_leaves_the_source_alone():
    data = triangle_and_pair()
    before = data.x.clone()
    OFFICIAL(data, "toy")
    assert torch.equal(data.x, before)


def missing_features():
    data = triangle_and_pair()
    data.x = None
    return data


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (HeteroData(a={"x": torch.ones(1)}), TypeError, "heterogeneous"),
        ("graph", TypeError, "Data, got str"),
        (triangle_and_pair(edge_label=torch.ones(7)), ValueError, "belong to links"),
        (Data(edge_index=torch.zeros(2, 1).long(), num_nodes=1), ValueError, "node classes y"),
        (
            Data(x=torch.ones(3, 1), edge_index=torch.zeros(2, 7).long(), y=torch.zeros(7).long()),
            ValueError,
            "one class per node",
        ),
        (
            Data(x=torch.ones(2, 1), edge_index=torch.zeros(2, 1).long(), y=torch.zeros(2, 3)),
            ValueError,
            "multi-label",
        ),
        (
            Data(x=torch.ones(2, 1), edge_index=torch.zeros(2, 1).long(), y=torch.rand(2)),
            ValueError,
            "real numbers",
        ),
        (
            Data(x=torch.ones(1, 1), edge_index=torch.zeros(2, 1).long(), y=torch.tensor([-1])),
            ValueError,
            "every node",
        ),
        (missing_features(), ValueError, "prepare.features=degree"),
    ],
)
def test_other_than_node_classification_is_refused(data, error, text):
    with pytest.raises(error, match=text):
        PLAIN(data, "toy")


def test_column_labels_become_a_vector():
    data = triangle_and_pair()
    data.y = data.y[:, None]
    assert node_classification(data, "toy").y.tolist() == [0, 1, 0, 2, 1]


def test_options_are_checked():
    with pytest.raises(ValueError, match="features must be"):
        Preparation(features="none")
    with pytest.raises(ValueError, match="num_features"):
        Preparation(num_features=0)


def test_union_shifts_links_and_tells_groups():
    graph = node_classification(triangle_and_pair(), "toy")
    data, groups = union([graph, graph], ["a", "b"])
    assert groups.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(data.edge_index[:, 7:], graph.edge_index + 5)
    assert data.x.shape == (10, 2)
    assert union([graph], ["a"])[1] is None
    wide = Preparation(features="random", num_features=3)(triangle_and_pair(), "wide")
    with pytest.raises(ValueError, match="'wide': 3"):
        union([graph, wide], ["toy", "wide"])


def test_digits_graph_needs_no_files(monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    dataset = digits_graph(num_neighbors=5, prepare=PLAIN)
    assert dataset.data.x.shape == (1797, 64)
    assert (dataset.num_classes, len(dataset.class_names)) == (10, 10)
    source, target = dataset.data.edge_index
    assert dataset.data.is_undirected()
    assert int(torch.bincount(source).min()) >= 5
    assert float((dataset.data.y[source] == dataset.data.y[target]).float().mean()) > 0.9
    with pytest.raises(ValueError, match="num_neighbors"):
        digits_graph(num_neighbors=0, prepare=PLAIN)


def test_networkx_graph_takes_classes_from_an_attribute():
    dataset = networkx_graph(
        graph=networkx.karate_club_graph(),
        name="karate",
        label="club",
        prepare=Preparation(features="degree", num_features=8),
    )
    assert dataset.class_names == ("Mr. Hi", "Officer")
    assert dataset.data.edge_index.shape == (2, 156)
    assert dataset.data.x.shape == (34, 8)
    with pytest.raises(ValueError, match="lack the attribute 'color'"):
        networkx_graph(
            graph=networkx.karate_club_graph(), name="karate", label="color", prepare=PLAIN
        )


def test_a_loaded_data_set_of_several_graphs_is_refused():
    from torch_geometric.data import InMemoryDataset

    class Molecules(InMemoryDataset):
        def __init__(self):
            super().__init__()
            self.data, self.slices = self.collate([triangle_and_pair(), triangle_and_pair()])

    with pytest.raises(ValueError, match="2 graphs"):
        pyg_object(source=Molecules(), name="molecules", prepare=PLAIN)
    dataset = pyg_object(source=triangle_and_pair(), name="one", prepare=PLAIN)
    assert dataset.num_classes == 3
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        pyg_object(source=triangle_and_pair(), name="one", prepare=PLAIN, class_names=["a", "b"])


def test_missing_data_says_where_it_would_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"datasets\.Planetoid.*set FEDSIM_DATA") as info:
        pyg(
            collection="Planetoid",
            names=["citeseer"],
            prepare=PLAIN,
            root=str(tmp_path),
            download=False,
        )
    assert "\n" not in str(info.value)
    assert "planetoid/CiteSeer/raw/ind.citeseer.graph" in str(info.value)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="collection must be one of"):
        pyg(collection="Zinc", names=["a"], prepare=PLAIN)
    with pytest.raises(ValueError, match="no graph 'Coral'; it has Cora"):
        pyg(collection="Planetoid", names=["Coral"], prepare=PLAIN)
    with pytest.raises(ValueError, match="needs names"):
        pyg(collection="Twitch", names=[], prepare=PLAIN)
    with pytest.raises(ValueError, match="takes no name"):
        pyg(collection="Actor", names=["Actor"], prepare=PLAIN)


def test_ogb_is_asked_for_by_name(monkeypatch):
    real = builtins.__import__

    def without_ogb(name, *rest, **more):
        if name.startswith("ogb"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ogb)
    with pytest.raises(ModuleNotFoundError, match="pip install ogb"):
        ogbn(name="ogbn-arxiv", prepare=PLAIN)


def write_texas(folder: Path):
    """Three pages in the files of the WebKB collection, with ten splits."""
    raw = folder / "webkb" / "texas" / "raw"
    raw.mkdir(parents=True)
    (raw / "out1_node_feature_label.txt").write_text(
        "node_id\tfeature\tlabel\n0\t1,0\t0\n1\t0,1\t1\n2\t1,1\t1\n"
    )
    (raw / "out1_graph_edges.txt").write_text("a\tb\n0\t1\n1\t2\n")
    masks = {f"{s}_mask": np.eye(3)[i] for i, s in enumerate(("train", "val", "test"))}
    for i in range(10):
        np.savez(raw / f"texas_split_0.6_0.2_{i}.npz", **masks)
    return raw


def test_a_read_only_data_folder_is_copied_before_the_loader_writes(tmp_path, monkeypatch):
    raw = write_texas(tmp_path / "data")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    for folder in (raw, raw.parent):
        folder.chmod(0o555)
    before = sorted(tmp_path.joinpath("data").rglob("*"))
    graph = load_collection("WebKB", "Texas", root="none", download=False)
    assert graph.x.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert sorted(tmp_path.joinpath("data").rglob("*")) == before
    (copy,) = (tmp_path / "cache" / "graphs").iterdir()
    assert (copy / "webkb" / "texas" / "processed").is_dir()
    for folder in (raw, raw.parent):
        folder.chmod(0o755)


def test_changed_files_are_read_anew_and_damaged_ones_refused(tmp_path, monkeypatch):
    raw = write_texas(tmp_path / "data")
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    load_collection("WebKB", "Texas", root="none", download=False)
    links = raw / "out1_graph_edges.txt"
    links.write_text("a\tb\n0\t1\n")
    graph = load_collection("WebKB", "Texas", root="none", download=False)
    assert graph.edge_index.tolist() == [[0], [1]]
    links.write_text("a\tb\nnone")
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_collection("WebKB", "Texas", root="none", download=False)
    assert len(list((tmp_path / "cache" / "graphs").iterdir())) == 2


@pytest.mark.data
@pytest.mark.parametrize(
    ("collection", "names", "nodes", "links", "columns", "classes"),
    [
        ("Planetoid", ["Cora"], 2708, 10556, 1433, 7),
        ("FacebookPagePage", [], 22470, 342004, 128, 4),
        ("Twitch", ["ES"], 4648, 123412, 128, 2),
        ("Actor", [], 7600, 30019, 932, 5),
        ("WebKB", ["texas"], 183, 325, 1703, 5),
        ("HeterophilousGraphDataset", ["Minesweeper"], 10000, 78804, 7, 2),
    ],
)
def test_collections_have_their_published_sizes(collection, names, nodes, links, columns, classes):
    folder = Path(os.environ["FEDSIM_DATA"]) / COLLECTIONS[collection].folder
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in FEDSIM_DATA")
    dataset = pyg(collection=collection, names=names, prepare=PLAIN, download=False)
    assert dataset.data.x.shape == (nodes, columns)
    assert dataset.data.edge_index.shape == (2, links)
    assert dataset.num_classes == classes


@pytest.mark.data
def test_chameleon_and_its_own_splits():
    dataset = npz(path="heterophilous/chameleon.npz", name="chameleon", prepare=PLAIN)
    assert dataset.data.x.shape == (2277, 2325)
    assert dataset.num_classes == 5
    assert dataset.data.train_mask.shape == (2277, 10)


@pytest.mark.data
def test_twitch_countries_are_groups(tmp_path):
    dataset = pyg(collection="Twitch", names=["es", "fr"], prepare=PLAIN, root=str(tmp_path))
    assert dataset.group_names == ("ES", "FR")
    assert torch.bincount(dataset.groups).tolist() == [4648, 6549]
    assert list(tmp_path.iterdir()) == []  # nothing was fetched


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"x": None}, "needs tensors x, y and edge_index"),
        ({"x": torch.zeros(3, 2).double()}, r"x must be float32 .* got torch.float64"),
        ({"x": torch.full((3, 2), float("nan"))}, "NaN or infinity"),
        ({"x": torch.zeros(4, 2)}, "3 classes y, 4 rows of x"),
        ({"y": torch.tensor([0, 1, 2])}, r"must lie in \[0, 1\]"),
        ({"y": torch.tensor([[0], [1], [0]])}, r"shape \(N,\); got \(3, 1\)"),
        ({"edge_index": torch.tensor([[0, 1], [1, 3]])}, "names nodes 0 to 3 of 3"),
        ({"edge_index": torch.tensor([[0, 1, 2], [1, 0, 1], [0, 0, 0]])}, r"shape \(2, L\)"),
    ],
)
def test_an_own_graph_that_no_model_can_learn_from_is_refused_at_once(wrong, words):
    parts = {
        "x": torch.zeros(3, 2),
        "y": torch.tensor([0, 1, 0]),
        "edge_index": torch.tensor([[0, 1], [1, 2]]),
    }
    assert GraphDataset(name="own", data=Data(**parts), num_classes=2).num_classes == 2
    with pytest.raises((TypeError, ValueError), match=words):
        GraphDataset(name="own", data=Data(**{**parts, **wrong}), num_classes=2)
