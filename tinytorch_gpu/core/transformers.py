"""The transformer: blocks one after another, between an embedding and a head.

GPT-2, LLaMA and the course's model are settings of one class (``TransformerConfig``).
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from .. import nvtx, ops
from ..backend import float_dtype
from ..config import TransformerConfig
from ..devices import Device, device
from ..quantized import Format, QuantizedMatrix, fitting, format_named, is_blocked
from ..rng import Generator
from ..weight import Weight
from .attention import MultiHeadAttention, Positions
from .embeddings import Embedding, LearnedPositionalEmbedding, PositionalEncoding, Rotary, as_ids
from .layers import NORMS, Dropout, LayerNorm, Linear, PositionwiseFeedForward
from .module import Builder, Module, as_tensor, megabytes
from .recompute import recompute
from .tensor import Tensor, no_grad

__all__ = ["LayerNorm", "PositionwiseFeedForward", "Transformer", "TransformerBlock"]


def __getattr__(name: str) -> Any:
    """The course finds TransformerProfiler here; its home is ``profiler``."""
    if name == "TransformerProfiler":
        from ..profiler.course import TransformerProfiler

        return TransformerProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TransformerBlock(Module):
    """Attention and a feed-forward part, each added to what came in, with a norm before
    (``pre_norm``; Xiong et al. 2020) or after (Vaswani et al. 2017)."""

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
        self.norm2 = norm(embed_dim, config.norm_eps, build=build)
        deep = config.init_std and config.init_std / (2 * max(config.num_layers, 1)) ** 0.5
        self.ffn = PositionwiseFeedForward(
            embed_dim, hidden_dim, config.dropout, activation=config.activation,
            bias=config.ffn_bias, std=(config.init_std, deep), build=build,
        )  # fmt: skip

    def forward(
        self, x: Any, mask: Any = None, return_attention_weights: bool = False, **where: Any
    ) -> Any:
        """(B, T, embed_dim) -> the same, and with ``return_attention_weights`` (B, H, T, S) too.

        ``where`` (cache, layer, rotary, positions) goes to the attention.
        """
        x = as_tensor(x, self.attention.qkv.weight)
        try:
            inner, residual = x, None
            if self.pre_norm:
                if nvtx.on:
                    nvtx.enter("norm1", "part", x.tokens)
                inner, residual = self.norm1(x), x if self.residual else None
            if nvtx.on:
                nvtx.enter("attention", "part", x.tokens)
            attended = self.attention(
                inner, mask=mask, return_attention_weights=return_attention_weights,
                residual=residual, **where,
            )  # fmt: skip
            attended, weights = attended if return_attention_weights else (attended, None)
            out = self._pre_norm_rest(attended) if self.pre_norm \
                else self._post_norm_rest(x, attended)  # fmt: skip
        finally:
            if nvtx.on:
                nvtx.leave("part")
        return (out, weights) if return_attention_weights else out

    def _pre_norm_rest(self, x: Tensor) -> Tensor:
        """The second half, for ``x`` to which the attention has been added."""
        if nvtx.on:
            nvtx.enter("norm2", "part", x.tokens)
        inner = self.norm2(x)
        if nvtx.on:
            nvtx.enter("ffn", "part", x.tokens)
        return self.ffn(inner, residual=x if self.residual else None)

    def _post_norm_rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The additions and norms after each part, and the feed-forward part."""
        if nvtx.on:
            nvtx.enter("norm1", "part", x.tokens)
        inner = self.norm1.add(attended, x)[1] if self.residual else self.norm1(attended)
        if nvtx.on:
            nvtx.enter("ffn", "part", x.tokens)
        fed = self.ffn(inner)
        if nvtx.on:
            nvtx.enter("norm2", "part", x.tokens)
        return self.norm2.add(fed, inner)[1] if self.residual else self.norm2(fed)

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB, by part."""
        sizes = {name: megabytes(part.nbytes) for name, part in self.children()}
        return {
            "total_memory_mb": sum(sizes.values()),
            "attention_memory_mb": sizes["attention"],
            "norm_memory_mb": sizes["norm1"] + sizes["norm2"],
            "ffn_memory_mb": sizes["ffn"],
            "total_parameters": self.count_parameters(),
            "embed_dim": self.embed_dim,
            "num_heads": self.attention.num_heads,
            "hidden_dim": self.hidden_dim,
            "pre_norm": self.pre_norm,
        }


class Transformer(Module):
    """Logits for the next token from the tokens so far.

    The keyword ``choices`` are the fields of ``TransformerConfig``. ``device`` is "auto", "cpu" or
    "cuda:0"; ``dtype`` how the weights are stored; ``seed`` makes them repeatable. With ``recompute``
    set, training keeps only the input of each block and runs it again in the backward.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_heads: int,
        num_layers: int,
        hidden_dim: int,
        max_seq_length: int = 1024,
        dropout: float = 0.0,
        pre_norm: bool = True,
        *,
        causal: bool = True,
        device: Any = "auto",
        dtype: Any = "float32",
        seed: int | None = None,
        **choices: Any,
    ):
        config = TransformerConfig(
            vocab_size, embed_dim, num_heads, num_layers, hidden_dim, max_seq_length, dropout,
            pre_norm, causal, **choices,
        )  # fmt: skip
        self._build(config, Builder(device, dtype, seed), seed)

    @classmethod
    def from_config(
        cls,
        config: TransformerConfig,
        device: Any = "auto",
        dtype: Any = "float32",
        seed: int | None = None,
        init: bool = True,
        storage: bool = True,
    ) -> "Transformer":
        """Build the model of ``config``; ``init=False`` leaves the weights for a loader to fill, and
        ``storage=False`` leaves it to allocate the matrices too (see ``Builder``)."""
        model = cls.__new__(cls)
        model._build(config, Builder(device, dtype, seed, init, storage), seed)
        return model

    @classmethod
    def from_pretrained(
        cls, path_or_name: Any, device: Any = "auto", dtype: Any = "auto"
    ) -> "Transformer":
        """Load a GGUF file, a Hugging Face folder or repository, or an installed demo model.

        ``dtype`` is a float's name, a format in blocks such as "q4_0", "stored", or "auto": float32, but
        as stored what the device multiplies in blocks.
        """
        from ..checkpoint import load

        return load(path_or_name, device=device, dtype=dtype)

    def _build(self, config: TransformerConfig, build: Builder, seed: int | None) -> None:
        if config.encoder_layers:
            raise NotImplementedError("encoder-decoder models: encoder_layers must be 0 for now")
        if config.position == "relative":
            raise NotImplementedError("relative positions: choose another position for now")
        self.config, self.seed = config, seed
        for field in fields(config):
            setattr(self, field.name, getattr(config, field.name))
        self.device, self.dtype = build.device, build.dtype
        width, std = config.embed_dim, config.init_std
        self.token_embedding = Embedding(config.vocab_size, width, std=std, build=build)
        self.pos_encoding, self.rotary = self._positions(build)
        self.embedding_dropout = Dropout(config.dropout)
        self.transformer_blocks = [
            TransformerBlock(width, config.num_heads, config.hidden_dim, config=config, build=build)
            for _ in range(config.num_layers)
        ]
        self._ranges = [f"layer.{i:02d}" for i in range(config.num_layers)]
        self.final_norm = NORMS[config.norm](width, config.norm_eps, build=build)
        self.head = Linear(width, {"vocab": config.vocab_size}, config.head_bias, std, build=build) \
            if not config.tie_embeddings else None  # fmt: skip
        self.recompute, self.generator = False, Generator(self.device, seed)
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = self.generator

    def _positions(self, build: Builder) -> tuple[Any, Any]:
        """The additive position encoding, and the rotary one: at most one of them."""
        config = self.config
        if config.position == "sinusoidal":
            table = PositionalEncoding(config.embed_dim, config.max_seq_length, build=build)
            return table, None
        if config.position == "learned":
            return LearnedPositionalEmbedding(
                config.max_seq_length, config.embed_dim, std=config.init_std, build=build
            ), None
        return None, Rotary(config, build) if config.position == "rotary" else None

    # --- the forward pass ---
    def forward(
        self,
        input_ids: Any,
        mask: Any = None,
        return_attention_weights: bool = False,
        cache: Any = None,
    ) -> Any:
        """Logits (B, T, vocab) for ids (B, T) or (T,), and with ``return_attention_weights`` the
        list of each layer's weights (B, H, T, S).

        With a ``cache`` (generation's) the ids continue what it holds, and no gradients are
        recorded.
        """
        recording = contextlib.nullcontext() if cache is None else no_grad()
        with self.device.active(), recording:
            ids = as_ids(input_ids, self.config.vocab_size, self.device)
            hidden, weights = self.hidden(ids, mask, cache, None, return_attention_weights)
            logits = self.logits(hidden)
        return (logits, weights) if return_attention_weights else logits

    def hidden(
        self,
        ids: Tensor,
        mask: Any = None,
        cache: Any = None,
        counts: Any = None,
        return_attention_weights: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """States (B, T, embed_dim) before the head, for checked ids (B, T) on the device.

        ``counts`` (B,), on the host, says how many tokens of each row are real: rows of different
        lengths are padded on the right.
        """
        positions = self._begin(ids, cache, counts)
        with nvtx.span("embed", "op", ids.size):
            x = self.token_embedding.look_up(ids)
            if self.pos_encoding is not None:
                x = self.pos_encoding(x, positions.array(ids))
            x = self.embedding_dropout(x)
        weights: list[Tensor] = []
        try:
            for i, block in enumerate(self.transformer_blocks):
                if nvtx.on:
                    nvtx.enter(self._ranges[i], "layer", i)
                run = functools.partial(
                    block, mask=mask, return_attention_weights=return_attention_weights,
                    cache=cache, layer=i, rotary=self.rotary, positions=positions,
                )  # fmt: skip
                again = self.recompute and not return_attention_weights
                made: Any = recompute(run, x, self.generator) if again else run(x)
                if return_attention_weights:
                    made, layer_weights = made
                    weights.append(layer_weights)
                x = made
        finally:
            if nvtx.on:
                nvtx.leave("layer")
        if cache is not None:
            cache.advance()
        return self.final_norm(x), weights

    def _begin(self, ids: Tensor, cache: Any, counts: Any) -> Positions:
        """Check that the tokens fit, and say where they stand."""
        length, room = ids.shape[1], self.config.max_seq_length
        if cache is not None:
            return cache.begin(ids.shape[0], length, counts)
        if length > room:
            raise ValueError(f"{length} tokens exceed max_seq_length ({room})")
        return Positions(0, length)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of states (..., embed_dim)."""
        with nvtx.span("lm_head", "op", hidden.tokens):
            if self.head is not None:
                return self.head(hidden)
            return ops.linear(hidden, self.token_embedding.weight)

    # --- the rest of the course's surface ---
    @property
    def lm_head(self) -> Tensor:
        """The head (embed_dim, vocab_size): a view, of the embedding where they are tied."""
        if self.head is None:
            return self.token_embedding.weight.matrix("weight")
        return self.head.weight.matrix("vocab")

    @lm_head.setter
    def lm_head(self, values: Any) -> None:
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        weight.set_matrix(next(iter(weight.groups)), values)

    def own_state(self) -> Iterator[tuple[str, Any]]:
        if self.head is not None:
            yield "lm_head", self.head.weight.data.T
            if self.head.bias is not None:
                yield "lm_head_bias", self.head.bias.data

    def moved(self, place: Device) -> None:
        self.device = self.generator.device = place

    def to(self, target: Any) -> "Transformer":
        """Move to a device, or store the weights in a dtype ("bfloat16") or the matrices in a format of
        blocks ("q4_0"), in place; return self."""
        name = str(target)
        if isinstance(target, Device) or name.partition(":")[0] in (
            "auto",
            "cpu",
            "cuda",
            "emulated",
        ):
            super().to(device(target))
            return self
        if is_blocked(target):
            return self._quantize(format_named(target))
        self.dtype = float_dtype(target)
        for parameter in self.parameters():
            frozen = isinstance(parameter.data, QuantizedMatrix)
            parameter.data = parameter.data.astype(self.dtype)
            if frozen:
                parameter.requires_grad_()
        return self

    def _quantize(self, form: Format) -> "Transformer":
        """Put the matrices of the blocks, the embedding and the head in ``form``, or one that fits."""
        apart = self.pos_encoding.parameters() if isinstance(self.pos_encoding, Module) else []
        for name, weight in self.named_parameters():
            if isinstance(weight, Weight) and not any(weight is other for other in apart):
                head = name.startswith("head.") or (self.head is None and "embedding" in name)
                weight.quantize(fitting(form, weight.shape[1], head))
        return self

    def generate(self, input_ids: Any, max_new_tokens: int = 50, **options: Any) -> Any:
        """Continue ``input_ids``: see ``tinytorch_gpu.generation.generate`` for the options."""
        from ..generation import generate

        return generate(self, input_ids, max_new_tokens, **options)

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB, by part."""
        config, embeddings = self.config, self.token_embedding.nbytes
        if isinstance(self.pos_encoding, LearnedPositionalEmbedding):
            embeddings += self.pos_encoding.nbytes
        blocks = sum(block.nbytes for block in self.transformer_blocks)
        head = 0 if self.head is None else self.head.nbytes
        return {
            "total_memory_mb": megabytes(self.nbytes),
            "embedding_memory_mb": megabytes(embeddings),
            "transformer_blocks_memory_mb": megabytes(blocks),
            "lm_head_memory_mb": megabytes(head),
            "final_norm_memory_mb": megabytes(self.final_norm.nbytes),
            "total_parameters": self.count_parameters(),
            "vocab_size": config.vocab_size,
            "embed_dim": config.embed_dim,
            "num_heads": config.num_heads,
            "num_layers": config.num_layers,
            "hidden_dim": config.hidden_dim,
            "max_seq_length": config.max_seq_length,
        }
