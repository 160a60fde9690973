"""Operations on rows, one after the other, by threads that each take their own rows through all of them.

A norm, a linear map, attention within whole sequences: each reads only those rows of the one before that it writes
itself. In a model's layers such operations wait for each other (``core/deferred.py``), and then a thread does all of
them for its part: it is called once, waits for nobody in between, and finds its rows in its cache.

They are the same calls on the same parts, so that the results are the same to the last bit.
"""

import threading
from collections.abc import Callable
from typing import Any

from ..core.deferred import defer, ready
from .threads import share

# Bytes of results that may wait: those that nobody keeps would be let go of one by one.
WAITING = 1 << 25


class _Chain(threading.local):
    """The works of a thread that wait, each with its parts, which begin at the same rows."""

    def __init__(self) -> None:
        self.works: list[tuple[Callable[[slice], None], list[slice]]] = []
        self.starts: list[int] = []
        self.nbytes = 0


_chain = _Chain()


def _finish() -> None:
    """Do all that waits."""
    works, _chain.works, _chain.nbytes = _chain.works, [], 0

    def one(place: slice) -> None:
        for work, parts in works:
            work(parts[place.start])

    share(one, [slice(i, i + 1) for i in range(len(_chain.starts))])


def follow(
    work: Callable[[slice], None], parts: list[slice], made: tuple[Any, ...], each: int = 1
) -> None:
    """``share(work, parts)``, at once or together with what comes before and after it.

    ``parts`` are those of all rows in order, or of sequences of ``each`` rows. For the maker of an operation that
    ``joins``: until now it has looked at no value of its arguments, and ``work`` reads rows of its own part only.
    ``made`` are the arrays that it fills.
    """
    starts = [part.start * each for part in parts]
    if len(parts) > 1 and starts != _chain.starts:
        ready()
    if len(parts) < 2 or not defer(_finish):
        ready()
        share(work, parts)
        return
    _chain.starts = starts
    _chain.works.append((work, parts))
    _chain.nbytes += sum(array.nbytes for array in made)
    if _chain.nbytes > WAITING:
        ready()
