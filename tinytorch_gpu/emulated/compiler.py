"""CUDA sources compiled as C++ by the host's compiler, against ``kernels/emulated/emulated.h``."""

import functools
import hashlib
import os
import platform
import re
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from ..toolchain import CompilerError, cache_folder, compile_with, compiler, one_builder

_PACKAGE = Path(__file__).resolve().parent.parent
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s+)?([\w:\s]+?)\s+(\w+)\s*\[\s*\]\s*;"
)
_SHARED = re.compile(
    r"__shared__\s+(?:__align__\s*\(\s*(\d+)\s*\)\s+)?([\w:<>,\s*]+?)\s*\b(\w+)\s*((?:\[[^\]]+\]\s*)*);"
)
# Instrumented like a program to be searched for races and wrong indices, but not linked with those libraries: the
# calls go to kernels/emulated/memory.cpp. Nothing may merge or split accesses on the way.
_COMMON = ("-std=c++20", "-O2", "-g1", "-gdwarf-4", "-fPIC", "-march=native", "-ffp-contract=fast")
_GNU = (
    "-fsanitize=thread,bounds", "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=0", "-fno-tree-vectorize", "-fno-store-merging",
)  # fmt: skip
_CLANG = (
    "-fsanitize=thread,bounds", "-mllvm", "-tsan-instrument-func-entry-exit=0", "-fno-vectorize",
    "-fno-slp-vectorize",
)  # fmt: skip
_building = threading.Lock()


def sources() -> Path:
    """Return the folder of the emulated device's own C++ sources."""
    for folder in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels"):
        if (folder / "emulated" / "emulated.h").exists():
            return folder / "emulated"
    raise FileNotFoundError(f"no kernels/emulated in or beside {_PACKAGE}: reinstall tinytorch-gpu")


@functools.cache
def _machine() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@functools.cache
def _own_texts() -> str:
    return "".join(p.read_text(encoding="utf-8") for p in sorted(sources().iterdir()))


def runtime_library() -> Path:
    """Return the shared library of the emulated device itself, built if need be."""
    files = [str(sources() / name) for name in ("scheduler.cpp", "memory.cpp")]
    return _built("runtime", _own_texts(), (*_COMMON, *files))


def kernel_library(file: str, text: str, options: Iterable[str], entries: Iterable[str]) -> Path:
    """Return the shared library of a ``.cu`` file's text compiled with ``options``.

    It has a function ``emulated_entry_NAME(void** arguments)`` for each of ``entries``. A source
    that does not compile is a CompilerError with the compiler's words.
    """
    _command, version = compiler()
    instrument = _CLANG if "clang" in version else _GNU
    quiet = ("-Wno-unknown-pragmas", "-Wno-attributes", "-I", str(sources()), "-x", "c++")
    kept = [option for option in options if not option.startswith("-std=")]
    generated = '#include "emulated.h"\n' + rewritten(file, text) + _entries(entries)
    flags = (*_COMMON, *instrument, *quiet, "-DEMULATED=1", *kept)
    return _built(Path(file).stem, generated, flags, _own_texts())


def rewritten(file: str, text: str) -> str:
    """Return CUDA text as C++: declarations of shared memory become references to the arena's."""
    text = _DYNAMIC.sub(r"\1* \2 = (\1*)emulated::dynamic_shared();", text)

    def variable(match: re.Match[str]) -> str:
        aligned, kind, name, sizes = match.groups()
        return (
            f"auto& {name} = emulated::shared<{kind}{sizes.strip()}, __COUNTER__>({aligned or ''});"
        )

    text = _SHARED.sub(variable, text)
    code = re.sub(r"//[^\n]*", "", text)
    if "__shared__" in code:
        line = next(x for x in code.splitlines() if "__shared__" in x)
        raise CompilerError(
            f"{file}: declare one shared variable per statement, not {line.strip()}"
        )
    return text


def _entries(names: Iterable[str]) -> str:
    lines = ['\n#line 1 "entries"', 'extern "C" {']
    lines += [
        f"PLAIN void emulated_entry_{name}(void** given) {{ emulated::enter({name}, given); }}"
        for name in names
    ]
    return "\n".join([*lines, "}", ""])


def _built(stem: str, text: str, flags: tuple[str, ...], also: str = "") -> Path:
    """Compile ``text`` (or the files named in ``flags``) unless it was compiled before."""
    _command, version = compiler()
    identity = "\0".join((text, also, version, _machine(), *flags))
    target = (
        cache_folder("emulated") / f"{stem}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    )
    if target.exists():
        return target
    with _building, one_builder(target):
        if target.exists():
            return target
        link = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
        with tempfile.TemporaryDirectory(dir=cache_folder("emulated")) as folder:
            made = Path(folder) / "made"
            if stem == "runtime":
                compile_with([*flags, "-shared", *link, "-o", str(made)], stem)
            else:
                source = made.with_suffix(".cpp")
                source.write_text(text, encoding="utf-8")
                compiled = str(made.with_suffix(".o"))
                compile_with([*flags, "-c", str(source), "-o", compiled], stem)
                compile_with(["-shared", *link, compiled, "-o", str(made)], stem)
            os.replace(made, target)
    return target
