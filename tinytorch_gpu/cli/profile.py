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
    drawn = bool(arguments.html or arguments.png)
    if arguments.attention is not None and not drawn:
        raise UsageError("--attention is drawn: add --html FILE or --png FOLDER")
    if arguments.device == "emulated":
        from .profile_kernels import counted, page

        if drawn:
            raise UsageError("there is no page of what kernels do: leave --html and --png out")
        rows = counted(arguments)
        _give(arguments, rows, lambda: print(page(rows)))
        return 0
    if drawn:
        arguments.studies = True
        _drawing()  # before anything is measured for nothing
    report, maps = _report(arguments)
    if drawn:
        _draw(arguments, report, maps)
    if not drawn or arguments.json is not None:
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
        _written(arguments.json)


def _written(what: Any) -> None:
    print(f"written: {what}", file=sys.stderr)


def _drawing() -> Any:
    """The module that draws."""
    try:
        from ..profiler.report import html
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install 'tinytorch-gpu[profile]'") from None
    return html


def _draw(arguments: argparse.Namespace, report: Any, maps: Any) -> None:
    html = _drawing()
    if arguments.html:
        html.write_html(report, Path(arguments.html), maps)
        _written(arguments.html)
    if arguments.png:
        for path in html.write_png(report, Path(arguments.png), maps):
            _written(path)


def _show(report: Any) -> None:
    try:
        from ..profiler.report.table import show
    except ImportError:
        raise UsageError(
            "the tables need rich: pip install 'tinytorch-gpu[profile]' (--json FILE works without)"
        ) from None
    show(report)


def _report(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The report, and the attention that ``--attention`` asks for."""
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
        if arguments.attention is not None:
            raise UsageError(f"--attention runs the model: {arguments.device} is not here")
        spec = given or named_device(arguments.device)
        setting = Setting(config, arguments.dtype, spec.where)
        return build_report(name, setting, spec, asked, studies=arguments.studies), None
    place = device(arguments.device or "auto")
    model = _load(arguments, place, config)
    setting = setting_of(model)
    spec = given or measure_device(place, setting.activations.name)
    maps = None if arguments.attention is None else _attention(arguments, model)
    return build_report(name, setting, spec, asked, model, arguments.studies), maps


def _attention(arguments: argparse.Namespace, model: Any) -> Any:
    """Weights of the text, by the model's tokenizer; a preset has none: its characters' codes are taken."""
    from ..profiler.report.attention import attention_maps

    named, text = arguments.model or DEFAULTS[arguments.work], arguments.attention
    if named in PRESETS:
        ids = [ord(c) % model.config.vocab_size for c in text]
    else:
        from ..checkpoint import open_model

        ids = open_model(named).tokenizer().encode(text)
    return attention_maps(model, ids)


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
