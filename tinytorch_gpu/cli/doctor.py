"""``doctor``: what is installed, what is missing, and the exact fix."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from .. import devices, native, nvtx, processors
from ..checkpoint import ModelFileError, open_model
from ..emulated import CompilerError, compiler


@dataclass
class Finding:
    """One thing looked at: ``state`` is "ok", "missing" (something optional) or "broken"."""

    name: str
    state: str
    detail: str
    fix: str = ""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; exit code 1 only if something that the CPU needs is broken."""
    findings = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        print("\n".join(map(_line, findings)))
    return int(any(finding.state == "broken" for finding in findings))


def _line(finding: Finding) -> str:
    fix = f"\n{'':23}fix: {finding.fix}" if finding.fix else ""
    return f"{finding.state:<8} {finding.name:<13} {finding.detail}{fix}"


def examine() -> list[Finding]:
    """Look at everything; never raises for what it finds."""
    return [
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        _package("numpy", "2.1", "pip install --upgrade 'numpy>=2.1'"),
        _blas(),
        _native(),
        _gpu(),
        _emulated(),
        _ranges(),
        *(_extra(name, extra) for name, extra in _EXTRAS.items()),
        _demo(),
    ]


_EXTRAS = {
    "tokenizers": "demo", "jinja2": "demo", "ml_dtypes": "demo",
    "huggingface_hub": "hf", "safetensors": "hf", "matplotlib": "plot",
}  # fmt: skip


def _package(name: str, least: str, fix: str) -> Finding:
    version = importlib.metadata.version(name)
    enough = _numbers(version) >= _numbers(least)
    return Finding(name, "ok" if enough else "broken", version, "" if enough else fix)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _extra(name: str, extra: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, "missing", "not installed", f"pip install 'tinytorch-gpu[{extra}]'")
    return Finding(name, "ok", importlib.metadata.version(name))


def _blas() -> Finding:
    """The library behind matrix products, and whether its threads fit the processors we have."""
    allowed = processors.threads()
    blas: Any = numpy.show_config(mode="dicts")
    name = blas.get("Build Dependencies", {}).get("blas", {}).get("name", "unknown")
    try:
        import threadpoolctl
    except ImportError:
        set_to = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
        detail = f"{name}; {allowed} processors" + (f", threads set to {set_to}" if set_to else "")
        return Finding("blas", "ok", detail + " (threadpoolctl would tell its threads)")
    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    if not pools:
        return Finding("blas", "ok", f"{name}; {allowed} processors")
    pool = pools[0]
    threads = pool["num_threads"]
    detail = f"{pool['internal_api']} {pool['version']}, {threads} threads on {allowed} processors"
    fix = "" if threads == allowed else f"export OPENBLAS_NUM_THREADS={allowed}"
    return Finding("blas", "ok", detail, fix)


def _native() -> Finding:
    """The CPU's library: which instruction set of it is used, and by how many threads."""
    found = native.library()
    if found is None:
        fix = "unset TINYTORCH_NATIVE" if "TINYTORCH_NATIVE" in native.why_not() else ""
        what, _, hint = native.why_not().partition(": ")
        return Finding("native", "missing", f"{what}; NumPy does the work", fix or hint)
    return Finding("native", "ok", f"{found.isa}, {native.team_size()} threads; {found.path}")


def _gpu() -> Finding:
    """CuPy, the driver and NVRTC: the first that fails, with its fix."""
    try:
        place = devices.device("cuda")
    except devices.DeviceError as error:
        what, _, fix = str(error).partition(": ")
        return Finding("gpu", "missing", what, fix)
    properties = place.xp.cuda.runtime.getDeviceProperties(0)
    driver = place.xp.cuda.runtime.driverGetVersion()
    nvrtc = ".".join(map(str, place.xp.cuda.nvrtc.getVersion()))
    name = properties["name"].decode()
    detail = f"{name}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}, NVRTC {nvrtc}"
    return Finding("gpu", "ok", f"{detail}, CuPy {place.xp.__version__}")


def _emulated() -> Finding:
    """The compiler that the emulated device needs."""
    try:
        command, version = compiler()
    except CompilerError as error:
        what, _, fix = str(error).partition(": ")
        return Finding("emulated", "missing", what, fix)
    return Finding(
        "emulated", "ok", f"kernels are compiled by {command}: {version.splitlines()[0]}"
    )


def _ranges() -> Finding:
    """Whether NVTX ranges reach a tool."""
    try:
        version = importlib.metadata.version("nvtx")
    except importlib.metadata.PackageNotFoundError:
        return Finding("nvtx", "missing", "not installed: no ranges", "pip install 'nvtx>=0.2.12'")
    tool = os.environ.get("NVTX_INJECTION64_PATH")
    if os.environ.get("NVTX_DISABLE"):
        return Finding("nvtx", "missing", f"{version}; NVTX_DISABLE is set", "unset NVTX_DISABLE")
    if nvtx.overruled:
        detail = (
            "a tool listens, though it calls every domain disabled: ranges are sent to it anyway"
        )
        return Finding("nvtx", "ok", f"{version}; {detail}")
    if nvtx.on:
        return Finding("nvtx", "ok", f"{version}; a tool listens")
    if tool and not nvtx.attached():
        detail = f"{version}; NVTX_INJECTION64_PATH names no file, so no tool is attached"
        return Finding(
            "nvtx", "missing", detail, "unset NVTX_INJECTION64_PATH: nsys and ncu set it"
        )
    if tool:
        detail = f"{version}; a tool is attached but the ranges go nowhere"
        return Finding("nvtx", "missing", detail, "pip install --upgrade nvtx, or a newer tool")
    return Finding("nvtx", "ok", f"{version}; no tool listens (run under nsys or ncu)")


def _demo() -> Finding:
    try:
        file = open_model("smollm2")
    except ModelFileError as error:
        what, _, fix = str(error).partition(": ")
        return Finding("demo model", "missing", what, fix)
    return Finding("demo model", "ok", str(file.path))
