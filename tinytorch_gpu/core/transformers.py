"""The transformer: blocks one after another, between an embedding and a head.

GPT-2, LLaMA, BERT, T5 and the course's model are settings of one class (``TransformerConfig``).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy

from .. import nvtx, ops
from ..backend import float_dtype, to_numpy
from ..config import TransformerConfig
from ..devices import Device, device
from ..quantized import Format, QuantizedMatrix, fitting, format_named, is_blocked, kept_dense
from ..rng import Generator
from ..weight import Weight
from .block import TransformerBlock
from .cross_attention import Memory
from .deferred import deferring
from .embeddings import Embedding, LearnedPositionalEmbedding, PositionalEncoding, as_ids
from .layers import NORMS, Dropout, LayerNorm, Linear, PositionwiseFeedForward
from .module import Builder, megabytes
from .positions import Positions
from .stack import Stack
from .tensor import Tensor, as_array, no_grad

__all__ = ["LayerNorm", "PositionwiseFeedForward", "Transformer", "TransformerBlock"]


def __getattr__(name: str) -> Any:
    """The course finds TransformerProfiler here; its home is ``profiler``."""
    if name == "TransformerProfiler":
        from ..profiler.course import TransformerProfiler

        return TransformerProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Transformer(Stack):
    """Logits for the next token from the tokens so far; of a model without a head, the states of its tokens.

    An encoder-decoder (``encoder_layers``) is called with the text it writes and the ``source`` it reads.

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
        for field in fields(config):
            setattr(self, field.name, getattr(config, field.name))
        self.seed, self.device, self.dtype = seed, build.device, build.dtype
        width, std = config.embed_dim, config.init_std
        self.token_embedding = Embedding(config.vocab_size, width, std=std, build=build)
        self.pos_encoding = self._additive_positions(config, build)
        self.type_embedding = Embedding(config.token_types, width, std=std, build=build) \
            if config.token_types else None  # fmt: skip
        norm = config.norm if config.embedding_norm else "none"
        self.embedding_norm = NORMS[norm](width, config.norm_eps, build=build)
        self.embedding_dropout = Dropout(config.dropout)
        generator = Generator(self.device, seed)
        self.encoder = Stack(config.encoder, build, generator) if config.encoder_layers else None
        self.build_stack(config, build, generator)
        self.head = Linear(width, {"vocab": config.vocab_size}, config.head_bias, std, build=build) \
            if config.head and not config.tie_embeddings else None  # fmt: skip
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    def _additive_positions(self, config: TransformerConfig, build: Builder) -> Any:
        if config.position == "sinusoidal":
            return PositionalEncoding(config.embed_dim, config.max_seq_length, build=build)
        if config.position == "learned":
            return LearnedPositionalEmbedding(
                config.max_seq_length, config.embed_dim, std=config.init_std, build=build
            )
        return None

    # --- the forward pass ---
    def forward(
        self,
        input_ids: Any,
        mask: Any = None,
        return_attention_weights: bool = False,
        cache: Any = None,
        *,
        lengths: Any = None,
        token_types: Any = None,
        source: Any = None,
    ) -> Any:
        """Logits (B, T, vocab) for ids (B, T) or (T,), and with ``return_attention_weights`` the
        list of each layer's weights (B, H, T, S). A model without a head gives its states (B, T, embed_dim).

        With a ``cache`` (generation's) the ids continue what it holds, and no gradients are
        recorded. ``lengths`` (B,) says how many tokens of each row are real, the rest being padding on the
        right, which nothing then looks at; ``token_types`` (B, T) which embedding of its kind each
        gets (default 0). ``source`` is what an encoder-decoder reads: ids, or the ``Memory`` that
        ``encode`` made of them.
        """
        recording = contextlib.nullcontext() if cache is None else no_grad()
        with self.device.active(), recording, deferring():  # the head joins the layers
            ids = as_ids(input_ids, self.config.vocab_size, self.device)
            memory = self._memory(source, cache)
            hidden, weights = self.hidden(
                ids, mask, cache, None, return_attention_weights,
                lengths=lengths, token_types=token_types, memory=memory,
            )  # fmt: skip
            out = self.logits(hidden) if self.config.head else hidden
        return (out, weights) if return_attention_weights else out

    def encode(self, source: Any, lengths: Any = None) -> Memory:
        """What the encoder of an encoder-decoder makes of ids (B, S) or (S,), of which ``lengths`` (B,) are
        real. A model without one is a ValueError."""
        if self.encoder is None:
            raise ValueError("this model has no encoder: encoder_layers is 0")
        with self.device.active(), nvtx.span("encode", "phase"):
            ids = as_ids(source, self.config.vocab_size, self.device)
            positions = self._begin(ids)
            positions.lengths = self._real(lengths, ids)
            self.encoder.recompute = self.recompute
            states, _ = self.encoder.through(self.first_states(ids, positions), positions)
        return Memory(states, positions.lengths)

    def _memory(self, source: Any, cache: Any) -> Memory | None:
        if source is None and cache is not None:
            source = cache.memory
        if (source is None) != (self.encoder is None):
            raise ValueError(
                "this model has no encoder: it takes no source" if self.encoder is None
                else "an encoder-decoder needs the source that it reads: source=ids"
            )  # fmt: skip
        return source if source is None or isinstance(source, Memory) else self.encode(source)

    def hidden(
        self,
        ids: Tensor,
        mask: Any = None,
        cache: Any = None,
        counts: Any = None,
        return_attention_weights: bool = False,
        *,
        lengths: Any = None,
        token_types: Any = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """States (B, T, embed_dim) before the head, for checked ids (B, T) on the device.

        ``counts`` (B,), on the host, says how many tokens of each row are real: rows of different
        lengths are padded on the right.
        """
        if memory is None and self.encoder is not None:
            memory = self._memory(None, cache)
        positions = self._begin(ids, cache, counts)
        if lengths is not None:
            if cache is not None:
                raise ValueError("lengths are for a pass without a cache, which keeps its own")
            real = self._real(lengths, ids)
            # Padding comes last, where no token looks that looks back only.
            positions.lengths = None if self.config.causal else real
        made = self.through(  # alone holds the first states, and lets go of them
            self.first_states(ids, positions, token_types),
            positions, mask, cache, memory, return_attention_weights,
        )  # fmt: skip
        if cache is not None:
            cache.advance()
        return made

    def first_states(self, ids: Tensor, positions: Positions, token_types: Any = None) -> Tensor:
        """What the first block gets (B, T, embed_dim) for checked ids (B, T)."""
        with nvtx.span("embed", "op", ids.size):
            x = self.token_embedding.look_up(ids)
            if self.type_embedding is not None:
                x = x + self.type_embedding.look_up(self._types(token_types, ids))
            elif token_types is not None:
                raise ValueError("this model has no token types: token_types must be None")
            if self.pos_encoding is not None:
                x = self.pos_encoding(x, positions.array(ids))
            return self.embedding_dropout(self.embedding_norm(x))

    def _types(self, token_types: Any, ids: Tensor) -> Tensor:
        if token_types is None:
            return Tensor(self.device.zeros(ids.shape, "int64"))
        found = as_ids(token_types, self.config.token_types, self.device)
        if found.shape != ids.shape:
            raise ValueError(
                f"token_types {found.shape} must have the shape of the ids, {ids.shape}"
            )
        return found

    def _begin(self, ids: Tensor, cache: Any = None, counts: Any = None) -> Positions:
        """Check that the tokens fit, and say where they stand."""
        length, room = ids.shape[1], self.config.max_seq_length
        if cache is not None:
            return cache.begin(ids.shape[0], length, counts)
        if length > room:
            raise ValueError(f"{length} tokens exceed max_seq_length ({room})")
        return Positions(0, length)

    def _real(self, lengths: Any, ids: Tensor) -> Any:
        """``lengths`` (B,) on the device, checked on the host; None where all tokens are real."""
        if lengths is None:
            return None
        found = numpy.asarray(to_numpy(as_array(lengths)))
        batch, most = ids.shape
        if found.shape != (batch,) or found.dtype.kind not in "iu":
            raise ValueError(
                f"lengths must be {batch} whole numbers, not {found.dtype} {found.shape}"
            )
        if found.min() < 1 or found.max() > most:
            raise ValueError(f"lengths must be from 1 to {most}, not {found.tolist()}")
        return None if found.min() == most else self.device.asarray(found.astype(numpy.int64))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of states (..., embed_dim); a model without a head is a ValueError."""
        if not self.config.head:
            raise ValueError("this model has no head: it gives states, not logits")
        with nvtx.span("lm_head", "op", hidden.tokens):
            if self.config.head_scale != 1.0:
                hidden = hidden * self.config.head_scale
            if self.head is not None:
                return self.head(hidden)
            return ops.linear(hidden, self.token_embedding.weight)

    # --- the rest of the course's surface ---
    @property
    def lm_head(self) -> Tensor:
        """The head (embed_dim, vocab_size): a view, of the embedding where they are tied."""
        return self._head_weight().matrix(self._head_group())

    @lm_head.setter
    def lm_head(self, values: Any) -> None:
        self._head_weight().set_matrix(self._head_group(), values)

    def _head_weight(self) -> Weight:
        if not self.config.head:
            raise AttributeError("this model has no head")
        return self.token_embedding.weight if self.head is None else self.head.weight

    def _head_group(self) -> str:
        return "weight" if self.head is None else "vocab"

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
        for name, weight in self.named_parameters():
            if isinstance(weight, Weight) and not kept_dense(name):
                head = name.startswith("head.") or (
                    self.config.tie_embeddings and "embedding" in name
                )
                weight.quantize(fitting(form, weight.shape[1], head))
        return self

    def generate(self, input_ids: Any, max_new_tokens: int = 50, **options: Any) -> Any:
        """Continue ``input_ids``: see ``tinytorch_gpu.generation.generate`` for the options."""
        from ..generation import generate

        return generate(self, input_ids, max_new_tokens, **options)

    def embed(self, input_ids: Any, pooling: str = "mean", normalize: bool = True) -> Tensor:
        """One vector (B, embed_dim) for each text: see ``tinytorch_gpu.generation.embed``."""
        from ..generation import embed

        return embed(self, input_ids, pooling, normalize)

    def get_memory_usage(self) -> dict[str, Any]:
        """Parameters and their size in MB, by part."""
        config, embeddings = self.config, self.token_embedding.nbytes
        for extra in (self.pos_encoding, self.type_embedding, self.embedding_norm):
            embeddings += 0 if extra is None else extra.nbytes
        stacks = [self] if self.encoder is None else [self, self.encoder]
        norms = sum(stack.final_norm.nbytes for stack in stacks)
        blocks = sum(block.nbytes for stack in stacks for block in stack.transformer_blocks)
        blocks += sum(stack.relative.nbytes for stack in stacks if stack.relative is not None)
        head = 0 if self.head is None else self.head.nbytes
        return {
            "total_memory_mb": megabytes(self.nbytes),
            "embedding_memory_mb": megabytes(embeddings),
            "transformer_blocks_memory_mb": megabytes(blocks),
            "lm_head_memory_mb": megabytes(head),
            "final_norm_memory_mb": megabytes(norms),
            "total_parameters": self.count_parameters(),
            "vocab_size": config.vocab_size,
            "embed_dim": config.embed_dim,
            "num_heads": config.num_heads,
            "num_layers": config.num_layers,
            "hidden_dim": config.hidden_dim,
            "max_seq_length": config.max_seq_length,
        }
