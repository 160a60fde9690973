"""What a call costs: arithmetic by kind, and the bytes that must move at least.

Conventions (docs/accounting.md has the formulas). A multiply-add of a matrix product is two operations. Other
arithmetic counts one for each element-wise step of the definition; an exponential, tangent, logarithm, root or
quotient counts one *special* operation, since devices have their own rate for those. Bytes are each input read
once and each result written once, whatever a kernel reads again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from .calls import Array, Call

# (arithmetic, special) of one element: forward, and of the slope in the backward.
ACTIVATIONS = {
    "relu": ((1, 0), (2, 0)),
    "gelu": ((4, 1), (8, 2)),
    "gelu_tanh": ((7, 1), (14, 1)),
    "silu": ((2, 1), (5, 1)),
    "swiglu": ((3, 1), (8, 1)),
    "geglu": ((8, 1), (17, 1)),
}
NORMS = {"layer_norm": (8, 13), "rms_norm": (4, 10)}
PHILOX = 40  # integer operations of one random number


@dataclass(frozen=True)
class Cost:
    """Operations by kind, and bytes: ``of_weights`` and ``of_cache`` are parts of ``read``."""

    matrix: float = 0
    vector: float = 0
    special: float = 0
    read: float = 0
    written: float = 0
    of_weights: float = 0
    of_cache: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))

    @property
    def flops(self) -> float:
        """All operations together."""
        return self.matrix + self.vector + self.special

    @property
    def bytes(self) -> float:
        """All bytes together."""
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, sums included."""
        made = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**made, "flops": self.flops, "bytes": self.bytes, "intensity": self.intensity}


VIEWS = ("reshape", "split_heads", "permute", "getitem")


def forward_costs(call: Call) -> Iterator[tuple[str, Cost]]:
    """(role, cost) of a call; a linear map that ends in an activation has two."""
    if call.op in VIEWS:
        return
    moved = _forward_traffic(call)
    if call.op == "linear" and call.options.get("activation"):
        yield call.role, _linear(call) + moved
        yield "activation", _activation(call, 0)
    else:
        yield call.role, _FORWARD[call.op](call) + moved


def backward_costs(call: Call) -> Iterator[tuple[str, Cost]]:
    """(role, cost) of the backward of a call."""
    if call.op == "split_heads":  # the gradients of queries, keys and values become one array again
        size = sum(a.nbytes for a in call.outputs)
        yield "view", Cost(read=size, written=size)
    if call.op in VIEWS:
        return
    moved = _backward_traffic(call)
    if call.op == "linear" and call.options.get("activation"):
        yield "activation", _activation(call, 1)
        yield call.role, _linear_back(call) + moved
    else:
        yield call.role, _BACKWARD[call.op](call) + moved


# --- bytes ---


def _nbytes(arrays: Any) -> int:
    return sum(a.nbytes for a in {id(a.owner): a for a in arrays if a is not None}.values())


def _forward_traffic(call: Call) -> Cost:
    made = _nbytes([*call.outputs, *call.keeps])
    if call.op == "embedding":
        ids, table = call.arrays[:2]
        assert ids is not None and table is not None
        rows = round(ids.size * table.shape[1] * table.width)
        weights = rows if table.kind == "weight" else 0
        return Cost(read=rows + ids.nbytes, written=made, of_weights=weights)
    if call.op in ("cached_attention", "attention"):
        return _attention_traffic(call, made)
    found = [a for a in call.arrays if a is not None]
    weights = _nbytes(a for a in found if a.kind == "weight")
    return Cost(read=_nbytes(found), written=made, of_weights=weights)


def _attention_traffic(call: Call, made: int) -> Cost:
    """Of the cache only the window is read; the new keys and values are written to it."""
    cache = [a for a in call.arrays if a is not None and a.kind == "cache"]
    rest = _nbytes_views(a for a in call.arrays if a is not None and a.kind != "cache")
    if not cache:
        memory = _nbytes_views(a for a in call.arrays if a is not None and a.kind == "memory")
        return Cost(read=rest, written=made, of_cache=memory)
    tokens, stop = call.outputs[0].shape[1], cache[0].shape[1]
    seen = stop if call.options.get("window") is None else min(
        stop, tokens + call.options["window"] - 1
    )  # fmt: skip
    held = sum(a.nbytes * seen / stop for a in cache)
    new = sum(a.nbytes * tokens / stop for a in cache)
    return Cost(read=rest + held, written=made + new, of_cache=held)


def _nbytes_views(arrays: Any) -> int:
    """Bytes of arrays of which some are parts of one: each part for itself."""
    return sum(a.nbytes for a in arrays)


