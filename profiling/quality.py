"""What fewer bits cost: how far a model's next-token distribution moves from that of its float32 weights.

Over teacher-forced tokens of English prose (Python's own help texts): the mean Kullback-Leibler divergence
KL(float32 || format) in nats, and in how many places both find the same token the likeliest. Ours, and
llama.cpp's on the very same file where llama-cpp-python is installed; every engine in a process of its own.

    python profiling/quality.py                  # all formats, 1000 tokens
    python profiling/quality.py --format q4_0    # some
    python profiling/quality.py --save           # also write results/quality.json and .md
"""

import argparse
import importlib.util
import json
import pydoc_data.topics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
from bench_generate import machine

import tinytorch_gpu
from tinytorch_gpu import Transformer, no_grad
from tinytorch_gpu.checkpoint import open_model, save_gguf

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "quality.json"
FORMATS = ("float16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
WINDOW = 250  # tokens that are read at a time, each window from an empty cache
TOPICS = ("assert", "while", "with", "class", "function", "import", "try", "operators")


def windows(path: str, tokens: int) -> list[list[int]]:
    """The text as ids, ``WINDOW`` at a time, of which the first is the model's start."""
    tokenizer = open_model(path).tokenizer()
    topics = pydoc_data.topics.topics
    text = " ".join(" ".join(topics[k] for k in TOPICS if k in topics).split())
    ids = tokenizer.encode(text)[:tokens]
    if len(ids) < tokens:
        raise SystemExit(f"the text has {len(ids)} tokens only")
    return [ids[i : i + WINDOW] for i in range(0, tokens, WINDOW)]


def ours(path: str, dtype: str, folder: Path, ids: list[list[int]]) -> None:
    """Write the logits (T, V) of each window by this library."""
    model = Transformer.from_pretrained(path, device="cpu", dtype=dtype)
    with no_grad():
        for i, window in enumerate(ids):
            numpy.save(folder / f"{i}.npy", model([window]).data[0].astype(numpy.float32))


def llama_cpp(path: str, _: str, folder: Path, ids: list[list[int]]) -> None:
    """The same by llama.cpp."""
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    for i, window in enumerate(ids):
        model.reset()
        model.eval(window)
        numpy.save(folder / f"{i}.npy", model.scores[: len(window)].astype(numpy.float32))


ENGINES = {"tinytorch_gpu": ours, "llama.cpp": llama_cpp}


def run(engine: str, path: str, dtype: str, folder: Path, ids: list[list[int]]) -> None:
    """Let an engine write its logits to ``folder``, in a process of its own."""
    folder.mkdir()
    command = [sys.executable, __file__, "--work", engine, path, dtype, str(folder)]
    done = subprocess.run(command, input=json.dumps(ids), text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed on {path}:\n{done.stderr[-2000:]}")


def log_softmax(logits: Any) -> Any:
    logits = logits.astype(numpy.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def compare(exact: Path, other: Path, count: int) -> dict[str, Any]:
    """Divergence and agreement of the windows in two folders."""
    divergences: list[float] = []
    agreed = 0
    for i in range(count):
        truth, found = (log_softmax(numpy.load(folder / f"{i}.npy")) for folder in (exact, other))
        divergences += (numpy.exp(truth) * (truth - found)).sum(axis=1).tolist()
        agreed += int((truth.argmax(axis=1) == found.argmax(axis=1)).sum())
    values = numpy.array(divergences)
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return {"kl": float(values.mean()), "kl_error": error, "argmax": agreed, "tokens": len(values)}


def quantized(model_file: str, form: str, folder: Path) -> str:
    """A GGUF file of the model in ``form``; the shipped one if it is that already."""
    file = open_model(model_file)
    if file.format == "gguf" and _is_mostly(file, form):
        return str(file.path)
    target = folder / f"{form}.gguf"
    save_gguf(file.load("cpu", form), target, metadata=dict(file.metadata))
    return str(target)


def _is_mostly(file: Any, form: str) -> bool:
    sizes: dict[str, int] = {}
    for info in file.tensors:
        if "blk" in info.name and len(info.shape) > 1:
            sizes[info.dtype_name.lower()] = sizes.get(info.dtype_name.lower(), 0) + info.nbytes
    return max(sizes, key=lambda name: sizes[name]) == form


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Every format by every engine that is there."""
    engines = ["tinytorch_gpu"]
    if importlib.util.find_spec("llama_cpp") is not None:
        engines.append("llama.cpp")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source = str(open_model(given.model).path)
        ids = windows(source, given.tokens)
        run("tinytorch_gpu", source, "float32", folder / "exact", ids)
        for form in given.format:
            path = quantized(source, form, folder)
            for engine in engines:
                place = folder / f"{form} {engine}"
                run(engine, path, "stored", place, ids)
                row = {
                    "format": form,
                    "engine": engine,
                    **compare(folder / "exact", place, len(ids)),
                }
                rows.append(row)
                print(
                    f"{form:8} {engine:14} KL {row['kl']:.5f} argmax {row['argmax']}",
                    file=sys.stderr,
                )
                for file in place.iterdir():
                    file.unlink()
            if path != source:
                Path(path).unlink()
    versions = [f"tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}"]
    if "llama.cpp" in engines:
        versions.append(f"llama-cpp-python {version('llama_cpp_python')}")
    return {"model": given.model, "tokens": given.tokens, "machine": machine(), "rows": rows,
            "versions": versions, "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def with_saved(result: dict[str, Any]) -> dict[str, Any]:
    """The result, and from the saved one the formats that were not measured now, if it is of the same model,
    text, machine and versions."""
    if not RESULT.exists():
        return result
    saved = json.loads(RESULT.read_text(encoding="utf-8"))
    if any(saved[key] != result[key] for key in ("model", "tokens", "machine", "versions")):
        return result
    new = {row["format"] for row in result["rows"]}
    rows = result["rows"] + [row for row in saved["rows"] if row["format"] not in new]
    return result | {"rows": sorted(rows, key=lambda row: FORMATS.index(row["format"]))}


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Quality of quantized weights",
        "",
        f"{result['model']}, {result['tokens']} teacher-forced tokens, against its own weights in float32; "
        f"{result['machine']}, {result['date']}, by profiling/quality.py. KL in nats, with its standard "
        "error; argmax: places where the likeliest token is the same.",
        "",
        "| format | engine | KL | argmax |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        kl = f"{row['kl']:.5f} ± {row['kl_error']:.5f}"
        lines.append(
            f"| {row['format']} | {row['engine']} | {kl} | {row['argmax']}/{row['tokens']} |"
        )
    return "\n".join([*lines, "", f"Versions: {'; '.join(result['versions'])}.", ""])


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        engine, path, dtype, folder = sys.argv[2:]
        ENGINES[engine](path, dtype, Path(folder), json.load(sys.stdin))
        return
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    result = measure(given)
    print(table(result))
    if given.save:
        result = with_saved(result)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        RESULT.with_suffix(".md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
