"""Choosing tokens by the library (kernels/cpu/sampling.cpp), by the reference's random numbers."""

from typing import Any

import numpy

from ..ops import argmax, feed, mark_seen, penalize, sample
from .library import Operation, Record, packed, pointer

# logits, temperature, top k, top p, min p, state, scaled, tops, masses, ids; rows, classes, state pitch
_sample = Operation("sample", "10P3q")
_argmax = Operation("argmax", "3P2q")  # logits, tops, ids; rows, classes
_penalize = Operation("penalize", "4P2q")  # logits, seen, penalty, out; rows, classes
_mark_seen = Operation("mark_seen", "2P3q")  # seen, ids; rows, classes, count
_feed = Operation("feed", "3P2q")  # held, ids, state; rows, states

CLASSES = 64  # of a block (kernels/cpu/choice.h)
_SINGLE = numpy.dtype(numpy.float32)


def _are(arrays: Any, *dtypes: Any) -> bool:
    """Whether arrays have these dtypes and their values one after another."""
    return all(a.dtype == d and a.flags.c_contiguous for a, d in zip(arrays, dtypes, strict=True))


def _blocks(logits: Any, dtype: Any = numpy.float32) -> Any:
    """A number for each block of classes."""
    return numpy.empty((logits.shape[0], -(-logits.shape[1] // CLASSES)), dtype)


# --- sample ---


def _accepts_sample(logits: Any, *given: Any) -> bool:
    wanted = (_SINGLE, "int64", _SINGLE, _SINGLE, "uint64")
    rows = logits.shape[:1]
    per_row = all(x.shape == rows for x in given[:4])
    return bool(logits.dtype == _SINGLE and logits.size) and per_row and _are(given, *wanted)


def _sample_fields(ids: Any, logits: Any, *given: Any) -> tuple[Any, Any]:
    scratch = (numpy.empty_like(logits), _blocks(logits), _blocks(logits, numpy.float64))
    arrays = (logits, *given, *scratch, ids)
    pitch = 2 if given[-1].ndim == 2 else 0
    return arrays, (*map(pointer, arrays), *logits.shape, pitch)


def _sample_now(logits: Any, *given: Any) -> Any:
    ids = numpy.empty(len(logits), numpy.int64)
    _alive, fields = _sample_fields(ids, packed(logits), *given)
    _sample(logits.size, *fields)
    return ids


def _plan_sample(ids: Any, logits: Any, *given: Any) -> Record | None:
    if not logits.flags.c_contiguous:
        return None
    alive, fields = _sample_fields(ids, logits, *given)
    return _sample.record(alive, *fields)


# --- argmax ---


def _accepts_argmax(logits: Any) -> bool:
    return bool(logits.dtype == _SINGLE and logits.ndim == 2 and logits.size)


def _argmax_fields(ids: Any, logits: Any) -> tuple[Any, Any]:
    arrays = (logits, _blocks(logits), ids)
    return arrays, (*map(pointer, arrays), *logits.shape)


def _argmax_now(logits: Any) -> Any:
    ids = numpy.empty(len(logits), numpy.int64)
    _alive, fields = _argmax_fields(ids, packed(logits))
    _argmax(logits.size, *fields)
    return ids


def _plan_argmax(ids: Any, logits: Any) -> Record | None:
    if not logits.flags.c_contiguous:
        return None
    alive, fields = _argmax_fields(ids, logits)
    return _argmax.record(alive, *fields)


# --- penalize, mark_seen, feed ---


def _accepts_penalize(logits: Any, seen: Any, penalty: Any) -> bool:
    same = logits.shape == seen.shape and penalty.shape == logits.shape[:1]
    return same and _are((logits, seen, penalty), _SINGLE, bool, _SINGLE)


def _penalize_now(logits: Any, seen: Any, penalty: Any) -> Any:
    out = numpy.empty_like(logits)
    _penalize(logits.size, *map(pointer, (logits, seen, penalty, out)), *logits.shape)
    return out


def _plan_penalize(out: Any, logits: Any, seen: Any, penalty: Any) -> Record:
    arrays = (logits, seen, penalty, out)
    return _penalize.record(arrays, *map(pointer, arrays), *logits.shape)


def _accepts_mark(seen: Any, ids: Any) -> bool:
    return bool(len(seen) == len(ids)) and _are((seen, ids), bool, "int64")


def _mark_fields(seen: Any, ids: Any) -> tuple[int, ...]:
    return pointer(seen), pointer(ids), *seen.shape, ids.shape[1]


def _mark_now(seen: Any, ids: Any) -> Any:
    _mark_seen(ids.size, *_mark_fields(seen, ids))
    return seen


def _plan_mark(out: Any, seen: Any, ids: Any) -> Record:
    return _mark_seen.record((seen, ids), *_mark_fields(seen, ids))


def _accepts_feed(held: Any, ids: Any, state: Any) -> bool:
    return bool(held.size == ids.size) and _are((held, ids, state), "int64", "int64", "uint64")


def _feed_fields(held: Any, ids: Any, state: Any) -> tuple[int, ...]:
    return *map(pointer, (held, ids, state)), ids.size, state.size // 2


def _feed_now(held: Any, ids: Any, state: Any) -> Any:
    _feed(ids.size, *_feed_fields(held, ids, state))
    return held


def _plan_feed(out: Any, held: Any, ids: Any, state: Any) -> Record:
    return _feed.record((held, ids, state), *_feed_fields(held, ids, state))


for _op, _forward, _accepts, _plan in (
    (sample, _sample_now, _accepts_sample, _plan_sample),
    (argmax, _argmax_now, _accepts_argmax, _plan_argmax),
    (penalize, _penalize_now, _accepts_penalize, _plan_penalize),
    (mark_seen, _mark_now, _accepts_mark, _plan_mark),
    (feed, _feed_now, _accepts_feed, _plan_feed),
):
    _op.maker("cpu", _forward, accepts=_accepts, plan=_plan, ahead=True)
