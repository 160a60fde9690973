"""The block that every transformer here is made of."""

from collections.abc import Callable
from typing import Any

from .. import nvtx
from ..config import TransformerConfig
from .attention import MultiHeadAttention
from .cross_attention import CrossAttention, Memory
from .layers import NORMS, PositionwiseFeedForward
from .module import Builder, Module, as_tensor, megabytes
from .tensor import Tensor


class TransformerBlock(Module):
    """Attention and a feed-forward part, each added to what came in, with a norm before
    (``pre_norm``; Xiong et al. 2020) or after (Vaswani et al. 2017).

    A decoder's block that reads an encoder's ``Memory`` has cross-attention between the two, with its norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
        *,
        config: TransformerConfig | None = None,
        build: Builder | None = None,
    ):
        if config is None:
            config = TransformerConfig(
                1, embed_dim, num_heads, 1, hidden_dim, 1, dropout, pre_norm, False, position="none"
            )
        self.pre_norm, self.embed_dim, self.hidden_dim = config.pre_norm, embed_dim, hidden_dim
        self.residual = config.residual
        norm = NORMS[config.norm]
        self.norm1 = norm(embed_dim, config.norm_eps, build=build)
        self.attention = MultiHeadAttention(
            embed_dim, num_heads, config.dropout, config=config, build=build
        )
        if config.encoder_layers:
            self.cross_norm = norm(embed_dim, config.norm_eps, build=build)
            self.cross_attention = CrossAttention(config, build)
        self.norm2 = norm(embed_dim, config.norm_eps, build=build)
        deep = config.init_std and config.init_std / (2 * max(config.num_layers, 1)) ** 0.5
        self.ffn = PositionwiseFeedForward(
            embed_dim, hidden_dim, config.dropout, activation=config.activation,
            bias=config.ffn_bias, std=(config.init_std, deep), build=build,
        )  # fmt: skip

    def forward(
        self,
        x: Any,
        mask: Any = None,
        return_attention_weights: bool = False,
        memory: Memory | None = None,
        **where: Any,
    ) -> Any:
        """(B, T, embed_dim) -> the same, and with ``return_attention_weights`` (B, H, T, S) too.

        ``where`` (cache, layer, rotary, positions) goes to the attention.
        """
        x = as_tensor(x, self.attention.qkv.weight)
        weights: list[Tensor] = []

        def attend(inner: Tensor, residual: Tensor | None) -> Tensor:
            made = self.attention(
                inner, mask=mask, return_attention_weights=return_attention_weights,
                residual=residual, **where,
            )  # fmt: skip
            if return_attention_weights:
                made, found = made
                weights.append(found)
            return made

        def cross(inner: Tensor, residual: Tensor | None) -> Tensor:
            assert memory is not None
            return self.cross_attention(inner, memory, where.get("layer", 0), residual)

        try:
            x = self._part(x, "norm1", "attention", attend)
            if memory is not None:
                x = self._part(x, "cross_norm", "cross_attention", cross)
            x = self._part(x, "norm2", "ffn", self.ffn)
        finally:
            if nvtx.on:
                nvtx.leave("part")
        return (x, weights[0]) if return_attention_weights else x

    def _part(
        self, x: Tensor, norm: str, part: str, run: Callable[[Tensor, Tensor | None], Tensor]
    ) -> Tensor:
        """``run`` with its norm before or after it, added to ``x``."""
        normed: Any = getattr(self, norm)
        if self.pre_norm:
            if nvtx.on:
                nvtx.enter(norm, "part", x.tokens)
            inner = normed(x)
            if nvtx.on:
                nvtx.enter(part, "part", x.tokens)
            return run(inner, x if self.residual else None)
        if nvtx.on:
            nvtx.enter(part, "part", x.tokens)
        made = run(x, None)
        if nvtx.on:
            nvtx.enter(norm, "part", x.tokens)
        return normed.add(made, x)[1] if self.residual else normed(made)

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB, by part."""
        sizes = {name: megabytes(part.nbytes) for name, part in self.children()}
        return {
            "total_memory_mb": sum(sizes.values()),
            "attention_memory_mb": sizes["attention"] + sizes.get("cross_attention", 0.0),
            "norm_memory_mb": sizes["norm1"] + sizes["norm2"] + sizes.get("cross_norm", 0.0),
            "ffn_memory_mb": sizes["ffn"],
            "total_parameters": self.count_parameters(),
            "embed_dim": self.embed_dim,
            "num_heads": self.attention.num_heads,
            "hidden_dim": self.hidden_dim,
            "pre_norm": self.pre_norm,
        }
