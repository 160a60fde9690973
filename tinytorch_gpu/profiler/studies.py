"""What changes with a model's sizes, at a fixed budget, and from inference to training.

Everything here is counted, on a named device; nothing runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import TransformerConfig, one_of
from .account import decode, prefill, train_step
from .calls import Setting
from .costs import Cost
from .memory import inference_memory, training_memory
from .parameters import count_parameters
from .roofline import roofline
from .spec import DeviceSpec

FIELDS = ("depth", "width", "heads", "hidden", "vocabulary", "batch", "sequence")


@dataclass(frozen=True)
class Workload:
    """What is asked of a model: ``batch`` rows of ``tokens`` tokens, weights stored in ``dtype``."""

    batch: int = 1
    tokens: int = 512
    dtype: str = "float32"


@dataclass(frozen=True)
class Study:
    """Rows of plain numbers over the ``values`` of one ``field``, and what they show in words."""

    field: str
    values: tuple[Any, ...]
    rows: tuple[dict[str, Any], ...]
    finding: str

    def growth(self, name: str) -> float:
        """How many times larger the last row's number is than the first's."""
        return self.rows[-1][name] / self.rows[0][name] if self.rows[0][name] else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "field": self.field, "values": list(self.values), "rows": list(self.rows),
            "finding": self.finding,
        }  # fmt: skip


def numbers(config: TransformerConfig, work: Workload, device: DeviceSpec) -> dict[str, Any]:
    """What one model costs: parameters; operations, bytes, memory and least time of a prompt, of a step at its
    end, and of a training step."""
    setting = Setting(config, work.dtype, device.where)
    first = prefill(setting, work.batch, work.tokens)
    step = decode(setting, work.batch, work.tokens - 1)
    held = inference_memory(setting, work.batch, work.tokens)
    made = {
        "parameters": count_parameters(setting),
        **_of("prefill", first.cost), **_of("decode", step.cost),
        "weights_bytes": held.weights, "cache_bytes": held.cache, "inference_bytes": held.total,
        "prefill_seconds": roofline(first, setting, device).seconds,
        "decode_seconds": roofline(step, setting, device).seconds,
    }  # fmt: skip
    if not setting.weights.blocked:
        train = train_step(setting, work.batch, work.tokens)
        memory = training_memory(setting, work.batch, work.tokens)
        made |= {
            **_of("train", train.cost), "activation_bytes": memory.activations, "train_bytes": memory.peak,
            "train_seconds": roofline(train, setting, device).seconds,
        }  # fmt: skip
    return made


def _of(phase: str, cost: Cost) -> dict[str, float]:
    return {
        f"{phase}_flops": cost.flops, f"{phase}_matrix_flops": cost.matrix,
        f"{phase}_other_flops": cost.vector + cost.special, f"{phase}_moved_bytes": cost.bytes,
    }  # fmt: skip


def changed(
    config: TransformerConfig, work: Workload, field: str, value: int
) -> tuple[TransformerConfig, Workload]:
    """The model and workload with one size changed: ``width`` keeps the width of a head and the ratio of the
    hidden size, ``heads`` keeps the model's width; both keep how many heads share keys."""
    one_of("field", field, FIELDS)
    shared = config.num_heads // config.kv_heads
    if field == "depth":
        config = config.replace(num_layers=value)
    elif field == "width":
        heads = max(1, value // config.head_size)
        hidden = max(1, round(config.hidden_dim * value / config.embed_dim))
        config = config.replace(embed_dim=value, num_heads=heads, head_dim=value // heads, hidden_dim=hidden,
                                num_kv_heads=_kv_heads(heads, shared), rotary_dim=None)  # fmt: skip
    elif field == "heads":
        config = config.replace(num_heads=value, head_dim=None, num_kv_heads=_kv_heads(value, shared),
                                rotary_dim=None)  # fmt: skip
    elif field == "hidden":
        config = config.replace(hidden_dim=value)
    elif field == "vocabulary":
        config = config.replace(vocab_size=value)
    elif field == "batch":
        work = Workload(value, work.tokens, work.dtype)
    else:
        work = Workload(work.batch, value, work.dtype)
        config = config.replace(max_seq_length=max(value, config.max_seq_length))
    return config, work


def _kv_heads(heads: int, shared: int) -> int:
    """Key/value heads, so many query heads to each; all of their own where that does not divide."""
    return heads // shared if heads % shared == 0 else heads


def scaling(
    config: TransformerConfig, field: str, values: Sequence[int], device: DeviceSpec, work: Workload | None = None,
) -> Study:  # fmt: skip
    """What one size does: ``field`` is one of ``FIELDS``."""
    work = work or Workload()
    rows = []
    for value in values:
        one, asked = changed(config, work, field, value)
        rows.append({field: value, **numbers(one, asked, device)})
    study = Study(field, tuple(values), tuple(rows), "")
    return Study(field, tuple(values), tuple(rows), _finding(study, config))


def _finding(study: Study, config: TransformerConfig) -> str:
    first, last = study.values[0], study.values[-1]
    grown = {name: study.growth(name) for name in (
        "parameters", "prefill_flops", "prefill_matrix_flops", "prefill_other_flops", "decode_seconds",
        "cache_bytes", "inference_bytes",
    )}  # fmt: skip
    begin = f"{study.field} {first} to {last}: "
    if study.field == "heads":
        return begin + (
            f"at a width of {config.embed_dim}, parameters x{grown['parameters']:.2f} and products "
            f"x{grown['prefill_matrix_flops']:.2f}; only the softmax has more to do (other arithmetic "
            f"x{grown['prefill_other_flops']:.2f}), so all arithmetic x{grown['prefill_flops']:.2f}"
        )
    return begin + (
        f"parameters x{grown['parameters']:.2f}, arithmetic of a prompt x{grown['prefill_flops']:.2f}, "
        f"least time of a step x{grown['decode_seconds']:.2f}, cache x{grown['cache_bytes']:.2f}, "
        f"memory x{grown['inference_bytes']:.2f}"
    )


def width_against_depth(
    config: TransformerConfig, budget: int, depths: Sequence[int], device: DeviceSpec,
    work: Workload | None = None,
) -> Study:  # fmt: skip
    """Models of about ``budget`` parameters: for each depth the width, a multiple of the head's, that comes
    nearest. A depth that no width fits within a tenth is left out; none left is a ValueError."""
    work, rows = work or Workload(), []
    for depth in depths:
        found = _width_for(config.replace(num_layers=depth), work, budget)
        if found is not None:
            calls = decode(Setting(found, work.dtype, device.where), 1, 1).rows
            made = numbers(found, work, device)
            rows.append({"depth": depth, "width": found.embed_dim, **made, "decode_calls": sum(r.calls for r in calls)})  # fmt: skip
    if not rows:
        raise ValueError(f"no width makes {budget:,} parameters at depths {list(depths)}")
    first, last = rows[0], rows[-1]
    finding = (
        f"about {budget:,} parameters, {first['depth']} layers of {first['width']} to {last['depth']} of "
        f"{last['width']}: arithmetic of a prompt x{last['prefill_flops'] / first['prefill_flops']:.2f}, "
        f"operations one after another x{last['decode_calls'] / first['decode_calls']:.2f}, saved activations "
        f"x{last.get('activation_bytes', 0) / (first.get('activation_bytes') or 1):.2f}, "
        f"cache x{last['cache_bytes'] / first['cache_bytes']:.2f}"
    )
    return Study("depth", tuple(r["depth"] for r in rows), tuple(rows), finding)


def _width_for(config: TransformerConfig, work: Workload, budget: int) -> TransformerConfig | None:
    best: TransformerConfig | None = None
    head = config.head_size
    for heads in range(1, 4096):
        found = changed(config, work, "width", heads * head)[0]
        count = count_parameters(Setting(found))
        if best is None or abs(count - budget) < abs(count_parameters(Setting(best)) - budget):
            best = found
        if count > budget:
            break
    near = best is not None and abs(count_parameters(Setting(best)) - budget) <= budget / 10
    return best if near else None


def training_against_inference(
    config: TransformerConfig, device: DeviceSpec, work: Workload | None = None
) -> Study:
    """Reading a prompt, writing a token and learning, for the same batch and length, per token."""
    work = work or Workload()
    setting = Setting(config, work.dtype, device.where)
    held = inference_memory(setting, work.batch, work.tokens)
    phases = [
        (prefill(setting, work.batch, work.tokens), held.total),
        (decode(setting, work.batch, work.tokens - 1), held.total),
        (train_step(setting, work.batch, work.tokens), training_memory(setting, work.batch, work.tokens).peak),
        (train_step(setting, work.batch, work.tokens, recompute=True),
         training_memory(setting, work.batch, work.tokens, recompute=True).peak),
    ]  # fmt: skip
    names = ("prefill", "decode", "train", "train, recomputed")
    rows: list[dict[str, Any]] = []
    for name, (phase, memory) in zip(names, phases, strict=True):
        timed = roofline(phase, setting, device)
        rows.append({
            "phase": name, "flops_per_token": phase.cost.flops / phase.tokens,
            "bytes_per_token": phase.cost.bytes / phase.tokens, "intensity": phase.cost.intensity,
            "memory_bytes": memory, "seconds": timed.seconds, "tokens_per_second": timed.tokens_per_second,
            "bound": timed.bound,
        })  # fmt: skip
    learning, reading, writing = rows[2], rows[0], rows[1]
    finding = (
        f"learning a token takes {learning['flops_per_token'] / reading['flops_per_token']:.1f} times the "
        f"arithmetic of reading it and {learning['memory_bytes'] / reading['memory_bytes']:.1f} times the "
        f"memory; writing one moves {writing['bytes_per_token'] / reading['bytes_per_token']:.0f} times the bytes"
    )
    return Study("phase", names, tuple(rows), finding)


STANDARD = {
    "depth": (2, 4, 8, 16, 32), "heads": (1, 2, 4, 8, 16), "batch": (1, 2, 4, 8, 16, 32),
    "sequence": (128, 256, 512, 1024, 2048),
}  # fmt: skip


def standard_studies(
    config: TransformerConfig, device: DeviceSpec, work: Workload | None = None
) -> list[Study]:
    """One of each size around those of ``config``."""
    sizes = {
        **STANDARD,
        "width": tuple(config.head_size * n for n in (2, 4, 8, 16, 32)),
        "hidden": tuple(config.embed_dim * n for n in (1, 2, 4, 8)),
        "vocabulary": (1000, 10000, 50000, 150000),
    }
    even, shared = 2 if config.position == "rotary" else 1, config.num_heads // config.kv_heads
    sizes["heads"] = tuple(
        n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
        if n % shared == 0 and config.embed_dim % n == 0 and (config.embed_dim // n) % even == 0
    )  # fmt: skip
    return [scaling(config, field, sizes[field], device, work) for field in FIELDS]
