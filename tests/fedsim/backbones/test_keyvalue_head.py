import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.backbones.keyvalue_head import KeyValueHead
from fedsim.backbones.keyvalue_options import KeyFitting, Lookup, Readout
from fedsim.seeding import generator

FEATURES = torch.randn(60, 12, generator=generator(0, "features"))
TARGETS = torch.randint(4, (60,), generator=generator(0, "targets"))


def head(top_k=1, seed=3, only_used=True, projection="gaussian", **readout):
    lookup = Lookup(
        codebooks=6,
        pairs=9,
        key_size=4,
        top_k=top_k,
        only_used=only_used,
        projection=projection,
    )
    return KeyValueHead(12, 4, lookup=lookup, readout=Readout(**readout), seed=seed)


def by_hand(module, features):
    """The method's own words, one example and one codebook at a time."""
    logits = []
    for z in features:
        total = 0.0
        for b in range(6):
            h = z @ module.projections[b]
            order = (module.keys[b] - h).square().sum(dim=1).argsort()
            for j in order[: module.lookup.top_k]:
                total = total + module.values[b * 9 + j]
        logits.append(total / 6)
    return torch.stack(logits)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_module_embedding_bag_and_definition_agree_in_output_and_gradient(top_k, sparse):
    module = head(top_k=top_k, start="normal", sparse=sparse)
    bag = nn.EmbeddingBag(54, 4, mode="sum").requires_grad_()
    bag.weight.data.copy_(module.values.data)
    rows = module.rows(FEATURES)
    outputs = {
        "module": (module(FEATURES), module.values),
        "bag": (bag(rows.long()) / 6, bag.weight),
    }
    reference = by_hand(module, FEATURES)
    (expected,) = torch.autograd.grad(functional.cross_entropy(reference, TARGETS), module.values)
    for output, table in outputs.values():
        torch.testing.assert_close(output, reference, atol=1e-6, rtol=0)
        table.grad = None
        functional.cross_entropy(output, TARGETS).backward()
        grad = table.grad.to_dense() if table.grad.is_sparse else table.grad
        torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("decoder", ["vote", "linear"])
def test_tokens_are_looked_up_one_by_one_and_averaged(top_k, decoder):
    lookup = Lookup(codebooks=6, pairs=9, key_size=4, top_k=top_k, tokens=3)
    whole = KeyValueHead(
        12, 4, lookup=lookup, readout=Readout(decoder=decoder, start="normal"), seed=3
    )
    single = KeyValueHead(
        4,
        4,
        lookup=Lookup(codebooks=6, pairs=9, key_size=4, top_k=top_k),
        readout=Readout(decoder=decoder, start="normal"),
        seed=3,
    )
    assert torch.equal(whole.projections, single.projections)  # drawn for one token
    pixels = FEATURES.view(60, 4, 3).unbind(dim=2)
    expected = torch.stack([single(part) for part in pixels]).mean(dim=0)
    if decoder == "linear":  # the decoder is affine, so averaging before or after is the same
        assert whole.decoder[0].weight.shape == single.decoder[0].weight.shape
    outputs = whole(FEATURES)
    torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=0)
    for output, module in ((outputs, whole), (expected, single)):
        functional.cross_entropy(output, TARGETS).backward()
        assert module.values.grad.abs().sum() > 0
    torch.testing.assert_close(whole.values.grad, single.values.grad, atol=1e-6, rtol=0)
    assert whole.rows(FEATURES).shape == (60, 3 * 6 * top_k)
    assert whole.counts.sum() == 60 * 3 * 6 * top_k


def test_token_keys_are_fitted_to_tokens():
    lookup = Lookup(codebooks=2, pairs=4, key_size=2, projection="chunk", tokens=3)
    module = KeyValueHead(12, 4, lookup=lookup, readout=Readout(), seed=0)
    corners = torch.randint(2, (50, 4, 3), generator=generator(1, "corners")).float()
    fitting = KeyFitting(epochs=20, batch_size=25, decay=0.5, start="kmeans")
    module.fit_keys(corners.flatten(1), fitting)
    for book in module.keys:  # each chunk of a token is one of the square's four corners
        assert {tuple(k) for k in book.round(decimals=3).tolist()} <= {
            (0.0, 0.0),
            (0.0, 1.0),
            (1.0, 0.0),
            (1.0, 1.0),
        }


