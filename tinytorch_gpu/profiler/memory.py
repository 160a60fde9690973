"""Bytes of weights, gradients, optimizer state, activations, cache and workspace, predicted.

What is alive follows from what each operation saves (``walk``), how long it lives (``lifetimes``) and what a
maker needs for itself (``workspace``).
"""

from dataclasses import asdict, dataclass

from .calls import Array, Call, Pass, Setting
from .formats import bytes_per_weight
from .lifetimes import Backward, Ledger, held, result_of, run_forward
from .parameters import parameters
from .walk import forward_calls, loss_calls
from .workspace import by_library, rotary_factors, turns, update_workspace

PREFILL_CHUNK = 512  # generation feeds a prompt in parts of this many tokens


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step.

    ``activations`` are alive between forward and backward. The three peaks are all that is alive at the worst
    moment of each phase, weights and state included.
    """

    weights: int
    gradients: int
    optimizer: int
    tables: int
    activations: int
    forward_peak: int
    backward_peak: int
    update_peak: int

    @property
    def at_rest(self) -> int:
        """Between steps: weights, optimizer state and tables."""
        return self.weights + self.optimizer + self.tables

    @property
    def peak(self) -> int:
        """The most at any moment."""
        return max(self.forward_peak, self.backward_peak, self.update_peak)

    def to_dict(self) -> dict[str, int]:
        """All numbers by name."""
        return {**asdict(self), "at_rest": self.at_rest, "peak": self.peak}


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of a generation: ``workspace`` is what a pass needs beside weights, cache and tables."""

    weights: int
    cache: int
    tables: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.tables + self.workspace

    def to_dict(self) -> dict[str, int]:
        """All numbers by name."""
        return {**asdict(self), "total": self.total}


def all_weights(setting: Setting) -> list[Array]:
    """Every parameter once."""
    calls = forward_calls(setting, Pass(1, 1, repeat=False))
    return list({id(w): w for call in calls for w in call.weights}.values())


def optimizer_bytes(weights: list[Array], optimizer: str = "adamw", momentum: bool = True) -> int:
    """State of an optimizer: its slots in float32 or wider, and the masters of 16-bit weights."""
    slots = {"adamw": 2, "sgd": 1 if momentum else 0}[optimizer]
    wide = sum(w.size * max(4, int(w.width)) for w in weights)
    return slots * wide + sum(4 * w.size for w in weights if w.width < 4)


def training_memory(
    setting: Setting, batch: int, tokens: int, optimizer: str = "adamw", recompute: bool = False,
    momentum: bool = True,
) -> TrainingMemory:  # fmt: skip
    """Memory of a step on ``batch`` rows of ``tokens`` tokens.

    With ``recompute`` only the input of each block is kept, and the block runs again in the backward.
    """
    if setting.weights.blocked:
        raise ValueError(f"{setting.dtype} weights are not trained: choose a floating dtype")
    if recompute and (setting.config.encoder_layers or setting.config.position == "relative"):
        raise ValueError(
            "the memory of recomputation is not predicted for blocks that read more than the block before: "
            "those of an encoder-decoder, or with relative positions"
        )
    weights = all_weights(setting)
    stored = sum(w.nbytes for w in weights)
    state = optimizer_bytes(weights, optimizer, momentum)
    run = Pass(batch, tokens, gradients=True, repeat=False)
    calls = forward_calls(setting, run)
    tables = _tables(setting, tokens) + _factors(setting, calls)
    rest = stored + state + tables
    loss = loss_calls(setting, run, calls[-1].outputs[0]) if setting.config.head else []
    step = _Step(setting, calls, loss, rest, recompute)
    return TrainingMemory(
        stored, stored, state, tables, step.kept - rest, step.forward_peak, step.backward_peak,
        rest + stored + update_workspace(weights, setting.where),
    )  # fmt: skip


