"""What a strategy remembers survives being written down, value by value."""

import json
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from clients.avalanche_data import ClientStream, DatasetForm
from clients.avalanche_forms import EndlessForm, LoaderForm, ObjectForm, ReferenceForm, TorchForm
from clients.avalanche_modules import Blueprint, ModuleForm
from fedsim.codec import SKELETON, Decoder, Encoder
from fedsim.codec_forms import MappingForm, NumpyForm, SequenceForm, TensorForm
from tests.clients import avalanche_case as case

pytestmark = pytest.mark.filterwarnings("ignore")
PACKAGES = frozenset([__name__.split(".")[0], "avalanche"])


def through(value, *forms, anchors=None, views=()):
    """The value after it was written down and read; also the tensors in between."""
    anchors = anchors or {}
    plain = [ReferenceForm(), TorchForm(), TensorForm(), NumpyForm(), SequenceForm(), MappingForm()]
    every = [*plain, *forms, ObjectForm()]
    encoder = Encoder(every, {id(v): k for k, v in anchors.items()}, PACKAGES, frozenset(views))
    params = encoder.finish(encoder.value(value, "root"))
    json.loads(bytes(params[SKELETON].numpy()).decode())  # JSON and nothing else
    decoder = Decoder(every, anchors, PACKAGES, params)
    return decoder.value(decoder.root()), params


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        0.1 + 0.2,
        float("inf"),
        "Wörter",
        [1, [2.5, None], "x"],
        (1, (2, 3)),
        {3, 1, 2},
        frozenset([1]),
        {"a": {1: [2]}, (0, "b"): 3},
        OrderedDict([("z", 1), ("a", 2)]),
        torch.Size([2, 3]),
        torch.device("cpu"),
        torch.float16,
        torch.zeros,
        [],
        {},
    ],
)
def test_values_come_back_equal_and_of_their_type(value):
    back, _ = through(value)
    assert back == value
    assert type(back) is type(value)


def test_defaultdicts_keep_their_factory():
    value = defaultdict(set, {1: {2}})
    back, _ = through(value)
    assert back == value
    assert back[9] == set()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3),
        torch.tensor(3.5),
        torch.zeros(0),
        torch.randn(4, 5).t(),
        torch.arange(3),
        torch.tensor([True, False]),
        torch.randn(3).to(torch.bfloat16),
        torch.randn(3, dtype=torch.float64),
    ],
)
def test_tensors_come_back_bit_for_bit(tensor):
    back, _ = through([tensor])
    assert back[0].dtype == tensor.dtype
    assert torch.equal(back[0], tensor)
    assert back[0] is not tensor


def test_parameters_stay_parameters():
    back, _ = through([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), False)])
    assert [type(p) for p in back] == [nn.Parameter, nn.Parameter]
    assert [p.requires_grad for p in back] == [True, False]


def test_numpy_arrays_and_scalars_keep_their_types():
    back, _ = through([np.arange(3, dtype=np.int32), np.float64(0.5), np.int64(4)])
    assert back[0].dtype == np.int32
    assert back[0].tolist() == [0, 1, 2]
    assert [type(v) for v in back[1:]] == [np.float64, np.int64]


def test_shared_and_cyclic_references_survive():
    tensor, inner = torch.ones(2), [1]
    inner.append(inner)
    back, params = through({"a": tensor, "b": tensor, "c": [inner, inner]})
    assert back["a"] is back["b"]
    assert back["c"][0] is back["c"][1]
    assert back["c"][0][1] is back["c"][0]
    assert len(params) == 2  # one tensor and the skeleton


def test_what_is_shared_may_come_first_anywhere():
    shared = [1]
    value = [defaultdict(set, {"kind": set}), {"a": shared}, (shared, set)]
    back, _ = through(value)
    assert back[0].default_factory is set
    assert back[1]["a"] is back[2][0]


def test_anchors_are_named_and_not_stored():
    weight = torch.ones(1000)
    back, params = through([weight, weight], anchors={"weight": weight})
    assert back[0] is weight
    assert list(params) == [SKELETON]


class Thing:
    def __init__(self):
        self.values = [1]
        self.me = self


class Guarded(Thing):
    def __getstate__(self):
        return {}


