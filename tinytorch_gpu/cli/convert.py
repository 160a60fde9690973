"""``convert``: a model file into another format, or its weights into fewer bits."""

import argparse
import sys
import time
from pathlib import Path

from ..checkpoint import ModelFile, open_model, save, save_gguf
from ..quantized import is_blocked
from .inspect import size


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    target = Path(arguments.target)
    to_gguf = target.suffix == ".gguf"
    _check(target, to_gguf, arguments)
    start = time.perf_counter()
    file = open_model(arguments.source)
    dtype = arguments.dtype
    if not to_gguf and dtype == "stored" and any("_" in t.dtype_name for t in file.tensors):
        dtype = "float32"  # what blocks hold, exactly; a folder has no blocks
    tokenizer = _tokenizer(file)
    model = file.load("cpu", dtype)
    if to_gguf:
        metadata = file.metadata if file.format == "gguf" else None
        save_gguf(model, target, tokenizer, metadata)
    else:
        save(model, target, tokenizer)
    print(
        f"tinytorch-gpu: wrote {target}: {size(_bytes(target))} from {size(_bytes(file.path))}, "
        f"in {time.perf_counter() - start:.1f} s",
        file=sys.stderr,
    )
    return 0


def _check(target: Path, to_gguf: bool, arguments: argparse.Namespace) -> None:
    """Refuse what would fail, or destroy something, before the work."""
    if not to_gguf and is_blocked(arguments.dtype):
        raise ValueError(
            f"{arguments.dtype} goes into a GGUF file only: name the target something.gguf, or choose a "
            "floating dtype"
        )
    if to_gguf and target.is_dir():
        raise ValueError(f"{target} is a folder, not a GGUF file")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is no folder: make it first")
    there = target if to_gguf else target / "config.json"
    if there.exists() and not arguments.force:
        raise ValueError(f"{there} is there already: choose another name, or --force to replace it")


def _tokenizer(file: ModelFile) -> "object | None":
    """The tokenizer, or None where the file has none."""
    try:
        return file.tokenizer()
    except (ValueError, ImportError) as error:
        print(f"tinytorch-gpu: no tokenizer goes along: {error}", file=sys.stderr)
        return None


def _bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())
