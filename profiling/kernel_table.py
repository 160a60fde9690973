"""Compile every kernel for every architecture without a GPU, and tell what the compiler made of it.

    python profiling/kernel_table.py [--arch 80 ...] [--file norm.cu ...] [--save]

Needs NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc). Registers, shared memory and spills are what
ptxas reports; occupancy is the theoretical one of the block size given in ``__launch_bounds__``.
"""

import argparse
import importlib
import re
import sys

from cuda.bindings import nvrtc

from tinytorch_gpu.cuda.launch import SOURCES

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
_KERNEL = re.compile(r"Compiling entry function '(\w+)' for")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def check(result):
    """The values of an NVRTC call, or its error as an exception."""
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(nvrtc.nvrtcGetErrorString(error)[1].decode())
    return values[0] if len(values) == 1 else values


def compile_for(text, name, options, arch):
    """(machine code, what ptxas says) of a source; its errors as a RuntimeError."""
    program = check(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))
    options = [*options, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v", "-ftz=true",
               "--device-as-default-execution-space"]  # fmt: skip
    encoded = [option.encode() for option in options]
    failed = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)[0]
    log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
    check(nvrtc.nvrtcGetProgramLog(program, log))
    log = log.decode().strip("\0 \n")
    if failed != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{name} {' '.join(options)}\n{log}")
    code = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
    check(nvrtc.nvrtcGetCUBIN(program, code))
    nvrtc.nvrtcDestroyProgram(program)
    return code, log


def resources(log):
    """{kernel: registers, shared bytes, stack bytes, spilled bytes} out of the log of ptxas."""
    found, kernel = {}, None
    for line in log.splitlines():
        if match := _KERNEL.search(line):
            kernel = found[match[1]] = {"registers": 0, "shared": 0, "stack": 0, "spilled": 0}
        elif kernel is not None and (match := _SPILLS.search(line)):
            kernel["stack"] = int(match[1])
            kernel["spilled"] = int(match[2]) + int(match[3])
        elif kernel is not None and (match := _USED.search(line)):
            kernel["registers"], kernel["shared"] = int(match[1]), int(match[2] or 0)
    return found


def rows(files, architectures):
    """One row for each kernel, variant and architecture."""
    importlib.import_module("tinytorch_gpu.cuda")
    for file, of in sorted(SOURCES.items()):
        if files and file not in files:
            continue
        for variant in of.variants:
            for arch in architectures:
                code, log = compile_for(of.text, file, of.options(variant), arch)
                for name, used in resources(log).items():
                    yield {"file": file, "kernel": name, "variant": variant, "arch": arch, **used,
                           "bytes": len(code)}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=ARCHITECTURES)
    parser.add_argument("--file", nargs="*", default=())
    arguments = parser.parse_args()
    spilled = 0
    for row in rows(arguments.file, arguments.arch):
        variant = " ".join(f"{k}={v}" for k, v in row["variant"].items())
        print(f"{row['kernel']:40} {variant:40} sm_{row['arch']:<4} {row['registers']:4} registers "
              f"{row['shared']:6} shared {row['stack']:5} stack {row['spilled']:5} spilled")  # fmt: skip
        spilled += row["spilled"]
    sys.exit("a kernel spills registers" if spilled else 0)


if __name__ == "__main__":
    main()
