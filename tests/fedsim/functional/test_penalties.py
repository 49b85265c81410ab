import pytest
import torch
from torch import tensor
from torch.nn import functional

from fedsim.functional.penalties import proximal, quadratic, squared_gradients


def test_proximal_is_half_the_squared_distance_over_all_tensors():
    value = proximal([tensor([1.0, 2.0]), tensor([[3.0]])], [tensor([0.0, 0.0]), tensor([[1.0]])])
    assert value == pytest.approx(0.5 * (1 + 4 + 4))


def test_proximal_gradient_is_the_difference():
    p = tensor([1.0, -2.0], requires_grad=True)
    proximal([p], [tensor([0.5, 1.0])]).backward()
    torch.testing.assert_close(p.grad, tensor([0.5, -3.0]))


def test_quadratic_weighs_every_entry():
    value = quadratic([tensor([1.0, 2.0])], [tensor([0.0, 0.0])], [tensor([3.0, 0.5])])
    assert value == pytest.approx(0.5 * (3 * 1 + 0.5 * 4))


def test_quadratic_gradient_is_the_weighed_difference():
    p = tensor([[1.0, 2.0]], requires_grad=True)
    quadratic([p], [tensor([[0.0, 4.0]])], [tensor([[3.0, 0.5]])]).backward()
    torch.testing.assert_close(p.grad, tensor([[3.0, -1.0]]))


def test_quadratic_with_unit_importance_is_proximal():
    params, anchor = [torch.randn(3, 2), torch.randn(4)], [torch.randn(3, 2), torch.randn(4)]
    ones = [torch.ones(3, 2), torch.ones(4)]
    torch.testing.assert_close(quadratic(params, anchor, ones), proximal(params, anchor))


def test_no_parameters_give_no_penalty():
    assert proximal([], []) == 0.0
    assert quadratic([], [], []) == 0.0


def test_unequal_sides_are_refused():
    with pytest.raises(ValueError, match="got 1 and 2"):
        proximal([torch.ones(1)], [torch.ones(1), torch.ones(1)])
    with pytest.raises(ValueError, match=r"tensor 0.*\(2,\) and \(3,\)"):
        quadratic([torch.ones(2)], [torch.ones(2)], [torch.ones(3)])


def test_squared_gradients_of_a_square_by_hand():
    # loss = (w - x)^2 / 2, gradient w - x: (1 - 3)^2 + (1 - 0)^2 = 5
    def loss(params, x):
        return 0.5 * (params["w"] - x) ** 2

    total = squared_gradients(loss, {"w": tensor(1.0)}, tensor([3.0, 0.0]))
    assert total["w"] == pytest.approx(5.0)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_squared_gradients_equal_one_backward_pass_per_example(chunk):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 4, generator=generator)
    targets = torch.arange(7) % 3
    weight = torch.randn(3, 4, generator=generator, requires_grad=True)

    def loss(params, x, y):
        return functional.cross_entropy((x @ params["w"].T)[None], y[None])

    expected = torch.zeros_like(weight)
    for x, y in zip(inputs, targets, strict=True):
        (gradient,) = torch.autograd.grad(loss({"w": weight}, x, y), weight)
        expected += gradient.square()
    total = squared_gradients(loss, {"w": weight}, inputs, targets, chunk=chunk)
    torch.testing.assert_close(total["w"], expected)


def test_chunks_are_positive():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        squared_gradients(lambda p, x: p["w"] * x, {"w": tensor(1.0)}, tensor([1.0]), chunk=0)
