import pytest
import torch
from hydra.utils import instantiate

from fedsim.config import compose, resolve
from scenarios.graph_conflict import conflicting_communities


def test_communities_agree_on_clusters_and_contradict_each_other_on_names():
    data = conflicting_communities(communities=2, clients_per_community=3, noise=0.01, nodes=50)
    x, y = data.data.x, data.data.y
    community = data.groups // 3
    centres = [
        {int(k): x[(y == k) & (community == g)].mean(0) for k in y[community == g].unique()}
        for g in (0, 1)
    ]
    for k, centre in centres[0].items():
        twin = centres[1].get((k + 3) % 6)
        if twin is not None:
            assert torch.allclose(centre, twin, atol=0.05), "the same cluster, another name"
        assert not torch.allclose(centre, centres[1].get(k, twin), atol=0.05) or twin is None


def test_clients_share_no_links_and_homophily_is_high():
    data = conflicting_communities(nodes=60)
    source, target = data.data.edge_index
    assert bool((data.groups[source] == data.groups[target]).all())
    same = (data.data.y[source] == data.data.y[target]).float().mean().item()
    assert same > 0.4, "two links in a hundred would be inside a cluster by chance in six"


def test_the_same_seed_gives_the_same_graph_and_another_seed_another():
    first, again = conflicting_communities(nodes=10), conflicting_communities(nodes=10)
    other = conflicting_communities(nodes=10, seed=1)
    assert torch.equal(first.data.x, again.data.x)
    assert torch.equal(first.data.edge_index, again.data.edge_index)
    assert not torch.equal(first.data.x, other.data.x)


@pytest.mark.parametrize("wrong", [{"communities": 7}, {"nodes": 0}, {"links": (1.5, 0.0)}])
def test_impossible_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        conflicting_communities(**wrong)


def test_the_experiments_clients_are_the_groups():
    scenario = instantiate(resolve(compose(["experiment=fedpub_communities"]))["scenario"])
    assert scenario.num_clients == 12
    assert [len(scenario.nodes(c)) for c in range(12)] == [200] * 12
