"""What a key-value bottleneck can be told: how pairs are found, read out and their keys fitted."""

from dataclasses import dataclass
from typing import Literal

from fedsim.functional.codebooks import KeyStart

ValueStart = Literal["zeros", "normal", "uniform", "small"]
_STARTS = ("zeros", "normal", "uniform", "small")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """How features find their pairs.

    Attributes:
        codebooks: ``B``.
        pairs: Pairs in a codebook, ``M``.
        key_size: Numbers in a key, ``q``; ignored with ``chunk``, where it is ``d / (T B)``.
        top_k: Pairs fetched per codebook, ``k``.
        projection: ``gaussian`` shows every codebook a fixed random projection, ``chunk`` a piece
            of the features.
        only_used: In evaluation, look among the pairs that training has fetched.
        tokens: Vectors that an example consists of, ``T``: pixels of a feature map ``[c, h, w]``,
            flattened, of which each is looked up by itself; ``1`` for pooled features.
    """

    codebooks: int = 256
    pairs: int = 4096
    key_size: int = 14
    top_k: int = 1
    projection: Literal["gaussian", "chunk"] = "gaussian"
    only_used: bool = True
    tokens: int = 1

    def __post_init__(self) -> None:
        if min(self.codebooks, self.pairs, self.key_size, self.tokens) < 1:
            raise ValueError(
                "codebooks, pairs, key_size and tokens must be at least 1, got"
                f" {self.codebooks}, {self.pairs}, {self.key_size} and {self.tokens}"
            )
        if not 1 <= self.top_k <= self.pairs:
            raise ValueError(f"top_k must lie in [1, {self.pairs}] (pairs), got {self.top_k}")
        if self.projection not in ("gaussian", "chunk"):
            raise ValueError(f"projection must be gaussian or chunk, got {self.projection!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """How fetched values become logits.

    Attributes:
        decoder: ``vote`` averages values of one number per class; ``linear`` and ``mlp`` (128
            hidden units) read the values of all codebooks side by side.
        value_size: Numbers in a value with ``linear`` and ``mlp``; None is the number of classes,
            which ``vote`` requires.
        start: Values before training: ``zeros``, ``normal``, ``uniform`` in ``[0, 1)`` or
            ``small`` (normal, standard deviation 0.001).
        train_decoder: Train the decoder too; it then forgets like any layer.
        sparse: Sparse gradients for the values: fast with large tables, needs plain SGD.
    """

    decoder: Literal["vote", "linear", "mlp"] = "vote"
    value_size: int | None = None
    start: ValueStart = "zeros"
    train_decoder: bool = False
    sparse: bool = False

    def __post_init__(self) -> None:
        if self.decoder not in ("vote", "linear", "mlp"):
            raise ValueError(f"decoder must be vote, linear or mlp, got {self.decoder!r}")
        if self.start not in _STARTS:
            raise ValueError(f"start must be one of {', '.join(_STARTS)}, got {self.start!r}")
        if self.decoder == "vote" and self.value_size is not None:
            raise ValueError("value_size belongs to the decoders linear and mlp, not to vote")
        if self.value_size is not None and self.value_size < 1:
            raise ValueError(f"value_size must be at least 1, got {self.value_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFitting:
    """How keys are fitted to unlabelled features.

    Attributes:
        epochs: Passes over the features.
        batch_size: Examples a step.
        decay: Of the moving average.
        start: See :func:`fedsim.functional.codebooks.start_codebooks`.
        dead_share: A key used by less than this share of the mean is replaced.
    """

    epochs: int = 10
    batch_size: int = 256
    decay: float = 0.95
    start: KeyStart = "normal"
    dead_share: float = 0.1