def test_objects_come_back_attribute_by_attribute():
    thing = Thing()
    thing.extra = {"k": torch.ones(1)}
    back, _ = through(thing)
    assert type(back) is Thing
    assert back.me is back
    assert back.values == [1]
    assert torch.equal(back.extra["k"], torch.ones(1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Guarded(), r"root: a .*Guarded cannot be kept"),
        ({"k": [object()]}, r"root\['k'\]\[0\]: a builtins.object"),
        (lambda: 0, "root: a builtins.function"),
        (defaultdict(lambda: 0), "root.default_factory: a builtins.function"),
        (iter([1]), "root: a builtins.list_iterator"),
        ((x for x in [1]), "root: a builtins.generator"),
        (torch.Generator(), "root: a torch._C.Generator"),
        (torch.ones(1, requires_grad=True) * 2, "root: a tensor with its autograd graph"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_place(value, message):
    with pytest.raises(TypeError, match=message):
        through(value, LoaderForm(), EndlessForm())


def test_views_of_the_weights_are_refused():
    weight = torch.ones(2, 2)
    storage = weight.untyped_storage().data_ptr()
    with pytest.raises(TypeError, match="view of the model's own weights"):
        through([weight.flatten()], views=[storage])


def test_a_state_cannot_name_classes_of_other_packages():
    text = json.dumps(["object", 0, "subprocess:Popen", []]).encode()
    params = {SKELETON: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    decoder = Decoder([ObjectForm()], {}, PACKAGES, params)
    with pytest.raises(ValueError, match="subprocess:Popen, which is none of the plugins'"):
        decoder.value(decoder.root())


@pytest.fixture
def stream():
    return ClientStream(case.setting().scenario, 0)


def rows(dataset):
    return [[torch.as_tensor(v).tolist() for v in dataset[i]] for i in range(len(dataset))]


def test_a_joined_and_cut_data_set_is_stored_as_indices(stream):
    first, second = (e.dataset for e in stream.experiences[:2])
    mixed = second.subset([4, 1]).concat(first.subset([3, 3, 0])).subset([4, 0, 2, 3])
    back, params = through(mixed, DatasetForm(stream))
    assert rows(back) == rows(mixed)
    assert type(back) is type(mixed)
    assert list(back.targets) == list(mixed.targets)
    assert list(back.targets_task_labels) == list(mixed.targets_task_labels)
    assert not any(t.is_floating_point() for t in params.values())
    joined = back.concat(first.subset([0]))  # and it can be joined again
    assert rows(joined)[-1] == rows(first)[0]


def test_examples_from_elsewhere_are_stored_by_value_and_only_those_in_use(stream):
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset

    outside = _make_taskaware_tensor_classification_dataset(
        torch.arange(20.0).view(5, 4), torch.arange(5)
    )
    mixed = stream.experiences[0].dataset.subset([1]).concat(outside.subset([4, 2]))
    back, params = through(mixed, DatasetForm(stream))
    assert rows(back) == rows(mixed)
    stored = [t for t in params.values() if t.is_floating_point()]
    assert [tuple(t.shape) for t in stored] == [(2, 4)]
    again, _ = through(back, DatasetForm(stream))
    assert rows(again) == rows(mixed)


def test_empty_data_sets_survive(stream):
    from avalanche.benchmarks.utils.utils import concat_datasets

    assert len(through(concat_datasets([]), DatasetForm(stream))[0]) == 0
    nothing, _ = through(stream.experiences[0].dataset.subset([]), DatasetForm(stream))
    assert len(nothing) == 0
    assert rows(nothing.concat(stream.experiences[1].dataset.subset([2])))


def test_transformed_data_sets_are_refused(stream):
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset

    flipped = _make_taskaware_tensor_classification_dataset(
        torch.ones(2, 4), torch.arange(2), transform=lambda x: -x
    )
    with pytest.raises(TypeError, match="data set with transformations"):
        through(flipped, DatasetForm(stream))


def test_endless_loaders_begin_anew(stream):
    from avalanche.training.utils import cycle

    dataset = stream.experiences[0].dataset
    loop = cycle(DataLoader(dataset, batch_size=5, shuffle=True, drop_last=True))
    torch.manual_seed(0)
    first = next(loop)[0]
    next(loop)
    back, _ = through(loop, DatasetForm(stream), LoaderForm(), EndlessForm())
    torch.manual_seed(0)
    assert torch.equal(next(back)[0], first)


def test_loaders_with_their_own_sampler_are_refused(stream):
    loader = DataLoader(stream.experiences[0].dataset, sampler=WeightedRandomSampler([1.0], 1))
    with pytest.raises(TypeError, match="own sampler"):
        through(loader, DatasetForm(stream), LoaderForm())


def test_copies_of_the_model_keep_weights_modes_and_what_is_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    blueprint = Blueprint(model)
    teacher = blueprint.copy()
    teacher[0].weight.data.fill_(7.0)
    teacher[0].bias.requires_grad_(False)
    teacher[1].eval()
    teacher[1].seen = {3: [1]}
    back, _ = through(teacher, ModuleForm(blueprint))
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert [m.training for m in back.modules()] == [True, True, False]
    assert [p.requires_grad for p in back.parameters()] == [True, False, True, True]
    assert back[1].seen == {3: [1]}
    assert not hasattr(model[1], "seen")
    assert back[0].weight is not model[0].weight


@pytest.mark.parametrize(
    ("node", "form"),
    [
        (["reference", 0, "os:system"], ReferenceForm()),
        (["reference", 0, "subprocess:call"], ReferenceForm()),
        (["reference", 0, "torch:load"], ReferenceForm()),
        (["torch", 0, "load", "file"], TorchForm()),
        (["torch", 0, "dtype", "load"], TorchForm()),
        (["object", 0, "os:system", []], ObjectForm()),
        (["object", 0, "avalanche.training.templates.base:os.system", []], ObjectForm()),
        (["object", 0, "avalanche.training.plugins.checkpoint:CheckpointPlugin", []], ObjectForm()),
        (["object", 0, "antigravity:x", []], ObjectForm()),
    ],
)
def test_a_crafted_memory_names_nothing_that_can_be_called(node, form):
    decoder = Decoder([form], {}, PACKAGES, {})
    with pytest.raises(ValueError, match=r"names|is no type"):
        decoder.value(node)


def test_functions_that_do_harm_are_not_written_either():
    with pytest.raises(TypeError, match="cannot be kept"):
        through([torch.load])
