"""Operations that move elements and compute nothing."""

from typing import Any

from ..backend import namespace
from ..core.op import op
from ..special import add_at


@op(view=True)
def reshape(x: Any, *, shape: tuple[int, ...]) -> Any:
    """``x`` in another shape; one -1 is worked out."""
    return namespace(x).reshape(x, shape), tuple(x.shape)


@reshape.backward
def _(residuals: Any, dout: Any, *, shape: tuple[int, ...]) -> Any:
    return (namespace(dout).reshape(dout, residuals),)


@op(view=True)
def permute(x: Any, *, axes: tuple[int, ...]) -> Any:
    """The axes of ``x`` in another order."""
    return namespace(x).permute_dims(x, axes), ()


@permute.backward
def _(residuals: Any, dout: Any, *, axes: tuple[int, ...]) -> Any:
    back = [0] * len(axes)
    for place, axis in enumerate(axes):
        back[axis] = place
    return (namespace(dout).permute_dims(dout, tuple(back)),)


@op(view=True)
def getitem(x: Any, *, index: Any) -> Any:
    """``x[index]``, an element taken twice getting both gradients."""
    return x[index], (tuple(x.shape),)


@getitem.backward
def _(residuals: Any, dout: Any, *, index: Any) -> Any:
    (shape,) = residuals
    gradient = namespace(dout).zeros(shape, dtype=dout.dtype)
    add_at(gradient, index, dout)
    return (gradient,)


@op(outputs=3, view=True)
def split_heads(x: Any, *, sizes: tuple[int, int, int]) -> Any:
    """Queries, keys and values (B, T, sizes[i], D) out of the packed heads (B, T, H + 2 K, D)."""
    q, k, _ = sizes
    return (x[:, :, :q, :], x[:, :, q : q + k, :], x[:, :, q + k :, :]), ()


@split_heads.backward
def _(residuals: Any, dq: Any, dk: Any, dv: Any, *, sizes: tuple[int, int, int]) -> Any:
    return (namespace(dq).concat((dq, dk, dv), axis=2),)
