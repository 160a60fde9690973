"""Operations and bytes of the phases of a model: a prompt, a step of generation, a training step.

A ``Phase`` is a list of ``Row``s, one for each role (qkv, attention, norm, ...) of each part and direction;
everything that is reported is a sum over them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .calls import Array, Call, Pass, Setting
from .costs import VIEWS, Cost, backward_costs, forward_costs, optimizer_costs
from .memory import PREFILL_CHUNK
from .walk import forward_calls, loss_calls, sampling_calls

FORWARD, BACKWARD, RECOMPUTE, UPDATE = "forward", "backward", "recompute", "update"


@dataclass(frozen=True)
class Row:
    """What ``role`` costs in ``part`` of a model, in all ``calls`` together (an activation is part of the call
    of a linear map, and counts none).

    ``layers`` is in how many layers it is (0: outside of them), ``direction`` forward, backward, recompute or
    update, ``op`` the operation.
    """

    direction: str
    part: str
    role: str
    op: str
    calls: int
    layers: int
    cost: Cost

    @property
    def per_layer(self) -> Cost:
        """The cost in one layer; of what is outside of them, all of it."""
        return self.cost * (1 / max(self.layers, 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "direction": self.direction, "part": self.part, "role": self.role, "op": self.op,
            "calls": self.calls, "layers": self.layers, **self.cost.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """One phase: ``tokens`` is how many it works on, over all rows of the batch."""

    name: str
    tokens: int
    rows: tuple[Row, ...]

    @property
    def cost(self) -> Cost:
        """All rows together."""
        return total(row.cost for row in self.rows)

    def by(self, *keys: str) -> dict[Any, Cost]:
        """Costs added up by one attribute of the rows ("role"), or by several."""
        found: dict[Any, Cost] = {}
        for row in self.rows:
            values = tuple(getattr(row, key) for key in keys)
            key = values[0] if len(keys) == 1 else values
            found[key] = found.get(key, Cost()) + row.cost
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "total": self.cost.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    made = Cost()
    for cost in costs:
        made = made + cost
    return made


def encode(setting: Setting, batch: int = 1, tokens: int = 512) -> Phase:
    """An encoder reads texts of ``tokens`` tokens: a whole model without a head, or the encoder of an
    encoder-decoder, with the keys and values that its decoder's layers will look at. A decoder alone, which
    only has a ``prefill``, is a ValueError."""
    if setting.config.head and not setting.config.encoder_layers:
        raise ValueError("a decoder alone has no encoder to count: see prefill()")
    calls = forward_calls(
        setting, Pass(batch, 1 if setting.config.encoder_layers else tokens, source=tokens)
    )
    if setting.config.encoder_layers:
        end = next(i for i, c in enumerate(calls) if c.part == "lm_head" or c.role == "head")
        starts = [i for i, c in enumerate(calls[:end]) if c.role == "embedding"]
        calls = [*calls[: starts[1]], *(c for c in calls[starts[1] :] if c.role == "memory")]
    return Phase("encode", batch * tokens, merged(_rows(calls, FORWARD, forward_costs)))


def prefill(setting: Setting, batch: int = 1, tokens: int = 512) -> Phase:
    """Feeding prompts of ``tokens`` tokens through an empty cache, in parts as generation does. An
    encoder-decoder reads them and is fed its start token."""
    if setting.config.encoder_layers:
        calls = forward_calls(setting, Pass(batch, 1, cached=True, last=True, source=tokens))
        first = _rows(calls, FORWARD, forward_costs)
        return Phase(
            "prefill", batch * tokens, merged([*encode(setting, batch, tokens).rows, *first])
        )
    _check_writes(setting)
    rows: list[Row] = []
    for start in range(0, tokens, PREFILL_CHUNK):
        count = min(PREFILL_CHUNK, tokens - start)
        calls = forward_calls(setting, Pass(batch, count, start, cached=True, last=True))
        if start + count < tokens:  # only the last part has logits
            calls = [c for c in calls if c.role != "head"]
        rows += _rows(calls, FORWARD, forward_costs)
    return Phase("prefill", batch * tokens, merged(rows))


def decode(setting: Setting, batch: int = 1, context: int = 512, greedy: bool = False) -> Phase:
    """One step: a new token in each row, which looks back on ``context`` tokens and itself, and in an
    encoder-decoder on a source as long."""
    _check_writes(setting)
    calls = forward_calls(setting, Pass(batch, 1, context, cached=True, last=True))
    calls += sampling_calls(setting, batch, calls[-1].outputs[0], greedy)
    return Phase("decode", batch, merged(_rows(calls, FORWARD, forward_costs)))


def train_step(
    setting: Setting, batch: int = 1, tokens: int = 512, optimizer: str = "adamw",
    recompute: bool = False, accumulate: int = 1,
) -> Phase:  # fmt: skip
    """An update: forward and backward of ``accumulate`` batches, clipping and the optimizer's step. An
    encoder-decoder reads as many tokens as it writes; of a model without a head the loss, which may be
    any, is left out."""
    run = Pass(batch, tokens, gradients=True)
    calls = forward_calls(setting, run)
    if setting.config.head:
        calls += loss_calls(setting, run, calls[-1].outputs[0])
    rows = _rows(calls, FORWARD, forward_costs)
    if recompute:
        rows += _rows([c for c in calls if c.layer is not None], RECOMPUTE, forward_costs)
    rows += _rows(calls, BACKWARD, backward_costs)
    rows += _meetings(calls)
    rows = [replace(r, cost=r.cost * accumulate, calls=r.calls * accumulate) for r in rows]
    return Phase(
        "train.step", batch * tokens * accumulate, merged([*rows, *_update(calls, optimizer)])
    )


def _check_writes(setting: Setting) -> None:
    if not setting.config.head:
        raise ValueError("a model without a head does not write: count encode() or train_step()")


def _rows(calls: list[Call], direction: str, costs: Any) -> list[Row]:
    return [
        Row(direction, call.part, role, _op(call, role), 0 if role == "activation" else call.times,
            0 if call.layer is None else call.times, cost * call.times)
        for call in calls
        for role, cost in costs(call)
    ]  # fmt: skip


def _op(call: Call, role: str) -> str:
    return call.options["activation"] if role == "activation" else call.op


def _meetings(calls: list[Call]) -> list[Row]:
    """Gradients of an array that several calls read are added up: a trip through memory for each but one."""
    readers: dict[Array, list[Call]] = {}
    for call in calls:
        for array in call.differentiable:
            if array is not None and call.op not in VIEWS:
                readers.setdefault(array, []).append(call)
    rows = []
    for array, found in readers.items():
        for call in found[1:]:
            cost = Cost(vector=array.size, read=2 * array.nbytes, written=array.nbytes)
            layers = 0 if call.layer is None else call.times
            rows.append(
                Row(BACKWARD, call.part, "accumulate", "add", call.times, layers, cost * call.times)
            )
    return rows


def _update(calls: list[Call], optimizer: str) -> Iterator[Row]:
    weights = {id(w): (w, call.times) for call in calls for w in call.weights}
    for times in sorted({t for _, t in weights.values()}):
        mine = [w for w, t in weights.values() if t == times]
        for role, cost in optimizer_costs(mine, optimizer):
            op, count = (optimizer, times * len(mine)) if role == "optimizer" else (role, 0)
            yield Row(UPDATE, "update", role, op, count, 0, cost * times)
    yield Row(UPDATE, "update", "gradient_norm", "gradient_norm", 1, 0, Cost())


def merged(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of the same kind as one."""
    found: dict[tuple[str, str, str, str], Row] = {}
    for row in rows:
        key = row.direction, row.part, row.role, row.op
        before = found.get(key)
        found[key] = row if before is None else replace(
            before, calls=before.calls + row.calls, cost=before.cost + row.cost
        )  # fmt: skip
    return tuple(found.values())
