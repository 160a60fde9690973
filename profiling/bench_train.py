"""Training speed and memory on a CPU, against PyTorch.

One step is a forward, a backward, clipping and AdamW, in float32 on the same model and batches; ours by
NumPy alone and by native code. Every
engine runs in a process of its own, since two thread pools in one disturb each other, and they take
turns, window by window, so that a ratio holds when the machine's speed drifts.

    python profiling/bench_train.py                         # both recipes
    python profiling/bench_train.py --recipe shakespeare-char --windows 15
    python profiling/bench_train.py --save                  # also write results/train_cpu.json
    python profiling/bench_train.py --profile gpt2          # where our step spends its time
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "train_cpu.json"
OURS, PEERS = ("numpy", "native"), ("pytorch", "pytorch fused")
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


@dataclass(frozen=True)
class Recipe:
    """A preset and its batch; ``steps`` are those of a window, of which ``windows`` count; the targets ours in
    PyTorch's, of time by NumPy alone and by native code."""

    preset: str
    batch: int
    length: int
    steps: int
    windows: int
    time_targets: tuple[float, float | None]
    memory_target: float = 1.0


RECIPES = {
    "shakespeare-char": Recipe("shakespeare-char", 12, 64, 20, 25, (1.0, None)),
    "gpt2": Recipe("gpt2", 4, 256, 1, 7, (1.4, 1 / 1.1)),
}


# --- the engines, each in its own process ------------------------------------------------------


class Ours:
    """This library: NumPy alone, if TINYTORCH_NATIVE is 0."""

    def __init__(self, recipe: Recipe, threads: int):
        import numpy

        import tinytorch_gpu
        import tinytorch_gpu.native
        from tinytorch_gpu.config import preset
        from tinytorch_gpu.training import AdamW, CrossEntropyLoss, decay_groups

        found = tinytorch_gpu.native.library()
        used = "" if found is None else f", native code ({found.isa})"
        self.version = f"tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}{used}"
        config = preset(recipe.preset, dropout=0.0)
        self.model = tinytorch_gpu.Transformer.from_config(config, device="cpu", seed=0)
        self.parameters = self.model.parameters()
        self.loss, self.vocab = CrossEntropyLoss(), config.vocab_size
        groups = decay_groups(self.model, DECAY)
        self.optimizer = AdamW(groups, lr=LR, betas=BETAS)

    def step(self, inputs: Any, targets: Any) -> float:
        from tinytorch_gpu.training import clip_grad_norm

        loss = self.loss(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step(clip_grad_norm(self.parameters, CLIP)[1])
        self.optimizer.zero_grad()
        return loss.item()


class PyTorch:
    """PyTorch, eager, with its fused attention."""

    def __init__(self, recipe: Recipe, threads: int, fused: bool = False):
        import torch
        from torch_twin import gpt, parameter_groups

        from tinytorch_gpu.config import preset

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, config = torch, preset(recipe.preset, dropout=0.0)
        self.version = f"PyTorch {torch.__version__}" + (", fused AdamW" if fused else "")
        self.vocab, self.model = config.vocab_size, gpt(torch, config)
        self.parameters = list(self.model.parameters())
        groups = parameter_groups(self.model, DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=fused or None)

    def step(self, inputs: Any, targets: Any) -> float:
        torch = self.torch
        logits = self.model(torch.from_numpy(inputs))
        flat = torch.from_numpy(targets).reshape(-1)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, self.vocab), flat)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def engine_of(name: str, recipe: Recipe, threads: int) -> Any:
    if name in OURS:
        return Ours(recipe, threads)
    return PyTorch(recipe, threads, fused=name == "pytorch fused")


