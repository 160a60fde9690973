"""Which device holds which model, at which batch, context and precision, and how fast it can be at most."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..config import TransformerConfig
from .account import decode, prefill
from .calls import Setting
from .memory import inference_memory
from .roofline import roofline
from .spec import DeviceSpec

USABLE = 0.95  # of a device's memory: the rest is its context and driver


@dataclass(frozen=True)
class Fit:
    """One model on one device. The paces are upper bounds: least times of the roofline."""

    model: str
    device: str
    dtype: str
    batch: int
    context: int
    needed: int
    memory: int
    fits: bool
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    bound: str
    largest_batch: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fit(
    name: str, config: TransformerConfig, device: DeviceSpec, batch: int, context: int, dtype: str
) -> Fit:
    """Memory and paces of generating with ``batch`` rows, each of ``context`` tokens by the end."""
    setting = Setting(config, dtype, device.where)
    room = int(device.memory * USABLE)
    needed = inference_memory(setting, batch, context).total
    step = roofline(decode(setting, batch, context - 1), setting, device)
    first = roofline(prefill(setting, batch, context), setting, device)
    return Fit(
        name, device.name, dtype, batch, context, needed, int(device.memory), needed <= room,
        step.tokens_per_second, first.tokens_per_second, step.bound, largest_batch(setting, context, room),
    )  # fmt: skip


def largest_batch(setting: Setting, context: int, room: int) -> int:
    """The most rows of ``context`` tokens that ``room`` bytes hold; 0 if not even one."""

    def total(batch: int) -> int:
        return inference_memory(setting, batch, context).total

    low, used = 1, total(1)
    if used > room:
        return 0
    # Memory grows by nearly as much with every row: both bounds come from that, and close in by it.
    high = 2 + 2 * (room - used) // max(1, total(2) - used)
    while (most := total(high)) <= room:
        low, used, high = high, most, 2 * high
    while high - low > 1:
        guess = low + (room - used) * (high - low) // (most - used)
        middle = min(max(guess, low + 1), high - 1)
        if (found := total(middle)) <= room:
            low, used = middle, found
        else:
            high, most = middle, found
    return low


def deployment(
    models: Mapping[str, TransformerConfig], devices: Iterable[DeviceSpec], dtypes: Iterable[str],
    batches: Iterable[int] = (1,), contexts: Iterable[int] = (2048,),
) -> list[Fit]:  # fmt: skip
    """Every combination, models outermost. A context beyond what a model takes is cut to it."""
    return [
        fit(name, models[name], device, batch, min(context, models[name].max_seq_length), dtype)
        for name, device, dtype, context, batch in itertools.product(
            models, devices, dtypes, contexts, batches
        )
    ]
