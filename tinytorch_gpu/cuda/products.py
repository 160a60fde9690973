"""Matrix products by cuBLAS, in the forms that its fast kernels take.

In 16 bits those read rows of whole 16 bytes. A vocabulary of 50257 has no such rows of logits: on an H200 its products took
five to seven times as long as those of 50264. So the outputs are filled up to a multiple of 8, and taken out of the result.
"""

import math
from typing import Any

from ..backend import namespace, narrow
from .launch import called_library, empty
from .shape import copy_rows

_EACH = 8  # numbers of 16 bits in 16 bytes


def as_rows(x: Any) -> Any:
    """x (..., C) as (N, C)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def product(a: Any, b: Any, dtype: Any) -> Any:
    """a @ b by cuBLAS in ``dtype``, accumulated in float32."""
    called_library("cuBLAS")
    xp = namespace(a)
    return narrow(xp.matmul(narrow(a, dtype), narrow(b, dtype)), dtype)


def outputs(x: Any, weight: Any) -> Any:
    """``x`` (N, in) times ``weight`` (out, in) turned: (N, out) in the dtype of x."""
    outs = weight.shape[0]
    if not _odd(x, weight):
        return product(x, weight.T, x.dtype)
    made, out = product(x, _filled(weight, x.dtype).T, x.dtype), empty(x, (x.shape[0], outs))
    copy_rows(made[:, :outs], out)
    return out


def gradients(dy: Any, weight: Any, x: Any) -> tuple[Any, Any]:
    """The gradients of ``outputs`` by x, in the dtype of ``dy`` (N, out), and by the weight, in its own: None if
    ``x`` is."""
    outs, dtype, odd = weight.shape[0], weight.dtype, _odd(dy, weight)
    if odd:
        weight, given = _filled(weight, dy.dtype), dy
        dy = empty(dy, (dy.shape[0], weight.shape[0]))
        copy_rows(given, dy)
    dx = product(dy, weight, dy.dtype)
    if x is None:
        return dx, None
    dweight = narrow(product(dy.T, x, x.dtype), dtype)
    return dx, dweight[:outs] if odd else dweight


def _odd(x: Any, weight: Any) -> bool:
    """Whether nothing but the number of outputs keeps a product off the fast kernels."""
    outs, width = weight.shape
    return bool(x.dtype.itemsize == 2 and outs % _EACH and not width % _EACH and x.size and outs)


def _filled(weight: Any, dtype: Any) -> Any:
    """The weight in ``dtype`` with rows of zeros up to a multiple."""
    outs, width = weight.shape
    made = empty(weight, (-(-outs // _EACH) * _EACH, width), dtype)
    made[:outs] = weight
    made[outs:] = 0
    return made
