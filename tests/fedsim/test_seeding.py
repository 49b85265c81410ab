import hashlib
import subprocess
import sys

import torch

from fedsim.seeding import derive, generator, numpy_generator, words


def test_same_path_same_draws():
    a, b = generator(1, "train", 3, 7), generator(1, "train", 3, 7)
    assert torch.equal(torch.rand(5, generator=a), torch.rand(5, generator=b))
    x, y = numpy_generator(1, "train", 3), numpy_generator(1, "train", 3)
    assert x.random() == y.random()


def test_every_part_of_the_path_counts():
    seeds = {
        derive(0, "train", 3, 7),
        derive(1, "train", 3, 7),
        derive(0, "test", 3, 7),
        derive(0, "train", 7, 3),
        derive(0, "train", 37),
        derive(0, "train", "3", 7),
        derive(0, "train", 3),
        derive(0),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_do_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    torch.rand(3, generator=generator(0, "x"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_process_derives_the_same():
    code = "from fedsim.seeding import derive; print(derive(5, 'train', 1, 2))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert int(out.stdout) == derive(5, "train", 1, 2)


def test_words_of_one_do_not_depend_on_the_others():
    together = words(5, 3, "resample", each=[4, 9, 1_000_000])
    assert together.shape == (3, 5)
    for row, part in zip(together, [4, 9, 1_000_000], strict=True):
        assert (words(5, 3, "resample", each=[part])[0] == row).all()
        assert (words(2, 3, "resample", each=[part])[0] == row[:2]).all()
    assert len(set(together.ravel().tolist())) == 15
    assert not (words(5, 4, "resample", each=[4]) == together[0]).any()
    assert not (words(5, 3, "other", each=[4]) == together[0]).any()


def test_words_are_those_of_shake():
    text = b"3/str:resample/int:4"
    assert words(3, 3, "resample", each=[4]).tobytes() == hashlib.shake_128(text).digest(24)
