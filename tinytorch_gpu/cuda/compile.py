"""Kernel sources: where they lie, their headers pasted in, and the C signatures they declare.

Headers are pasted, because CuPy's cache of compiled kernels looks at the text it is given only: an
edited ``#include``d file would be served stale. ``#line`` keeps messages at the file's own lines.
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_INCLUDE = re.compile(r'^\s*#include\s+"([\w.]+)"\s*$', re.MULTILINE)
_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)'
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: ``element`` is the C type, of what it points to if ``pointer``."""

    name: str
    element: str
    pointer: bool
    const: bool


@functools.cache
def kernels_folder() -> Path:
    """Return the folder of the ``.cu`` files: inside an installed package, else beside it.

    ``TINYTORCH_KERNELS`` names another: a copy to change and to run.
    """
    chosen = os.environ.get("TINYTORCH_KERNELS")
    if chosen:
        folder = Path(chosen).resolve()
        if not (folder / "numbers.cuh").exists():
            raise FileNotFoundError(f"TINYTORCH_KERNELS={chosen} has no kernels: copy them there")
        return folder
    for folder in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels"):
        if (folder / "numbers.cuh").exists():
            return folder
    raise FileNotFoundError(f"no kernels folder in or beside {_PACKAGE}: reinstall tinytorch-gpu")


@functools.cache
def source(file: str) -> str:
    """Return the text of a ``.cu`` file with the headers of its folder pasted in, each once."""
    return paste(file, kernels_folder())


def paste(file: str, folder: Path, done: set[str] | None = None) -> str:
    """Return the text of ``folder / file`` with its quoted includes replaced by their texts."""
    done = set() if done is None else done
    done.add(file)
    lines = [f'#line 1 "{file}"']
    text = (folder / file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if include:
            if include[1] not in done:
                lines.append(paste(include[1], folder, done))
            lines.append(f'#line {number + 1} "{file}"')
        elif line.strip() != "#pragma once":
            lines.append(line)
        else:
            lines.append("")
    return "\n".join(lines) + "\n"


def signatures(text: str) -> dict[str, list[Parameter]]:
    """Return the parameters of each ``extern "C" __global__`` function in ``text``."""
    plain = _COMMENT.sub(" ", text)
    return {
        name: [_parameter(declared) for declared in inside.split(",") if declared.strip()]
        for name, inside in _ENTRY.findall(plain)
    }


def _parameter(declared: str) -> Parameter:
    words = declared.replace("*", " * ").replace("__restrict__", " ").split()
    name, pointer, const = words[-1], "*" in words, "const" in words
    element = " ".join(word for word in words[:-1] if word not in ("*", "const"))
    return Parameter(name, element, pointer, const)
