"""Floats into blocks.

The formats with one scale per 32 weights are rounded as ggml's reference does it, bit for bit. Those of
256 weights choose each group's scale and minimum by a weighted least-squares search over some
twenty grids, the weights being the weights' own size: the large ones matter most.
"""

from collections.abc import Callable
from typing import Any

import numpy

from ..backend import assign, dtype, to_numpy
from ..devices import device_of
from .formats import Format, format_named
from .matrix import DECODED, Blocks, QuantizedMatrix

_SINGLE = numpy.float32
_LARGEST = 65504.0 * 128 * 32  # in Q6_K, and less in all others


class EncodeError(ValueError):
    """Weights that a format cannot hold."""


def encode(rows: Any, form: "Format | str") -> numpy.ndarray:
    """Return ``rows`` (n, width) of floats in blocks: uint8 (n, bytes of a row).

    A width that is no whole number of blocks is a ValueError; a value that is not finite, or too large
    for a float16 scale, an EncodeError.
    """
    form = form if isinstance(form, Format) else format_named(form)
    nbytes = form.row_bytes(rows.shape[1])
    if not form.blocked:
        return numpy.ascontiguousarray(rows, dtype(form.name)).view(numpy.uint8).reshape(-1, nbytes)
    blocks = numpy.ascontiguousarray(rows, _SINGLE).reshape(-1, form.elements)
    if not numpy.isfinite(blocks).all():
        raise EncodeError(f"NaN or infinite weights cannot be stored in {form}")
    with numpy.errstate(all="ignore"):  # of a subnormal scale the inverse is infinite, as in ggml
        made = _ENCODERS[form.name](blocks)
    most = numpy.abs(blocks).max(initial=0)
    if not form.finite(made) or most > _LARGEST:
        raise EncodeError(f"weights up to {most:.4g} are too large for {form}")
    return made.reshape(rows.shape[0], nbytes)


