import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.testing import assert_close

from fedsim.backbones.vision import MLP
from fedsim.build import check_backbone
from fedsim.model import Model, mask_logits

TASK_CLASSES = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)


def make_model() -> Model:
    torch.manual_seed(0)
    return Model(MLP(input_shape=(4,), hidden=[6]), 5)


def test_logits_are_the_head_of_the_features():
    model, inputs = make_model(), torch.randn(3, 4)
    assert model.num_features == 6
    assert model.features(inputs).shape == (3, 6)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (3, 5)


def test_head_is_built_from_features_and_classes():
    model = Model(
        MLP(input_shape=(4,), hidden=[6]), 5, head=lambda d, k: nn.Linear(d, k, bias=False)
    )
    assert model.head.weight.shape == (5, 6)
    assert model.head.bias is None


@pytest.mark.parametrize("num_features", [None, 6.0, "6"])
def test_module_without_integer_num_features_is_no_backbone(num_features):
    backbone = nn.Linear(4, 6)
    if num_features is not None:
        backbone.num_features = num_features
    with pytest.raises(TypeError, match="Linear has no integer `num_features`"):
        Model(backbone, 5)


def test_mask_hides_the_classes_of_other_tasks_of_each_example():
    logits = torch.arange(10.0).view(2, 5)
    masked = mask_logits(logits, torch.tensor([1, 0]), TASK_CLASSES)
    inf = torch.inf
    assert torch.equal(masked, torch.tensor([[-inf, 1, -inf, 3, 4], [5, -inf, 7, -inf, -inf]]))


def test_without_task_labels_all_classes_compete():
    logits = torch.randn(2, 5)
    assert mask_logits(logits, None, TASK_CLASSES) is logits
    assert mask_logits(logits, torch.tensor([0, 1]), None) is logits


def test_masked_full_head_equals_one_head_per_task():
    model = make_model()
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    tasks = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    targets = torch.tensor([0, 1, 3, 2, 4, 2, 0, 1])
    loss = F.cross_entropy(mask_logits(model(inputs), tasks, TASK_CLASSES), targets)
    loss.backward()

    separate = make_model()
    features = separate.features(inputs)
    heads, total = [], torch.zeros(())
    for task, member in enumerate(TASK_CLASSES):
        classes = member.nonzero().flatten()
        head = nn.Linear(6, len(classes))
        head.load_state_dict(
            {"weight": separate.head.weight[classes], "bias": separate.head.bias[classes]}
        )
        local = torch.searchsorted(classes, targets[tasks == task])
        total = total + F.cross_entropy(head(features[tasks == task]), local, reduction="sum")
        heads.append((classes, head))
    total = total / len(inputs)
    total.backward()

    assert_close(loss, total)
    for mine, theirs in zip(
        model.backbone.parameters(), separate.backbone.parameters(), strict=True
    ):
        assert_close(mine.grad, theirs.grad)
    for classes, head in heads:
        assert_close(model.head.weight.grad[classes], head.weight.grad)
        assert_close(model.head.bias.grad[classes], head.bias.grad)


def test_mask_leaves_no_gradient_to_the_heads_of_absent_tasks():
    model = make_model()
    logits = mask_logits(model(torch.randn(3, 4)), torch.tensor([0, 0, 0]), TASK_CLASSES)
    F.cross_entropy(logits, torch.tensor([0, 2, 2])).backward()
    assert torch.equal(model.head.bias.grad[TASK_CLASSES[1]], torch.zeros(3))
    assert model.head.bias.grad[TASK_CLASSES[0]].abs().min() > 0


class Wrong(nn.Module):
    num_features = 7

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(5, width)

    def forward(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize(
    ("shape", "width", "words"),
    [
        ((5,), 8, r"num_features=7 .* shape \(2, 8\)"),
        ((6,), 7, r"not take inputs of shape \(2, 6\)"),
    ],
)
def test_a_backbone_that_does_not_keep_its_word_is_refused(shape, width, words):
    check_backbone(Model(Wrong(7), 3), (5,), "cpu")
    with pytest.raises(ValueError, match=words):
        check_backbone(Model(Wrong(width), 3), shape, "cpu")
