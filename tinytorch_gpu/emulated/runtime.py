"""Launching a compiled kernel on the emulated device: checks, counters and reports."""

import bisect
import contextlib
import ctypes
import functools
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy

from .arrays import Array, bounds
from .compiler import kernel_library, runtime_library

_launching = threading.Lock()
_SITE = ("pc", "requests", "lanes", "bytes", "wavefronts", "ideal", "worst", "writes", "shared")


class KernelError(RuntimeError):
    """A kernel did what a GPU forbids or does not define; the message names the line."""


@dataclass
class Settings:
    """How kernels run: ``checks`` and counts on or off, the order's ``seed``, the capability."""

    checks: bool = True
    counts: bool = True
    seed: int = 0
    compute_capability: int = 80
    processors: int = 4


settings = Settings()


@contextlib.contextmanager
def using(**changed: Any) -> Iterator[Settings]:
    """Change settings inside: ``with using(checks=False, compute_capability=75): ...``."""
    before = {name: getattr(settings, name) for name in changed}
    for name, value in changed.items():
        setattr(settings, name, value)
    try:
        yield settings
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


@dataclass
class Counters:
    """What launches did. ``*_bytes`` count each byte once per request of a warp."""

    threads: int = 0
    barriers: int = 0
    shuffles: int = 0
    votes: int = 0
    matrix: int = 0
    matrix_loads: int = 0
    atomics: int = 0
    copies: int = 0
    absent_lanes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_sectors: int = 0
    written_sectors: int = 0
    ideal_sectors: int = 0
    shared_wavefronts: int = 0
    ideal_wavefronts: int = 0
    worst_conflict: int = 0
    launches: int = 1

    def add(self, other: "Counters") -> None:
        """Add another launch's counts; the worst conflict is the worse one."""
        worst = max(self.worst_conflict, other.worst_conflict)
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        self.worst_conflict = worst


@dataclass
class Launch:
    """One launch as it was recorded."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    counters: Counters
    sites: list[dict[str, Any]] = field(default_factory=list)


class _Recording(threading.local):
    launches: list[Launch] | None = None


_recording = _Recording()


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect this thread's launches inside, with their counters and memory instructions."""
    before, launches = _recording.launches, []  # type: ignore[var-annotated]
    _recording.launches = launches
    try:
        yield launches
    finally:
        _recording.launches = before


@functools.cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
    library.emulated_counters.restype = ctypes.POINTER(ctypes.c_uint64)
    library.emulated_failure.restype = ctypes.POINTER(_Failure)
    return library


class _Failure(ctypes.Structure):
    _fields_ = [
        ("happened", ctypes.c_int), ("line", ctypes.c_int), ("pc", ctypes.c_void_p),
        ("text", ctypes.c_char * 1024),
    ]  # fmt: skip


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for low, high in _mapped(path):  # where tables of constants may lie
        _runtime().emulated_constants(ctypes.c_uint64(low), ctypes.c_uint64(high))
    return library


def _mapped(path: Path) -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            if line.endswith(str(path)):
                low, _, high = line.split()[0].partition("-")
                found.append((int(low, 16), int(high, 16)))
    return found


def launch(
    file: str, text: str, options: Sequence[str], name: str, parameters: Sequence[Any],
    grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared: int = 0,
    reaches: Sequence[Any] = (), entries: Sequence[str] = (),
) -> None:  # fmt: skip
    """Run kernel ``name`` of a ``.cu`` file's ``text`` over ``grid`` blocks of ``block`` threads.

    ``parameters`` have ``name``, ``pointer`` and ``const``; ``arguments`` are Arrays or NumPy
    scalars, ``reaches`` Arrays that the kernel finds by address. A fault is a KernelError.
    """
    capability = settings.compute_capability
    path = kernel_library(
        file, text, (*options, f"-D__CUDA_ARCH__={capability * 10}"), entries or (name,)
    )
    with _launching:
        runtime = _runtime()
        entry = getattr(_library(path), f"emulated_entry_{name}")
        spans = _spans(parameters, arguments, reaches)
        packed = (ctypes.c_uint64 * (6 * len(spans)))(*[x for span in spans for x in span])
        runtime.emulated_spans(len(spans), packed)
        runtime.emulated_checks(int(settings.checks), int(settings.counts))
        values = [
            numpy.uint64(a.address) if isinstance(a, Array) else a for a in arguments
        ]  # fmt: skip
        held = [numpy.asarray(v) for v in values]
        pointers = (ctypes.c_void_p * max(1, len(held)))(*[h.ctypes.data for h in held])
        sizes = (ctypes.c_uint * 6)(*_three(grid), *_three(block))
        failed = runtime.emulated_run(
            entry, sizes, ctypes.c_uint64(shared), ctypes.c_uint64(settings.seed), pointers
        )
        if failed:
            raise KernelError(
                _told(runtime.emulated_failure().contents, file, name, path, parameters)
            )
        if _recording.launches is not None:
            counted = runtime.emulated_counters()
            names = [f.name for f in fields(Counters)][:-1]
            counters = Counters(**{n: int(counted[i]) for i, n in enumerate(names)})
            made = Launch(name, tuple(grid), tuple(block), counters, _sites(runtime, path))
            _recording.launches.append(made)


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    full = (*sizes, 1, 1, 1)
    return full[0], full[1], full[2]


def _spans(parameters: Sequence[Any], arguments: Sequence[Any], reaches: Any) -> list[Any]:
    """(low, high, writable, argument, bytes per element, validity) of all memory to be used."""
    found = []
    for number, (parameter, a) in enumerate(zip(parameters, arguments, strict=True)):
        if isinstance(a, Array) and a.size:
            found.append(_span(a, not parameter.const, number))
    found += [_span(a, True, len(arguments) + i) for i, a in enumerate(reaches) if a.size]
    return found


def _span(a: Array, writable: bool, number: int) -> tuple[int, int, int, int, int, int]:
    low, high = bounds(a)
    return low, high, int(writable), number, a.dtype.itemsize, a.validity_at(low)


def _told(failure: Any, file: str, name: str, path: Path, parameters: Sequence[Any]) -> str:
    text = failure.text.decode(errors="replace")
    for number, parameter in reversed(list(enumerate(parameters))):
        text = text.replace(f"argument {number}", f"argument {parameter.name}")
    where = f"{file}:{failure.line}" if failure.line else source_line(path, failure.pc or 0)
    return f"{name}, {where or file}: {text}"


def _sites(runtime: ctypes.CDLL, path: Path) -> list[dict[str, Any]]:
    room = 4096
    rows = (ctypes.c_uint64 * (len(_SITE) * room))()
    count = runtime.emulated_sites(rows, room)
    width = len(_SITE)
    found = [dict(zip(_SITE, rows[i * width : (i + 1) * width], strict=True)) for i in range(count)]
    return [{**site, "library": path} for site in found]


@functools.cache
def source_line(path: Path, pc: int) -> str:
    """Return "file.cu:12" for an address in a kernel's library, "" where it cannot be told."""
    if pc < 1 << 16:
        return f"line {pc}" if pc else ""
    mapped = _mapped(path)
    at = bisect.bisect([low for low, _ in mapped], pc) - 1
    if at < 0:
        return ""
    command = ["addr2line", "-i", "-e", str(path), hex(pc - 1 - mapped[0][0])]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    lines = [line.split(" ")[0].rpartition("/")[2] for line in told.splitlines()]
    return next((x for x in lines if not x.startswith(("emulated.h", "?"))), "")
