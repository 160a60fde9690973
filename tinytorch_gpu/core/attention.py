"""Attention modules: scaled dot-product and multi-head (Vaswani et al. 2017)."""

import math
from collections.abc import Iterator
from typing import Any

from .. import ops
from ..config import TransformerConfig
from .layers import Dropout, Linear, RMSNorm, bias_of, matrix_of
from .module import Builder, Module, as_tensor, megabytes
from .positions import Rotary
from .tensor import Tensor


def __getattr__(name: str) -> Any:
    """The course finds KVCache and AttentionProfiler here; their homes are ``generation`` and ``profiler``."""
    if name == "KVCache":
        from ..generation.cache import KVCache

        return KVCache
    if name == "AttentionProfiler":
        from ..profiler.course import AttentionProfiler

        return AttentionProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def attend(
    q: Tensor, k: Tensor, v: Tensor, weights: bool, dropout: Dropout, *arrays: Any, **options: Any
) -> Any:
    """Run attention of q (B, T, H, D) on k and v (B, S, K, D) with the next dropout draw; (out, weights) if asked.
    ``arrays`` are those of ``ops.attention`` behind them: mask, bias (1 or B, H, T, S), lengths (B,), starts (B,)."""
    state = dropout.state(q)
    if state is not None:
        options["dropout"] = dropout.p
    operation = ops.attention_with_weights if weights else ops.attention
    return operation(q, k, v, *arrays, state, **options)


class ScaledDotProductAttention(Module):
    """softmax(q k / (sqrt(D) temperature)) v over (B, H, T, D) or (B, T, D)."""

    def __init__(self, dropout: float = 0.0, temperature: float = 1.0):
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.dropout, self.temperature = Dropout(dropout), temperature

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any = None,
        return_attention_weights: bool = False,
    ) -> Any:
        """The mix of values (B, H, T, D), and with ``return_attention_weights`` (B, H, T, S) too.

        ``mask``: nonzero may look; (T, S), (B, T, S) or (B, H, T, S). None looks everywhere.
        """
        q, k, v = (as_tensor(x, as_tensor(query, None)) for x in (query, key, value))
        if q.ndim not in (3, 4):
            raise ValueError(f"query must be (B, H, T, D) or (B, T, D), not {q.shape}")
        headless = q.ndim == 3
        if headless:
            q, k, v = (x.reshape(x.shape[0], 1, *x.shape[1:]) for x in (q, k, v))
        if q.shape[-1] != k.shape[-1] or k.shape[2] != v.shape[2]:
            raise ValueError(f"query {q.shape}, key {k.shape} and value {v.shape} do not fit")
        q, k, v = (x.permute(0, 2, 1, 3) for x in (q, k, v))
        scale = 1 / (math.sqrt(q.shape[-1]) * self.temperature)
        out = attend(
            q, k, v, return_attention_weights, self.dropout,
            prepared_mask(mask, q), None, None, None, scale=scale,
        )  # fmt: skip
        mixed, weights = out if return_attention_weights else (out, None)
        mixed = mixed.permute(0, 2, 1, 3)
        if headless:
            mixed = mixed.reshape(mixed.shape[0], *mixed.shape[2:])
            weights = weights if weights is None else weights.reshape(-1, *weights.shape[2:])
        return (mixed, weights) if return_attention_weights else mixed


def prepared_mask(mask: Any, like: Tensor) -> Any:
    """A user's mask as an array beside ``like``; a shape that cannot fit is a ValueError."""
    if mask is None:
        return None
    mask = Tensor(mask, device=like.device)
    batch, rows, heads = like.shape[:3]
    if mask.ndim not in (2, 3, 4) or mask.shape[-2] not in (1, rows):
        raise ValueError(f"mask {mask.shape} does not fit {rows} queries: use (T, S), (B, T, S) "
                         "or (B, H, T, S)")  # fmt: skip
    sizes = {3: (batch,), 4: (batch, heads)}.get(mask.ndim, ())
    if any(n not in (1, size) for n, size in zip(mask.shape, sizes, strict=False)):
        raise ValueError(f"mask {mask.shape} does not fit batch {batch} and {heads} heads")
    return mask.data


