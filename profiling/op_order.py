"""Are the operations that should take longer the ones that do? GPT-2 124M on this machine's CPU.

The least time of every operation (profiler.roofline, on rates that are measured here first) is set beside the
measured one, that of its quickest call. Of the pairs of operations whose least times differ by more than 1.3 times, at least 90 % must be in
the measured order: in a prompt, in a step of generation, in a training step, and all together.

    python profiling/op_order.py [--model gpt2] [--tokens 64] [--save]

``--save`` writes profiling/results/op_order.md. The machine should have nothing else to do meanwhile.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from tinytorch_gpu import Transformer
from tinytorch_gpu.config import preset
from tinytorch_gpu.profiler import measure_device
from tinytorch_gpu.profiler.report import Report, build_report, lines
from tinytorch_gpu.profiler.report.data import Asked
from tinytorch_gpu.profiler.runs import setting_of

RESULTS = Path(__file__).parent / "results" / "op_order.md"
APART, TARGET = 1.3, 0.9


def order(found: list[tuple[float, float]]) -> tuple[int, int]:
    """(pairs in the measured order, all pairs) of (predicted, measured) times that are far enough apart."""
    good = pairs = 0
    for one, other in itertools.combinations(found, 2):
        low, high = sorted((one, other))
        if high[0] > APART * low[0]:
            pairs += 1
            good += low[1] < high[1]
    return good, pairs


def measured_lines(report: Report, phase: str) -> list[dict[str, Any]]:
    """The lines of a phase that ran."""
    return [line for line in lines(report, phase, "best") if line["seconds"]]


def page(report: Report, groups: dict[str, tuple[int, int]]) -> list[str]:
    """The result as Markdown."""
    device, about = report.device, report.about
    out = [
        f"# Predicted against measured order of operations: {report.model}", "",
        f"By profiling/op_order.py on {device.name}, {about['date']}; tinytorch_gpu {about['tinytorch_gpu']}, NumPy "
        f"{about['numpy']}, Python {about['python']}. Batch {report.asked.batch}, {report.asked.context} tokens, "
        f"{report.setting.dtype}. Rates measured just before: {device.peak('float32') / 1e9:.0f} GFLOP/s in products, "
        f"{device.bandwidth / 1e9:.1f} GB/s, {device.vector / 1e9:.1f} G arithmetic and {device.special / 1e9:.2f} G "
        f"exponentials a second, {device.call * 1e6:.1f} us a call.", "",
        f"Pairs whose least times differ by more than {APART} times, and are in the measured order:", "",
        "| phase | in order | pairs | share |", "|---|---:|---:|---:|",
        *(f"| {name} | {good} | {pairs} | {100 * good / pairs:.1f} % |" for name, (good, pairs) in groups.items()),
    ]  # fmt: skip
    for phase in report.rooflines:
        out += ["", f"## {phase}", "", "| operation | least, ms | bound by | measured, ms | of the least |",
                "|---|---:|---|---:|---:|"]  # fmt: skip
        for line in sorted(measured_lines(report, phase), key=lambda line: -line["seconds"]):
            name = line["role"] + (
                "" if line["direction"] == "forward" else f", {line['direction']}"
            )
            out.append(
                f"| {name} | {1e3 * line['least_seconds']:.3f} | {line['bound']} | {1e3 * line['seconds']:.3f} | "
                f"{100 * line['share_of_roofline']:.0f} % |"
            )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    model = Transformer.from_config(preset(arguments.model), device="cpu", seed=0)
    spec = measure_device("cpu", seconds=1.0)
    report = build_report(
        arguments.model,
        setting_of(model),
        spec,
        Asked("ops", 1, arguments.tokens, 8),
        model,
        timeline=False,
    )
    groups: dict[str, tuple[int, int]] = {}
    everything: list[tuple[float, float]] = []
    for phase in report.rooflines:
        found = [(line["least_seconds"], line["seconds"]) for line in measured_lines(report, phase)]
        groups[phase] = order(found)
        everything += found
    groups["all together"] = order(everything)
    text = page(report, groups)
    print("\n".join(text))
    if arguments.save:
        RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0 if all(good >= TARGET * pairs for good, pairs in groups.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
