"""A maker against its reference: the results, what is written in place, what is saved, the gradients.

Truth ``t`` is the reference in float64; a maker ``k`` may be off by twice what the reference ``r`` in
the dtype under test is off by, and a few roundings. In 16 bits that is one, or as many as the case
says (tensor cores take the weights of attention in 16 bits); where everything is
summed in the dtype under test, ``r`` can be right by luck and a different order of summing is some.
"""

from typing import Any

import numpy as np
import pytest
from case_specs import Case
from cases import CASES, KERNEL_CASES
from running_ops import (
    UNIT_ROUNDOFF,
    backward,
    cotangents,
    error,
    flat,
    forward,
    fresh,
    host,
    on,
    size,
    widened,
)  # fmt: skip

from tinytorch_gpu import backend, devices, no_grad
from tinytorch_gpu.core.op import OPS, Maker, reference_only
from tinytorch_gpu.devices import Device
from tinytorch_gpu.ops.activation import Slope
from tinytorch_gpu.ops.attention import Weights, weights_of
from tinytorch_gpu.quantized.cache import EightBit

# (floating arguments, weights): a weight may be stored narrower than what it is multiplied with.
STORAGES = [
    ("float32", "float32"), ("float64", "float64"), ("float16", "float16"),
    ("bfloat16", "bfloat16"), ("float32", "float16"), ("float32", "bfloat16"),
]  # fmt: skip


def makers_of(case: Case, place: Device) -> list[Maker]:
    """The makers that a device has, best first."""
    devices.load_makers(place.kind)
    return OPS[case.op].makers.get("cpu" if place.kind == "cpu" else "cuda", [])


def folder(maker: Maker) -> str:
    """Where a maker comes from: "native", "host" or "cuda"."""
    return maker.forward.__module__.split(".")[1]


def accepted(place: Device) -> list[Any]:
    """Every (case, storage, maker) where a maker of the device takes the case."""
    found = []
    for case in (*CASES, *KERNEL_CASES):
        makers = makers_of(case, place)
        for floats, weights in STORAGES if makers else []:
            if floats != weights and not any(getattr(s, "weight", False) for s in case.specs):
                continue
            try:
                arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
            except ValueError:  # ml_dtypes is missing
                continue
            options = case.options_for(place.xp)
            arguments = on(place.xp, arguments)
            names = floats if floats == weights else f"{floats} by {weights}"
            for maker in makers:
                if maker.accepts is None or maker.accepts(*arguments, **options):
                    name = f"{case}, {names}" + f", {folder(maker)}" * (len(makers) > 1)
                    found.append(pytest.param(case, floats, weights, maker, id=name))
    return found


def _close(made: Any, rounded: Any, truth: Any, u: float, roundings: int = 1) -> None:
    """The rule of tolerance, by the largest error of an array."""
    few = max(1, roundings) if u > 1e-6 else 8 if u > 1e-12 else 64
    allowed = 2 * error(rounded, truth) + few * u * size(truth)
    assert error(made, truth) <= allowed, f"{error(made, truth)} is above {allowed}"


def check_maker(case: Case, floats: str, weights: str, maker: Maker, place: Device) -> None:
    """Forward and backward halves of a maker, and what passes between them."""
    xp = place.xp
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    runs = [on(xp, fresh(arguments)), fresh(arguments), fresh(widened(arguments))]
    made, saved = forward(case, runs[0], maker, xp)
    rounded, kept = forward(case, runs[1])
    truth, true_kept = forward(case, runs[2])
    u = max(UNIT_ROUNDOFF[floats], case.unit)
    # The results, and what was written in place.
    written = zip((*made, *runs[0]), (*rounded, *runs[1]), (*truth, *runs[2]), strict=True)
    for a, b, t in written:
        if not backend.is_array(b):
            continue
        assert a.dtype == b.dtype and backend.kind(a) == place.kind
        if "float" in b.dtype.name or isinstance(b, EightBit):
            _close(host(a), b, t, u, case.roundings)
        else:
            np.testing.assert_array_equal(host(a), b)
    if OPS[case.op].differentiable:
        _check_backward(case, (made, saved), (rounded, kept), (truth, true_kept), u, maker, place)


def _check_backward(
    case: Case, made: Any, rounded: Any, truth: Any, u: float, maker: Maker, place: Device
) -> None:
    """The residuals, and the gradients that come from them, on each side."""
    alike = _saved_alike(case, made[1], rounded[1], truth[1])
    saved, kept, true_kept = (flat(x) for x in (made[1], *alike))
    assert len(saved) == len(kept)
    for a, b, t in zip(saved, kept, true_kept, strict=True):
        if not backend.is_array(b):
            assert a == b
            continue
        assert a.dtype == b.dtype
        _close(host(a), b, t, u, case.roundings)
    douts = cotangents(rounded[0])
    own = backward(case, made[1], on(place.xp, fresh(douts)), maker, place.xp)
    reference = backward(case, rounded[1], fresh(douts))
    exact = backward(case, truth[1], widened(douts))
    for i in case.differentiable:
        assert own[i].dtype == reference[i].dtype
        _close(host(own[i]), reference[i], exact[i], u, case.roundings)


def _saved_alike(case: Case, saved: Any, *others: Any) -> Any:
    """What others have saved, with the slope of an activation or the weights of attention where ``saved`` has
    those."""
    for i, x in enumerate(saved):
        if isinstance(x, Slope):
            slope = OPS[case.options["activation"]].differentiate
            others = tuple(
                (*y[:i], *slope((y[i],), np.ones_like(y[i])), *y[i + 1 :]) for y in others
            )
        elif isinstance(x, Weights):
            causal, scale, window = map(case.options.get, ("causal", "scale", "window"))
            weights = (weights_of(y, bool(causal), scale, window) for y in others)
            others = tuple(
                (*y[:i], w.reshape(x.values.shape), *y[i + 1 :])
                for y, w in zip(others, weights, strict=True)
            )
    return others


def check_unrecorded(case: Case, floats: str, weights: str, maker: Maker, place: Device) -> None:
    """Without gradients a maker may take another way, to the same result."""
    op, xp = OPS[case.op], place.xp
    arguments = case.arguments(backend.dtype(floats), backend.dtype(weights))
    with no_grad():
        made = maker.forward(*on(xp, fresh(arguments)), **case.options_for(xp))
        made = made[0] if op.differentiable else made
        with reference_only():
            rounded = op(*fresh(arguments), **case.options_for(np))
            truth = op(*fresh(widened(arguments)), **case.options_for(np))
    made, rounded, truth = (x if isinstance(x, tuple) else (x,) for x in (made, rounded, truth))
    for a, b, t in zip(made, rounded, truth, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if "float" in b.dtype.name:
            u = max(UNIT_ROUNDOFF[floats], case.unit)
            _close(host(a), b.data, t.data, u, 8 * case.roundings)
        else:
            np.testing.assert_array_equal(host(a), b.data)
