"""``profile --device emulated``: what the kernels of a generation or a training step do, counted."""

import argparse
from typing import Any

from ..config import TransformerConfig
from ..devices import device
from ..profiler.kernels import kernel_rows

# A small model of the LLaMA kind: every kernel of a real one, in seconds.
SMALL = TransformerConfig(
    256, 64, 4, 2, 192, 128, num_kv_heads=2, norm="rms", position="rotary", activation="swiglu",
    ffn_bias=False,
)  # fmt: skip


def counted(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each kernel of the work that was asked for."""
    from ..emulated import recorded

    model = _model(arguments)
    with recorded() as launches:
        if arguments.work != "train":
            _generate(model, arguments.tokens)
        if arguments.work != "generate":
            _train(model, arguments.tokens)
    return kernel_rows(launches)


def _model(arguments: argparse.Namespace) -> Any:
    from ..core.transformers import Transformer

    place = device(arguments.device)
    if arguments.model:
        return Transformer.from_pretrained(arguments.model, device=place, dtype=arguments.dtype)
    return Transformer.from_config(SMALL, device=place, dtype=arguments.dtype, seed=0)


def _generate(model: Any, tokens: int) -> None:
    prompt = [i % model.config.vocab_size for i in range(1, 17)]
    model.generate(prompt, tokens, temperature=0.8, top_k=40, top_p=0.95, seed=0)


def _train(model: Any, tokens: int) -> None:
    from .. import ops

    place = model.device
    ids = [[(7 * i + 1) % model.config.vocab_size for i in range(tokens + 1)]]
    logits = model(place.asarray([row[:-1] for row in ids]))
    targets = place.asarray(ids[0][1:])
    ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets).backward()
    numbers = (
        place.asarray([1e-3], "float32"),
        place.asarray([1], "int64"),
        place.asarray([1.0], "float32"),
    )
    for parameter in model.parameters():
        if parameter.grad is not None:
            moments = [place.zeros(parameter.shape) for _ in range(2)]
            ops.adamw(parameter.data, parameter.grad.data, *moments, None, *numbers)


_COLUMNS = {
    "kernel": "kernel", "launches": "launches", "read_bytes": "read", "written_bytes": "written",
    "over": "sectors", "conflicts": "shared", "worst_conflict": "ways", "barriers": "barriers",
    "shuffles": "shuffles", "matrix": "mma", "copies": "async", "atomics": "atomics", "absent_lanes": "absent",
    "where": "most waste at",
}  # fmt: skip


def page(rows: list[dict[str, Any]]) -> str:
    """The table as text."""
    cells = [list(_COLUMNS.values())]
    cells += [[_text(key, row[key]) for key in _COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in (0, len(widths) - 1) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    notes = (
        "read, written: bytes of global memory, each once per request of a warp; sectors: of 32 bytes,\n"
        "over the fewest; shared: wavefronts over the fewest; ways: the worst bank conflict; absent: lanes\n"
        "missing from requests and meetings. The emulated device has no clock: no time is shown."
    )
    return "\n".join([*lines, "", notes])


def _text(key: str, value: Any) -> str:
    return f"{value:.2f}" if key in ("over", "conflicts") else f"{value}"
