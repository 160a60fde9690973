"""Runs that are measured: a generation and a training step, once for their times and once for their memory."""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

from .. import nvtx
from ..core.transformers import Transformer
from ..quantized import QuantizedMatrix
from ..training import SGD, AdamW, CrossEntropyLoss, clip_grad_norm
from .calls import Pass, Setting
from .costs import Cost, optimizer_costs
from .measured import MeasuredRow, Measurement, Node
from .memory import PREFILL_CHUNK, all_weights
from .recorder import Recorder, Span, recording
from .spec import DeviceSpec
from .walk import forward_calls, loss_calls, sampling_calls


@dataclass(frozen=True)
class Run:
    """What a run measured.

    ``rows`` by phase name, ``tree`` of all ranges, ``phases`` seconds of each by name, ``tokens_per_second`` of
    a run without a recorder, ``timeline`` of (second, bytes, range) in the run that recorded memory, whose
    bytes begin at ``at_rest``: what was there before it.
    """

    phases: dict[str, list[float]]
    rows: dict[str, list[MeasuredRow]]
    tree: Node
    tokens_per_second: dict[str, float]
    timeline: list[tuple[float, int, str]]
    at_rest: int

    @property
    def peak(self) -> int:
        """The most bytes alive."""
        return self.at_rest + max((n for _, n, _ in self.timeline), default=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "phases": self.phases,
            "rows": {name: [row.to_dict() for row in rows] for name, rows in self.rows.items()},
            "tree": self.tree.to_dict(), "tokens_per_second": self.tokens_per_second,
            "at_rest_bytes": self.at_rest, "peak_bytes": self.peak,
            "timeline": [[seconds, self.at_rest + count, name] for seconds, count, name in self.timeline],
        }  # fmt: skip


def setting_of(model: Transformer) -> Setting:
    """How a model's numbers are stored, where they are. Weights in blocks of several formats count as those of
    most matrices are."""
    matrices = [p.data for p in model.parameters() if isinstance(p.data, QuantizedMatrix)]
    formats = [part.format.name for matrix in matrices for part in matrix.parts]
    dtype = collections.Counter(formats).most_common(1)[0][0] if formats else model.dtype.name
    return Setting(model.config, dtype, model.device.kind)


def _check_decoder(model: Transformer) -> None:
    if not model.config.decoder_only or model.relative is not None:
        raise ValueError(
            "measured runs are for decoders with other than relative positions; --device NAME counts what "
            "this model costs"
        )


def measure_generation(
    model: Transformer, spec: DeviceSpec, batch: int = 1, prompt: int = 64, tokens: int = 8,
    memory: bool = True,
) -> Run:  # fmt: skip
    """A generation of ``tokens`` tokens after prompts of ``prompt``, random ones, by sampling."""
    _check_decoder(model)
    room = model.config.max_seq_length
    if prompt + tokens > room:
        raise ValueError(f"{prompt} + {tokens} tokens exceed the model's max_seq_length ({room})")
    random = numpy.random.default_rng(0)
    ids = random.integers(0, model.config.vocab_size, (batch, prompt))

    def run() -> Any:
        return list(model.generate(ids, tokens, top_k=40, top_p=0.95, seed=0, stream=True))

    def timed() -> dict[str, float]:
        times = [time.perf_counter()]
        for _ in model.generate(ids, tokens, top_k=40, top_p=0.95, seed=0, stream=True):
            times.append(time.perf_counter())
        pace = {"prefill": batch * prompt / (times[1] - times[0])}
        if len(times) > 2:
            pace["decode"] = batch * (len(times) - 2) / (times[-1] - times[1])
        return pace

    setting = setting_of(model)
    plans = _generation_plans(setting, batch, prompt, tokens)
    return _measure(
        model, spec, run, timed, lambda spans: zip(_phases(spans), plans, strict=True), memory
    )


def _phases(spans: list[Span]) -> list[Span]:
    """Each pass with the choice of a token after it as one range."""
    made: list[Span] = []
    for span in spans:
        if span.name == "sample" and made:
            made[-1].children.append(span)
            made[-1].end = span.end
        elif span.name in ("prefill", "decode"):
            made.append(span)
    return made


