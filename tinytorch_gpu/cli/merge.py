"""``merge``: a model with an adapter in its weights, written as a folder of its own."""

import argparse
import sys
from pathlib import Path

from ..checkpoint import load_adapter, open_model
from ..checkpoint.adapter import adapter_folder
from ..checkpoint.save import save
from ..core.lora import merge_lora


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    target = Path(arguments.out)
    if (target / "config.json").exists():
        raise ValueError(f"{target} holds a model: name another folder with --out")
    adapter_folder(arguments.adapter)
    file = open_model(arguments.model)
    tokenizer = file.tokenizer()
    model = file.load(device="cpu", dtype=arguments.dtype)
    load_adapter(model, arguments.adapter)
    merge_lora(model)
    save(model, target, tokenizer)
    print(f"written: tinytorch-gpu generate -m {target}", file=sys.stderr)
    return 0
