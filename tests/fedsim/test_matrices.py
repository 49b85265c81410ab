import numpy as np
import torch

from fedsim.matrices import Matrices, Matrix


def test_rounds_with_fewer_clients_are_padded(tmp_path):
    matrices = Matrices(tmp_path)
    matrices.record(
        1, {"likeness": Matrix(clients=[4, 7], values=torch.tensor([[1, 0.5], [0.5, 1]]))}
    )
    matrices.record(2, {})
    matrices.record(3, {"likeness": Matrix(clients=(7,), values=torch.tensor([[0.25]]))})
    matrices.finish()
    saved = np.load(tmp_path / "likeness.npz")
    assert saved["rounds"].tolist() == [1, 3]
    assert saved["clients"].tolist() == [[4, 7], [7, -1]]
    assert saved["values"][0].tolist() == [[1, 0.5], [0.5, 1]]
    assert saved["values"][1][0, 0] == 0.25
    assert np.isnan(saved["values"][1][1]).all()
    picture = (tmp_path / "likeness.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_methods_without_matrices_leave_no_file(tmp_path):
    matrices = Matrices(tmp_path)
    matrices.record(1, {})
    matrices.finish()
    assert list(tmp_path.iterdir()) == []
