"""What generate and chat share: a loaded model with its tokenizer, and text as it is made."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import ModelFile, load_adapter, open_model
from ..checkpoint.adapter import adapter_folder
from ..core.lora import merge_lora, mergeable
from ..core.transformers import Transformer
from ..generation import DraftModel, Lookup, PrefixCache, Speculation
from ..tokenizers import Tokenizer


@dataclass
class Timing:
    """When the tokens of one answer came."""

    prompt_tokens: int
    started: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    def tick(self) -> None:
        """Count a token that came now."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens += 1

    def figures(self, device: Any) -> dict[str, Any]:
        """Rates in tokens/s, seconds and bytes; a rate of nothing is None."""
        waited, decoding = self.first - self.started, self.last - self.first
        return {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.tokens,
            "prefill_tokens_per_second": self.prompt_tokens / waited if self.tokens else None,
            "decode_tokens_per_second": (self.tokens - 1) / decoding if self.tokens > 1 else None,
            "time_to_first_token_s": waited if self.tokens else None,
            "peak_memory_bytes": device.memory()["peak"],
        }


def describe_figures(figures: dict[str, Any]) -> str:
    """Return the figures as one line."""

    def shown(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        f"prefill {figures['prompt_tokens']} tokens at "
        f"{shown(figures['prefill_tokens_per_second'], '.1f')} tokens/s, "
        f"decode {figures['generated_tokens']} tokens at "
        f"{shown(figures['decode_tokens_per_second'], '.1f')} tokens/s, "
        f"first token after {shown(figures['time_to_first_token_s'], '.2f')} s, "
        f"peak memory {figures['peak_memory_bytes'] / 2**20:.0f} MB{_drafts(figures)}"
    )


def _drafts(figures: dict[str, Any]) -> str:
    if "drafted" not in figures:
        return ""
    drafted, accepted = figures["drafted"], figures["accepted"]
    share = f" ({accepted / drafted:.0%})" if drafted else ""
    return f", accepted {accepted} of {drafted} drafted tokens{share}"


@dataclass
class Session:
    """A model that is ready to answer."""

    file: ModelFile
    tokenizer: Tokenizer
    model: Transformer
    speculation: Speculation | None = None

    def figures(self, timing: Timing) -> dict[str, Any]:
        """Those of ``timing``, and how speculation fared."""
        guide = self.speculation
        drafts = {} if guide is None else {"drafted": guide.drafted, "accepted": guide.accepted}
        return {**timing.figures(self.model.device), **drafts}


def open_session(arguments: argparse.Namespace, file: ModelFile) -> Session:
    """Load the weights; say on stderr when "auto" found no GPU."""
    tokenizer = file.tokenizer()
    model = file.load(device=arguments.device, dtype=arguments.dtype)
    if arguments.adapter:
        load_adapter(model, arguments.adapter)
        if mergeable(model):  # then a token costs what it costs without
            merge_lora(model)
    if arguments.device == "auto" and model.device.kind == "cpu":
        print(f"tinytorch-gpu: running on the CPU: {model.device.note}", file=sys.stderr)
    return Session(file, tokenizer, model, _speculation(arguments, tokenizer))


def _speculation(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Speculation | None:
    """What ``--lookup`` or ``--draft`` asks for; a draft model with other tokens is a ValueError."""
    if arguments.draft is None:
        return Lookup(arguments.draft_max) if arguments.lookup else None
    if arguments.lookup:
        raise ValueError("give --draft or --lookup, not both")
    file = open_model(arguments.draft)
    theirs = file.tokenizer()
    if theirs.encode(_PROBE) != tokenizer.encode(_PROBE):
        raise ValueError(
            f"{file.path.name} has other tokens than the model: it cannot draft for it"
        )
    model = file.load(device=arguments.device, dtype=arguments.dtype)
    return DraftModel(model, arguments.draft_max)


# What two tokenizers would hardly split alike by chance.
_PROBE = "Speculation: naïve \tguesses, 12345 of them; isn't it? {x_1 = -0.5e-3} 東京\n\n"


def open_file(arguments: argparse.Namespace) -> ModelFile:
    """Open the model of ``-m`` and check the device, before any weight is read."""
    from ..devices import device

    device(arguments.device)
    if arguments.adapter:
        adapter_folder(arguments.adapter)
    return open_model(arguments.model)


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``generate`` from those of the command line."""
    return {
        "max_new_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k or None,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p or None,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed,
        "cache_dtype": arguments.cache_dtype,
    }


def stream_text(
    session: Session, ids: list[int], timing: Timing, stops: list[str],
    prefix: PrefixCache | None = None, **options: Any,
) -> Iterator[tuple[list[int], str]]:  # fmt: skip
    """Yield (new ids, new text) as the model makes it, until it ends, or one of ``stops`` comes,
    which is left out with all after it. A ``prefix`` cache spares what it has of the prompt."""
    decoder, gate = session.tokenizer.stream(), StopGate(stops)
    ends = session.tokenizer.eos_ids
    options |= {"stop_tokens": ends, "stream": True, "speculate": session.speculation}
    steps = (session.model if prefix is None else prefix).generate([ids], **options)
    for step in steps:
        timing.tick()
        token = int(step.tokens[0])
        yield [token], "" if token in ends else gate.push(decoder.push(token))
        if gate.closed:
            return
    yield [], gate.push(decoder.flush()) + gate.flush()


class StopGate:
    """Lets text through up to a stop text, and holds back what may become one."""

    def __init__(self, stops: list[str]):
        self.stops, self.closed, self._held = [s for s in stops if s], False, ""

    def push(self, text: str) -> str:
        """Take new text; return what is certainly before any stop text."""
        if self.closed:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self.stops) if at >= 0]
        if found:
            self.closed = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _overlap(self, stop: str) -> int:
        """How many last characters of what is held could begin ``stop``."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def flush(self) -> str:
        """Return what was held back, now that no more comes."""
        out, self._held = self._held, ""
        return "" if self.closed else out
