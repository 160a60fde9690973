"""Any module, counted and measured."""

import tracemalloc
from typing import Any

import numpy

from ...core.module import Module
from ...core.tensor import Tensor, no_grad
from ..clock import seconds_of
from ..recorded import forward_cost
from ..traced import traced
from .common import MB


class Profiler:
    """Any module: its parameters, the arithmetic of a forward pass, and its memory and time, measured."""

    def count_parameters(self, model: Module) -> int:
        """Trained values, shared ones once."""
        return model.count_parameters()

    def count_flops(self, model: Module, input_shape: tuple[int, ...]) -> int:
        """Operations of a forward pass over an input of ``input_shape``: ids for a model or an embedding,
        else numbers."""
        x = self._input(model, input_shape)
        return round(forward_cost(lambda: model(x)).flops)

    def measure_memory(self, model: Module, input_shape: tuple[int, ...]) -> dict[str, float]:
        """``parameter_memory_mb``, ``activation_memory_mb`` (what a forward keeps for its backward),
        ``peak_memory_mb`` (both and what is needed for a moment), and the share of it that is kept."""
        x = self._input(model, input_shape)
        stored = sum(int(p.data.nbytes) for p in model.parameters())
        model(x)  # tables are made once
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start(1)
        try:
            with traced() as before:
                pass
            with traced() as found:
                kept = model(x)
            del kept
        finally:
            if not tracing:
                tracemalloc.stop()
        live, peak = found.live - before.live, found.peak - before.live
        return {
            "parameter_memory_mb": stored / MB, "activation_memory_mb": live / MB,
            "peak_memory_mb": (stored + peak) / MB, "memory_efficiency": (stored + live) / (stored + peak),
        }  # fmt: skip

    def measure_latency(
        self, model: Module, input_tensor: Any, warmup: int = 10, iterations: int = 100
    ) -> float:
        """The median milliseconds of ``iterations`` forward passes after ``warmup`` others."""
        place = model.parameters()[0].device if model.parameters() else "cpu"
        with no_grad():
            return 1e3 * seconds_of(lambda: model(input_tensor), place, warmup, iterations)

    @staticmethod
    def _input(model: Module, shape: tuple[int, ...]) -> Any:
        vocab = getattr(model, "vocab_size", None)
        random = numpy.random.default_rng(0)
        if isinstance(vocab, int):
            return random.integers(0, vocab, shape)
        place = model.parameters()[0].device if model.parameters() else None
        return Tensor(random.standard_normal(shape).astype(numpy.float32), device=place)
