"""Dropout (Srivastava et al. 2014) with counted random numbers."""

from typing import Any

from ..backend import namespace, narrow, widen
from ..core.op import op
from ..rng import uniform


def keep(state: Any, shape: tuple[int, ...], p: float, dtype: Any) -> Any:
    """1 / (1 - p) where an element stays and 0 where it goes, for ``state`` [seed, offset]."""
    xp = namespace(state)
    count = 1
    for n in shape:
        count *= n
    draws = uniform(state, count, dtype)
    return xp.reshape(xp.astype(draws >= p, dtype) * (1 / (1 - p)), shape)


@op
def dropout(x: Any, state: Any, *, p: float) -> Any:
    """Zero each element with probability ``p`` and scale the rest by 1 / (1 - p).

    ``state`` is uint64 [seed, offset]: the backward draws the same numbers again, so no mask is
    kept.
    """
    wide = widen(x)
    return narrow(wide * keep(state, x.shape, p, wide.dtype), x.dtype), (state,)


@dropout.backward
def _(residuals: Any, dout: Any, *, p: float) -> Any:
    wide = widen(dout)
    return narrow(wide * keep(residuals[0], dout.shape, p, wide.dtype), dout.dtype), None