def _generation_plans(setting: Setting, batch: int, prompt: int, tokens: int) -> list[Any]:
    """The calls of the prefill and of each step. Logits exist of a prompt's last part only."""
    plans = []
    parts: list[Any] = []
    for start in range(0, prompt, PREFILL_CHUNK):
        count = min(PREFILL_CHUNK, prompt - start)
        run = Pass(batch, count, start, cached=True, last=True, repeat=False)
        calls = forward_calls(setting, run)
        parts += calls if start + count == prompt else [c for c in calls if c.role != "head"]
    plans.append(parts)
    for i in range(tokens - 1):
        run = Pass(batch, 1, prompt + i, cached=True, last=True, repeat=False)
        plans.append(forward_calls(setting, run))
    for calls in plans:
        head = next(c for c in calls if c.role == "head")
        calls += sampling_calls(setting, batch, head.outputs[0])
    return [(calls, {}) for calls in plans]


def measure_training(
    model: Transformer, spec: DeviceSpec, batch: int = 1, tokens: int = 64, steps: int = 3,
    optimizer: str = "adamw", recompute: bool = False, memory: bool = True,
) -> Run:  # fmt: skip
    """``steps`` updates on random tokens, as the trainer makes them; the first ones warm up."""
    _check_decoder(model)
    if tokens > model.config.max_seq_length:
        raise ValueError(
            f"{tokens} tokens exceed the model's max_seq_length ({model.config.max_seq_length})"
        )
    model.recompute = recompute
    chosen: Any = (
        AdamW(model.parameters()) if optimizer == "adamw" else SGD(model.parameters(), 1e-3, 0.9)
    )
    random = numpy.random.default_rng(0)
    ids = random.integers(0, model.config.vocab_size, (batch, tokens + 1))
    loss_of, setting = CrossEntropyLoss(), setting_of(model)

    def step() -> None:
        with nvtx.span("train.step", "phase", 0), model.device.active():
            with nvtx.span("train.forward", "phase", 0):
                loss = loss_of(model(ids[:, :-1]), ids[:, 1:])
            with nvtx.span("train.backward", "phase", 0):
                loss.backward()
            with nvtx.span("train.update", "phase", 0):
                chosen.step(clip_grad_norm(model.parameters(), 1.0)[1])
            chosen.zero_grad()
            model.device.synchronize()

    def run() -> None:
        for _ in range(steps):
            step()

    def timed() -> dict[str, float]:
        began = time.perf_counter()
        run()
        return {"train.step": batch * tokens * steps / (time.perf_counter() - began)}

    training = Pass(batch, tokens, gradients=True, repeat=False)
    calls = forward_calls(setting, training)
    calls += loss_calls(setting, training, calls[-1].outputs[0])
    update: dict[str, Cost] = {}
    for role, cost in optimizer_costs(all_weights(setting), optimizer):
        update[optimizer if role == "optimizer" else role] = cost
    state = sum(x.nbytes for slots in chosen.state.values() for x in slots.values())
    return _measure(
        model, spec, run, timed, lambda spans: [(s, (calls, update)) for s in spans], memory, state
    )


def _measure(
    model: Transformer, spec: DeviceSpec, run: Callable[[], Any], timed: Callable[[], dict[str, float]],
    plans: Callable[[list[Span]], Any], memory: bool, state: int = 0,
) -> Run:  # fmt: skip
    run()  # what is made once: tables, kernels, buffers
    pace = timed()
    with recording(model.device) as found:
        run()
    phases: dict[str, list[float]] = {}
    sums: dict[str, Measurement] = {}
    whole = Measurement(setting_of(model), spec)
    for span, (calls, update) in plans(found.spans):
        phases.setdefault(span.name, []).append(span.seconds)
        each = sums.setdefault(span.name, Measurement(setting_of(model), spec))
        for one in (each, whole):
            one.add(span, calls, update)
    rows = {name: one.rows() for name, one in sums.items()}
    weights = sum(int(p.data.nbytes) for p in model.parameters())
    rest = 0 if model.device.kind == "cuda" else weights + state  # a pool counts them itself
    return Run(phases, rows, whole.root, pace, _timeline(model, run) if memory else [], rest)


def _timeline(model: Transformer, run: Callable[[], Any]) -> list[tuple[float, int, str]]:
    """Memory over the time of a run that records it."""
    recorder: Recorder
    with recording(model.device, memory=True) as recorder:
        run()
    return recorder.timeline
