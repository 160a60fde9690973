"""Generation speed on a CPU, against the engines that people use for it.

SmolLM2-135M in the formats that both engines read, the very same file for both: decode (128 tokens after a prompt
of 16), prefill (512 tokens), eight sequences at once. Every engine and format runs in a process of its own
(engines.py), and they take turns, window by window, so that a ratio holds when the machine's speed drifts. Then
start-up and memory (start_up.py), the emulated device's step (emulated_step.py), and what quality.py measured.

    python profiling/bench_generate.py                      # all that this Python has
    python profiling/bench_generate.py --formats q4_0 f32   # some
    python profiling/bench_generate.py --save               # also write results/ and the README
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import BATCH, PEERS, PREFILL, Worker, has

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "generate_cpu.json"
QUALITY = HERE / "results" / "quality.json"
README = HERE.parent / "README.md"
OURS = "tinytorch_gpu"
FORMATS = ("q4_1", "q4_0", "q8_0", "f16", "f32")  # q4_1: the file as it is shipped
DTYPES = {"f16": "float16", "f32": "float32"}  # what ``load`` calls them


@dataclass(frozen=True)
class Row:
    """Our window against another; ``target`` is the least ratio of their rates that is wanted."""

    name: str
    ours: tuple[str, str]  # format, window
    peer: tuple[str, str, str]  # engine, format, window
    target: float | None = None


def rows(formats: list[str]) -> list[Row]:
    """What is compared, of these formats."""
    least = {"q4_1": 2.2, "q4_0": 1.6, "q8_0": 1.6, "f16": 1.15, "f32": 1.03}
    made = [
        Row(f"decode {f}", (f, "decode"), ("llama.cpp", f, "decode"), least[f]) for f in formats
    ]
    four = next((f for f in ("q4_0", "q4_1") if f in formats), None)
    if four is not None:
        made += [
            Row(f"prefill {four}", (four, "prefill"), ("llama.cpp", f, "prefill")) for f in formats
        ]
        made.append(Row(f"batch of {BATCH} {four}", (four, "batch"), (OURS, four, "decode"), 2.5))
        made.append(
            Row(f"decode {four}", (four, "decode"), ("transformers", "f32", "decode"), 14.0)
        )
    if "f32" in formats:
        made.append(Row("decode f32", ("f32", "decode"), ("transformers", "f32", "decode"), 3.0))
    return made


def model_files(folder: str, formats: list[str]) -> dict[str, str]:
    """A GGUF file of the demo model in each format."""
    from tinytorch_gpu.checkpoint import open_model, save_gguf

    shipped = open_model("smollm2")
    made = {"q4_1": str(shipped.path)}
    for form in formats:
        if form not in made:
            made[form] = f"{folder}/{form}.gguf"
            model = shipped.load("cpu", DTYPES.get(form, form))
            save_gguf(model, made[form], metadata=dict(shipped.metadata))
    return made


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run the windows in turn; return all figures."""
    ids = [random.Random(0).randrange(49152) for _ in range(PREFILL)]
    there = {OURS, *(name for name, module in PEERS.items() if has(sys.executable, module))}
    wanted = [row for row in rows(given.formats) if row.peer[0] in there]
    with tempfile.TemporaryDirectory() as folder:
        files = model_files(folder, given.formats)
        workers: dict[tuple[str, str], Worker] = {}
        figures: dict[tuple[str, str, str], list[float]] = {}
        for turn in range(given.windows + 1):
            for key in dict.fromkeys(k for r in wanted for k in ((OURS, *r.ours), r.peer)):
                engine, form, window = key
                if (engine, form) not in workers:
                    # transformers reads its own layout of the very weights: the shipped file, widened.
                    path = files["q4_1" if engine == "transformers" else form]
                    workers[engine, form] = Worker(
                        engine, sys.executable, path, given.threads, given.tokens
                    )
                rate = workers[engine, form].run(window, ids)
                if turn:  # the first is a warm-up
                    figures.setdefault(key, []).append(rate)
        versions = {name: worker.version for (name, _), worker in workers.items()}
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    made = [compared(row, figures) for row in wanted]
    return {
        "model": "SmolLM2-135M-Instruct", "windows": given.windows, "tokens": given.tokens,
        "threads": given.threads, "date": time.strftime("%Y-%m-%d"), "machine": machine(),
        "versions": versions, "rows": best_prefill(made),
    }  # fmt: skip


def compared(row: Row, figures: dict[tuple[str, str, str], list[float]]) -> dict[str, Any]:
    """The ratio of two windows: the median of pairs that ran in the same turn, and a lower bound."""
    ours, peer = figures[(OURS, *row.ours)], figures[row.peer]
    if row.peer[0] == OURS:  # eight at once against eight one by one: the same number of tokens
        peer = list(peer)
    pairs = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "name": row.name, "against": f"{row.peer[0]} {row.peer[1]}", "target": row.target,
        "ratio": statistics.median(pairs), "low": lower_bound(pairs), "ours": statistics.median(ours),
        "peer": statistics.median(peer), "pairs": pairs,
    }  # fmt: skip


