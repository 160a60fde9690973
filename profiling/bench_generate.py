"""Generation speed on a CPU, against the engines that people use for it.

SmolLM2-135M in float32: decode (128 tokens after a prompt of 16) and prefill (512 tokens). Every
engine runs in a process of its own, since two thread pools in one disturb each other, and they take
turns, window by window, so that a ratio holds when the machine's speed drifts.

    python profiling/bench_generate.py                      # peers that this Python has
    python profiling/bench_generate.py --peer-python PY     # ... or that another one has
    python profiling/bench_generate.py --save               # also write results/ and the README
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "generate_cpu.json"
README = HERE.parent / "README.md"
PROMPT, DECODE, PREFILL = 16, 128, 512
PEERS = {"llama.cpp": "llama_cpp", "transformers": "transformers"}
TARGETS = {
    ("llama.cpp", "decode"): 0.75,
    ("llama.cpp", "prefill"): 0.87,
    ("transformers", "decode"): 2.2,
}


# --- the engines, each in its own process ------------------------------------------------------


class Ours:
    """This library, by NumPy alone."""

    def __init__(self, files: dict[str, str], threads: int):
        import numpy

        import tinytorch_gpu
        from tinytorch_gpu.generation import Cache

        self.version = f"tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}"
        self.model = tinytorch_gpu.Transformer.from_pretrained(
            files["shipped"], device="cpu", dtype="float32"
        )
        self.cache = Cache.for_model(self.model, 1, PREFILL + DECODE + 1)

    def prefill(self, ids: list[int]) -> float:
        self.cache.reset()
        start = time.perf_counter()
        self.model.generate([ids], 1, temperature=0, cache=self.cache)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        self.cache.reset()
        steps = self.model.generate(
            [ids[:PROMPT]], DECODE + 1, temperature=0, cache=self.cache, stream=True
        )
        next(steps)
        start = time.perf_counter()
        for _ in range(DECODE):
            next(steps)
        return DECODE / (time.perf_counter() - start)

    def outside(self, ids: list[int]) -> float:
        """Share of a decode step that is not a product with a weight."""
        from tinytorch_gpu.host import linear

        inside, real = [0.0], linear._vector_product

        def timed(*arrays: Any) -> None:
            start = time.perf_counter()
            real(*arrays)
            inside[0] += time.perf_counter() - start

        linear._vector_product = timed
        try:
            self.cache.reset()
            steps = self.model.generate(
                [ids[:PROMPT]], DECODE + 1, temperature=0, cache=self.cache, stream=True
            )
            next(steps)
            inside[0], start = 0.0, time.perf_counter()
            for _ in range(DECODE):
                next(steps)
            return 1 - inside[0] / (time.perf_counter() - start)
        finally:
            linear._vector_product = real


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on the same weights in F32."""

    def __init__(self, files: dict[str, str], threads: int):
        import llama_cpp

        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.model = llama_cpp.Llama(
            files["f32"], n_ctx=PREFILL + DECODE + 1, n_batch=PREFILL, n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )  # fmt: skip

    def prefill(self, ids: list[int]) -> float:
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(ids)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        self.model.reset()
        self.model.eval(ids[:PROMPT])
        start = time.perf_counter()
        for token in ids[:DECODE]:
            self.model.eval([token])
        return DECODE / (time.perf_counter() - start)


class Transformers:
    """Hugging Face's transformers on PyTorch, on the same weights in float32."""

    def __init__(self, files: dict[str, str], threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.version = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
        path = Path(files["shipped"])
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        ).eval()

    def _step(self, ids: list[int], past: Any = None) -> Any:
        with self.torch.inference_mode():
            out = self.model(
                self.torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1
            )
        return out.past_key_values

    def prefill(self, ids: list[int]) -> float:
        start = time.perf_counter()
        self._step(ids)
        return len(ids) / (time.perf_counter() - start)

    def decode(self, ids: list[int]) -> float:
        past = self._step(ids[:PROMPT])
        start = time.perf_counter()
        for token in ids[:DECODE]:
            past = self._step([token], past)
        return DECODE / (time.perf_counter() - start)


ENGINES = {"tinytorch_gpu": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers}


def work(name: str, files: dict[str, str], threads: int) -> None:
    """Serve windows to the parent: a line in names one, a line out is its figure."""
    engine = ENGINES[name](files, threads)
    print(json.dumps(engine.version), flush=True)
    for line in sys.stdin:
        window, ids = json.loads(line)
        print(json.dumps(getattr(engine, window)(ids)), flush=True)


