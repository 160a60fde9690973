"""``inspect``: what a model file holds and would need, read from its header alone."""

import argparse
import json
from typing import Any

from ..checkpoint import ModelFile, open_model


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    file = open_model(arguments.model)
    facts = describe(
        file, arguments.batch, arguments.context, arguments.dtype, arguments.cache_dtype
    )
    print(json.dumps(facts, ensure_ascii=False) if arguments.json else _page(facts))
    return 0


def describe(
    file: ModelFile, batch: int, context: int | None, dtype: str, cache_dtype: str | None = None
) -> dict[str, Any]:
    """Return all that ``inspect`` shows, as plain values; sizes in bytes."""
    context = file.config.max_seq_length if context is None else context
    tensors: list[dict[str, Any]] = [
        {"name": t.name, "shape": list(t.shape), "dtype": t.dtype_name, "bytes": int(t.nbytes)}
        for t in file.tensors
    ]
    values = sum(_count(t["shape"]) for t in tensors)
    return {
        "path": str(file.path),
        "format": file.format,
        "config": file.config.to_dict(),
        "parameters": values,
        "bytes": sum(t["bytes"] for t in tensors),
        "tokenizer": _tokenizer(file),
        "memory": {
            "batch": batch,
            "context": context,
            "dtype": dtype,
            **file.memory_needed(batch, context, dtype, cache_dtype),
        },
        "tensors": tensors,
    }


def _count(shape: list[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _tokenizer(file: ModelFile) -> dict[str, Any]:
    """What is known of the tokenizer; one that cannot be used says why."""
    try:
        tokenizer = file.tokenizer()
    except (ValueError, ImportError) as error:
        return {"problem": str(error)}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_ids": list(tokenizer.eos_ids),
        "pad_id": tokenizer.pad_id,
        "chat_template": tokenizer.chat_template is not None,
    }


def _page(facts: dict[str, Any]) -> str:
    memory = facts["memory"]
    lines = [
        f"{facts['path']} ({facts['format']}, {size(facts['bytes'])} of weights, "
        f"{facts['parameters'] / 1e6:.1f} million values)",
        "",
        *_pairs("hyperparameters", facts["config"]),
        "",
        *_pairs("tokenizer", facts["tokenizer"]),
        "",
        f"memory for batch {memory['batch']}, context {memory['context']}, {memory['dtype']}",
        *(f"  {k:<18} {size(memory[k])}" for k in ("weights", "cache", "workspace", "total")),
        "",
        "tensors",
    ]
    rows = [(t["name"], "x".join(map(str, t["shape"])), t["dtype"], size(t["bytes"]))
            for t in facts["tensors"]]  # fmt: skip
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  " + "  ".join([*cells, row[3].rjust(9)]))
    return "\n".join(lines)


def _pairs(title: str, values: dict[str, Any]) -> list[str]:
    return [title, *(f"  {name:<18} {value}" for name, value in values.items())]


def size(count: int) -> str:
    """Return bytes as a short text, such as "93.8 MB" (2**20 bytes)."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1024 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""