def _backward_traffic(call: Call) -> Cost:
    """Results' gradients and what was saved in, the inputs' gradients out."""
    douts = _nbytes_views(call.outputs)
    if call.op == "cross_entropy":
        logits = call.arrays[0]
        assert logits is not None
        return Cost(read=logits.nbytes + _nbytes(call.keeps), written=logits.nbytes)
    if call.op == "embedding":  # the table's gradient is zeros but for the rows that were looked up
        ids, table = call.arrays[:2]
        assert ids is not None and table is not None
        if table.kind != "weight":
            return Cost()
        rows = ids.size * table.shape[1] * table.width
        return Cost(read=douts + ids.nbytes, written=table.nbytes + rows)
    if call.op in ("add", "dropout"):
        return Cost(read=douts, written=0 if call.op == "add" else douts)
    given = [a for a in call.differentiable if a is not None]
    saved = [a for a in call.arrays if a is not None]
    if call.op == "linear":  # the residual is not looked at: its gradient is the result's
        residual = call.arrays[3]
        given, saved = ([a for a in part if a is not residual] for part in (given, saved))
    out = [call.outputs[0]] if call.op == "attention" else []
    weights = _nbytes(a for a in saved if a.kind == "weight")
    read = douts + _nbytes_views([*saved, *call.keeps, *out])
    if (
        call.op == "linear" and call.keeps
    ):  # the gradient before the activation is written, and read twice
        inner = call.keeps[0].nbytes
        return Cost(read=read + 2 * inner, written=_nbytes_views(given) + inner, of_weights=weights)
    return Cost(read=read, written=_nbytes_views(given), of_weights=weights)


# --- arithmetic ---


def _linear(call: Call) -> Cost:
    x, weight, bias, residual = call.arrays
    assert x is not None and weight is not None
    outs = x.size // x.shape[-1] * weight.shape[0]
    extra = (outs if bias is not None else 0) + (residual.size if residual is not None else 0)
    return Cost(matrix=2 * outs * x.shape[-1], vector=extra)


def _linear_back(call: Call) -> Cost:
    forward = _linear(call)
    outs = forward.matrix / (2 * call.arrays[0].shape[-1])  # type: ignore[union-attr]
    bias = outs if call.arrays[2] is not None else 0
    both = 1 if call.arrays[0] in call.differentiable else 0
    return Cost(matrix=forward.matrix * (1 + both), vector=bias)


def _activation(call: Call, half: int) -> Cost:
    vector, special = ACTIVATIONS[call.options["activation"]][half]
    count = call.outputs[0].size
    return Cost(vector=vector * count, special=special * count)


def _norm(call: Call, half: int) -> Cost:
    x = call.outputs[0]
    per = NORMS[call.op.removeprefix("add_")][half] + (1 if call.op.startswith("add_") else 0)
    return Cost(vector=per * x.size, special=0 if half else 2 * x.size / x.shape[-1])


def _norm_heads(call: Call, half: int) -> Cost:
    """An RMS norm of all but the values."""
    x = call.outputs[0]
    normed = (x.shape[2] + call.options["heads"]) / 2 / x.shape[2] * x.size
    special = 0 if half else 2 * normed / x.shape[3]
    return Cost(vector=NORMS["rms_norm"][half] * normed, special=special)


def visible_pairs(tokens: int, keys: int, past: int, causal: bool, window: int | None) -> int:
    """How many (query, key) pairs attention looks at: queries stand at ``past`` and on."""
    total = 0
    if not causal and window is None:
        return tokens * keys
    if window is None:  # query i sees past + i + 1 keys
        return tokens * past + tokens * (tokens + 1) // 2
    for i in range(tokens):
        high = past + i + 1 if causal else keys
        total += high - max(0, past + i - window + 1)
    return total


def _pairs(call: Call) -> tuple[int, int, int]:
    """(pairs over batch and heads, width of a head, elements of the result)."""
    out, options = call.outputs[0], call.options
    if call.op == "cached_attention":
        heads, keys = options["heads"], call.arrays[1].shape[1]  # type: ignore[union-attr]
        head = out.shape[2] // heads
    else:
        heads, keys, head = out.shape[2], call.arrays[1].shape[1], out.shape[3]  # type: ignore[union-attr]
    tokens = out.shape[1]
    seen = visible_pairs(tokens, keys, keys - tokens, options["causal"], options["window"])
    return out.shape[0] * heads * seen, head, out.size


