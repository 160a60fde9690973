"""Blocks one after another: a decoder's, an encoder's."""

import functools
from typing import Any

from .. import nvtx
from ..config import TransformerConfig
from ..rng import Generator
from .block import TransformerBlock
from .cross_attention import Memory
from .deferred import deferring
from .layers import NORMS
from .module import Builder, Module
from .positions import Positions, RelativePositions, Rotary
from .recompute import recompute
from .tensor import Tensor


class Stack(Module):
    """The blocks, the norm behind the last, and what tells their attention where tokens stand."""

    def __init__(self, config: TransformerConfig, build: Builder, generator: Generator):
        self.build_stack(config, build, generator)

    def build_stack(self, config: TransformerConfig, build: Builder, generator: Generator) -> None:
        """Make the parts, as attributes of this module; dropout draws from ``generator``."""
        self.config, self.generator, self.recompute = config, generator, False
        self.transformer_blocks = [
            TransformerBlock(
                config.embed_dim, config.num_heads, config.hidden_dim, config=config, build=build
            )
            for _ in range(config.num_layers)
        ]
        self._ranges = [f"layer.{i:02d}" for i in range(config.num_layers)]
        norm = config.norm if config.final_norm else "none"
        self.final_norm = NORMS[norm](config.embed_dim, config.norm_eps, build=build)
        self.rotary = Rotary(config, build) if config.position == "rotary" else None
        self.relative = RelativePositions(
            config.relative_buckets, config.num_heads, config.relative_distance, not config.causal,
            std=config.init_std, build=build,
        ) if config.position == "relative" else None  # fmt: skip

    def through(
        self, x: Tensor, positions: Positions, mask: Any = None, cache: Any = None,
        memory: Memory | None = None, return_attention_weights: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """(B, T, embed_dim) through all blocks and the final norm, and each layer's attention weights
        (B, H, T, S) if asked for."""
        if self.relative is not None:
            keys = positions.stop if cache is None else cache.stop
            positions.bias = self.relative(positions, keys)
        weights: list[Tensor] = []
        with deferring():
            try:
                for i, block in enumerate(self.transformer_blocks):
                    if nvtx.on:
                        nvtx.enter(self._ranges[i], "layer", i)
                    run = functools.partial(
                        block, mask=mask, return_attention_weights=return_attention_weights,
                        cache=cache, layer=i, rotary=self.rotary,
                    )  # fmt: skip
                    if self.recompute and not return_attention_weights:
                        x = self._again(run, x, positions, memory)
                        continue
                    made = run(x, memory=memory, positions=positions)
                    if return_attention_weights:
                        made, layer_weights = made
                        weights.append(layer_weights)
                    x = made
            finally:
                if nvtx.on:
                    nvtx.leave("layer")
            return self.final_norm(x), weights

    def _again(self, run: Any, x: Tensor, positions: Positions, memory: Memory | None) -> Tensor:
        """A block that is run a second time in the backward, from all that it reads."""
        bias, states = positions.bias, None if memory is None else memory.states

        def block(x: Tensor, bias: Tensor | None, states: Tensor | None) -> Tensor:
            seen = None if memory is None or states is None else memory._replace(states=states)
            return run(x, memory=seen, positions=positions.biased(bias))

        return recompute(block, (x, bias, states), self.generator)