class _Step:
    """A forward and a backward, replayed."""

    def __init__(
        self, setting: Setting, calls: list[Call], loss: list[Call], rest: int, recompute: bool
    ):
        self.where, self.ledger = setting.where, Ledger(rest)
        self.segments = _segments(calls, loss, recompute)
        self._forward()
        self.kept, self.forward_peak = self.ledger.live, self.ledger.peak
        self.ledger.peak = self.ledger.live
        self._backward()
        self.backward_peak = self.ledger.peak

    def _forward(self) -> None:
        given: Array | None = None
        for calls, again in self.segments:
            if again and given is not None:
                self.ledger.hold(given)
            result = run_forward(calls, self.ledger, not again, self.where, given)
            if given is not None:
                self.ledger.drop(given)
            given = result
        self.loss = result

    def _backward(self) -> None:
        back = Backward(self.ledger, self.where, {})
        gradient: Array | None = Array(self.loss.shape, self.loss.width)
        self.ledger.make(gradient)  # type: ignore[arg-type]
        of, index = self.segments[-1][0][-1].outputs[0], len(self.segments)
        while index:
            index -= 1
            calls, again = self.segments[index]
            before = result_of(self.segments[index - 1][0]) if index else None
            assert gradient is not None
            given = gradient
            if again:
                run_forward(calls, self.ledger, True, self.where, before)
                self.ledger.hold(given)
            gradient = back.run(calls, given, of, before)
            if again and before is not None:
                # What recompute() itself holds: input, result and gradient.
                for array in (before.owner, of.owner, given):
                    self.ledger.drop(array)
            if before is not None:
                of = before
        back.late.settle()


def _segments(
    calls: list[Call], loss: list[Call], recompute: bool
) -> list[tuple[list[Call], bool]]:
    """Runs of calls, and whether each is run again in the backward: the blocks, with ``recompute``."""
    if not recompute:
        return [([*calls, *loss], False)]
    made: list[tuple[list[Call], bool]] = []
    for call in [*calls, *loss]:
        if made and made[-1][0][-1].layer == call.layer:
            made[-1][0].append(call)
        else:
            made.append(([call], call.layer is not None))
    return made


def _tables(setting: Setting, last: int) -> int:
    """The tables of positions up to ``last``: sinusoids, or cosines and sines."""
    config = setting.config
    if config.position == "sinusoidal":
        return 4 * config.max_seq_length * config.embed_dim
    if config.position != "rotary":
        return 0
    room = max(256, 1 << max(last - 1, 1).bit_length())  # they grow by doubling
    return 2 * 4 * min(room, max(last, config.max_seq_length)) * (config.rotary // 2)


def _factors(setting: Setting, calls: list[Call]) -> int:
    """What NumPy's rotary maker holds on to between passes."""
    turned = [call for call in calls if call.op == "rotary" or turns(call)]
    if not turned or setting.where != "cpu" or by_library(turned[0]):
        return 0
    return rotary_factors(turned[0])


def inference_memory(setting: Setting, batch: int, context: int) -> InferenceMemory:
    """Memory of generating with ``batch`` rows of up to ``context`` tokens, the prompt fed in parts."""
    config = setting.config
    if not config.head:
        raise ValueError("a model without a head does not write: it has no cache")
    weights = sum(part.nbytes for part in parameters(setting))
    per_token = 2 * config.kv_heads * config.head_size * setting.cache_width
    cache = round(config.num_layers * batch * context * per_token)
    if config.encoder_layers:  # the source's, as long as the text
        read = 2 * config.kv_heads * config.head_size * bytes_per_weight(setting.activations)
        cache += round(config.num_layers * batch * context * read)
    tokens = min(context, PREFILL_CHUNK)
    run = Pass(batch, tokens, past=context - tokens, cached=True, last=True, repeat=False)
    calls = forward_calls(setting, run)
    # Each part of the prompt makes the factors of its positions while those of the one before are there.
    ledger = Ledger(_factors(setting, calls))
    run_forward(calls, ledger, False, setting.where, None)
    return InferenceMemory(weights, cache, _tables(setting, context), ledger.peak)


def saved_bytes(setting: Setting, batch: int, tokens: int) -> dict[str, int]:
    """Bytes that each role keeps for the backward of all layers, each array once."""
    run = Pass(batch, tokens, gradients=True, repeat=False)
    calls = forward_calls(setting, run)
    calls += loss_calls(setting, run, calls[-1].outputs[0])
    seen: set[Array] = set()
    found: dict[str, int] = {}
    for call in calls:
        for array in held(call):
            if array not in seen:
                seen.add(array)
                found[call.role] = found.get(call.role, 0) + array.nbytes
    return found
