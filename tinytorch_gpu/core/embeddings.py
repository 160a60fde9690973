"""Token embeddings, and the ways to tell a position."""

import math
from typing import Any

import numpy

from .. import ops
from ..backend import compute_dtype, kind, namespace
from ..devices import Device
from .layers import Dropout
from .module import Builder, Module, as_tensor, megabytes
from .tensor import Tensor


def __getattr__(name: str) -> Any:
    """The course finds EmbeddingProfiler here; its home is ``profiler``."""
    if name == "EmbeddingProfiler":
        from ..profiler.course import EmbeddingProfiler

        return EmbeddingProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Embedding(Module):
    """A table (vocab_size, embedding_dim) whose rows are looked up by token id.

    The row ``padding_idx`` is zero and gets no gradient.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        init_type: str = "uniform",
        *,
        std: float | None = None,
        build: Builder | None = None,
    ):
        bounds = {
            "uniform": 1 / math.sqrt(embedding_dim),
            "xavier": math.sqrt(6 / (vocab_size + embedding_dim)),
            "normal": 0.0,
        }
        if init_type not in bounds:
            raise ValueError(f"init_type must be uniform, normal or xavier, not {init_type!r}")
        if padding_idx is not None and not 0 <= padding_idx < vocab_size:
            raise ValueError(f"padding_idx must be below vocab_size ({vocab_size}): {padding_idx}")
        if init_type == "normal" and std is None:
            std = 1 / math.sqrt(embedding_dim)
        self.vocab_size, self.embedding_dim, self.padding_idx = (
            vocab_size,
            embedding_dim,
            padding_idx,
        )
        self.weight = (build or Builder()).table(vocab_size, embedding_dim, std, bounds[init_type])
        if padding_idx is not None:
            self.weight.data[padding_idx, ...] = 0

    def forward(self, input_ids: Any) -> Tensor:
        """Integer ids (...) -> (..., embedding_dim). An id out of range is a ValueError."""
        ids = as_tensor(input_ids, self.weight)
        check_ids(ids.data, self.vocab_size)
        return self.look_up(ids)

    def look_up(self, ids: Tensor) -> Tensor:
        """``forward`` for ids known to be in range: nothing waits for the device."""
        compute = compute_dtype(self.weight.dtype, kind(self.weight.data))
        return ops.embedding(ids, self.weight, dtype=compute, padding=self.padding_idx)

    def get_memory_usage(self) -> dict[str, Any]:
        """Size of the table."""
        return {
            "total_memory_mb": megabytes(self.nbytes),
            "memory_per_token_kb": self.nbytes / self.vocab_size / 1024,
            "total_parameters": self.weight.size,
            "vocab_size": self.vocab_size,
            "embedding_dim": self.embedding_dim,
        }


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raise a ValueError unless ``ids`` are integers in [0, vocab_size)."""
    if not str(ids.dtype).lstrip("u").startswith("int"):
        raise ValueError(f"token ids must be integers, not {ids.dtype}")
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"token id {bad} is outside the vocabulary of {vocab_size}")


def sinusoids(length: int, width: int) -> Any:
    """The table (length, width) of Vaswani et al. 2017: sine on even columns, cosine on odd."""
    position = numpy.arange(length)[:, None]
    rates = numpy.exp(numpy.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = numpy.zeros((length, width), dtype=numpy.float32)
    table[:, 0::2] = numpy.sin(position * rates)
    table[:, 1::2] = numpy.cos(position * rates[: width // 2])
    return table


class _Positions(Module):
    """What both additive position encodings share."""

    max_seq_length: int

    def _table(self) -> Tensor:
        raise NotImplementedError

    def forward(self, embeddings: Any, positions: Any = None) -> Tensor:
        """Add to ``embeddings`` (B, T, C) or (T, C) the rows ``positions`` (T,) or (B, T), by
        default the first T. A longer input is a ValueError."""
        x = as_tensor(embeddings, self._table())
        length = x.shape[-2]
        if length > self.max_seq_length:
            raise ValueError(f"{length} positions exceed max_seq_length ({self.max_seq_length})")
        if positions is None:
            positions = namespace(x.data).arange(length)
        rows = ops.embedding(positions, self._table(), dtype=x.dtype)
        return x + rows


class PositionalEncoding(_Positions):
    """Fixed sinusoids added to the embeddings (Vaswani et al. 2017); the table is ``.pe``."""

    def __init__(
        self,
        embedding_dim: int,
        max_seq_length: int = 5000,
        dropout: float = 0.0,
        *,
        build: Builder | None = None,
    ):
        self.embedding_dim, self.max_seq_length = embedding_dim, max_seq_length
        self.dropout = Dropout(dropout)
        place = (build or Builder()).device
        self.pe = Tensor(place.asarray(sinusoids(max_seq_length, embedding_dim)))

    def _table(self) -> Tensor:
        return self.pe

    def moved(self, place: Device) -> None:
        self.pe = self.pe.to(place)

    def forward(self, embeddings: Any, positions: Any = None) -> Tensor:
        return self.dropout(super().forward(embeddings, positions))


class LearnedPositionalEmbedding(_Positions):
    """A trained row per position added to the embeddings."""

    def __init__(
        self,
        max_seq_length: int,
        embedding_dim: int,
        *,
        std: float | None = None,
        build: Builder | None = None,
    ):
        self.max_seq_length, self.embedding_dim = max_seq_length, embedding_dim
        bound = 1 / math.sqrt(embedding_dim)
        self.weight = (build or Builder()).table(max_seq_length, embedding_dim, std, bound)

    def _table(self) -> Tensor:
        return self.weight


def as_ids(input_ids: Any, vocab_size: int, place: Device) -> Tensor:
    """Return token ids (B, T) on ``place``, checked where they are; (T,) means one row."""
    ids = input_ids if isinstance(input_ids, Tensor) else Tensor(input_ids, device=_home(input_ids))
    if ids.ndim == 1:
        ids = ids.reshape(1, -1)
    if ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(f"token ids must be (T,) or (B, T) with T at least 1, not {ids.shape}")
    if "float" in str(ids.dtype) and not (ids.data % 1).any():
        ids = Tensor(namespace(ids.data).astype(ids.data, numpy.int64))
    check_ids(ids.data, vocab_size)
    return ids.to(place)


def _home(x: Any) -> Any:
    """Where ids are checked: where they are, so that lists need no trip to the GPU."""
    return None if hasattr(x, "dtype") and kind(x) == "cuda" else "cpu"
