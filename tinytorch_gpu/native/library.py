"""The CPU's library, loaded: its operations, and the team of threads that runs them.

An ``Operation`` packs its arguments into a struct and either calls the function at once or makes a
``Record`` of it; ``replay`` runs many records by one call. See docs/native.md for the convention.
"""

import ctypes
import functools
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy

from .. import processors, toolchain
from . import build

_log = logging.getLogger(__name__)

# Less work than this many values is done by the caller alone: to wake a thread takes as long.
ALONE = 1 << 15
_CHECKED_EVERY = 1.0  # seconds between looks at how many processors there are


class Library:
    """The shared object and the instruction set that is used of it."""

    def __init__(self, path: Path, isa: str | None = None):
        self.path = path
        self.code = ctypes.CDLL(str(path))
        self.code.tinytorch_processor.restype = ctypes.c_char_p
        self.supported = self.code.tinytorch_processor().decode().split()
        self.isa = isa or self.supported[0]
        if isa and isa not in build.instruction_sets():
            raise ValueError(
                f"TINYTORCH_NATIVE must be 0, 1 or one of {', '.join(self.supported)}, not {isa!r}"
            )
        self.run = self.code.tinytorch_run
        self.run.argtypes, self.run.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 2], None
        self.call = self.code.tinytorch_call
        self.call.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
        self.call.restype = None

    def function(self, name: str, fields: int) -> int:
        """The address of an operation; another number of fields is a RuntimeError."""
        symbol = f"{name}_{self.isa}"
        there = ctypes.c_int64.in_dll(self.code, f"{symbol}_fields").value
        if there != fields:
            raise RuntimeError(f"{symbol} has {there} arguments in {self.path}, not {fields}")
        address = ctypes.cast(getattr(self.code, symbol), ctypes.c_void_p).value
        assert address is not None
        return address


@functools.cache
def _found() -> tuple[Library | None, str]:
    """The library, or None and why."""
    wanted = os.environ.get("TINYTORCH_NATIVE", "1")
    if wanted == "0":
        return None, "TINYTORCH_NATIVE=0"
    packaged = Path(build.__file__).with_name(build.PACKAGED)
    try:
        path = packaged if packaged.exists() else build.library_file(toolchain)
        return Library(path, None if wanted == "1" else wanted), ""
    except toolchain.CompilerError as error:
        reason = str(error)
    except OSError as error:  # a library of another machine, sources that are not there
        reason = f"the library cannot be loaded: {error}"
    _log.warning("native CPU operations are off, NumPy does their work: %s", reason)
    return None, reason


def library() -> Library | None:
    """The library, built on first use if need be; None where there is none."""
    return _found()[0]


def why_not() -> str:
    """Why there is no library, or "" if there is."""
    return _found()[1]


_team = (0, -_CHECKED_EVERY)


def team_size() -> int:
    """How many threads an operation may use: the process's allotment, looked at now and then."""
    global _team
    if processors.chosen is not None:
        return processors.chosen
    now = time.monotonic()
    if now - _team[1] >= _CHECKED_EVERY:
        _team = (processors.threads(), now)
    return _team[0]


def pointer(array: Any) -> int:
    """The address of an array's first value, 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]


def packed(array: Any) -> Any:
    """An array (or None) as it is if its values lie one after another, else a copy that does."""
    return array if array is None or array.flags.c_contiguous else numpy.ascontiguousarray(array)


class Operation:
    """A native function and the struct that it takes.

    ``layout`` is the struct's fields in the spelling of Python's ``struct``: P a pointer, q an integer,
    d a float. It is looked up in the library on first use.
    """

    def __init__(self, name: str, layout: str):
        self.name, self._struct = name, struct.Struct(layout)
        self.pack = self._struct.pack

    @functools.cached_property
    def _function(self) -> tuple[Any, int]:
        found = library()
        if found is None:
            raise RuntimeError(f"no native {self.name}: {why_not()}")
        return found.call, found.function(self.name, self._struct.size // 8)

    def __call__(self, work: int, *fields: Any) -> None:
        """Run at once; ``work`` is about how many values it goes through."""
        call, address = self._function
        call(address, self.pack(*fields), 1 if work < ALONE else team_size())

    def record(self, keep: Any, *fields: Any) -> "Record":
        """The call, to be run later and again; ``keep`` is what must stay alive until then."""
        return Record(self._function[1], self.pack(*fields), keep)


class Record:
    """A native call to repeat: the function, its struct, and the arrays that it points to."""

    def __init__(self, address: int, packed: bytes, keep: Any):
        self.address, self.packed, self.keep = address, packed, keep


def replay(steps: Sequence[Any]) -> Callable[[], None]:
    """One function that does all ``steps``, which are Records, lists of them, or functions without
    arguments: Records that follow one another by one native call."""
    runs: list[Callable[[], None]] = []
    some: list[Record] = []
    for step in (*steps, None):
        if isinstance(step, Record | list):
            some += step if isinstance(step, list) else [step]
            continue
        if some:
            runs.append(_run_of(some))
            some = []
        if step is not None:
            runs.append(step)
    if len(runs) == 1:
        return runs[0]

    def run() -> None:
        for each in runs:
            each()

    return run


def _run_of(records: list[Record]) -> Callable[[], None]:
    found = library()
    assert found is not None
    structs = [ctypes.create_string_buffer(r.packed, len(r.packed)) for r in records]
    pairs = [(r.address, ctypes.addressof(s)) for r, s in zip(records, structs, strict=True)]
    listed = (ctypes.c_void_p * (2 * len(pairs)))(*[x for pair in pairs for x in pair])
    held = (structs, [r.keep for r in records])
    native, address, count = found.run, ctypes.addressof(listed), len(records)

    def run(_alive: Any = (held, listed)) -> None:
        native(address, count, team_size())

    return run