def lower_bound(pairs: list[float], draws: int = 2000) -> float:
    """The lower 95 % bound of the median, by the bootstrap."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(pairs, k=len(pairs))) for _ in range(draws))
    return medians[draws // 20]


def best_prefill(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the prefill rows only the one against the peer's fastest format, with its target."""
    prefills = [row for row in made if row["name"].startswith("prefill")]
    if not prefills:
        return made
    best = max(prefills, key=lambda row: row["peer"])
    best |= {"target": 1.15, "against": best["against"] + ", its best"}
    return [row for row in made if row is best or row not in prefills]


def machine() -> str:
    """The processor's name and how many of it."""
    name = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(
                (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), ""
            )
    except OSError:
        import platform

        name = platform.processor()
    return f"{name}, {os.cpu_count()} processors"


# --- the rest of the table ---


def beside(given: argparse.Namespace) -> dict[str, Any]:
    """Start-up and memory, the emulated device's step, the quality that was measured last."""
    import emulated_step
    import start_up

    from tinytorch_gpu.checkpoint import open_model

    made: dict[str, Any] = {
        "start_up": start_up.measure(str(open_model("smollm2").path), given.threads),
        "import": start_up.import_seconds(),
        "emulated": [emulated_step.measure(form) for form in emulated_step.FORMATS],
    }
    if QUALITY.exists():
        made["quality"] = json.loads(QUALITY.read_text("utf-8"))
    return made


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, the ratio first."""
    lines = [
        f"{result['model']} on {result['machine']}, {result['threads']} threads, "
        f"{result['date']}; medians of {result['windows']} windows in turn, of {result['tokens']} tokens. A "
        "ratio above 1 means that tinytorch_gpu is faster; 95 %: it is above this.",
        "",
        "| tokens/s | against | ratio | 95 % | wanted | ours | theirs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        lines.append(
            f"| {row['name']} | {row['against']} | {row['ratio']:.2f} | {row['low']:.2f} | {target} "
            f"| {row['ours']:.1f} | {row['peer']:.1f} |"
        )
    if "start_up" in result:
        lines += ["", *_start_up(result)]
    if "emulated" in result:
        lines += ["", *_emulated(result)]
    if "quality" in result:
        lines += ["", *_quality(result["quality"])]
    return "\n".join([*lines, "", "Versions: " + "; ".join(result["versions"].values()) + "."])


def _start_up(result: dict[str, Any]) -> list[str]:
    lines = [
        "| the shipped file, a process's start to its first token | cold file, s | warm, s | peak, MB |",
        "|---|---|---|---|",
    ]
    for row in result["start_up"]:
        lines.append(
            f"| {row['engine']} | {row['cold']:.2f} | {row['warm']:.2f} | {row['megabytes']:.0f} |"
        )
    took = result["import"]
    package, model = (1000 * (took[x] - took["numpy"]) for x in ("package", "Transformer"))
    return [
        *lines, "",
        f"A process that imports the package takes {package:.0f} ms more than one that imports NumPy alone; "
        f"one that imports its Transformer, {model:.0f} ms more.",
    ]  # fmt: skip


def _emulated(result: dict[str, Any]) -> list[str]:
    lines = [
        "| a captured step on the emulated device | launches, layers | bytes over the least |",
        "|---|---|---|",
    ]
    for row in result["emulated"]:
        lines.append(
            f"| {row['format']} | {row['launches']}, {row['layers']} | {row['moved'] / row['least']:.3f} |"
        )
    return lines


def _quality(quality: dict[str, Any]) -> list[str]:
    lines = [
        f"| {quality['tokens']} teacher-forced tokens, against float32 | KL | argmax |",
        "|---|---|---|",
    ]
    for row in quality["rows"]:
        kl = f"{row['kl']:.5f} ± {row['kl_error']:.5f}"
        lines.append(f"| {row['format']}, {row['engine']} | {kl} | {row['argmax']} |")
    return [*lines, "", f"(quality.py, {quality['date']})"]


def save(result: dict[str, Any]) -> None:
    """Write the results file, and the README's figures between their markers."""
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    text = README.read_text("utf-8")
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    README.write_text(f"{head}{begin}\n{table(result)}\n{end}{tail}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--windows", type=int, default=5, help="counted windows of each engine")
    parser.add_argument("--tokens", type=int, default=128, help="decoded in a window")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--speed-only", action="store_true", help="no start-up, no emulated device")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write results/ and the README")
    given = parser.parse_args()
    if given.tokens > PREFILL:
        parser.error(f"--tokens must be at most {PREFILL}, not {given.tokens}")
    result = measure(given)
    if not given.speed_only:
        result |= beside(given)
    print(json.dumps(result, indent=1) if given.json else table(result))
    if given.save:
        save(result)


if __name__ == "__main__":
    main()
