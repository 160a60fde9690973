"""Untrusted files: memory-mapped bytes and strict, size-limited JSON."""

import json
import math
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from .errors import ModelFileError, quoted

MOST_JSON = 100_000_000  # bytes; the safetensors library has the same limit for its header
MOST = 2**31 - 1  # no size in a model's configuration is larger

_REQUIRED: Any = object()


class MappedFile:
    """The bytes of a file, read only when they are touched.

    The pages belong to the file, not to this process: they never count as anonymous memory and
    ``release`` drops them from the resident set too.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with _opened(self.path) as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size == 0:
                raise ModelFileError(f"{self.path} is empty")
            try:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelFileError(f"cannot map {self.path}: {error}") from None

    def array(self, offset: int, nbytes: int) -> numpy.ndarray:
        """Return ``nbytes`` bytes from ``offset`` as a uint8 array that shares the file's pages."""
        # Touching a page behind the new end of a file that shrank would kill the process.
        if offset < 0 or offset + nbytes > min(self.size, os.stat(self.path).st_size):
            raise ModelFileError(f"{self.path} became shorter while it was read")
        return numpy.frombuffer(self.map, numpy.uint8, nbytes, offset)

    def release(self, offset: int, nbytes: int) -> None:
        """Let the system forget the pages of a range that has been read."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED, start, offset + nbytes - start)


def _opened(path: Path) -> Any:
    try:
        # Opening a pipe would wait for a writer, so the kind of file is asked first.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelFileError(f"{path} is not a regular file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"cannot open {quoted(path, 200)}: {reason}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ModelFileError(f"the name {quoted(twice)} occurs twice")
    return found


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; anything else is a ModelFileError naming ``where``."""
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, too many digits, too deep
        raise ModelFileError(f"{where} is not valid JSON: {quoted(error, 120)}") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{where} must hold a JSON object, not a {type(values).__name__}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in file ``path``."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_JSON:
            raise ModelFileError(f"{path} is larger than {MOST_JSON} bytes")
        text = file.read(size)  # read() sets aside what it is asked for
    return parse_json(text, str(path))


class Fields:
    """Typed look-ups in a configuration that was read from a file.

    Every getter returns ``default`` where the field is absent or null, and raises ModelFileError
    naming the field where its value has the wrong type or is out of range.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def error(self, name: str, problem: str) -> ModelFileError:
        """Return (not raise) an error about field ``name``."""
        return ModelFileError(f"{self.where}: {quoted(name)} {problem}")

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return the raw value of ``name``."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(name, "is missing")
        return default

    def whole(self, name: str, default: Any = _REQUIRED, least: int = 1, most: int = MOST) -> Any:
        """Return a whole number between ``least`` and ``most``."""
        value = self.get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(
                name, f"must be a whole number of {least} to {most}, not {_short(value)}"
            )
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a finite number."""
        value = self.get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, not {_short(value)}")
        if not abs(value) < 1e300 or not math.isfinite(value):
            raise self.error(name, f"must be a finite number, not {_short(value)}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {_short(value)}")
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a string."""
        value = self.get(name, default)
        if value is not default and not isinstance(value, str):
            raise self.error(name, f"must be a string, not {_short(value)}")
        return value

    def table(self, name: str) -> "Fields":
        """Return a nested object, empty if absent."""
        value = self.get(name, {})
        if not isinstance(value, Mapping):
            raise self.error(name, f"must be an object, not {_short(value)}")
        return Fields(value, f"{self.where}: {name}")

    def require(self, name: str, only: Any, why: str) -> None:
        """Raise unless ``name`` is absent, null or equal to ``only``."""
        value = self.get(name, only)
        if value != only:
            raise self.error(name, f"is {_short(value)}, which is not supported: {why}")


def _short(value: Any) -> str:
    # str() of a huge integer raises, and of a huge list is slow.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return quoted(value) if isinstance(value, str) else str(value)