def quantize(matrix: Any, form: "Format | str") -> QuantizedMatrix:
    """Return an array (out, in) of any device in blocks, on that device."""
    form = form if isinstance(form, Format) else format_named(form)
    place, (out, width) = device_of(matrix), matrix.shape
    made = numpy.empty((out, form.row_bytes(width)), numpy.uint8)
    step = max(1, DECODED // max(width, 1))
    for start in range(0, out, step):
        made[start : start + step] = encode(to_numpy(matrix[start : start + step]), form)
    return QuantizedMatrix(Blocks(form, place.asarray(made), width))


def encode_into(target: QuantizedMatrix, values: Any, first: int = 0) -> None:
    """Encode ``values`` (out, n), on the host, into the columns of ``target`` from ``first`` on: whole
    blocks of them. Each part of ``target`` keeps its format."""
    for part, inner, outer in target.overlaps():
        made = encode(values[outer], part.format)
        start = part.format.row_bytes(first)
        assign(part.unpacked(inner)[:, start : start + made.shape[1]], made)


def _bytes_of_half(values: numpy.ndarray) -> numpy.ndarray:
    return values.astype("<f2").view(numpy.uint8).reshape(len(values), -1)


def _inverse(scale: numpy.ndarray) -> numpy.ndarray:
    """1 / scale, 0 where that is 0."""
    return numpy.where(scale == 0, _SINGLE(0), _SINGLE(1) / scale)


# --- blocks of 32 ---


def _q8_0(blocks: numpy.ndarray) -> numpy.ndarray:
    scale = numpy.abs(blocks).max(axis=1, keepdims=True) / _SINGLE(127)
    scaled = blocks * _inverse(scale)
    size = numpy.abs(scaled)
    whole = numpy.floor(size)
    whole += numpy.floor(2 * (size - whole))  # halves go away from zero
    values = (numpy.sign(scaled) * whole).astype(numpy.int8)
    return numpy.hstack((_bytes_of_half(scale), values.view(numpy.uint8)))


def _packed(values: numpy.ndarray) -> numpy.ndarray:
    """Low halves of 16 bytes are the first 16 values of 32, high halves the others."""
    return (values[:, :16] & 15) | (values[:, 16:] << numpy.uint8(4))


def _upper(values: numpy.ndarray) -> numpy.ndarray:
    return numpy.packbits(values >> numpy.uint8(4), axis=1, bitorder="little")


def _signed(blocks: numpy.ndarray, half: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Scale and integers from 0 to 2 half - 1, the value farthest from zero being 0."""
    farthest = numpy.abs(blocks).argmax(axis=1)[:, None]
    scale = numpy.take_along_axis(blocks, farthest, 1) / _SINGLE(-half)
    return scale, _truncated(blocks, _inverse(scale), half + 0.5, 2 * half - 1)


def _lifted(blocks: numpy.ndarray, most: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Scale, minimum, and integers from 0 to ``most``."""
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / _SINGLE(most)
    return scale, low, _truncated(blocks - low, _inverse(scale), 0.5, most)


def _truncated(x: numpy.ndarray, inverse: numpy.ndarray, shift: float, most: int) -> numpy.ndarray:
    scaled = x * inverse + _SINGLE(shift)
    return numpy.trunc(scaled).astype(numpy.uint8).clip(0, most)


def _q4_0(blocks: numpy.ndarray) -> numpy.ndarray:
    scale, values = _signed(blocks, 8)
    return numpy.hstack((_bytes_of_half(scale), _packed(values)))


def _q5_0(blocks: numpy.ndarray) -> numpy.ndarray:
    scale, values = _signed(blocks, 16)
    return numpy.hstack((_bytes_of_half(scale), _upper(values), _packed(values)))


def _q4_1(blocks: numpy.ndarray) -> numpy.ndarray:
    scale, low, values = _lifted(blocks, 15)
    return numpy.hstack((_bytes_of_half(scale), _bytes_of_half(low), _packed(values)))


def _q5_1(blocks: numpy.ndarray) -> numpy.ndarray:
    scale, low, values = _lifted(blocks, 31)
    head = (_bytes_of_half(scale), _bytes_of_half(low))
    return numpy.hstack((*head, _upper(values), _packed(values)))


# --- blocks of 256 ---


def _fit_lifted(
    x: numpy.ndarray, most: int, first: float, step: float, tries: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Scale and minimum (at most 0) of groups (n, 32): of the grids that begin a little beside the
    extremes, the one whose best line through its integers has the least weighted error."""
    weight = numpy.sqrt(numpy.mean(x * x, axis=1, keepdims=True)) + numpy.abs(x)
    low = numpy.minimum(x.min(axis=1, keepdims=True), 0)
    span = x.max(axis=1, keepdims=True) - low
    best_scale, best_low = span / _SINGLE(most), low.copy()
    total, total_x = (numpy.sum(v, axis=1, keepdims=True) for v in (weight, weight * x))

    def error(scale: Any, low: Any, values: Any) -> Any:
        off = scale * values + low - x
        return numpy.sum(weight * off * off, axis=1, keepdims=True)

    def grid(steps: Any) -> Any:
        ratio = numpy.where(span > 0, steps / numpy.where(span > 0, span, 1), 0)
        return numpy.clip(numpy.rint(ratio * (x - low)), 0, most)

    best = error(best_scale, best_low, grid(_SINGLE(most)))
    for i in range(tries):
        values = grid(_SINGLE(first + step * i + most))
        sum_l, sum_l2, sum_lx = (
            numpy.sum(weight * v, axis=1, keepdims=True)
            for v in (values, values * values, values * x)
        )
        spread = total * sum_l2 - sum_l * sum_l
        usable = spread > 0
        safe = numpy.where(usable, spread, 1)
        scale = (total * sum_lx - total_x * sum_l) / safe
        shift = (sum_l2 * total_x - sum_l * sum_lx) / safe
        # A minimum above zero cannot be stored: the line goes through zero then.
        through = numpy.where(sum_l2 > 0, sum_lx / numpy.where(sum_l2 > 0, sum_l2, 1), 0)
        scale, shift = numpy.where(shift > 0, through, scale), numpy.minimum(shift, 0)
        found = error(scale, shift, values)
        better = usable & (found < best)
        best = numpy.where(better, found, best)
        best_scale, best_low = (
            numpy.where(better, a, b) for a, b in ((scale, best_scale), (shift, best_low))
        )
    return best_scale[:, 0], best_low[:, 0]


def _k_lifted(
    blocks: numpy.ndarray, most: int, search: tuple[float, float, int]
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The 16 bytes of scales of Q4_K and Q5_K, and the integers (n, 8, 32)."""
    x = blocks.reshape(-1, 32)
    scale, low = (v.reshape(-1, 8) for v in _fit_lifted(x, most, *search))
    low = -low
    units = [numpy.maximum(v, 0).max(axis=1, keepdims=True) / _SINGLE(63) for v in (scale, low)]
    sixes = [
        numpy.clip(numpy.rint(v * _inverse(unit)), 0, 63).astype(numpy.uint8)
        for v, unit in zip((scale, low), units, strict=True)
    ]
    halves = [unit.astype("<f2") for unit in units]
    real = [
        (half.astype(_SINGLE) * six)[:, :, None] for half, six in zip(halves, sixes, strict=True)
    ]
    values = (blocks.reshape(-1, 8, 32) + real[1]) * _inverse(real[0])
    values = numpy.clip(numpy.rint(values), 0, most).astype(numpy.uint8)
    scales, minima = sixes
    head = (
        scales[:, :4] | (scales[:, 4:] >> 4 << 6), minima[:, :4] | (minima[:, 4:] >> 4 << 6),
        (scales[:, 4:] & 15) | (minima[:, 4:] << 4),
    )  # fmt: skip
    return numpy.hstack((*(h.view(numpy.uint8) for h in halves), *head)), values


def _paired(values: numpy.ndarray) -> numpy.ndarray:
    """Groups two by two in the halves of 32 bytes: (n, 8, 32) to (n, 128)."""
    return ((values[:, ::2] & 15) | (values[:, 1::2] << numpy.uint8(4))).reshape(-1, 128)


def _q4_k(blocks: numpy.ndarray) -> numpy.ndarray:
    head, values = _k_lifted(blocks, 15, (-1.0, 0.1, 21))
    return numpy.hstack((head, _paired(values)))


def _q5_k(blocks: numpy.ndarray) -> numpy.ndarray:
    head, values = _k_lifted(blocks, 31, (-0.5, 0.1, 16))
    bits = numpy.zeros((len(blocks), 32), numpy.uint8)
    for group in range(8):
        bits |= (values[:, group] >> 4) << numpy.uint8(group)
    return numpy.hstack((head, bits, _paired(values)))


def _fit_signed(x: numpy.ndarray, half: int) -> numpy.ndarray:
    """The scale (n,) of groups (n, 16) of integers from -half to half - 1, by least squares weighted
    with the squares of ``x``, over grids that put its farthest value near -half."""
    weight = x * x
    farthest = numpy.abs(x).argmax(axis=1)[:, None]
    extreme = numpy.take_along_axis(x, farthest, 1)
    safe = numpy.where(extreme == 0, 1, extreme)
    best, best_scale = numpy.full_like(extreme, -1), numpy.zeros_like(extreme)
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        values = numpy.clip(
            numpy.rint(x * (-(half + _SINGLE(0.1) * tenths) / safe)), -half, half - 1
        )
        sum_lx = numpy.sum(weight * x * values, axis=1, keepdims=True)
        sum_l2 = numpy.sum(weight * values * values, axis=1, keepdims=True)
        scale = numpy.where(sum_l2 > 0, sum_lx / numpy.where(sum_l2 > 0, sum_l2, 1), 0)
        gain = scale * sum_lx  # by how much the error falls
        better = gain > best
        best, best_scale = numpy.where(better, gain, best), numpy.where(better, scale, best_scale)
    return best_scale[:, 0]


def _q6_k(blocks: numpy.ndarray) -> numpy.ndarray:
    scale = _fit_signed(blocks.reshape(-1, 16), 32).reshape(-1, 16)
    farthest = numpy.abs(scale).argmax(axis=1)[:, None]
    unit = (numpy.take_along_axis(scale, farthest, 1) / _SINGLE(-128)).astype("<f2")
    wide = unit.astype(_SINGLE)
    small = numpy.clip(numpy.rint(scale * _inverse(wide)), -128, 127).astype(numpy.int8)
    real = wide * small
    values = blocks.reshape(-1, 16, 16) * _inverse(real)[:, :, None]
    values = (numpy.clip(numpy.rint(values), -32, 31) + 32).astype(numpy.uint8)
    parts = values.reshape(-1, 2, 4, 32)
    low = (parts[:, :, :2] & 15) | (parts[:, :, 2:] << numpy.uint8(4))
    upper = parts[:, :, 0] >> 4
    for part in range(1, 4):
        upper = upper | (parts[:, :, part] >> 4 << numpy.uint8(2 * part))
    flat = (low.reshape(-1, 128), upper.reshape(-1, 64), small.view(numpy.uint8))
    return numpy.hstack((*flat, unit.view(numpy.uint8)))


_ENCODERS: dict[str, Callable[[numpy.ndarray], numpy.ndarray]] = {
    "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1,
    "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip
