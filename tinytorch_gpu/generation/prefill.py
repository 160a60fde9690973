"""Many tokens of each row through a cache at once."""

from typing import Any

import numpy

from ..backend import namespace
from ..core.tensor import Tensor, wrap
from .cache import Cache

# Longer prompts are fed in parts, so that the workspace does not grow with them.
PREFILL_CHUNK = 512


def padded(rows: Any, filler: int) -> Any:
    """``rows`` of ids as an array (B, T) on the host, ``filler`` behind those that are shorter."""
    ids = numpy.full((len(rows), max(map(len, rows))), filler, dtype=numpy.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def prefill(model: Any, rows: Any, cache: Cache) -> Tensor:
    """Feed ``rows`` (ids known to be in range, at least one each) after what the cache holds of them;
    return the logits (B, V) behind the last of each."""
    lengths, place, last = numpy.array([len(row) for row in rows]), model.device, None
    ids = place.asarray(padded(rows, 0))
    uniform = bool((lengths == ids.shape[1]).all())
    for start in range(0, ids.shape[1], PREFILL_CHUNK):
        part = ids[:, start : start + PREFILL_CHUNK]
        counts = None if uniform else numpy.clip(lengths - start, 0, part.shape[1])
        hidden, _ = model.hidden(wrap(part), cache=cache, counts=counts)
        last = _last_states(hidden.data, counts, place, last)
    return model.logits(wrap(last))


def _last_states(hidden: Any, counts: Any, place: Any, before: Any) -> Any:
    """The state (B, C) of the last of the ``counts`` (B,) tokens of each row of ``hidden``
    (B, T, C), None for all; a row without any keeps what it had ``before``."""
    if counts is None:
        return hidden[:, -1]
    xp = namespace(hidden)
    ends = place.asarray(numpy.maximum(counts - 1, 0))
    here = hidden[xp.arange(hidden.shape[0]), ends]
    if before is None:
        return here
    return xp.where(place.asarray(counts > 0)[:, None], here, before)
