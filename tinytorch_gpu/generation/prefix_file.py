"""A PrefixCache as a safetensors file: ``ids``, ``keys.N`` and ``values.N`` (T, kv heads, head dim) of each
layer, and ``about``, a JSON object in UTF-8 with the format, the dtype and the model's configuration. A cache in
8 bit lies there as in memory: its integers under those names, ``keys.N.scales`` and ``values.N.scales``
(T, kv heads, groups) beside them.

Whether the numbers are this model's is found by computing: the last token is fed anew behind the
others, and its keys and values must be the file's. They depend on every weight that a cache depends on.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from ..backend import dtype_name, named_dtype, to_numpy, widen
from ..checkpoint.errors import ModelFileError, quoted
from ..checkpoint.files import parse_json
from ..checkpoint.safetensors_file import read_safetensors
from ..checkpoint.save import Replacement, write_tensors
from ..core.embeddings import check_ids
from ..core.tensor import no_grad
from ..quantized.cache import EightBit, groups_of
from .prefill import prefill

FORMAT = "tinytorch_gpu prompt cache 1"
# How far, relative to their size, keys and values may be from those computed again. What rounds to 16 bits
# or less differs by the number of tokens that are fed at once; another model differs by its whole size.
CLOSE, ROUNDED = 1e-3, 0.1


def save(prefix: Any, path: Any) -> None:
    """Write ``prefix``; nothing to write is a ValueError."""
    if not prefix.ids:
        raise ValueError("the prefix cache holds no tokens: there is nothing to save")
    target, held = Path(path), prefix.cache.save()
    dtype = dtype_name(held["keys"][0].dtype)
    about = {"format": FORMAT, "dtype": dtype, "config": _config(prefix.model)}
    tensors: dict[str, Any] = {
        "about": numpy.frombuffer(json.dumps(about).encode(), numpy.uint8),
        "ids": numpy.asarray(prefix.ids, numpy.int64),
    }
    for name in ("keys", "values"):
        for layer, array in enumerate(held[name]):
            tensors |= _plain(f"{name}.{layer}", array[0])
    with Replacement(target.parent) as new:
        write_tensors(tensors, new.path(target.name))


def load(prefix: Any, path: Any) -> None:
    """Put what the file at ``path`` has into ``prefix``. A file that is damaged, of another model or too long for the
    cache is a ModelFileError, and ``prefix`` stays as it was."""
    where, cache = str(path), prefix.cache
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
    saved: dict[str, Any] = {"lengths": numpy.array([len(ids)])}
    for name in ("keys", "values"):
        stored = (
            _values(tensors, f"{name}.{layer}", dtype, shape, where)[None]
            for layer in range(len(cache.keys))
        )
        saved[name] = [_for_cache(values, cache) for values in stored]
    exact = dtype in WHOLE and str(prefix.model.dtype) in WHOLE
    try:
        cache.restore(saved)
        _check_numbers(prefix.model, cache, ids, where, exact)
        cache.restore(saved)  # what was computed anew is the file's again
    except BaseException:
        cache.restore(before)
        raise
    prefix.ids = [int(token) for token in ids]


def _config(model: Any) -> dict[str, Any]:
    """The model's configuration, and how its weights are stored, in plain JSON."""
    return json.loads(json.dumps({**asdict(model.config), "weights": str(model.dtype)}))


def _check_about(tensors: Any, model: Any, where: str) -> str:
    """The name of the dtype of the numbers; a ModelFileError if they are not for ``model``."""
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
    if about.get("dtype") not in _STORED:
        raise ModelFileError(f"{where} has keys in {quoted(about.get('dtype'))}")
    return about["dtype"]


def _plain(name: str, array: Any) -> dict[str, Any]:
    """What a file can hold of keys or values: integers and scales apart, bfloat16 as the 16 bits that it is."""
    if isinstance(array, EightBit):
        parts = {name: array.values, f"{name}.scales": array.scales}
    elif dtype_name(array.dtype) == "bfloat16":
        parts = {name: to_numpy(array).view(numpy.uint16)}
    else:
        parts = {name: array}
    return {n: numpy.ascontiguousarray(to_numpy(part)) for n, part in parts.items()}


_STORED = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "U16", "q8_0": "I8"}
WHOLE = ("float32", "float64")  # compared closely


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


def _values(tensors: Any, name: str, dtype: str, shape: Any, where: str) -> Any:
    """Keys or values (T, kv heads, head dim) on the host."""
    raw = _array(tensors, name, _STORED[dtype], shape, where)
    if dtype == "q8_0":
        return _eight_bit(tensors, name, raw, shape, where)
    found = raw.view(named_dtype(dtype)).reshape(shape)
    if not numpy.isfinite(found.astype(numpy.float32)).all():
        raise ModelFileError(f"{where}: {quoted(name)} has NaN or infinite values")
    return found


def _eight_bit(tensors: Any, name: str, raw: Any, shape: Any, where: str) -> EightBit:
    integers, beside = raw.view(numpy.int8).reshape(shape), (*shape[:-1], groups_of(shape[-1]))
    if (integers == -128).any():
        raise ModelFileError(f"{where}: {quoted(name)} has integers outside -127 to 127")
    scales = _array(tensors, f"{name}.scales", "F16", beside, where).view("<f2").reshape(beside)
    if not (numpy.isfinite(scales) & (scales >= 0)).all():
        raise ModelFileError(
            f"{where}: {quoted(name + '.scales')} has negative, NaN or infinite values"
        )
    return EightBit(integers, scales)


def _for_cache(stored: Any, cache: Any) -> Any:
    """What ``cache`` takes over: 8 bit as they are if it is in 8 bit too, else numbers."""
    if isinstance(stored, EightBit):
        if isinstance(cache.keys[0], EightBit):
            return stored.moved_to(cache.device)
        stored = stored.dequantize()
    return cache.device.asarray(stored)


def _check_numbers(model: Any, cache: Any, ids: Any, where: str, exact: bool) -> None:
    """Compute the last token's keys and values anew and compare, closely if ``exact``."""
    last = len(ids) - 1
    pairs = (*cache.keys, *cache.values)
    stored = [_numbers(a[:, last : last + 1]) for a in pairs]
    cache.rollback(1)
    with no_grad(), model.device.active():
        prefill(model, [ids[-1:]], cache)
    exact = exact and dtype_name(cache.keys[0].dtype) in WHOLE
    for layer, (array, old) in enumerate(zip(pairs, stored, strict=True)):
        new = _numbers(array[:, last : last + 1])
        off, size = numpy.abs(new - old).max(), max(numpy.abs(new).max(), 1e-6)
        if not off <= (CLOSE if exact else ROUNDED) * size:
            raise ModelFileError(
                f"{where} is of another model: keys and values of layer {layer % len(cache.keys)} "
                f"differ by {off / size:.1g} of their size from what this one computes"
            )


def _numbers(array: Any) -> Any:
    """A copy in float64 on the host."""
    return to_numpy(widen(array)).astype(numpy.float64)
