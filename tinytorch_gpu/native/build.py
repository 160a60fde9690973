"""The CPU's library: ``kernels/cpu`` compiled, once per instruction set, into one shared object.

A wheel is built with it. In a checkout it is made on first use and kept in the user's cache folder, under a
name that is a digest of sources, flags and compiler: an edited source is built anew, and of two processes
that build at once both end with a whole file. Stands alone but for ``toolchain``: building a wheel runs it
without the rest of the package.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent
# -ffp-contract: a * b + c in one instruction. Not -ffast-math, which would make the whole process
# take tiny numbers for 0. Vector types are passed between functions of one file only: -Wno-psabi.
_COMMON = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "-Wno-psabi", "-Wno-attributes",
)  # fmt: skip
_LINK = ("-shared", "-pthread")
_X86: dict[str, tuple[str, ...]] = {
    "avx512": ("-DISA_LEVEL=3", "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl",
               "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512"),
    "avx2": ("-DISA_LEVEL=2", "-mavx2", "-mfma", "-mf16c"),
    "portable": ("-DISA_LEVEL=0",),
}  # fmt: skip
_ARM: dict[str, tuple[str, ...]] = {
    "neon": ("-DISA_LEVEL=1", "-march=armv8.2-a+dotprod+fp16"),
    "portable": ("-DISA_LEVEL=0",),
}
# Compiled once, not for each instruction set.
_NEUTRAL = ("team.cpp", "processor.cpp")
# The library's name inside a wheel, beside this file.
PACKAGED = "tinytorch_native.so"


def instruction_sets() -> Mapping[str, tuple[str, ...]]:
    """The instruction sets that are compiled for this machine's family, and their flags."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return _X86
    if machine in ("aarch64", "arm64"):
        return _ARM
    return {"portable": ("-DISA_LEVEL=0",)}


def sources() -> Path:
    """Return the folder of the C++ sources: inside an installed package, else beside it."""
    for folder in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels"):
        if (folder / "cpu" / "operation.h").exists():
            return folder / "cpu"
    raise FileNotFoundError(f"no kernels/cpu in or beside {_PACKAGE}: reinstall tinytorch-gpu")


def library_file(toolchain: Any) -> Path:
    """Return the library of this checkout, built if need be; CompilerError if it cannot be."""
    _, version = toolchain.compiler()
    sets = instruction_sets()
    texts = [p.read_text(encoding="utf-8") for p in sorted(sources().iterdir())]
    identity = "\0".join((version, platform.machine(), repr((_COMMON, _LINK, sets)), *texts))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:20]
    target = toolchain.cache_folder("native") / f"native-{digest}.so"
    if not target.exists():
        with toolchain.one_builder(target):
            if not target.exists():
                build(target, toolchain, sets)
    return target


def build(target: Path, toolchain: Any, sets: Mapping[str, tuple[str, ...]]) -> None:
    """Compile the sources for all of ``sets`` into ``target``, which is whole or not there."""
    link = [*_LINK, "-static-libstdc++", "-static-libgcc"]
    if sys.platform == "darwin" or "clang" in toolchain.compiler()[1]:
        link = list(_LINK)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        jobs: list[Any] = [(p, "", ()) for p in sources().glob("*.cpp") if p.name in _NEUTRAL]
        for isa, flags in sets.items():
            jobs += [(p, isa, flags) for p in sources().glob("*.cpp") if p.name not in _NEUTRAL]
        made = [str(Path(folder) / f"{p.stem}-{isa}.o") for p, isa, _ in jobs]

        def compiled(job: Any, to: str) -> None:
            path, isa, flags = job
            named = (f"-DISA={isa}",) if isa else ()
            toolchain.compile_with([*_COMMON, *flags, *named, "-c", str(path), "-o", to], path.name)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compiled, jobs, made))
        whole = str(Path(folder) / "whole.so")
        toolchain.compile_with([*made, *link, "-o", whole], "the linking")
        os.replace(whole, target)
