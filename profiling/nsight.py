"""One command for a session under a profiler: record, export, summarize.

    python profiling/nsight.py systems generate      # Nsight Systems, GPU
    python profiling/nsight.py cpu train             # the same ranges without a GPU
    python profiling/nsight.py kernels generate      # Nsight Compute, kernels of one range

What follows the work is for profiling/session.py. Files go to build/; each command is shown before
it runs. The recordings hold the environment of the process: keep them to yourself.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = Path("build")
SESSION = str(Path("profiling") / "session.py")
SUMMARIZE = str(Path("profiling") / "summarize.py")
# Where the tools are when the PATH does not say: this checkout's, and NVIDIA's own places.
PLACES = {
    "nsys": ("build/nsys/bin", "/opt/nvidia/nsight-systems/*/bin", "/usr/local/cuda/bin"),
    "ncu": ("/opt/nvidia/nsight-compute/*", "/usr/local/cuda/bin"),
}
MISSING = {
    "nsys": "Nsight Systems (nsys) is not installed. On Debian or Ubuntu `make nsys` fetches one into "
    "build/nsys, for sessions without a GPU; for a GPU install NVIDIA's, which comes with the CUDA "
    "toolkit or alone (package nsight-systems-cli), with nsys on the PATH.",
    "ncu": "Nsight Compute (ncu) is not installed. It comes with the CUDA toolkit or alone (package "
    "nsight-compute); put ncu on the PATH.",
    "cc": "No C compiler for the recorder: install gcc or clang, or set CC.",
}  # fmt: skip
CAPTURE = [
    "--capture-range=nvtx", "--nvtx-capture=capture@tinytorch_gpu", "--capture-range-end=stop",
]  # fmt: skip
QUIET = ["--sample=none", "--cpuctxsw=none"]
REPORTS = {
    False: "nvtxsum,nvtxgpuproj,nvtxkernsum,gpukernsum",  # up to 2022
    True: "nvtx_sum,nvtx_gpu_proj_sum,nvtx_kern_sum,cuda_gpu_kern_sum",
}


def tool(name: str) -> str | None:
    """The path of nsys or ncu, None if it is nowhere."""
    found = shutil.which(name)
    for place in PLACES[name]:
        if found is None:
            base = Path("/") if place.startswith("/") else ROOT
            programs = sorted(base.glob(f"{place.lstrip('/')}/{name}"), reverse=True)
            found = str(programs[0]) if programs else None
    return found


def systems_command(nsys: str, out: Path, work: list[str]) -> list[str]:
    """Nsight Systems on a GPU."""
    traces = ["-t", "cuda,nvtx,cublas,osrt", *QUIET, "--cuda-graph-trace=node"]
    return [nsys, "profile", *traces, *CAPTURE, "-f", "true", "-o", str(out), *work]


def cpu_command(nsys: str, out: Path, work: list[str]) -> list[str]:
    """Nsight Systems, ranges only."""
    return [nsys, "profile", "-t", "nvtx", *QUIET, *CAPTURE, "-f", "true", "-o", str(out), *work]


def export_command(nsys: str, out: Path) -> list[str]:
    """A recording as tables that summarize.py reads."""
    files = ["-f", "true", "-o", f"{out}.sqlite", f"{out}.nsys-rep"]
    return [nsys, "export", "-q", "true", "-t", "sqlite", *files]


def stats_command(nsys: str, out: Path, new: bool) -> list[str]:
    """Nsight Systems' own tables, as CSV files."""
    return [nsys, "stats", "-q", "--force-export=true", "-r", REPORTS[new], "-f", "csv",
            "-o", str(out), f"{out}.nsys-rep"]  # fmt: skip


def kernels_command(ncu: str, out: Path, within: str, metrics: str, work: list[str]) -> list[str]:
    """Nsight Compute on the kernels launched inside one kind of range."""
    return [ncu, "--nvtx", "--nvtx-include", within, "--set", metrics, "-f", "-o", str(out), *work]


def work_command(given: argparse.Namespace, device: str) -> list[str]:
    """The session script as the profiler starts it."""
    where = [] if "--device" in given.more else ["--device", device]
    return [sys.executable, SESSION, given.work, *given.more, *where]


# --- what the make targets run ---


def systems(given: argparse.Namespace) -> None:
    """Record on a GPU, and show both tools' tables."""
    nsys, out = _need("nsys"), BUILD / f"{given.work}-gpu"
    _run(systems_command(nsys, out, work_command(given, "cuda")))
    version = subprocess.run([nsys, "--version"], capture_output=True, text=True).stdout
    year = re.search(r"(\d{4})\.\d", version)
    _run(stats_command(nsys, out, year is None or int(year[1]) >= 2023))
    _run(export_command(nsys, out))
    _run([sys.executable, SUMMARIZE, f"{out}.sqlite"])


def cpu(given: argparse.Namespace) -> None:
    """Record on the CPU, by Nsight Systems or else by our recorder, and show the table."""
    out, work = BUILD / f"{given.work}-cpu", work_command(given, "cpu")
    nsys = tool("nsys")
    if nsys is not None:
        _run(cpu_command(nsys, out, work))
        _run(export_command(nsys, out))
        _run([sys.executable, SUMMARIZE, f"{out}.sqlite"])
        return
    _say("no Nsight Systems here (`make nsys` fetches it): ranges by profiling/recorder.c instead")
    lines = Path(f"{out}.jsonl")
    lines.unlink(missing_ok=True)
    library = build_recorder(BUILD / "recorder.so")
    told = {"NVTX_INJECTION64_PATH": str(library), "NVTX_RECORDER_FILE": str(lines)}
    _run(work, told)
    _run([sys.executable, SUMMARIZE, str(lines)])


def kernels(given: argparse.Namespace) -> None:
    """Record the kernels of a range on a GPU."""
    out = BUILD / f"{given.work}-kernels"
    work = work_command(given, "cuda")
    _run(kernels_command(_need("ncu"), out, given.range, given.set, work))
    _say(f"open {out}.ncu-rep in Nsight Compute, or: ncu --import {out}.ncu-rep --page details")


def build_recorder(library: Path, *options: str) -> Path:
    """Compile recorder.c, and return the library's absolute path."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    compiler = compiler or shutil.which("clang")
    if compiler is None:
        raise SystemExit(f"nsight.py: {MISSING['cc']}")
    library.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-shared", "-fPIC", "-pthread", *options]
    source = str(HERE / "recorder.c")
    done = subprocess.run([*shlex.split(compiler), *flags, "-o", str(library), source])
    if done.returncode:
        raise SystemExit(f"nsight.py: {compiler} could not compile profiling/recorder.c")
    return library.resolve()


def _need(name: str) -> str:
    found = tool(name)
    if found is None:
        raise SystemExit(f"nsight.py: {MISSING[name]}")
    return found


def _say(line: str) -> None:
    print(f"nsight.py: {line}", file=sys.stderr)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise SystemExit(f"nsight.py: {Path(command[0]).name} ended with code {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {"systems": systems, "cpu": cpu, "kernels": kernels}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("work", choices=("generate", "train", "op"))
    parser.add_argument(
        "--range", default="tinytorch_gpu@layer.00/*/op.attention/",
        help="kernels: a filter of ncu --nvtx-include (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--set", default="full", help="kernels: ncu's set of metrics (default full)"
    )
    given, given.more = parser.parse_known_args()
    os.chdir(ROOT)
    BUILD.mkdir(exist_ok=True)
    kinds[given.kind](given)


if __name__ == "__main__":
    main()
