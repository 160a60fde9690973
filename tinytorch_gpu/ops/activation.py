"""The nonlinear functions between the two linear maps of a feed-forward part.

GELU: Hendrycks and Gimpel 2016. SiLU: Elfwing et al. 2017. Gated forms (SwiGLU, GEGLU): Shazeer
2020, "GLU variants improve transformer".
"""

import math
from typing import Any, NamedTuple

from ..backend import namespace, narrow, widen
from ..core.op import op
from ..special import erf

_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715


class Slope(NamedTuple):
    """In the place of what an activation was applied to: its derivative there, all that a backward needs of it."""

    values: Any


def _relu(x: Any) -> Any:
    return namespace(x).maximum(x, namespace(x).zeros_like(x))


def _relu_slope(x: Any) -> Any:
    return namespace(x).astype(x > 0, x.dtype)


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _gelu_slope(x: Any) -> Any:
    density = namespace(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density


def _gelu_tanh(x: Any) -> Any:
    inner = _TANH_SCALE * (x + _TANH_CUBIC * (x * x * x))
    return 0.5 * x * (1 + namespace(x).tanh(inner))


def _gelu_tanh_slope(x: Any) -> Any:
    square = x * x
    bent = namespace(x).tanh(_TANH_SCALE * (x + _TANH_CUBIC * (square * x)))
    inner_slope = _TANH_SCALE * (1 + 3 * _TANH_CUBIC * square)
    return 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * inner_slope


def _sigmoid(x: Any) -> Any:
    return 0.5 * namespace(x).tanh(0.5 * x) + 0.5


def _silu(x: Any) -> Any:
    return x * _sigmoid(x)


def _silu_slope(x: Any) -> Any:
    gate = _sigmoid(x)
    return gate * (1 + x * (1 - gate))


@op
def relu(x: Any) -> Any:
    """max(x, 0)."""
    return _relu(x), (x,)


@relu.backward
def _(residuals: Any, dout: Any) -> Any:
    return (dout * _relu_slope(residuals[0]),)


@op
def gelu(x: Any) -> Any:
    """x times the normal distribution function of x, exactly (through erf)."""
    return narrow(_gelu(widen(x)), x.dtype), (x,)


@gelu.backward
def _(residuals: Any, dout: Any) -> Any:
    (x,) = residuals
    return (narrow(widen(dout) * _gelu_slope(widen(x)), x.dtype),)


@op
def gelu_tanh(x: Any) -> Any:
    """GELU by its tanh approximation, as GPT-2 was trained with."""
    return narrow(_gelu_tanh(widen(x)), x.dtype), (x,)


@gelu_tanh.backward
def _(residuals: Any, dout: Any) -> Any:
    (x,) = residuals
    return (narrow(widen(dout) * _gelu_tanh_slope(widen(x)), x.dtype),)


@op
def silu(x: Any) -> Any:
    """x times sigmoid(x)."""
    return narrow(_silu(widen(x)), x.dtype), (x,)


@silu.backward
def _(residuals: Any, dout: Any) -> Any:
    (x,) = residuals
    return (narrow(widen(dout) * _silu_slope(widen(x)), x.dtype),)


def _halves(x: Any) -> tuple[Any, Any]:
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def _gated_backward(x: Any, dout: Any, function: Any, slope: Any) -> Any:
    gate, up = _halves(widen(x))
    dy = widen(dout)
    both = namespace(x).concat((dy * up * slope(gate), dy * function(gate)), axis=-1)
    return (narrow(both, x.dtype),)


@op
def swiglu(x: Any) -> Any:
    """``silu(gate) * up`` of ``x`` (..., 2 H) = [gate, up]; gives (..., H)."""
    gate, up = _halves(widen(x))
    return narrow(_silu(gate) * up, x.dtype), (x,)


@swiglu.backward
def _(residuals: Any, dout: Any) -> Any:
    return _gated_backward(residuals[0], dout, _silu, _silu_slope)


@op
def geglu(x: Any) -> Any:
    """``gelu_tanh(gate) * up`` of ``x`` (..., 2 H) = [gate, up]; gives (..., H)."""
    gate, up = _halves(widen(x))
    return narrow(_gelu_tanh(gate) * up, x.dtype), (x,)


@geglu.backward
def _(residuals: Any, dout: Any) -> Any:
    return _gated_backward(residuals[0], dout, _gelu_tanh, _gelu_tanh_slope)
