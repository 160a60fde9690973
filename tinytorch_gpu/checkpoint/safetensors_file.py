"""The header of safetensors files, one or several (sharded).

Layout: header length u64 little-endian, the header as JSON, the tensors' bytes without gaps.

This reads the header itself because the ``safetensors`` library returns bfloat16, the usual type
of published weights, only where ml_dtypes is installed, and takes the last of two tensors of one
name without a word. Files are written by the library (``save``).
"""

import math
from pathlib import Path
from typing import Any

from .errors import ModelFileError, quoted
from .files import MOST_JSON, MappedFile, parse_json, read_json
from .gguf import TensorInfo

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
MOST_DIMENSIONS = 8
MOST_SHARDS = 10_000

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a folder in Hugging Face layout, by name."""
    if (folder / SINGLE).exists():
        return read_safetensors(folder / SINGLE)
    if (folder / INDEX).exists():
        return _read_shards(folder)
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    hint = f"; {pickled[0].name} is a pickle, which can run code: convert it" if pickled else ""
    raise ModelFileError(f"{folder} has neither {SINGLE} nor {INDEX}{hint}")


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    where = folder / INDEX
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{where} has no weight_map")
    names: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "\0" in file:
            raise ModelFileError(f"{where}: {quoted(tensor)} is in {quoted(file)}, not a shard")
        if Path(file).name != file or "\\" in file:
            raise ModelFileError(f"{where}: shard {quoted(file)} is outside the folder")
        names.setdefault(file, []).append(tensor)
    if len(names) > MOST_SHARDS:
        raise ModelFileError(f"{where} names {len(names)} shards; at most {MOST_SHARDS} are read")
    tensors: dict[str, TensorInfo] = {}
    for file, wanted in names.items():
        found = read_safetensors(folder / file)
        for tensor in wanted:
            if tensor not in found:
                raise ModelFileError(f"{where}: {quoted(tensor)} is not in {file}")
            tensors[tensor] = found[tensor]
    return tensors


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one file by name; a bad file is a ModelFileError."""
    file = MappedFile(path)
    length = int.from_bytes(file.map[:8], "little")
    start = 8 + length
    if file.size < 8 or length > min(file.size - 8, MOST_JSON):
        problem = f"a header of {length} bytes in a file of {file.size}"
        raise ModelFileError(f"{path} is truncated or not a safetensors file: {problem}")
    header = parse_json(file.map[8:start], f"{path}: the header")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    data_bytes = file.size - start
    # The format allows no gap and no overlap: sorted, each tensor starts where the last one ended.
    end = 0
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            problem = f"starts at {info.offset} where {end} was expected"
            raise ModelFileError(f"{path}: tensor {quoted(info.name)} {problem}")
        end += info.nbytes
    if end != data_bytes:
        problem = f"its tensors take {end} bytes, {data_bytes} are there"
        raise ModelFileError(f"{path} is truncated or damaged: {problem}")
    return {
        name: TensorInfo(name, info.shape, info.dtype_name, info.nbytes, start + info.offset, file)
        for name, info in tensors.items()
    }


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    def fail(problem: str) -> ModelFileError:
        return ModelFileError(f"{path}: tensor {quoted(name)} {problem}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail("must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise fail(f"has unknown dtype {quoted(kind)}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise fail(f"must have a shape of at most {MOST_DIMENSIONS} whole numbers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("must have two data_offsets in order")
    nbytes = math.prod(shape) * ITEM_BYTES[kind]
    if nbytes != offsets[1] - offsets[0]:
        raise fail(f"takes {nbytes} bytes by its shape, {offsets[1] - offsets[0]} by its offsets")
    return TensorInfo(name, tuple(shape), kind, nbytes, offsets[0])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in values
    )
