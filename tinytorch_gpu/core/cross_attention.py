"""Cross-attention: the queries of one text look at the states of another (Vaswani et al. 2017)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import ops
from ..config import TransformerConfig
from .attention import attend
from .layers import Dropout, Linear, RMSNorm, bias_of, matrix_of
from .module import Builder, Module
from .tensor import Tensor


class Memory(NamedTuple):
    """What an encoder has read, for the cross-attention of a decoder's blocks.

    ``states`` (B, S, embed_dim); ``lengths`` (B,) on the device where rows are padded; ``known`` the keys and
    values (B, S, K, D) of each layer, where they have been worked out once for many steps.
    """

    states: Tensor
    lengths: Any = None
    known: list[tuple[Tensor, Tensor]] | None = None


class CrossAttention(Module):
    """Attention to a ``Memory``: queries have one weight, keys and values another, since they are made of other
    states. The course's ``w_q``, ``w_k``, ``w_v`` and ``w_o`` are views, as in ``MultiHeadAttention``."""

    def __init__(self, config: TransformerConfig, build: Builder | None = None):
        self.config, embed, head = config, config.embed_dim, config.head_size
        inside, shared = config.num_heads * head, config.kv_heads * head
        std = config.init_std or 1 / math.sqrt(embed)
        out_std = config.init_std and config.init_std / math.sqrt(2 * max(config.num_layers, 1))
        self.query = Linear(embed, {"q": inside}, config.qkv_bias, std, build=build)
        self.memory = Linear(embed, {"k": shared, "v": shared}, config.qkv_bias, std, build=build)
        self.out = Linear(inside, {"o": embed}, config.out_bias, out_std or std, build=build)
        if config.qk_norm:
            self.q_norm = RMSNorm(head, config.norm_eps, build=build)
            self.k_norm = RMSNorm(head, config.norm_eps, build=build)
        self.dropout, self.projection_dropout = Dropout(config.dropout), Dropout(config.dropout)

    w_q, b_q = matrix_of("query", "q"), bias_of("query", "q")
    w_k, b_k = matrix_of("memory", "k"), bias_of("memory", "k")
    w_v, b_v = matrix_of("memory", "v"), bias_of("memory", "v")
    w_o, b_o = matrix_of("out", "o"), bias_of("out", "o")

    def forward(
        self, x: Tensor, memory: Memory, layer: int = 0, residual: Tensor | None = None
    ) -> Tensor:
        """What the queries of ``x`` (B, T, embed_dim) find in the memory, as ``layer`` knows it: (B, T,
        embed_dim), plus ``residual``."""
        q = self.query(x).reshape(*x.shape[:2], self.config.num_heads, self.config.head_size)
        if self.config.qk_norm:
            q = self.q_norm(q)
        k, v = self.keys_values(memory.states) if memory.known is None else memory.known[layer]
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"a memory of {k.shape[0]} rows does not fit {q.shape[0]} rows")
        mixed = attend(
            q, k, v, False, self.dropout, None, None, memory.lengths, None,
            causal=False, scale=self.config.attention_scale,
        )  # fmt: skip
        mixed = mixed.reshape(*mixed.shape[:2], mixed.shape[2] * mixed.shape[3])
        return self.projection_dropout.add(self.out, mixed, residual)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, S, K, D) of an encoder's states (B, S, embed_dim)."""
        shared, head = self.config.kv_heads, self.config.head_size
        packed = self.memory(states).reshape(*states.shape[:2], 2 * shared, head)
        _, k, v = ops.split_heads(packed, sizes=(0, shared, shared))
        return (self.k_norm(k) if self.config.qk_norm else k), v

    def own_state(self) -> Iterator[tuple[str, Any]]:
        for layer, groups in ((self.query, "q"), (self.memory, "kv"), (self.out, "o")):
            for group in groups:
                yield f"w_{group}", layer.weight.rows(group).T
                if layer.bias is not None:
                    yield f"b_{group}", layer.bias_rows(group)
