"""Sampling that sorts only the tokens that can be chosen."""

from typing import Any

import numpy

from ..ops import mark_seen, sample
from ..rng import uniform
from .buffers import plain


def _sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, state: Any) -> Any:
    draws = uniform(state, logits.shape[0], numpy.float64)
    chosen = numpy.empty(logits.shape[0], numpy.int64)
    for row, values in enumerate(logits):
        if temperature[row] == 0:
            chosen[row] = values.argmax()
        else:
            scaled = values / temperature[row]
            chosen[row] = _draw(scaled, int(top_k[row]), top_p[row], min_p[row], draws[row])
    return chosen


def _draw(scaled: Any, top_k: int, top_p: Any, min_p: Any, draw: float) -> int:
    """One token of softmax(scaled (V,)), cut by top k, top p and min p."""
    classes, top = len(scaled), scaled.max()
    if not numpy.isfinite(top):
        return int(scaled.argmax())  # broken logits: the caller looks at the chosen one
    kept = numpy.arange(classes)
    if 0 < top_k < classes:
        edge = numpy.partition(scaled, classes - top_k)[classes - top_k]
        kept = numpy.nonzero(scaled >= edge)[0]
    if top_p < 1:
        # All tokens less likely than (1 - p) / V of the likeliest cannot fill 1 - p together.
        kept = kept[scaled[kept] - top > numpy.log((1 - top_p) / classes)]
    values = scaled[kept]
    powers = numpy.exp(values - top)
    inside = powers >= min_p
    if top_p < 1:
        inside &= values >= _nucleus_edge(scaled, values, top, top_k, top_p)
    weights = numpy.where(inside, powers, 0).astype(numpy.float64)
    total = numpy.cumsum(weights)
    return int(kept[numpy.searchsorted(total, draw * total[-1], side="right")])


def _nucleus_edge(scaled: Any, values: Any, top: Any, top_k: int, top_p: Any) -> Any:
    """The smallest of ``values`` needed to reach ``top_p`` of the mass that top k left."""
    ordered = -numpy.sort(-values)
    if 0 < top_k < len(scaled):
        ordered = ordered[:top_k]
        whole = numpy.partition(scaled, len(scaled) - top_k)[-top_k:]
    else:
        whole = scaled
    mass = numpy.exp(whole - top).sum(dtype=numpy.float64)
    powers = numpy.exp(ordered - top).astype(numpy.float64)
    before = (numpy.cumsum(powers) - powers) / mass
    count = max(1, int((before < float(top_p)).sum()))
    return ordered[count - 1]


def _mark_seen(seen: Any, ids: Any) -> Any:
    for row, tokens in zip(seen, ids, strict=True):
        row[tokens[tokens >= 0]] = True
    return seen


sample.maker("cpu", _sample, accepts=lambda logits, *rest: plain(logits))
mark_seen.maker("cpu", _mark_seen)
