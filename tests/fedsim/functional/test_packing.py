import pytest
import torch

from fedsim.functional.packing import pack, unpack


@pytest.mark.parametrize("shape", [(3,), (8,), (5, 7), (16, 2)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_was_kept_comes_back_and_the_rest_is_the_base(shape, share):
    rng = torch.Generator().manual_seed(0)
    tensor, base = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    kept = torch.rand(shape, generator=rng) < share
    bits, values = pack(tensor, kept)
    assert torch.equal(unpack(bits, values, base), torch.where(kept, tensor, base))
    assert bits.nbytes == -(-tensor.numel() // 8)
    assert len(values) == int(kept.sum())


def test_the_bits_by_hand():
    kept = torch.tensor([True, False, False, True, False, False, False, False, True])
    bits, values = pack(torch.arange(9.0), kept)
    assert bits.tolist() == [9, 1]
    assert values.tolist() == [0.0, 3.0, 8.0]


def test_damaged_parts_are_refused():
    bits, values = pack(torch.ones(4), torch.tensor([True, False, True, False]))
    with pytest.raises(ValueError, match="2 values, got 1"):
        unpack(bits, values[:1], torch.zeros(4))
    with pytest.raises(ValueError, match="bits for 9 entries"):
        unpack(bits, values, torch.zeros(9))
    with pytest.raises(ValueError, match="equal shapes"):
        pack(torch.ones(2), torch.ones(3, dtype=torch.bool))
