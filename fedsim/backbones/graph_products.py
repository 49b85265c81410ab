"""Products with a graph's links and features as sparse matrices, prepared once per graph."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from fedsim.backbones.graph_base import Graph

DENSEST = 0.1  # share of entries beyond which a dense product is faster (measured on CPUs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMatrix:
    """A sparse matrix with its transpose; only the other factor of a product gets a gradient.

    Attributes:
        rows: The matrix ``[m, n]``, compressed by rows.
        columns: Its transpose ``[n, m]``, compressed by rows.
    """

    rows: Tensor
    columns: Tensor

    def __matmul__(self, dense: Tensor) -> Tensor:
        product: Tensor = _Product.apply(dense, self)
        return product

    def project(self, weight: Tensor, room: Tensor | None = None) -> Tensor:
        """``A W^T``, ``[m, d]``, for a weight ``[d, n]`` or, block by block, ``[k, d, n / k]``.

        Args:
            weight: Any memory format.
            room: Memory of ``[n, d]`` that may be written to until the gradient is computed.
        """
        if room is None:
            room = weight.new_empty(self.rows.shape[1], weight.shape[-2])
        product: Tensor = _Projection.apply(weight, self, room)
        return product


class _Product(Function):
    """``A X`` with the gradient ``A^T G``; both read their factor row by row."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.rows @ dense.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return ctx.matrix.columns @ grad.contiguous() if ctx.needs_input_grad[0] else None, None


class _Projection(Function):
    """``A W^T``; the gradient is laid out as the weight, so that what follows reads it in order."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: SparseMatrix, room: Tensor) -> Tensor:
        ctx.matrix, ctx.shape, ctx.room = matrix, weight.shape, room
        room.view(*weight.shape[:-2], -1, weight.shape[-2]).copy_(weight.transpose(-1, -2))
        return matrix.rows @ room

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        *stack, width, features = ctx.shape
        flat = torch.mm(ctx.matrix.columns, grad.contiguous(), out=ctx.room)
        return flat.view(*stack, features, width).transpose(-1, -2).contiguous(), None, None


class GraphProducts:
    """The normalised links of graphs, and their features where these are sparse.

    What is prepared for a graph is kept as long as its tensors live.
    """

    def __init__(self) -> None:
        self._links = WeakTensorKeyDictionary()
        self._features = WeakTensorKeyDictionary()  # None for those that are dense

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphProducts":
        return GraphProducts()  # it is made again when needed

    def links(self, data: Graph) -> SparseMatrix:
        """``D^-1/2 (A + I) D^-1/2``, ``[m, m]``."""
        if data.edge_index not in self._links:
            size = len(data.x)
            (source, target), weights = gcn_norm(data.edge_index, None, size, dtype=data.x.dtype)
            places = torch.stack([target, source])
            matrix = torch.sparse_coo_tensor(places, weights, (size, size), check_invariants=True)
            self._links[data.edge_index] = _both_ways(matrix)
        found: SparseMatrix = self._links[data.edge_index]
        return found

    def features(self, data: Graph) -> SparseMatrix | None:
        """The features ``[m, D]`` if they are sparse enough to gain from it."""
        if data.x not in self._features:
            self._features[data.x] = _both_ways(data.x.to_sparse_coo()) if _pays(data.x) else None
        found: SparseMatrix | None = self._features[data.x]
        return found

    def project(self, data: Graph, weight: Tensor) -> Tensor:
        """``X W^T``, ``[m, d]``, for a weight ``[d, D]``."""
        sparse = self.features(data)
        projected: Tensor = data.x @ weight.t() if sparse is None else sparse.project(weight)
        return projected


def _pays(x: Tensor) -> bool:
    """Whether the features are sparse enough; on GPUs dense products are faster."""
    known = x.device.type == "cpu" and not x.requires_grad
    return known and int(x.count_nonzero()) <= DENSEST * x.numel()


def _both_ways(matrix: Tensor) -> SparseMatrix:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that the format is in beta
        rows, columns = matrix.coalesce().to_sparse_csr(), matrix.t().coalesce().to_sparse_csr()
    return SparseMatrix(rows=rows, columns=columns)
