"""What ``generate`` is given, checked and brought to one form; and its results."""

import operator
from numbers import Real
from typing import Any, NamedTuple

import numpy

from ..backend import to_numpy
from ..core.embeddings import check_ids
from ..core.tensor import Tensor


class Step(NamedTuple):
    """One token for each row: ``tokens`` (B,) and whether each row has ``finished``, on the host.

    A row that finished earlier gets the pad id.
    """

    tokens: numpy.ndarray
    finished: numpy.ndarray


def read_prompts(input_ids: Any, vocab_size: int) -> tuple[list[Any], bool]:
    """The prompts as host arrays (T,), and whether they came as a list of different lengths."""
    if isinstance(input_ids, list | tuple) and len({_length(row) for row in input_ids}) > 1:
        rows, ragged = [numpy.asarray(_host(row)) for row in input_ids], True
    else:
        ids = numpy.asarray(_host(input_ids))
        if ids.ndim not in (1, 2):
            raise ValueError(f"prompts must be (T,) or (B, T), not {ids.shape}")
        rows, ragged = list(ids[None] if ids.ndim == 1 else ids), False
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows):
        raise ValueError("a prompt is empty: give at least one token")
    rows = [_whole(row) for row in rows]
    for row in rows:
        check_ids(row, vocab_size)
    return rows, ragged


def _whole(ids: Any) -> Any:
    """Whole numbers that came as floats as integers, as the model takes them."""
    return ids.astype(numpy.int64) if ids.dtype.kind == "f" and not (ids % 1).any() else ids


def _length(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else -1


def _host(ids: Any) -> Any:
    if isinstance(ids, Tensor):
        ids = ids.data
    if isinstance(ids, list | tuple):
        ids = [_host(item) for item in ids]
    return to_numpy(ids) if hasattr(ids, "dtype") else ids


def token_count(value: Any) -> int:
    """``max_new_tokens`` as an int; anything but a whole number from 0 on is a ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"max_new_tokens must be a whole number, not {value!r}")
    if value < 0 or value % 1:
        raise ValueError(f"max_new_tokens must be a whole number from 0 on, not {value}")
    return int(value)  # type: ignore[call-overload]


def token_ids(stop_tokens: Any) -> Any:
    """``stop_tokens`` as an array without doubles; what is no token id is a ValueError."""
    try:
        found = sorted({operator.index(token) for token in stop_tokens})
    except TypeError:
        raise ValueError(f"stop_tokens must be token ids, not {stop_tokens!r}") from None
    return numpy.asarray(found, dtype=numpy.int64)


def collected(prompts: list[Any], steps: list[Step], ragged: bool, place: Any) -> Any:
    """Prompts and new tokens as a Tensor (B, T + n), or of a ragged batch as a list of 1-D ones."""
    new = numpy.stack([step.tokens for step in steps], axis=1) if steps else None
    if not ragged:
        both = numpy.stack(prompts) if new is None else numpy.hstack((numpy.stack(prompts), new))
        return Tensor(place.asarray(both.astype(numpy.int64)))
    rows = []
    for i, prompt in enumerate(prompts):
        alive = [
            step.tokens[i] for k, step in enumerate(steps) if not k or not steps[k - 1].finished[i]
        ]
        rows.append(Tensor(place.asarray(numpy.concatenate((prompt, alive)).astype(numpy.int64))))
    return rows
