"""Dropout in chunks: the random words of a chunk stay in cache, and no mask is kept."""

from typing import Any

import numpy

from ..ops import dropout
from ..rng import philox
from .buffers import plain

# Values of a chunk: a multiple of the 4 words of a counter.
CHUNK = 1 << 14
_LOW = 0xFFFFFFFF


def _drop(x: Any, state: Any, p: float) -> Any:
    """``x`` times what ``rng.uniform`` keeps of it."""
    flat = x.reshape(-1)
    out = numpy.empty(flat.shape, x.dtype)
    seed, offset = state[0], state[1]
    counter, key = (offset & _LOW, offset >> 32), (seed & _LOW, seed >> 32)
    bits = numpy.empty((min(CHUNK, -(-flat.size // 4) * 4) // 4, 4), x.dtype)
    for start in range(0, flat.size, CHUNK):
        part = slice(start, min(start + CHUNK, flat.size))
        count = part.stop - start
        group = numpy.arange(start // 4, start // 4 + -(-count // 4), dtype=numpy.uint64)
        for i, word in enumerate(philox((group & _LOW, group >> 32, *counter), key)):
            bits[: len(group), i] = word >> 9
        draws = bits.reshape(-1)[:count]
        draws += 0.5
        draws *= 2.0**-23
        numpy.greater_equal(draws, p, out=draws)
        draws *= 1 / (1 - p)
        numpy.multiply(flat[part], draws, out=out[part])
    return out.reshape(x.shape)


def _forward(x: Any, state: Any, *, p: float) -> Any:
    return _drop(x, state, p), (state,)


def _backward(residuals: Any, dout: Any, *, p: float) -> Any:
    return _drop(dout, residuals[0], p), None


dropout.maker("cpu", _forward, _backward, accepts=lambda x, *rest, **options: plain(x))
