"""A PrefixCache as a safetensors file: ``ids``, ``keys.N`` and ``values.N`` (T, kv heads, head dim) of each
layer, and ``about``, a JSON object in UTF-8 with the format, the dtype and the model's configuration.

Whether the numbers are this model's is found by computing: the last token is fed anew behind the
others, and its keys and values must be the file's. They depend on every weight that a cache depends on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from ..backend import dtype_name, named_dtype, to_numpy
from ..checkpoint.errors import ModelFileError, quoted
from ..checkpoint.files import parse_json
from ..checkpoint.safetensors_file import read_safetensors
from ..checkpoint.save import Replacement, write_tensors
from ..core.embeddings import check_ids
from ..core.tensor import no_grad
from .prefill import prefill

FORMAT = "tinytorch_gpu prompt cache 1"
# How far, relative to their size, keys and values may be from those computed again. What rounds to 16 bits
# or less differs by the number of tokens that are fed at once; another model differs by its whole size.
CLOSE, ROUNDED = 1e-3, 0.1


def save(prefix: Any, path: Any) -> None:
    """Write ``prefix``; nothing to write is a ValueError."""
    if not prefix.ids:
        raise ValueError("the prefix cache holds no tokens: there is nothing to save")
    check_storable(prefix.cache)
    target, held = Path(path), prefix.cache.save()
    dtype = dtype_name(held["keys"][0].dtype)
    about = {"format": FORMAT, "dtype": dtype, "config": _config(prefix.model)}
    tensors: dict[str, Any] = {
        "about": numpy.frombuffer(json.dumps(about).encode(), numpy.uint8),
        "ids": numpy.asarray(prefix.ids, numpy.int64),
    }
    for name in ("keys", "values"):
        for layer, array in enumerate(held[name]):
            tensors[f"{name}.{layer}"] = _plain(numpy.ascontiguousarray(to_numpy(array)[0]))
    with Replacement(target.parent) as new:
        write_tensors(tensors, new.path(target.name))


def check_storable(cache: Any) -> None:
    """A ValueError if the numbers of ``cache`` cannot be in a file."""
    dtype = dtype_name(cache.keys[0].dtype)
    if dtype not in _STORED:
        raise ValueError(f"a cache in {dtype} cannot be kept in a file: choose cache_dtype float16")


def load(prefix: Any, path: Any) -> None:
    """Put what the file at ``path`` has into ``prefix``. A file that is damaged, of another model or too long for the
    cache is a ModelFileError, and a cache of numbers that no file holds a ValueError; ``prefix`` stays as it was."""
    where, cache = str(path), prefix.cache
    check_storable(cache)
    tensors = read_safetensors(Path(path))
    dtype = _check_about(tensors, prefix.model, where)
    ids = _array(tensors, "ids", "I64", None, where).view("<i8")
    if not ids.size:
        raise ModelFileError(f"{where} holds no tokens")
    if len(ids) > cache.capacity:
        raise ModelFileError(
            f"{where} holds {len(ids)} tokens, the cache has room for {cache.capacity}"
        )
    try:
        check_ids(ids, prefix.model.config.vocab_size)
    except ValueError as error:
        raise ModelFileError(f"{where}: {error}") from None
    shape, before = (len(ids), *cache.keys[0].shape[2:]), cache.save()
    place = cache.device
    saved: dict[str, Any] = {"lengths": numpy.array([len(ids)])}
    for name in ("keys", "values"):
        saved[name] = [
            place.asarray(_values(tensors, f"{name}.{layer}", dtype, shape, where)[None])
            for layer in range(len(cache.keys))
        ]
    try:
        cache.restore(saved)
        _check_numbers(prefix.model, cache, ids, where)
    except BaseException:
        cache.restore(before)
        raise
    prefix.ids = [int(token) for token in ids]


def _config(model: Any) -> dict[str, Any]:
    """The model's configuration, and how its weights are stored, in plain JSON."""
    return json.loads(json.dumps({**asdict(model.config), "weights": str(model.dtype)}))


def _check_about(tensors: Any, model: Any, where: str) -> Any:
    """The dtype of the numbers; a ModelFileError if they are not for ``model``."""
    if "about" not in tensors or tensors["about"].dtype_name != "U8":
        raise ModelFileError(f"{where} is no prompt cache: it does not say what it is about")
    about = parse_json(tensors["about"].raw().tobytes(), f"{where}: what it is about")
    if about.get("format") != FORMAT:
        raise ModelFileError(
            f"{where} is no prompt cache: its format is {quoted(about.get('format'))}"
        )
    theirs, ours = about.get("config"), _config(model)
    theirs = theirs if isinstance(theirs, dict) else {}
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise ModelFileError(
                f"{where} is of another model: its {quoted(name)} is {quoted(theirs.get(name))}, "
                f"this one's {quoted(ours.get(name))}"
            )
    if about.get("dtype") not in ("float32", "float64", "float16", "bfloat16"):
        raise ModelFileError(f"{where} has keys in {quoted(about.get('dtype'))}")
    return named_dtype(about["dtype"])


def _plain(array: Any) -> Any:
    """What a file can hold: bfloat16 as the 16 bits that it is."""
    return array.view(numpy.uint16) if dtype_name(array.dtype) == "bfloat16" else array


_STORED = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "U16"}


def _array(tensors: Any, name: str, stored: str, shape: Any, where: str) -> Any:
    info = tensors.get(name)
    if info is None:
        raise ModelFileError(f"{where} has no {quoted(name)}")
    wanted = shape or (info.shape if len(info.shape) == 1 else None)
    if info.dtype_name != stored or info.shape != wanted:
        raise ModelFileError(
            f"{where}: {quoted(name)} is {info.dtype_name} {info.shape}, not {stored} {wanted}"
        )
    return info.raw()


def _values(tensors: Any, name: str, dtype: Any, shape: Any, where: str) -> Any:
    raw = _array(tensors, name, _STORED[dtype_name(dtype)], shape, where)
    found = raw.view(dtype).reshape(shape)
    if not numpy.isfinite(found.astype(numpy.float32)).all():
        raise ModelFileError(f"{where}: {quoted(name)} has NaN or infinite values")
    return found


def _check_numbers(model: Any, cache: Any, ids: Any, where: str) -> None:
    """Compute the last token's keys and values anew and compare."""
    last = len(ids) - 1
    pairs = (*cache.keys, *cache.values)
    stored = [to_numpy(a[:, last : last + 1]).astype(numpy.float64).copy() for a in pairs]
    cache.rollback(1)
    with no_grad(), model.device.active():
        prefill(model, [ids[-1:]], cache)
    exact = cache.keys[0].dtype.itemsize >= 4 and str(model.dtype) in ("float32", "float64")
    for layer, (array, old) in enumerate(zip(pairs, stored, strict=True)):
        new = to_numpy(array[:, last : last + 1]).astype(numpy.float64)
        off, size = numpy.abs(new - old).max(), max(numpy.abs(new).max(), 1e-6)
        if not off <= (CLOSE if exact else ROUNDED) * size:
            raise ModelFileError(
                f"{where} is of another model: keys and values of layer {layer % len(cache.keys)} "
                f"differ by {off / size:.1g} of their size from what this one computes"
            )
