"""The header of a GGUF file (llama.cpp's format), versions 2 and 3.

Layout, little-endian: "GGUF", version u32, tensor count u64, metadata count u64; the metadata as
(key, type u32, value); the tensors as (name, dimensions u32, sizes u64 fastest first, type u32,
offset u64); padding; the tensors' bytes, each at a multiple of ``general.alignment``.

The file is not trusted: every count and length is checked against the bytes that are left before
anything is allocated for it.
"""

import math
import os
import struct
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy

from .errors import ModelFileError, quoted
from .files import MappedFile

MOST_HEADER = 64 << 20  # bytes; the largest vocabularies in use take about 20 MB
MOST_DIMENSIONS = 4
MOST_DEPTH = 4  # of arrays within arrays

# Type number: (name, weights per block, bytes per block). Most are only named here, so that
# `inspect` can show a file that this library cannot load.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

_SCALARS = {
    kind: struct.Struct("<" + code)
    for kind, code in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B",
                       10: "Q", 11: "q", 12: "d"}.items()
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive (a PyTorch pickle?); convert it to safetensors or GGUF",
    b"vers": "probably a Git LFS pointer; run `git lfs pull` to get the real file",
    b"<!DO": "an HTML page, not the model that was meant to be downloaded",
    b"<htm": "an HTML page, not the model that was meant to be downloaded",
    b"ggml": "an older ggml format; convert it to GGUF",
    b"tjgg": "an older ggml format; convert it to GGUF",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model file: its shape is (rows, columns) as NumPy has it."""

    name: str
    shape: tuple[int, ...]
    dtype_name: str
    nbytes: int
    offset: int = field(default=0, repr=False)
    file: MappedFile | None = field(default=None, repr=False, compare=False)

    def raw(self) -> numpy.ndarray:
        """Return the stored bytes (uint8), which share the file's pages."""
        if self.file is None:
            raise ValueError(f"tensor {self.name!r} has no file")
        return self.file.array(self.offset, self.nbytes)

    def release(self) -> None:
        """Let the system forget the pages that were read."""
        if self.file is not None:
            self.file.release(self.offset, self.nbytes)


