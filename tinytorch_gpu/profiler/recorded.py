"""What the operations of any module cost, from a run that recorded them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from ..backend import is_array
from ..core.op import Call as MadeCall
from ..core.op import record
from ..core.tensor import no_grad
from .account import total
from .calls import Array, Call
from .costs import VIEWS, Cost, forward_costs

_KNOWN = ("linear", "attention", "cached_attention", "layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "norm_heads",
          "embedding", "rotary", "dropout", "cross_entropy", "argmax", "sample")  # fmt: skip
_ALIKE = {"attention_with_weights": "attention"}


def forward_cost(run: Callable[[], Any]) -> Cost:
    """The cost of all operations that ``run`` makes."""
    with record() as made, no_grad():
        run()
    return total(cost_of(call) for call in made)


def cost_of(made: MadeCall) -> Cost:
    """The cost of a recorded call. An operation without a rule counts one for each element of its result."""
    call = _as_call(made)
    if call.op in VIEWS:
        return Cost()
    if call.op in _KNOWN:
        return total(cost for _, cost in forward_costs(call))
    moved = Cost(read=_nbytes(call.arrays), written=_nbytes(call.outputs))
    if call.op == "matmul":
        left = call.arrays[0]
        assert left is not None
        return moved + Cost(matrix=2 * call.outputs[0].size * left.shape[-1])
    return moved + Cost(vector=max(a.size for a in (*call.arrays, *call.outputs) if a is not None))


def _nbytes(arrays: Iterable[Array | None]) -> int:
    return sum(a.nbytes for a in arrays if a is not None)


def _as_call(made: MadeCall) -> Call:
    op = _ALIKE.get(made.op.name, made.op.name)
    results = made.result if isinstance(made.result, tuple) else (made.result,)
    arrays = tuple(_array(a) for a in made.arrays)
    outputs = tuple(a for a in map(_array, results) if a is not None)
    options = dict(made.options)
    if op in ("attention", "cached_attention"):
        options = {"causal": op == "cached_attention", "window": None, "dropout": 0.0, **options}
    if op == "cached_attention":  # only the first ``stop`` places of the cache are looked at
        keys, values = (a for a in arrays[1:3])
        assert keys is not None and values is not None
        shape = (keys.shape[0], options["stop"], *keys.shape[2:])
        cut = tuple(Array(shape, a.width, "cache") for a in (keys, values))
        arrays = (arrays[0], *cut, *arrays[3:], *(None,) * (8 - len(arrays)))
    if op == "linear":
        arrays = (*arrays, *(None,) * (4 - len(arrays)))
    return Call(op, op, "", None, arrays, outputs, options)


def _array(x: Any) -> Array | None:
    if not is_array(x):
        return None
    count = math.prod(x.shape)
    # What is in blocks has a share of a scale for each number.
    return Array(tuple(map(int, x.shape)), int(x.nbytes) / count) if count else None
