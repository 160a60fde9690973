"""The next token on a GPU: one launch for whatever is asked for, ids stay on the device."""

from typing import Any

from ..backend import dtype_name
from ..ops import argmax, feed, mark_seen, penalize, sample
from .launch import ELEMENTS, Source, element, empty, is_element, packed

SOURCE = Source("sampling.cu", REAL=ELEMENTS.values())
_sample_kernel = SOURCE.kernel("sample_tokens")
_argmax_kernel = SOURCE.kernel("argmax_tokens")
_mark_kernel = SOURCE.kernel("mark_seen_tokens")
_penalize_kernel = SOURCE.kernel("penalize_logits")
_feed_kernel = SOURCE.kernel("feed_tokens")


def _threads(classes: int) -> int:
    return 256 if classes <= 4096 else 512


def _is_logits(x: Any) -> bool:
    return is_element(x) and x.ndim == 2 and 0 < x.shape[1] < 2**30


def _holds(x: Any, dtype: str, rows: int) -> bool:
    return dtype_name(x.dtype) == dtype and x.shape == (rows,)


def _argmax(logits: Any) -> Any:
    rows, classes = logits.shape
    ids = empty(logits, rows, "int64")
    _argmax_kernel(rows, _threads(classes), packed(logits), ids, classes, REAL=element(logits))
    return ids


def _can_sample(
    logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, state: Any
) -> bool:
    if not _is_logits(logits):
        return False
    rows = logits.shape[0]
    return (
        all(_holds(x, "float32", rows) for x in (temperature, top_p, min_p))
        and _holds(top_k, "int64", rows)
        and _is_state(state, rows)
    )


def _is_state(state: Any, rows: int) -> bool:
    return dtype_name(state.dtype) == "uint64" and state.shape in ((2,), (rows, 2))


def _draw(logits: Any, seen: Any, penalty: Any, mark: bool, *rest: Any) -> Any:
    logits, own = packed(logits), rest[-1].ndim == 2
    rows, classes = logits.shape
    ids = empty(logits, rows, "int64")
    _sample_kernel(
        rows, _threads(classes), logits, seen, packed(penalty), mark, *map(packed, rest), own, ids,
        classes, REAL=element(logits),
    )  # fmt: skip
    return ids


def _sample(logits: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, state: Any) -> Any:
    return _draw(logits, None, None, False, temperature, top_k, top_p, min_p, state)


def penalized_sample(
    logits: Any, seen: Any, penalty: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any,
    state: Any, *, mark: bool = True,
) -> Any:  # fmt: skip
    """Return ``sample(penalize(logits, seen, penalty), ...)``, and with ``mark`` note the ids in
    ``seen``: three operations in one launch. Arguments that no kernel takes are a ValueError.
    """
    rest = (temperature, top_k, top_p, min_p, state)
    if not _can_sample(logits, *rest) or not _can_penalize(logits, seen, penalty):
        raise ValueError(
            f"no kernel for logits {logits.shape} of {logits.dtype}, seen {seen.shape} of "
            f"{seen.dtype}, or one of the parameters is not of a value a row"
        )
    return _draw(logits, seen, penalty, mark, *rest)


def _can_penalize(logits: Any, seen: Any, penalty: Any) -> bool:
    return (
        _is_logits(logits)
        and _is_marks(seen)
        and seen.shape == logits.shape
        and _holds(penalty, "float32", logits.shape[0])
    )


def _is_marks(seen: Any) -> bool:
    return dtype_name(seen.dtype) == "bool" and seen.ndim == 2 and seen.flags.c_contiguous


def _mark_seen(seen: Any, ids: Any) -> Any:
    ids = packed(ids)
    _mark_kernel(
        seen.shape[0], 32, seen, ids, ids.dtype.itemsize, seen.shape[1], ids.shape[1], REAL="float"
    )
    return seen


def _can_mark(seen: Any, ids: Any) -> bool:
    return (
        _is_marks(seen)
        and ids.ndim == 2
        and ids.shape[0] == seen.shape[0]
        and dtype_name(ids.dtype) in ("int32", "int64")
    )


def _penalize(logits: Any, seen: Any, penalty: Any) -> Any:
    logits = packed(logits)
    rows, classes = logits.shape
    out = empty(logits, (rows, classes), "float32")
    _penalize_kernel(
        (min(-(-classes // 256), 1024), rows), 256, logits, seen, packed(penalty), out, classes,
        REAL=element(logits),
    )  # fmt: skip
    return out


def _feed(held: Any, ids: Any, state: Any) -> Any:
    rows = held.shape[0]
    _feed_kernel(-(-rows // 64), 64, held, packed(ids), state, state.ndim == 2, rows, REAL="float")
    return held


def _can_feed(held: Any, ids: Any, state: Any) -> bool:
    rows = held.shape[0]
    return (
        dtype_name(held.dtype) == dtype_name(ids.dtype) == "int64"
        and held.shape == (rows, 1)
        and ids.shape == (rows,)
        and _is_state(state, rows)
        and held.flags.c_contiguous
        and state.flags.c_contiguous
    )


feed.maker("cuda", _feed, accepts=_can_feed)
argmax.maker("cuda", _argmax, accepts=_is_logits)
sample.maker("cuda", _sample, accepts=_can_sample)
mark_seen.maker("cuda", _mark_seen, accepts=_can_mark)
penalize.maker(
    "cuda", _penalize, accepts=lambda logits, *rest: _can_penalize(logits, *rest)
    and logits.shape[0] < 65536,
)  # fmt: skip
