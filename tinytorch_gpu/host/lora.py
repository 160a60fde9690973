"""Low-rank adapters on the CPU: the reference's products, and a step of one token ready to repeat."""

from typing import Any

import numpy

from ..ops import lora


def _plan(
    out: Any, base: Any, x: Any, *factors: Any, spans: Any, scales: Any, needs: Any = None
) -> Any:
    """The adapters of one token; None where anything is not in one dtype."""
    if x.size != x.shape[-1] or any(f.dtype != x.dtype for f in (base, *factors)):
        return None
    row, before, place = x.reshape(-1), base.reshape(-1), out.reshape(-1)
    parts = []
    for (start, stop), scale, a, b in zip(spans, scales, factors[::2], factors[1::2], strict=True):
        low, delta = numpy.empty(len(a), x.dtype), numpy.empty(len(b), x.dtype)
        parts.append((a, b, x.dtype.type(scale), low, delta, place[start:stop]))

    def run() -> None:
        numpy.copyto(place, before)
        for a, b, scale, low, delta, target in parts:
            numpy.dot(a, row, out=low)
            numpy.multiply(low, scale, out=low)
            numpy.dot(b, low, out=delta)
            numpy.add(target, delta, out=target)

    return run


lora.maker("cpu", lora.reference, plan=_plan)
