"""nanoGPT's small character-level recipe, trained here and by a PyTorch twin, side by side.

Both begin with the same weights and see the same batches, each in a process of its own. Compared are the losses
of the first steps, in float64 and in float32, and the loss on the whole validation part after the last one.

    python profiling/twin_run.py --data tiny_shakespeare.txt            # any UTF-8 text
    python profiling/twin_run.py --data tiny_shakespeare.txt --save     # also write results/twin_cpu.json
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "twin_cpu.json"
# (dtype, first steps whose losses are compared, largest difference allowed)
FIRST = (("float64", 100, 1e-6), ("float32", 20, 1e-4))
VALIDATION = 0.02  # largest difference of the validation losses at the end
PUBLISHED = 1.88  # nanoGPT's README, of its own recipe on its own draws


def train(
    engine: str, data: str, dtype: str, steps: int, whole: int, evaluate: bool
) -> dict[str, Any]:
    """The losses of the first ``steps`` of a run planned for ``whole``, and the validation loss then."""
    import tinytorch_gpu
    from tinytorch_gpu.config import preset
    from tinytorch_gpu.training import TokenDataset, Trainer, TrainingConfig

    dataset = TokenDataset.open(data)
    config = TrainingConfig(steps=whole)
    shape = preset("shakespeare-char", vocab_size=dataset.vocab_size)
    model = tinytorch_gpu.Transformer.from_config(shape, "cpu", dtype, seed=config.seed)
    found: dict[str, Any] = {"parameters": model.count_parameters()}
    if engine == "tinytorch_gpu":
        import numpy

        trainer: Any = Trainer(model, dataset, config)
        found["version"] = f"tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}"
    else:
        import torch
        from torch_twin import Twin

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        trainer = Twin(model, dataset, config)
        found["version"] = f"PyTorch {torch.__version__}"
    began, losses = time.perf_counter(), []
    for number in range(steps):
        made = trainer.step()
        losses.append(made if isinstance(made, float) else made.loss)
        if (number + 1) % 200 == 0:
            print(
                f"{engine} {dtype} step {number + 1}: {losses[-1]:.4f}", file=sys.stderr, flush=True
            )
    found["seconds"] = time.perf_counter() - began
    return found | {"losses": losses, "val_loss": trainer.evaluate() if evaluate else None}


def compare(data: str, steps: int, threads: int) -> dict[str, Any]:
    """All figures, both engines at a time."""
    os.environ |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    os.environ["TINYTORCH_NATIVE"] = "0"  # ours is NumPy alone
    tasks = [(dtype, min(count, steps), False) for dtype, count, _ in FIRST]
    tasks.append(("float32", steps, True))
    engines = ("tinytorch_gpu", "pytorch")
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=fresh) as pool:
        asked = {
            (engine, *task): pool.submit(train, engine, data, task[0], task[1], steps, task[2])
            for task in tasks
            for engine in engines
        }
        made = {key: future.result() for key, future in asked.items()}
    result: dict[str, Any] = {"steps": steps, "threads_each": threads, "published": PUBLISHED}
    for (dtype, _, allowed), task in zip(FIRST, tasks, strict=False):
        ours, theirs = (made[(engine, *task)]["losses"] for engine in engines)
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        result[f"first_{dtype}"] = {
            "steps": task[1],
            "largest_difference": worst,
            "allowed": allowed,
        }
    for engine in engines:
        run = made[(engine, *tasks[-1])]
        result[engine] = {
            "version": run["version"], "val_loss": run["val_loss"], "seconds": round(run["seconds"], 1),
            "losses": {n: round(run["losses"][n - 1], 5) for n in range(50, steps + 1, 50)},
        }  # fmt: skip
        result["parameters"] = run["parameters"]
    result["val_difference"] = abs(
        result["tinytorch_gpu"]["val_loss"] - result["pytorch"]["val_loss"]
    )
    result["val_allowed"] = VALIDATION
    return result


def report(result: dict[str, Any]) -> str:
    """The result in words."""
    lines = [
        f"{result['steps']} steps, {result['parameters']:,} parameters, {result['text']['name']} "
        f"({result['text']['validation_tokens']:,} of {result['text']['tokens']:,} tokens for validation)",
        f"validation loss: ours {result['tinytorch_gpu']['val_loss']:.4f}, PyTorch's "
        f"{result['pytorch']['val_loss']:.4f}, published about {result['published']}",
    ]
    for dtype, _, _ in FIRST:
        first = result[f"first_{dtype}"]
        lines.append(
            f"first {first['steps']} losses in {dtype}: at most {first['largest_difference']:.1e} apart"
        )
    return "\n".join(lines)


def failures(result: dict[str, Any]) -> list[str]:
    """What is further apart than allowed."""
    found = [
        f"the first losses in {dtype} differ by {result[f'first_{dtype}']['largest_difference']:.1e}"
        for dtype, _, allowed in FIRST
        if not result[f"first_{dtype}"]["largest_difference"] <= allowed
    ]
    if not result["val_difference"] <= VALIDATION:
        found.append(f"the validation losses differ by {result['val_difference']:.4f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a UTF-8 text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1, help="of each engine; both run at a time")
    parser.add_argument("--save", action="store_true", help="write results/twin_cpu.json")
    given = parser.parse_args()
    from bench_train import machine

    from tinytorch_gpu.training import TokenDataset, char_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        dataset = TokenDataset.build(given.data, char_tokenizer(given.data), folder)
        text = Path(given.data)
        about = {
            "name": text.name, "sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
            "tokens": len(dataset.train) + len(dataset.val), "validation_tokens": len(dataset.val),
            "vocabulary": dataset.vocab_size,
        }  # fmt: skip
        result = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "text": about}
        result |= compare(folder, given.steps, given.threads)
    print(report(result))
    if given.save:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    wrong = failures(result)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