# --- the parent ---------------------------------------------------------------------------------


class Worker:
    """An engine's process."""

    def __init__(self, name: str, python: str, files: dict[str, str], threads: int):
        command = [python, __file__, "--work", name, "--files", json.dumps(files)]
        command += ["--threads", str(threads)]
        count = str(threads)
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count, "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self.version = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:  # an engine that prints
                continue
        raise RuntimeError(f"{' '.join(self.process.args)} ended without an answer")

    def run(self, window: str, ids: list[int]) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([window, ids]) + "\n")
        self.process.stdin.flush()
        return float(self._answer())


def f32_file(shipped: str, folder: str) -> str:
    """Write the shipped model with all its weights in F32, for llama.cpp."""
    import gguf

    reader = gguf.GGUFReader(shipped)
    path = f"{folder}/model-f32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = 0 if key == "general.file_type" else field.contents()
        inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def has(python: str, module: str) -> bool:
    """Whether an interpreter has a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the windows in turn; return all figures."""
    import random

    from tinytorch_gpu.checkpoint import open_model

    ids = [random.Random(0).randrange(49152) for _ in range(PREFILL)]
    shipped = str(open_model("smollm2").path)
    with tempfile.TemporaryDirectory() as folder:
        files = {"shipped": shipped}
        workers = {
            "tinytorch_gpu": Worker("tinytorch_gpu", sys.executable, files, arguments.threads)
        }
        for name, module in PEERS.items():
            for python in (sys.executable, *arguments.peer_python):
                if name not in workers and has(python, module):
                    if name == "llama.cpp":
                        files["f32"] = f32_file(shipped, folder)
                    workers[name] = Worker(name, python, files, arguments.threads)
        figures: dict[str, dict[str, list[float]]] = {
            name: {"decode": [], "prefill": []} for name in workers
        }
        for turn in range(arguments.windows + 1):
            for window in ("decode", "prefill"):
                for name, worker in workers.items():
                    rate = worker.run(window, ids)
                    if turn:  # the first is a warm-up
                        figures[name][window].append(rate)
        outside = workers["tinytorch_gpu"].run("outside", ids)
        versions = {name: worker.version for name, worker in workers.items()}
        for worker in workers.values():
            worker.process.kill()
    return summary(figures, versions, outside, arguments)


def summary(
    figures: dict[str, Any], versions: dict[str, str], outside: float, arguments: Any
) -> dict[str, Any]:
    """Medians, and the median of the ratios of windows that ran next to each other."""
    ours = figures["tinytorch_gpu"]
    rows = []
    for name, rates in figures.items():
        for window in ("decode", "prefill"):
            pairs = [a / b for a, b in zip(ours[window], rates[window], strict=True)]
            rows.append({
                "engine": name, "window": window, "ratio": statistics.median(pairs),
                "ratio_low": min(pairs), "ratio_high": max(pairs),
                "tokens_per_second": statistics.median(rates[window]),
                "target": TARGETS.get((name, window)), "windows": rates[window],
            })  # fmt: skip
    return {
        "model": "SmolLM2-135M-Instruct, float32", "windows": arguments.windows,
        "threads": arguments.threads, "date": time.strftime("%Y-%m-%d"), "machine": machine(),
        "versions": versions, "share_outside_matrix_products": outside, "rows": rows,
    }  # fmt: skip


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


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, the ratio first."""
    lines = [
        f"{result['model']} on {result['machine']}, {result['threads']} threads, "
        f"{result['date']}; medians of {result['windows']} windows in turn. A ratio above 1 means "
        "that tinytorch_gpu is faster.",
        "",
        "| against | window | ratio (lowest to highest) | target | tokens/s |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        if row["engine"] == "tinytorch_gpu":
            ratio = ""
        lines.append(
            f"| {row['engine']} | {row['window']} | {ratio} | {target} "
            f"| {row['tokens_per_second']:.1f} |"
        )
    share = result["share_outside_matrix_products"]
    lines += ["", f"Share of a decode step outside the products with weights: {share:.0%}."]
    lines += ["", "Versions: " + "; ".join(result["versions"].values()) + "."]
    return "\n".join(lines)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=7, help="counted windows of each engine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", action="append", default=[], help="has more peers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write results/ and the README")
    parser.add_argument("--work", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.files, arguments.threads)
        return
    result = measure(arguments)
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    if arguments.save:
        save(result)


if __name__ == "__main__":
    main()
