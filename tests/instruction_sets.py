"""Native operations run for another instruction set, in a process of their own, for the tests.

``isa/runner.cpp`` runs what the library's operations are asked to do here: under qemu-user what a
cross-compiler has made for AArch64, with SIMDe's emulation what is written for AVX-512, and as it is what this
machine can run but does not choose. Arrays are copied to memory that both processes have, and back.
"""

import hashlib
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tinytorch_gpu import native, toolchain
from tinytorch_gpu.native import build
from tinytorch_gpu.native.library import Operation

HERE = Path(__file__).parent / "isa"
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
ADDRESS = 0x20_0000_0000  # 128 GB up, where no program has anything
ROOM = 1 << 28


class MissingError(Exception):
    """What an instruction set cannot be tested without."""


class _Compiler:
    """A compiler by name, as ``native.build`` uses the toolchain."""

    def __init__(self, command: str):
        self.command = command

    def compiler(self) -> tuple[str, str]:
        asked = [self.command, "--version"]
        return self.command, subprocess.run(asked, capture_output=True, text=True).stdout

    def compile_with(self, arguments: Any, what: str) -> None:
        made = subprocess.run([self.command, *arguments], capture_output=True, text=True)
        if made.returncode:
            raise toolchain.CompilerError(f"{self.command} refuses {what}:\n{made.stderr[:4000]}")


def _way(isa: str) -> tuple[Any, tuple[str, ...], list[str]]:
    """The compiler, its flags and what the runner is started with; MissingError if that is not there."""
    own = native.library()
    if own is not None and isa in own.supported:
        return toolchain, build.instruction_sets()[isa], []
    if isa == "avx512" and own is not None:
        if not Path("/usr/include/simde/x86/avx512.h").exists():
            raise MissingError("SIMDe is not installed: apt-get install libsimde-dev")
        # What stands for an instruction is long: more than -O1 takes the compiler minutes.
        return toolchain, ("-O1", "-DISA_LEVEL=3", f"-I{HERE / 'avx512'}"), []
    if isa == "neon":
        for command, package in ((CROSS, "g++-aarch64-linux-gnu"), (QEMU, "qemu-user")):
            if not shutil.which(command):
                raise MissingError(f"{command} is not installed: apt-get install {package}")
        return _Compiler(CROSS), build._ARM["neon"], [QEMU, "-L", "/usr/aarch64-linux-gnu"]
    raise MissingError(f"{isa} is not of this machine's family")


def _built(isa: str, compiler: Any, flags: tuple[str, ...]) -> tuple[Path, Path]:
    """The library of one instruction set and the runner, kept from run to run."""
    texts = [
        p.read_text("utf-8") for p in sorted((*build.sources().iterdir(), *HERE.rglob("*.[ch]*")))
    ]
    identity = "\0".join((compiler.compiler()[1], isa, repr((build._COMMON, flags)), *texts))
    name = f"{isa}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = toolchain.cache_folder("native-tests")
    library, runner = folder / f"{name}.so", folder / f"{name}.run"
    if not library.exists():
        build.build(library, compiler, {isa: flags})
    if not runner.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "runner"
            source = str(HERE / "runner.cpp")
            compiler.compile_with(["-std=c++20", "-O1", source, "-o", str(made), "-ldl"], source)
            made.replace(runner)
    return library, runner


class Runner:
    """The process, and the memory shared with it: stands in for the library while it is entered."""

    def __init__(self, isa: str):
        compiler, flags, before = _way(isa)
        library, runner = _built(isa, compiler, flags)
        self._file = tempfile.NamedTemporaryFile(prefix="tinytorch-isa-")  # noqa: SIM115
        self._file.truncate(ROOM)
        self._memory = np.frombuffer(mmap.mmap(self._file.fileno(), ROOM), np.uint8)
        command = [*before, str(runner), str(library), isa, self._file.name, hex(ADDRESS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.processor = self._process.stdout.readline().decode().split()
        self.calls: dict[str, int] = {}
        self._forget()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._file.close()

    def enter(self, patch: Any) -> None:
        """Have operations run there, until pytest's ``patch`` is undone."""
        self._forget()
        own = self

        def called(operation: Operation, work: int, *fields: Any) -> None:
            own._call(operation.name, operation.pack(*fields))

        def recorded(operation: Operation, keep: Any, *fields: Any) -> Any:
            packed = operation.pack(*fields)
            return lambda: own._call(operation.name, packed)

        patch.setattr(Operation, "__call__", called)
        patch.setattr(Operation, "record", recorded)
        for name, module in list(sys.modules.items()):
            if name.startswith("tinytorch_gpu.native.") and hasattr(module, "pointer"):
                patch.setattr(module, "pointer", self._pointer)

    def _forget(self) -> None:
        self._places: dict[int, tuple[Any, int]] = {}
        self._free = 64

    def _pointer(self, array: Any) -> int:
        """Where the array's first value will be for the other process."""
        if array is None:
            return 0
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) not in self._places:
            self._places[id(owner)] = owner, self._free
            self._free += -(-owner.nbytes // 64) * 64 + 64
            assert self._free < ROOM, "the memory of a test is too small"
        first, place = (x.__array_interface__["data"][0] for x in (array, owner))
        return ADDRESS + self._places[id(owner)][1] + first - place

    def _call(self, name: str, arguments: bytes) -> None:
        for owner, place in self._places.values():
            self._memory[place : place + owner.nbytes] = _bytes(owner)
        assert self._process.stdin is not None and self._process.stdout is not None
        sizes = struct.pack("3q", len(name), len(arguments), 2)
        self._process.stdin.write(sizes + name.encode() + arguments)
        self._process.stdin.flush()
        answer = self._process.stdout.read(8)
        assert len(answer) == 8, f"{name} ended the runner: {self._process.wait(timeout=10)}"
        assert 8 * struct.unpack("q", answer)[0] == len(arguments), name
        for owner, place in self._places.values():
            if owner.flags.writeable:
                _bytes(owner)[...] = self._memory[place : place + owner.nbytes]
        self.calls[name] = self.calls.get(name, 0) + 1


def _bytes(owner: Any) -> Any:
    """An array's memory."""
    flat = owner if owner.flags.c_contiguous else owner.T
    assert flat.flags.c_contiguous
    return flat.reshape(-1).view(np.uint8)