def _attention(call: Call) -> Cost:
    """Two products, and of each pair: scale, largest, difference, exponential, sum."""
    pairs, head, size = _pairs(call)
    bias = pairs if has_bias(call) else 0
    made = Cost(matrix=4 * pairs * head, vector=4 * pairs + bias, special=pairs + size)
    if call.options.get("dropout"):
        made += Cost(vector=(PHILOX + 2) * pairs)
    if call.op == "cached_attention" and call.arrays[5] is not None:
        packed = call.arrays[0]
        assert packed is not None
        turned = packed.size * (packed.shape[2] + call.options["heads"]) / 2 / packed.shape[2]
        made += Cost(vector=3 * turned)
    return made


def _attention_back(call: Call) -> Cost:
    """Five products: the scores anew, and the gradients of weights, values, queries and keys."""
    pairs, head, size = _pairs(call)
    dropped = (PHILOX + 2) * pairs if call.options.get("dropout") else 0
    bias = 2 * pairs if has_bias(call) else 0  # added anew, and its gradient over the batch
    return Cost(
        matrix=10 * pairs * head, vector=5 * pairs + 2 * size + dropped + bias, special=pairs
    )


def has_bias(call: Call) -> bool:
    """Whether an attention adds a bias to its scores."""
    return call.op == "attention" and len(call.arrays) > 4 and call.arrays[4] is not None


def _each(vector: float, special: float = 0) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        size = call.outputs[0].size
        return Cost(vector=vector * size, special=special * size)

    return cost


def _rotary(call: Call) -> Cost:
    x, heads = call.outputs[0], call.options.get("heads")
    share = 1.0 if heads is None else heads / x.shape[2]
    cos = call.arrays[1]
    assert cos is not None
    return Cost(vector=3 * x.size * share * min(1.0, 2 * cos.shape[1] / x.shape[3]))


def _logits(vector: float, special: float) -> Callable[[Call], Cost]:
    """Of each element of the first input."""

    def cost(call: Call) -> Cost:
        x = call.arrays[0]
        assert x is not None
        return Cost(vector=vector * x.size, special=special * x.size)

    return cost


def _nothing(call: Call) -> Cost:
    return Cost()


_FORWARD: dict[str, Callable[[Call], Cost]] = {
    "linear": _linear, "attention": _attention, "cached_attention": _attention,
    "layer_norm": lambda c: _norm(c, 0), "rms_norm": lambda c: _norm(c, 0),
    "add_layer_norm": lambda c: _norm(c, 0), "add_rms_norm": lambda c: _norm(c, 0),
    "norm_heads": lambda c: _norm_heads(c, 0),
    "embedding": _nothing, "rotary": _rotary, "add": _each(1), "multiply": _each(1), "dropout": _each(PHILOX + 2),
    "cross_entropy": _logits(4, 1), "argmax": _logits(1, 0), "sample": _logits(6, 1),
}  # fmt: skip
_BACKWARD: dict[str, Callable[[Call], Cost]] = {
    "linear": _linear_back, "attention": _attention_back,
    "layer_norm": lambda c: _norm(c, 1), "rms_norm": lambda c: _norm(c, 1),
    "add_layer_norm": lambda c: _norm(c, 1), "add_rms_norm": lambda c: _norm(c, 1),
    "norm_heads": lambda c: _norm_heads(c, 1),
    "embedding": _each(1), "rotary": _rotary, "add": _nothing, "multiply": _each(1), "dropout": _each(PHILOX + 2),
    "cross_entropy": _logits(4, 1),
}  # fmt: skip


# --- the update ---


def optimizer_costs(
    weights: list[Array], optimizer: str, momentum: bool = True
) -> Iterator[tuple[str, Cost]]:
    """(role, cost) of clipping and of a step: AdamW, or SGD with or without ``momentum``."""
    count = sum(w.size for w in weights)
    stored = _nbytes_views(weights)
    yield "gradient_norm", Cost(vector=2 * count, read=stored)
    wide = sum(w.size * max(4, w.width) for w in weights)
    masters = sum(w.size * 4 for w in weights if w.width < 4)
    own = sum(w.nbytes for w in weights if w.width >= 4)  # 16-bit weights are only written
    slots = {"adamw": 2, "sgd": 1 if momentum else 0}[optimizer]
    vector, special = {"adamw": (13, 2), "sgd": (4 + 2 * momentum, 0)}[optimizer]
    state = slots * wide + masters
    yield "optimizer", Cost(
        vector=vector * count, special=special * count,
        read=stored + own + state, written=stored + state, of_weights=own,
    )  # fmt: skip