class MultiHeadAttention(Module):
    """Attention in several heads, with projections in and out.

    ``w_q``, ``w_k``, ``w_v`` and ``w_o`` are the course's (in, out) matrices: views of one stored
    weight for query, key and value, and one for the output. ``config`` gives the choices beyond
    the course's: key/value heads, biases, rotary positions, q/k norm, sliding window.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        config: TransformerConfig | None = None,
        build: Builder | None = None,
    ):
        if config is None:
            config = TransformerConfig(1, embed_dim, num_heads, 1, 1, position="none", causal=False)
        self.embed_dim, self.num_heads, self.config = embed_dim, num_heads, config
        self.num_kv_heads, self.head_dim = config.kv_heads, config.head_size
        inside, shared = num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        std = config.init_std or 1 / math.sqrt(embed_dim)
        out_std = config.init_std and config.init_std / math.sqrt(2 * max(config.num_layers, 1))
        self.qkv = Linear(
            embed_dim, {"q": inside, "k": shared, "v": shared}, config.qkv_bias, std, build=build
        )
        self.out = Linear(inside, {"o": embed_dim}, config.out_bias, out_std or std, build=build)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps, build=build)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps, build=build)
        self.dropout, self.projection_dropout = Dropout(dropout), Dropout(dropout)

    w_q, w_k, w_v = matrix_of("qkv", "q"), matrix_of("qkv", "k"), matrix_of("qkv", "v")
    b_q, b_k, b_v = bias_of("qkv", "q"), bias_of("qkv", "k"), bias_of("qkv", "v")
    w_o, b_o = matrix_of("out", "o"), bias_of("out", "o")

    def forward(
        self,
        query: Any,
        key: Any = None,
        value: Any = None,
        mask: Any = None,
        return_attention_weights: bool = False,
        *,
        cache: Any = None,
        layer: int = 0,
        rotary: Rotary | None = None,
        causal: bool | None = None,
        positions: Any = None,
        residual: Tensor | None = None,
    ) -> Any:
        """(B, T, embed_dim) -> the same, and with ``return_attention_weights`` (B, H, T, S) too.

        ``cache`` (generation's) holds the keys and values so far of ``layer``; the new ones are
        appended, and no gradients are recorded. ``rotary`` turns queries and keys to
        ``positions``. ``residual`` (B, T, embed_dim) is added to the result.
        """
        x = as_tensor(query, self.qkv.weight)
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"query must be (B, T, {self.embed_dim}), not {x.shape}")
        causal = self.config.causal if causal is None else causal
        itself = key is None and value is None
        bias = None if positions is None else positions.bias
        simple = mask is None and bias is None and not return_attention_weights
        if cache is not None and itself and simple:
            mixed = self._step(x, cache, layer, rotary, positions, causal)
            return self.projection_dropout.add(self.out, mixed, residual)
        if itself:
            q, k, v = self._project(x, rotary, positions)
        else:
            q, k, v = self._project_apart(x, key, value)
        starts, lengths = None, None if positions is None else positions.lengths
        if cache is not None:
            k, v, lengths, starts = cache.append(layer, k, v)
        result = attend(
            q, k, v, return_attention_weights, self.dropout,
            prepared_mask(mask, q), bias, lengths, starts,
            causal=causal, scale=self.config.attention_scale, window=self.config.sliding_window,
        )  # fmt: skip
        mixed, weights = result if return_attention_weights else (result, None)
        mixed = mixed.reshape(*mixed.shape[:2], self.num_heads * self.head_dim)
        out = self.projection_dropout.add(self.out, mixed, residual)
        return (out, weights) if return_attention_weights else out

    def _step(
        self, x: Tensor, cache: Any, layer: int, rotary: Rotary | None, positions: Any, causal: bool
    ) -> Tensor:
        """Attention through the cache in one operation, for inference: (B, T, H D)."""
        tables: tuple[Any, ...] = ()
        if rotary is not None:
            tables = (*rotary.tables(positions.stop), positions.array(x))
        return ops.cached_attention(
            self._packed(x), *cache.arrays(layer), *tables, heads=self.num_heads, stop=cache.stop,
            causal=causal, scale=self.config.attention_scale, window=self.config.sliding_window,
        )  # fmt: skip

    def _packed(self, x: Tensor) -> Tensor:
        """Queries, keys and values (B, T, H + 2 K, D) of one input by one product, normed where they lie."""
        heads, shared = self.num_heads, self.num_kv_heads
        packed = self.qkv(x).reshape(*x.shape[:2], heads + 2 * shared, self.head_dim)
        if not self.config.qk_norm:
            return packed
        gains = self.q_norm.gamma, self.k_norm.gamma
        return ops.norm_heads(packed, *gains, heads=heads, eps=self.config.norm_eps)

    def _project(self, x: Tensor, rotary: Rotary | None, positions: Any) -> tuple[Tensor, ...]:
        """Queries (B, T, H, D), keys and values (B, T, K, D) of one input."""
        heads, shared, packed = self.num_heads, self.num_kv_heads, self._packed(x)
        if rotary is not None:
            cos, sin = rotary.tables(positions.stop)
            packed = ops.rotary(packed, cos, sin, positions.array(x), heads=heads + shared)
        q, k, v = ops.split_heads(packed, sizes=(heads, shared, shared))
        return q, k, v

    def _project_apart(self, x: Tensor, key: Any, value: Any) -> tuple[Tensor, ...]:
        """Cross-attention: keys and values from other inputs, (B, S, embed_dim)."""
        like = self.qkv.weight
        key = x if key is None else as_tensor(key, like)
        value = key if value is None else as_tensor(value, like)
        if key.shape[:2] != value.shape[:2] or key.shape[0] != x.shape[0]:
            raise ValueError(f"query {x.shape}, key {key.shape}, value {value.shape} do not fit")
        parts = []
        for source, name, heads in (
            (x, "q", self.num_heads), (key, "k", self.num_kv_heads), (value, "v", self.num_kv_heads),
        ):  # fmt: skip
            y = self.qkv.group(name, source)
            parts.append(y.reshape(*y.shape[:2], heads, self.head_dim))
        if self.config.qk_norm:
            parts[:2] = [self.q_norm(parts[0]), self.k_norm(parts[1])]
        return tuple(parts)

    def own_state(self) -> Iterator[tuple[str, Any]]:
        for group in ("q", "k", "v"):
            yield f"w_{group}", self.qkv.weight.rows(group).T
            if self.qkv.bias is not None:
                yield f"b_{group}", self.qkv.bias_rows(group)
        yield "w_o", self.out.weight.rows("o").T
        if self.out.bias is not None:
            yield "b_o", self.out.bias.data

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB."""
        count = self.count_parameters()
        total = megabytes(self.nbytes)
        return {
            "total_parameter_memory_mb": total,
            "memory_per_head_mb": total / self.num_heads,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "total_parameters": count,
        }
