"""What the ranges of a generation and of training must be, whoever has recorded them.

The work is profiling/session.py's, on a model of four layers.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PROFILING = Path(__file__).parent.parent / "profiling"
SESSION = [sys.executable, str(PROFILING / "session.py")]
GENERATION = [*SESSION, "generate", "--preset=shakespeare-char", "--prompt-tokens=5", "--tokens=4",
              "--device=cpu"]  # fmt: skip
TRAINING = [*SESSION, "train", "--steps=2", "--batch=2", "--length=8", "--device=cpu"]
LAYERS = ["layer.00", "layer.01", "layer.02", "layer.03"]
PARTS = ["norm1", "attention", "norm2", "ffn"]


def environment(**more: str) -> dict[str, str]:
    """For a process below: this checkout's package, and no tool but the one that is meant."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NVTX_")}
    return {**kept, "PYTHONPATH": str(PROFILING.parent), **more}


def names(ranges: list[Any]) -> list[str]:
    return [found.name for found in ranges]


def below(found: Any, *path: str) -> list[Any]:
    """The ranges at ``path`` inside one."""
    ranges = [found]
    for name in path:
        ranges = [inner for each in ranges for inner in each.inner if inner.name == name]
    return ranges


def check_generation(session: Any) -> None:
    """Four tokens after a prompt of five."""
    (capture,) = session.captured().ranges
    assert capture.category == "phase" and not capture.cut
    assert names(capture.inner) == ["prefill", "sample", *["decode", "sample"] * 3]
    phases = [found for found in capture.inner if found.name != "sample"]
    assert [found.payload for found in phases] == [5, 5, 6, 7]  # tokens, then positions
    assert all(each.payload == 1 and each.category == "op" for each in below(capture, "sample"))
    for phase in phases:
        check_forward(phase, tokens=5 if phase.name == "prefill" else 1)
        assert names(phase.inner)[-1] == "lm_head"
    decodes = below(capture, "decode")
    (found,) = below(decodes[0], "layer.03", "attention", "op.attention")
    assert found.path[-5:] == ("capture", "decode", "layer.03", "attention", "op.attention")


def check_forward(phase: Any, tokens: int) -> None:
    """One pass through the model: counts, payloads and categories at every level."""
    assert phase.category == "phase"
    assert [n for n in names(phase.inner) if not n.startswith("op.")] == [
        "embed", *LAYERS, "lm_head"
    ]  # fmt: skip
    for number, layer in enumerate(f for f in phase.inner if f.name in LAYERS):
        assert layer.category == "layer" and layer.payload == number
        assert names(layer.inner) == PARTS
        for part in layer.inner:
            assert part.category == "part" and part.payload == tokens
            assert all(op.category == "op" and not op.inner for op in part.inner)
        counts = Counter(names(layer.inner[1].inner))
        assert counts["op.attention"] == 1 and counts["op.linear"] == 2
        assert Counter(names(layer.inner[3].inner))["op.linear"] == 2
        assert all(op.payload == tokens for op in below(layer, "attention", "op.attention"))
    (head,) = below(phase, "lm_head")
    assert names(head.inner) == ["op.linear"]


def check_training(session: Any) -> None:
    """Two steps of 16 tokens, after two to warm up."""
    (capture,) = session.captured().ranges
    steps = capture.inner
    assert names(steps) == ["train.step"] * 2 and [step.payload for step in steps] == [2, 3]
    for step in steps:
        assert names(step.inner) == ["train.forward", "train.backward", "train.update"]
        assert all(f.payload == step.payload and f.category == "phase" for f in step.inner)
        forward, backward, update = step.inner
        check_forward(forward, tokens=16)
        assert names(forward.inner)[-1] == "op.cross_entropy"
        layers = [found for found in backward.inner if found.category == "layer"]
        assert names(layers) == LAYERS[::-1]
        for layer in layers:
            assert names(layer.inner) == PARTS[::-1]
            (found,) = below(layer, "attention", "op.attention.backward")
            assert found.category == "op" and found.payload == 16
        assert "op.adamw" in names(update.inner)