class _Reader:
    """A position in the header that never leaves it."""

    def __init__(self, file: MappedFile):
        self.file, self.data, self.position = file, file.map, 0
        self.end = min(file.size, MOST_HEADER)

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(f"{self.file.path}: {problem}")

    def need(self, nbytes: int, what: str) -> int:
        """Return the position of the next ``nbytes`` bytes and step over them."""
        start = self.position
        if nbytes > self.end - start:
            if self.end < self.file.size:
                self.fail(f"its header is larger than {MOST_HEADER >> 20} MB ({what})")
            self.fail(f"truncated or damaged: {what} needs {nbytes} bytes, {self.end - start} left")
        self.position = start + nbytes
        return start

    def scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.data, self.need(form.size, what))[0]

    def string(self, what: str) -> str:
        length = self.scalar(_U64, f"length of {what}")
        start = self.need(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(f"value of {quoted(key)}")
        if kind == _ARRAY:
            return self.array(key, depth)
        if kind not in _SCALARS:
            self.fail(f"metadata {quoted(key)} has unknown type {kind}")
        value = self.scalar(_SCALARS[kind], f"value of {quoted(key)}")
        if kind != _BOOL:
            return value
        if value > 1:
            self.fail(f"metadata {quoted(key)} must be 0 or 1, not {value}")
        return bool(value)

    def array(self, key: str, depth: int) -> list[Any]:
        what = f"array {quoted(key)}"
        kind, count = self.scalar(_U32, what), self.scalar(_U64, what)
        if kind == _STRING:
            return self.strings(count, what)
        if kind == _ARRAY:
            if depth == MOST_DEPTH:
                self.fail(f"{what} is nested more than {MOST_DEPTH} deep")
            self.check_count(count, 12, what)
            return [self.array(key, depth + 1) for _ in range(count)]
        if kind not in _SCALARS:
            self.fail(f"{what} has unknown element type {kind}")
        form = _SCALARS[kind]
        start = self.need(count * form.size, what)
        found = numpy.frombuffer(self.data, "<" + form.format[1:], count, start)
        if kind != _BOOL:
            return found.tolist()
        if (found > 1).any():
            self.fail(f"{what} must hold only 0 and 1")
        return found.astype(bool).tolist()

    def check_count(self, count: int, least: int, what: str) -> None:
        """Raise unless ``count`` things of at least ``least`` bytes each can still follow."""
        start = self.position
        self.need(count * least, f"{what} of {count}")
        self.position = start

    def strings(self, count: int, what: str) -> list[str]:
        """A vocabulary has 10^5 strings, so this loop has everything in local names."""
        self.check_count(count, 8, what)
        data, position, end = self.data, self.position, self.end
        length_at, found = _U64.unpack_from, []
        for _ in range(count):
            start = position + 8
            if start > end:
                break
            position = start + length_at(data, position)[0]
            if position > end:
                break
            try:
                found.append(data[start:position].decode())
            except UnicodeDecodeError:
                self.fail(f"{what}: string {len(found)} is not valid UTF-8")
        if len(found) < count:
            self.fail(f"truncated or damaged: {what} of {count} ends in string {len(found)}")
        self.position = position
        return found


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself: ``metadata`` by key, ``tensors`` by name."""

    file: MappedFile
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read the header of GGUF file ``path``; a bad one is a ModelFileError."""
    reader = _Reader(MappedFile(path))
    version, tensor_count, metadata_count = _preamble(reader)
    metadata = _metadata(reader, metadata_count)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in [1 << n for n in range(3, 25)]:
        reader.fail(f"general.alignment must be a power of two from 8, not {quoted(alignment)}")
    return GGUFHeader(reader.file, version, metadata, _tensors(reader, tensor_count, alignment))


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    magic = reader.data[:4]
    if magic != b"GGUF":
        reader.fail("not a GGUF file: " + _OTHER_FILES.get(magic, f"it starts with {magic!r}"))
    reader.position = 4
    version = reader.scalar(_U32, "version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        big = " (a big-endian file)" if swapped in (2, 3) else ""
        reader.fail(f"GGUF version {version}{big} is not supported; supported are 2 and 3")
    tensor_count = reader.scalar(_U64, "tensor count")
    metadata_count = reader.scalar(_U64, "metadata count")
    # The smallest entries: an empty key with a one-byte value, a nameless tensor of one dimension.
    reader.check_count(metadata_count, 13, "a metadata table")
    reader.check_count(tensor_count, 32, "a tensor table")
    return version, tensor_count, metadata_count


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = reader.string(f"metadata key {index}")
        if key in metadata:
            reader.fail(f"metadata {quoted(key)} occurs twice")
        kind = reader.scalar(_U32, f"type of {quoted(key)}")
        metadata[key] = reader.value(kind, key)
    return metadata


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorInfo]:
    found: list[TensorInfo] = []
    for index in range(count):
        found.append(_tensor(reader, index, alignment))
    base = -(-reader.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    end, before = base, ""
    for info in sorted(found, key=lambda info: info.offset):
        start = base + info.offset
        if start + info.nbytes > reader.file.size:
            reader.fail(
                f"truncated: tensor {quoted(info.name)} ends at byte {start + info.nbytes}, "
                f"the file at {reader.file.size}"
            )
        if start < end:
            reader.fail(f"tensors {quoted(before)} and {quoted(info.name)} overlap")
        end, before = start + info.nbytes, info.name
    for info in found:
        if info.name in tensors:
            reader.fail(f"tensor {quoted(info.name)} occurs twice")
        tensors[info.name] = TensorInfo(
            info.name, info.shape, info.dtype_name, info.nbytes, base + info.offset, reader.file
        )
    return tensors


def _tensor(reader: _Reader, index: int, alignment: int) -> TensorInfo:
    name = reader.string(f"name of tensor {index}")
    what = f"tensor {quoted(name)}"
    dimensions = reader.scalar(_U32, what)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        reader.fail(f"{what} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")
    sizes = [reader.scalar(_U64, what) for _ in range(dimensions)]
    if min(sizes) == 0:
        reader.fail(f"{what} is empty: its sizes are {sizes}")
    kind, offset = reader.scalar(_U32, what), reader.scalar(_U64, what)
    if kind not in TENSOR_TYPES:
        reader.fail(f"{what} has unknown type {kind}")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if sizes[0] % block:
        reader.fail(f"{what}: {type_name} rows must be a multiple of {block}, not {sizes[0]}")
    if offset % alignment:
        reader.fail(f"{what} starts at {offset}, which is not a multiple of {alignment}")
    nbytes = math.prod(sizes) // block * block_bytes
    return TensorInfo(name, tuple(reversed(sizes)), type_name, nbytes, offset)
