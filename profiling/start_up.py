"""From the start of a process to the first token, and the memory it took: each engine by its shortest program."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engines import PEERS, environment, has

PROGRAMS = {
    "tinytorch_gpu": """
import sys
from tinytorch_gpu import Transformer
model = Transformer.from_pretrained(sys.argv[1], device="cpu", dtype="stored")
print(model.generate([1, 2, 3, 4], 1, temperature=0).numpy()[0, -1])
""",
    "llama.cpp": """
import sys, llama_cpp
threads = int(sys.argv[2])
model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
print(next(model.generate([1, 2, 3, 4], temp=0)))
""",
    "transformers": """
import sys, torch, transformers
torch.set_num_threads(int(sys.argv[2]))
folder, _, name = sys.argv[1].rpartition("/")
model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
print(model.generate(torch.tensor([[1, 2, 3, 4]]), max_new_tokens=1, do_sample=False)[0, -1])
""",
}
# A process's own account of its peak: what the system tells its parent begins with the parent's.
_PEAK = """
import pathlib, re
status = pathlib.Path("/proc/self/status")
print(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1] if status.exists() else 0)
"""


def measure(path: str, threads: int, rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each engine that is there: seconds cold (the model's file out of the page cache) and warm,
    and the most memory in MB."""
    rows = []
    for name, program in PROGRAMS.items():
        if name in PEERS and not has(sys.executable, PEERS[name]):
            continue
        command = [sys.executable, "-c", program + _PEAK, path, str(threads)]
        if name not in PEERS:
            _run(command, threads)  # builds the native library, and bytecode, on first use
        _forget(path)
        cold, _ = _run(command, threads)
        warm = [_run(command, threads) for _ in range(rounds)]
        rows.append({
            "engine": name, "cold": cold, "warm": statistics.median(s for s, _ in warm),
            "megabytes": statistics.median(m for _, m in warm),
        })  # fmt: skip
    return rows


# What a process imports behind NumPy: nothing, this package, whose names come when they are asked for, and its model.
IMPORTS = {
    "numpy": "",
    "package": "import tinytorch_gpu",
    "Transformer": "from tinytorch_gpu import Transformer",
}


def import_seconds(rounds: int = 15) -> dict[str, float]:
    """The median time of a process that imports NumPy, and of those that import more, in turn."""
    took: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, more in IMPORTS.items():
            took[name].append(_run([sys.executable, "-c", f"import numpy; {more}"], 1, "")[0])
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def _run(command: list[str], threads: int, answer: str | None = None) -> tuple[float, float]:
    """Seconds until a process's first line, or its end where it has none to say, and its peak in MB."""
    # What is installed has bytecode; with this variable a checkout would be compiled anew in each process.
    variables = environment(threads)
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    told = process.stdout.read().split()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or (answer is None and not line.strip()):
        raise RuntimeError(f"{command[2]} failed")
    return seconds, (int(told[-1]) if told and told[-1] != "0" else usage.ru_maxrss) / 1024


def _forget(path: str) -> None:
    """Let the page cache forget a file, where the system can."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(Path(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