def peak() -> int:
    """The most memory this process has had, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name: str, recipe: Recipe, threads: int) -> None:
    """Serve windows to the parent: a line in is one, a line out its seconds a step."""
    import numpy

    engine = engine_of(name, recipe, threads)
    random = numpy.random.default_rng(0)
    print(json.dumps(engine.version), flush=True)
    for line in sys.stdin:
        if json.loads(line) == "peak":
            print(json.dumps(peak()), flush=True)
            continue
        shape = (recipe.steps, 2, recipe.batch, recipe.length)
        batches = random.integers(0, engine.vocab, shape)
        start = time.perf_counter()
        for inputs, targets in batches:
            engine.step(inputs, targets)
        print(json.dumps((time.perf_counter() - start) / recipe.steps), flush=True)


# --- the parent ---------------------------------------------------------------------------------


class Worker:
    """An engine's process."""

    def __init__(self, name: str, recipe: str, threads: int):
        command = [sys.executable, __file__, "--work", name, "--recipe", recipe]
        command += ["--threads", str(threads)]
        count = str(threads)
        # A core type that somebody set for another NumPy would slow this one; ours is NumPy alone.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
        environment |= {
            "OPENBLAS_NUM_THREADS": count,
            "OMP_NUM_THREADS": count,
            "TINYTORCH_NATIVE": "0" if name == "numpy" else "1",
            "TINYTORCH_THREADS": count,
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended without an answer")
        return json.loads(line)

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return float(self._answer())


def measure(name: str, windows: int, threads: int) -> dict[str, Any]:
    """Run the windows of a recipe in turn; return its figures."""
    workers: dict[str, Worker] = {}
    try:
        for engine in (*OURS, *PEERS):
            workers[engine] = Worker(engine, name, threads)
        seconds: dict[str, list[float]] = {engine: [] for engine in workers}
        for turn in range(windows + 1):
            for engine, worker in workers.items():
                found = worker.ask("window")
                if turn:  # the first is a warm-up
                    seconds[engine].append(found)
        peaks = {engine: int(worker.ask("peak")) for engine, worker in workers.items()}
        versions = {engine: worker.version for engine, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()
    return summary(name, seconds, peaks, versions)


def summary(
    name: str, seconds: dict[str, list[float]], peaks: dict[str, int], versions: dict[str, str]
) -> dict[str, Any]:
    """Medians, and the median of the ratios of windows that ran next to each other."""
    recipe, rows = RECIPES[name], []
    for own, target in zip(OURS, recipe.time_targets, strict=True):
        for engine in PEERS:
            pairs = [a / b for a, b in zip(seconds[own], seconds[engine], strict=True)]
            goals = (target, recipe.memory_target) if engine == "pytorch" else (None, None)
            rows.append({
                "ours": own, "engine": engine, "ratio": statistics.median(pairs),
                "ratio_low": min(pairs), "ratio_high": max(pairs), "target": goals[0],
                "memory_ratio": peaks[own] / peaks[engine], "memory_target": goals[1],
            })  # fmt: skip
    engines = {
        engine: {"seconds": statistics.median(found), "peak_bytes": peaks[engine], "windows": found}
        for engine, found in seconds.items()
    }
    tokens = recipe.batch * recipe.length
    return {"recipe": name, "tokens_per_step": tokens, "versions": versions, "engines": engines,
            "rows": rows}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as Markdown, the ratio first."""
    lines = [
        f"{result['machine']}, {result['threads']} threads, {result['date']}; medians of windows in "
        "turn. A ratio below 1 means that tinytorch_gpu needs less.",
        "",
        "| recipe | ours | against | time ratio (lowest to highest) | target | memory ratio | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in result["recipes"]:
        for row in found["rows"]:
            span = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
            goals = ["" if x is None else f"{x:.2f}" for x in (row["target"], row["memory_target"])]
            lines.append(
                f"| {found['recipe']} | {row['ours']} | {row['engine']} | {span} | {goals[0]} "
                f"| {row['memory_ratio']:.2f} | {goals[1]} |"
            )
    lines += ["", "| recipe | engine | ms a step | peak MB |", "|---|---|---|---|"]
    lines += [
        f"| {found['recipe']} | {name} | {row['seconds'] * 1e3:.1f} | {row['peak_bytes'] / 2**20:.0f} |"
        for found in result["recipes"]
        for name, row in found["engines"].items()
    ]
    versions = {v for found in result["recipes"] for v in found["versions"].values()}
    return "\n".join([*lines, "", "Versions: " + "; ".join(sorted(versions)) + "."])


class Stopwatch:
    """An NVTX domain that adds up calls and seconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self.open: list[tuple[str, float]] = []

    def get_event_attributes(self, message: str, color: str, category: str) -> Any:
        return types.SimpleNamespace(message=message, payload=None)

    def push_range(self, attributes: Any) -> None:
        self.open.append((attributes.message, time.perf_counter()))

    def pop_range(self) -> None:
        name, start = self.open.pop()
        found = self.spent.setdefault(name, [0, 0.0])
        found[0] += 1
        found[1] += time.perf_counter() - start


def profile(name: str, threads: int, steps: int) -> str:
    """Seconds of a step by operation, forward and backward."""
    import numpy

    from tinytorch_gpu import nvtx

    recipe = RECIPES[name]
    engine = Ours(recipe, threads)
    random = numpy.random.default_rng(0)
    batches = random.integers(0, engine.vocab, (steps + 1, 2, recipe.batch, recipe.length))
    engine.step(*batches[0])
    watch = Stopwatch()
    nvtx.enable(watch)
    try:
        start = time.perf_counter()
        for batch in batches[1:]:
            engine.step(*batch)
        whole = (time.perf_counter() - start) / steps
    finally:
        nvtx.disable()
    lines = [f"{whole * 1e3:9.2f} ms  a step"]
    for label, (count, seconds) in sorted(watch.spent.items(), key=lambda item: -item[1][1]):
        lines.append(f"{seconds / steps * 1e3:9.2f} ms  {count / steps:5.0f} x {label}")
    return "\n".join(lines)


def machine() -> str:
    """The processor's name and how many of it."""
    name = "a processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} processors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="default: all")
    parser.add_argument(
        "--windows", type=int, help="counted of each engine (default: the recipe's)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--profile", choices=RECIPES, help="our time by operation, no comparison")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write results/train_cpu.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.recipe or list(RECIPES)
    if given.work:
        work(given.work, RECIPES[names[0]], given.threads)
        return
    if given.profile:
        print(profile(given.profile, given.threads, max(2, RECIPES[given.profile].steps)))
        return
    result = {
        "machine": machine(), "threads": given.threads, "date": time.strftime("%Y-%m-%d"),
        "recipes": [
            measure(name, given.windows or RECIPES[name].windows, given.threads) for name in names
        ],
    }  # fmt: skip
    print(json.dumps(result, indent=1) if given.json else table(result))
    if given.save:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
