"""Parts of an operation shared among threads.

NumPy lets go of Python's lock inside its loops, and so does the BLAS, so that threads of one process work
at a time. The BLAS's own threads help its products alone, and go on turning for a while after each one, in
the way of any others: while parts are shared it has one thread, and the products are shared like the rest.
There are as many threads as the BLAS is told to have (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, threadpoolctl).

What nobody waits for yet, such as the gradient of a weight in the midst of a backward, is put off: a thread that
has nothing else to do takes it up. Which thread does what never changes a result.
"""

import contextvars
import ctypes
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy.linalg

# Rows that a product should have: with fewer, moving the matrix costs more than the product.
ROWS = 96
# Parts for each thread, so that one that comes late does fewer, and rows that each then has: the BLAS is quicker with
# many.
PARTS, LONG = 2, 512
# A part of the thread that calls and of another, where there is work put off beside them.
LONGER = 5, 3
# Bytes that work which was put off may keep alive.
PUT_OFF = 1 << 25


# How rows are shared, those and the most parts given: ``split`` or ``unequal``.
Cut = Callable[[int, int], list[slice]]


class _Blas:
    """The number of threads of the BLAS that NumPy brought, where that can be told."""

    def __init__(self) -> None:
        self.get: Callable[[], int] = lambda: 1
        self.set: Callable[[int], Any] = lambda count: None
        try:
            # Symbols of the libraries that it was linked with are found through it.
            library = ctypes.CDLL(numpy.linalg._umath_linalg.__file__)
        except (AttributeError, OSError):
            return
        for before, after in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            names = (f"{before}openblas_{do}_num_threads{after}" for do in ("get", "set"))
            found = [getattr(library, name, None) for name in names]
            if all(found):
                self.get, self.set = found  # type: ignore[assignment]
                return


class _Job:
    """One operation's parts, taken one at a time by whoever is free."""

    def __init__(self, work: Callable[[slice], None], parts: Iterable[slice]):
        self.work, self.parts = work, iter(parts)
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do parts until none is left."""
        for part in self.parts:
            self.work(part)


class _Later:
    """What one thread has put off, while it alone shares work; then the BLAS has one thread."""

    def __init__(self) -> None:
        self.owner: int | None = None
        self.count = 1  # threads of the BLAS before
        self.works: deque[tuple[Callable[[], None], int]] = deque()
        self.nbytes, self.counting = 0, threading.Lock()
        self.error: BaseException | None = None

    def begin(self) -> None:
        """The calling thread puts work off from here on."""
        self.owner, self.count, self.nbytes = threading.get_ident(), _blas.get(), 0
        _blas.set(1)

    def end(self) -> BaseException | None:
        """All is done; return the first error of it."""
        _blas.set(self.count)
        error, self.error, self.owner = self.error, None, None
        return error

    def one(self) -> bool:
        """Do the work that has waited longest, if there is any."""
        try:
            work, nbytes = self.works.popleft()
        except IndexError:
            return False
        try:
            work()
        except BaseException as error:  # raised by who settles
            self.error = self.error or error
        self.count_bytes(-nbytes)
        return True

    def count_bytes(self, more: int) -> None:
        with self.counting:
            self.nbytes += more


class _Worker:
    """A thread that waits for jobs, and then for work that was put off."""

    def __init__(self) -> None:
        self.called, self.working, self.busy = (threading.Lock() for _ in range(3))
        self.called.acquire()
        self.job: tuple[_Job, contextvars.Context] | None = None
        threading.Thread(target=self._serve, name="tinytorch_gpu.host", daemon=True).start()

    def call(self, job: _Job | None = None) -> None:
        """Ask for help, with a job if given. A thread that is still on its way takes the new job then."""
        if job is not None:
            self.job = job, contextvars.copy_context()  # with NumPy's errstate
        if self.called.locked():
            self.called.release()

    def wait(self) -> None:
        """Return when it does no job. One whose parts are all taken is left alone if it comes late."""
        with self.working:
            pass

    def settle(self) -> None:
        """Return when it does nothing that was put off."""
        with self.busy:
            pass

    def _serve(self) -> None:
        while True:
            self.called.acquire()
            while self._job() or self._later():
                pass

    def _job(self) -> bool:
        with self.working:
            if self.job is None:
                return False
            job, context = self.job
            try:
                context.run(job.run)
            except BaseException as error:  # raised by who called
                job.error = error
            self.job = None if self.job[0] is job else self.job
            return True

    def _later(self) -> bool:
        with self.busy:
            return _later.one()


_blas = _Blas()
_workers: list[_Worker] = []
_sharing = threading.Lock()
_later = _Later()


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _sharing, _later
    _sharing, _later = threading.Lock(), _Later()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def threads() -> int:
    """How many threads work at a time."""
    return _later.count if _later.owner == threading.get_ident() else _blas.get()


def set_threads(count: int) -> None:
    """Have ``count`` threads from here on, the BLAS's included."""
    _blas.set(count)


