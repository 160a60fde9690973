"""``profile --device emulated``: what the kernels of a generation or a training step do, counted."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from ..config import TransformerConfig
from ..devices import device
from .main import UsageError

# A small model of the LLaMA kind: every kernel of a real one, in seconds.
SMALL = TransformerConfig(
    256, 64, 4, 2, 192, 128, num_kv_heads=2, norm="rms", position="rotary", activation="swiglu",
    ffn_bias=False,
)  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if arguments.device != "emulated":
        raise UsageError("profile counts what kernels do on --device emulated, and no other yet")
    from ..emulated import recorded

    model = _model(arguments)
    work = {"generate": _generate, "train": _train}[arguments.work]
    with recorded() as launches:
        work(model, arguments.tokens)
    rows = table(launches)
    print(json.dumps(rows) if arguments.json else page(rows))
    return 0


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


def table(launches: list[Any]) -> list[dict[str, Any]]:
    """One row for each kernel, the one that wastes most memory traffic first.

    ``over`` is sectors of global memory over the fewest that their bytes lie in, ``conflicts`` shared
    memory's wavefronts over the fewest, ``where`` the line that wastes most sectors.
    """
    from ..emulated import Counters
    from ..emulated.runtime import source_line

    kernels: dict[str, Any] = {}
    for launch in launches:
        entry = kernels.setdefault(launch.kernel, [Counters(launches=0), {}])
        entry[0].add(launch.counters)
        for site in launch.sites:
            key = site["library"], site["pc"]
            waste = 0 if site["shared"] else site["wavefronts"] - site["ideal"]
            entry[1][key] = entry[1].get(key, 0) + waste
    rows = [_row(name, counters, sites, source_line) for name, (counters, sites) in kernels.items()]
    return sorted(rows, key=lambda row: -row["wasted_bytes"])


def _row(name: str, c: Any, sites: dict[Any, int], place: Callable[..., str]) -> dict[str, Any]:
    sectors = c.read_sectors + c.written_sectors
    worst = max(sites, key=lambda key: sites[key], default=None)
    return {
        "kernel": name,
        "launches": c.launches,
        "threads": c.threads,
        "read_bytes": c.read_bytes,
        "written_bytes": c.written_bytes,
        "wasted_bytes": 32 * (sectors - c.ideal_sectors),
        "over": round(sectors / max(1, c.ideal_sectors), 3),
        "conflicts": round(c.shared_wavefronts / max(1, c.ideal_wavefronts), 3),
        "worst_conflict": c.worst_conflict,
        "barriers": c.barriers,
        "shuffles": c.shuffles,
        "matrix": c.matrix,
        "copies": c.copies,
        "atomics": c.atomics,
        "absent_lanes": c.absent_lanes,
        "where": place(*worst) if worst and sites[worst] else "",
    }


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
