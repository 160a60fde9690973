"""The work that a profiler is pointed at: a generation, training steps, or one operation.

What is to be seen lies in a range called ``capture``, after a warm-up, so that a tool can leave out
the rest. ``make profile`` and its like run this under one; alone it does the work and says how long
it took. Steps run one operation after another, since a captured one has no ranges inside; --graph
has them captured. Weights are random unless --model names a file: they change no time.

    python profiling/session.py generate --device cuda
    python profiling/session.py train --preset gpt2 --batch 4 --length 256
    python profiling/session.py op attention --repeat 50
"""

import argparse
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from tinytorch_gpu import Transformer, nvtx
from tinytorch_gpu.checkpoint import ModelFileError
from tinytorch_gpu.config import PRESETS, preset
from tinytorch_gpu.devices import DeviceError

WORKS = ("generate", "train", "op")


def main(arguments: list[str] | None = None) -> int:
    """Do the work that the command line asks for; return the exit code."""
    given = parser().parse_args(arguments)
    nvtx.graphs = given.graph
    try:
        work = {"generate": generation, "train": training, "op": operation}[given.work](given)
    except (ValueError, DeviceError, ModelFileError) as error:
        print(f"session.py: {error}", file=sys.stderr)
        return 2
    work()
    with nvtx.span("capture", "phase"):
        began = time.perf_counter()
        device = work()
        device.synchronize()
        seconds = time.perf_counter() - began
    heard = "recorded" if nvtx.on else "no tool listens"
    print(f"{given.work} on {device}: {seconds * 1e3:.1f} ms ({heard})", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("work", choices=WORKS)
    add("op", nargs="?", help="op: its name, as in op.NAME")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or emulated")
    add("--dtype", default="float32", help="of the weights")
    add("--preset", help="a model of random weights: " + ", ".join(PRESETS))
    add("--model", metavar="FILE", help="generate, op: a model file instead, as for generate -m")
    add("--prompt-tokens", type=_count, default=32, help="generate, op: default 32")
    add("--tokens", type=_count, default=8, help="generate: how many to generate (default 8)")
    add("--batch", type=_count, default=1, help="rows (default 1)")
    add("--length", type=_count, default=64, help="train: tokens of a row (default 64)")
    add("--steps", type=_count, default=2, help="train: default 2")
    add("--repeat", type=_count, default=20, help="op: calls (default 20)")
    add("--graph", action="store_true", help="capture decode steps: one range each")
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def _model(given: argparse.Namespace, default: str, **changes: Any) -> Transformer:
    if given.model:
        return Transformer.from_pretrained(given.model, device=given.device, dtype=given.dtype)
    config = preset(given.preset or default, **changes)
    return Transformer.from_config(config, device=given.device, dtype=given.dtype, seed=0)


def _prompts(model: Transformer, given: argparse.Namespace) -> Any:
    random = numpy.random.default_rng(0)
    return random.integers(0, model.config.vocab_size, (given.batch, given.prompt_tokens))


def generation(given: argparse.Namespace) -> Callable[[], Any]:
    """Continue random prompts, greedily."""
    model = _model(given, "smollm2-135m")
    prompts = _prompts(model, given)
    room = model.config.max_seq_length - given.prompt_tokens
    if room < given.tokens:
        raise ValueError(
            f"{given.prompt_tokens} + {given.tokens} tokens exceed the model's "
            f"{model.config.max_seq_length}: lower --prompt-tokens or --tokens"
        )

    def work() -> Any:
        model.generate(prompts, given.tokens, temperature=0)
        return model.device

    return work


def training(given: argparse.Namespace) -> Callable[[], Any]:
    """Updates on Python's own prose, a character a token."""
    from tinytorch_gpu.training import TokenDataset, Trainer, TrainingConfig, char_tokenizer

    if given.model:
        raise ValueError("train takes a --preset, not a --model: weights change no time")
    held = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # removed when training ends
    text = Path(held.name) / "prose.txt"
    text.write_text("".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    data = TokenDataset.build(text, char_tokenizer(text), Path(held.name) / "data")
    least = {"vocab_size": data.vocab_size} if given.preset in (None, "shakespeare-char") else {}
    config = TrainingConfig(batch=given.batch, length=given.length, eval_every=0, save_every=0)
    trainer = Trainer(_model(given, "shakespeare-char", **least), data, config)

    def work(held: Any = held) -> Any:
        for _ in range(given.steps):
            trainer.step()
        return trainer.model.device

    return work


def operation(given: argparse.Namespace) -> Callable[[], Any]:
    """One operation again and again, on what a model's prefill gave it: each different call of it."""
    from tinytorch_gpu.core.op import record

    model = _model(given, "smollm2-135m", num_layers=1)
    with record() as calls:
        model.generate(_prompts(model, given), 2, temperature=0)
    ranges = sorted({call.op.range.removeprefix("op.") for call in calls})
    found = [call for call in calls if call.op.range == f"op.{given.op}"]
    if not found:
        raise ValueError(f"no op.{given.op} in this model; there are {', '.join(ranges)}")

    def work() -> Any:
        for call in found:
            for _ in range(given.repeat):
                call.op(*call.arrays, **call.options)
        return model.device

    return work


if __name__ == "__main__":
    sys.exit(main())