def split(rows: int, most: int) -> list[slice]:
    """Slices over ``rows`` for all threads to share alike, ``most`` of them at most."""
    each = threads()
    count = 1 if most < 2 else min(most, each * min(PARTS, max(1, most // each)))
    step = -(-rows // count) or 1
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def unequal(rows: int, most: int) -> list[slice]:
    """One slice for each thread, a longer one for the thread that calls: the others begin later, and have work that was
    put off to go on with. ``split``, where ``most`` is too few."""
    each = threads()
    if not 1 < each <= most:
        return split(rows, most)
    own, other = LONGER
    bounds = [0, *(rows * (own + other * i) // (own + other * (each - 1)) for i in range(each))]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def row_parts(rows: int, cut: Cut = split) -> list[slice]:
    """``cut`` over rows of a product: ``ROWS`` to each part at least, and ``LONG`` where a thread has several."""
    return cut(rows, max(min(rows // ROWS, threads()), rows // LONG))


def sequence_parts(batch: int, rows: int) -> list[slice]:
    """``row_parts`` of a ``batch`` of sequences of ``rows``, by the sequence; none if they cut one."""
    parts = row_parts(batch * rows)
    if any(part.start % rows or part.stop % rows for part in parts):
        return []
    return [slice(part.start // rows, part.stop // rows) for part in parts]


def share(work: Callable[[slice], None], parts: Iterable[slice] | Iterator[slice]) -> None:
    """Call ``work`` for each of ``parts``, in several threads where there are several parts.

    ``work`` must write to its own part of anything only. Inside another ``share``, and while another thread is
    in one, the parts are done one after the other.
    """
    listed: Sequence[slice] = list(parts)
    count = threads() if len(listed) > 1 else 1
    if count > 1 and _later.owner == threading.get_ident():
        _share(_Job(work, listed), min(count, len(listed)) - 1)
        return
    if count < 2 or not _sharing.acquire(blocking=False):
        for part in listed:
            work(part)
        return
    try:
        _blas.set(1)
        _share(_Job(work, listed), min(count, len(listed)) - 1)
    finally:
        _blas.set(count)
        _sharing.release()


def _share(job: _Job, helpers: int) -> None:
    for worker in _helpers(helpers):
        worker.call(job)
    try:
        job.run()
    finally:
        for part in job.parts:  # after an error or Ctrl-C, nobody begins another
            del part
        for worker in _helpers(helpers):
            while worker.working.locked() and _later.one():
                pass  # it must be done at any rate
            worker.wait()
    if job.error is not None:
        raise job.error


def _helpers(count: int) -> list[_Worker]:
    while len(_workers) < count:
        _workers.append(_Worker())
    return _workers[:count]


def put_off(works: Sequence[Callable[[], None]], nbytes: int) -> bool:
    """Have ``works`` done by the time that ``settle()`` returns, in any order and by any thread; they keep
    ``nbytes`` alive until then. False if there is but one thread, or another one shares work now."""
    if _later.owner != threading.get_ident():
        if threads() < 2 or not _sharing.acquire(blocking=False):
            return False
        _later.begin()
    _later.count_bytes(nbytes)
    for i, work in enumerate(works):
        run = functools.partial(contextvars.copy_context().run, work)  # with NumPy's errstate
        _later.works.append((run, nbytes if i == len(works) - 1 else 0))
    for worker in _helpers(_later.count - 1):
        worker.call()
    while _later.nbytes > PUT_OFF and _later.one():
        pass  # too much waits: the largest arrays are let go of at once
    return True


def settle() -> None:
    """Do what this thread has put off, or wait for who does; raise what went wrong."""
    if _later.owner != threading.get_ident():
        return
    while _later.one():
        pass
    for worker in _helpers(_later.count - 1):
        worker.settle()
    error = _later.end()
    _sharing.release()
    if error is not None:
        raise error
