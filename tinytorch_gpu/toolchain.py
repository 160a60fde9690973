"""The host's C++ compiler, and the folder that keeps what it made.

Stands alone: building a wheel runs it without the rest of the package.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


class CompilerError(RuntimeError):
    """The host's compiler is missing or refuses a source; the message has what it said."""


@functools.cache
def compiler() -> tuple[str, str]:
    """Return the C++ compiler's command and version; CompilerError if there is none."""
    for command in (os.environ.get("CXX"), "g++", "clang++"):
        if command and shutil.which(command):
            asked = [command, "--version"]
            version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            return command, version
    raise CompilerError(
        "no C++20 compiler was found: install g++ (12 or newer) or clang, or set CXX"
    )


def compile_with(arguments: Iterable[str], what: str) -> None:
    """Run the compiler; CompilerError with its words if it refuses ``what``."""
    command, _ = compiler()
    made = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    if made.returncode:
        raise CompilerError(f"{command} refuses {what}:\n{made.stderr[:4000]}")


@functools.cache
def cache_folder(name: str) -> Path:
    """Return the user's cache folder called ``name``, or a temporary one if that cannot be made."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "tinytorch_gpu" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except (OSError, RuntimeError):  # a home that cannot be written, or that there is not
        folder = Path(tempfile.mkdtemp(prefix="tinytorch_gpu_"))
    return folder


@contextlib.contextmanager
def one_builder(target: Path) -> Iterator[None]:
    """Inside, another process that wants to build ``target`` waits; who comes in looks again whether it is there.
    Several may build it where the system or the folder has no file locks, and after a build that failed."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    place = target.with_suffix(".lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            lock = held.enter_context(place.open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            held.callback(place.unlink, missing_ok=True)
        yield