def test_training_changes_values_of_touched_rows_only():
    module = head()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    part = FEATURES[:5]
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(module(part), TARGETS[:5]).backward()
        optimizer.step()
    assert torch.equal(module.projections, before["projections"])
    assert torch.equal(module.keys, before["keys"])
    touched = torch.zeros(54, dtype=torch.bool)
    touched[module.rows(part).unique().long()] = True
    assert torch.equal(module.values[~touched], before["values"][~touched])
    assert bool((module.values[touched] != before["values"][touched]).any(dim=1).all())
    assert torch.equal(module.counts > 0, touched)


def test_evaluation_falls_back_to_the_nearest_used_pair():
    module = head()
    with torch.no_grad():
        module.train()(FEATURES[:1])
    used = module.rows(FEATURES[:1])
    assert not torch.equal(module.rows(FEATURES), used.expand(60, -1))
    assert torch.equal(module.rows(FEATURES, only_used=True), used.expand(60, -1))


def test_only_used_can_be_switched_off():
    module = head(only_used=False, start="normal")
    module.train()(FEATURES[:1])
    torch.testing.assert_close(module.eval()(FEATURES), by_hand(module, FEATURES))


def test_a_masked_row_is_never_fetched():
    module = head()
    row = int(module.rows(FEATURES[:1])[0, 0])
    module.masked[row] = True
    assert row not in module.rows(FEATURES).tolist()


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_a_parametric_decoder_is_frozen_unless_asked_for(decoder):
    frozen = head(decoder=decoder, value_size=3, start="normal")
    assert frozen(FEATURES).shape == (60, 4)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["values"]
    trained = head(decoder=decoder, value_size=3, train_decoder=True)
    assert all(p.requires_grad for p in trained.parameters())


def test_a_linear_decoder_of_identities_is_the_vote():
    module = head(decoder="linear", start="normal")
    with torch.no_grad():
        module.decoder[0].weight.copy_(torch.eye(4).repeat(1, 6) / 6)
        module.decoder[0].bias.zero_()
    torch.testing.assert_close(module(FEATURES), by_hand(module, FEATURES))


def test_growing_adds_classes_without_changing_the_known_ones():
    module = head(start="normal")
    before = module(FEATURES)
    module.grow(2)
    after = module(FEATURES)
    torch.testing.assert_close(after[:, :4], before)
    assert torch.equal(after[:, 4:], torch.zeros(60, 2))
    with pytest.raises(ValueError, match="only the decoder vote can grow"):
        head(decoder="linear").grow(1)


def test_fitting_resets_the_counter_and_uses_the_data():
    module = head()
    module.train()(FEATURES)
    module.fit_keys(FEATURES + 30.0, KeyFitting(epochs=20, batch_size=20, decay=0.5))
    assert module.counts.sum() == 0
    heads = module.heads(FEATURES + 30.0)
    low, high = heads.amin(dim=1), heads.amax(dim=1)
    assert bool((module.keys >= low[:, None]).all() & (module.keys <= high[:, None]).all())


def test_two_processes_with_one_seed_build_the_same():
    script = (
        "import hashlib, torch\n"
        "from fedsim.backbones.keyvalue_head import *\n"
        "torch.randn(int(__import__('sys').argv[1]))\n"  # other draws must not matter
        "h = KeyValueHead(12, 4, lookup=Lookup(codebooks=6, pairs=9, key_size=4),"
        " readout=Readout(decoder='mlp', start='normal'), seed=5)\n"
        "h.fit_keys(torch.linspace(0, 1, 600).view(50, 12), KeyFitting(epochs=2, batch_size=16))\n"
        "sha = hashlib.sha256()\n"
        "[sha.update(t.numpy().tobytes()) for t in h.state_dict().values()]\n"
        "print(sha.hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, number], capture_output=True, text=True, check=True
        ).stdout
        for number in ("1", "7")
    }
    assert len(digests) == 1
    assert not torch.equal(head(seed=1).keys, head(seed=2).keys)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="12 features cannot be cut into 5"):
        KeyValueHead(
            12, 4, lookup=Lookup(codebooks=5, projection="chunk"), readout=Readout(), seed=0
        )
    with pytest.raises(ValueError, match=r"12 features cannot be cut into 5 tokens.*tokens=h\*w"):
        KeyValueHead(12, 4, lookup=Lookup(codebooks=2, tokens=5), readout=Readout(), seed=0)
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        Lookup(tokens=0)
    with pytest.raises(ValueError, match="top_k"):
        Lookup(pairs=4, top_k=5)
    with pytest.raises(ValueError, match="value_size belongs to"):
        Readout(value_size=3)
    with pytest.raises(ValueError, match="projection must be"):
        Lookup(projection="learned")
    with pytest.raises(ValueError, match="decoder must be"):
        Readout(decoder="attention")
