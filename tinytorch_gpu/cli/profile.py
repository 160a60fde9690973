"""``profile``: where the time and the memory of a model go, on a device that is here or on another.

On a device that is here (cpu, cuda) a real run is measured and set beside what was counted; on one by name
(``--device "RTX 4090"``, ``--device-spec FILE``) it is counted alone; the emulated one counts what its kernels
do.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..config import PRESETS, preset
from .main import UsageError

HERE = ("auto", "cpu", "cuda", "emulated")
DEFAULTS = {"generate": "smollm2", "train": "shakespeare-char", "ops": "shakespeare-char"}


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if arguments.device == "emulated":
        from .profile_kernels import counted, page

        rows = counted(arguments)
        _give(arguments, rows, lambda: print(page(rows)))
        return 0
    report = _report(arguments)
    _give(arguments, report.to_dict(), lambda: _show(report))
    return 0


def _give(arguments: argparse.Namespace, values: Any, show: Any) -> None:
    """Print the tables, or write the values where ``--json`` says ("-": standard output)."""
    if arguments.json is None:
        show()
        return
    text = json.dumps(values)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
        print(f"written: {arguments.json}", file=sys.stderr)


def _show(report: Any) -> None:
    try:
        from ..profiler.report.table import show
    except ImportError:
        raise UsageError(
            "the tables need rich: pip install 'tinytorch-gpu[profile]' (--json FILE works without)"
        ) from None
    show(report)


def _report(arguments: argparse.Namespace) -> Any:
    from ..devices import device
    from ..profiler import Setting, measure_device, named_device, read_spec
    from ..profiler.report import build_report
    from ..profiler.report.data import Asked
    from ..profiler.runs import setting_of

    here = arguments.device is None and not arguments.device_spec
    here = here or (arguments.device or "").partition(":")[0] in HERE
    name, config = _model(arguments)
    batch = arguments.batch or 1
    context = arguments.context or min(128, config.max_seq_length - arguments.tokens)
    if context < 1 or context > config.max_seq_length:
        raise UsageError(f"--context must be from 1 to the model's {config.max_seq_length} tokens, not {context}")  # fmt: skip
    asked = Asked(
        arguments.work, batch, context, arguments.tokens, arguments.optimizer, arguments.recompute
    )
    given = read_spec(arguments.device_spec) if arguments.device_spec else None
    if not here:
        spec = given or named_device(arguments.device)
        setting = Setting(config, arguments.dtype, spec.where)
        return build_report(name, setting, spec, asked, studies=arguments.studies)
    place = device(arguments.device or "auto")
    model = _load(arguments, place, config)
    setting = setting_of(model)
    spec = given or measure_device(place, setting.activations.name)
    return build_report(name, setting, spec, asked, model, arguments.studies)


def _model(arguments: argparse.Namespace) -> tuple[str, Any]:
    """The name of a model for a reader, and its configuration. A path's own name is enough."""
    named = arguments.model or DEFAULTS[arguments.work]
    if named in PRESETS:
        return named, preset(named)
    from ..checkpoint import open_model

    file = open_model(named)
    return file.path.stem, file.config


def _load(arguments: argparse.Namespace, place: Any, config: Any) -> Any:
    """The model on the device: a preset has random weights."""
    from ..core.transformers import Transformer
    from ..quantized import is_blocked

    named, dtype = arguments.model or DEFAULTS[arguments.work], arguments.dtype
    if named not in PRESETS:
        return Transformer.from_pretrained(named, device=place, dtype=dtype)
    if is_blocked(dtype):
        return Transformer.from_config(config, device=place, seed=0).to(dtype)
    return Transformer.from_config(config, device=place, dtype=dtype, seed=0)
