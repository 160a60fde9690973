"""Results that are not there yet, in the midst of a model's layers.

Between the beginning and the end of ``deferring()`` a maker may leave its result to be made together with those that
follow from it (``host/chain.py``). Nobody sees an array before it is there: an operation that does not take part, whoever
looks at a Tensor's ``data``, and the end of the layers have all of them made first.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator


class _Deferred(threading.local):
    allowed = False
    finish: Callable[[], None] | None = None


_deferred = _Deferred()


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Results of this thread's operations may be made later inside, and are there behind it."""
    before, _deferred.allowed = _deferred.allowed, True
    try:
        yield
    finally:
        _deferred.allowed = before
        if not before:
            ready()


def defer(finish: Callable[[], None]) -> bool:
    """Have ``finish()`` called, once, before anybody needs the results that wait for it; False if they must be
    made at once. What waited for another ``finish`` is made now."""
    if not _deferred.allowed:
        return False
    if _deferred.finish is not finish:
        ready()
        _deferred.finish = finish
    return True


def waiting() -> bool:
    """Whether a result of this thread is not there yet."""
    return _deferred.finish is not None


def ready() -> None:
    """Have all results made."""
    finish, _deferred.finish = _deferred.finish, None
    if finish is not None:
        finish()
