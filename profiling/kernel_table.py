"""Compile every kernel for every architecture without a GPU, and tell what the compiler made of it.

    python profiling/kernel_table.py [--arch 80 ...] [--file norm.cu ...] [--save | --check]

Needs NVRTC and a disassembler (pip install cuda-bindings nvidia-cuda-nvrtc nvidia-cuda-nvdisasm).
Registers, shared memory and spills are what ptxas reports; occupancy is the theoretical one by
registers, static shared memory and threads (dynamic shared memory, which a launch decides, may lower it
and is marked +).

``--save`` brings profiling/results/kernels.json and kernels.md up to date: it compiles what is new or changed of every
variant for one architecture or more, and every kernel for all of them; with ``--full`` of every variant for every one,
which takes most of an hour. ``--check`` fails where the saved table is not of today's sources, where a kernel spills, and
where one is worse than what was saved: more registers, an instruction lost.
"""

import argparse
import datetime
import hashlib
import importlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda.bindings import nvrtc

from tinytorch_gpu.cuda.launch import SOURCES

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Of one multiprocessor (CUDA programming guide, "Technical specifications per compute capability"):
# threads, blocks, bytes of shared memory. Registers are 65536 everywhere.
LIMITS = {
    75: (1024, 16, 64 << 10), 80: (2048, 32, 164 << 10), 86: (1536, 16, 100 << 10),
    89: (1536, 24, 100 << 10), 90: (2048, 32, 228 << 10), 100: (2048, 32, 228 << 10),
    120: (1536, 24, 100 << 10),
}  # fmt: skip
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
    """(machine code, PTX, what ptxas says) of a source; its errors as a RuntimeError."""
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
    ptx = b" " * check(nvrtc.nvrtcGetPTXSize(program))
    check(nvrtc.nvrtcGetPTX(program, ptx))
    nvrtc.nvrtcDestroyProgram(program)
    return code, ptx.decode(), log


def resources(log):
    """{kernel: registers, shared bytes, spilled bytes} out of the log of ptxas."""
    found, kernel = {}, None
    for line in log.splitlines():
        if match := _KERNEL.search(line):
            kernel = found[match[1]] = {"registers": 0, "shared": 0, "spilled": 0}
        elif kernel is not None and (match := _SPILLS.search(line)):
            kernel["spilled"] = int(match[2]) + int(match[3])
        elif kernel is not None and (match := _USED.search(line)):
            kernel["registers"], kernel["shared"] = int(match[1]), int(match[2] or 0)
    return found


def occupancy(arch, registers, shared, threads):
    """The share of a multiprocessor's threads that fit at once."""
    most_threads, most_blocks, memory = LIMITS[arch]
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256  # registers are handed out in units of 256
    blocks = min(most_blocks, most_threads // threads, 65536 // (per_warp * warps))
    if shared:
        blocks = min(blocks, memory // (shared + 1024))  # the system keeps 1 KB a block
    return blocks * warps * 32 / most_threads


def instructions(code):
    """{kernel: which of the instructions that matter are in its machine code}."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        made = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr)
    found, kernel = {}, None
    for line in made.stdout.splitlines():
        if line.lstrip().startswith(".section") and ".text." in line:
            kernel = found[re.search(r"\.text\.(\w+)", line)[1]] = set()
        elif kernel is not None:
            for mark, name in (("HMMA", "tensor core"), ("LDG.E.128", "16-byte load"),
                               ("STG.E.128", "16-byte store"), ("LDGSTS", "asynchronous copy")):  # fmt: skip
                if mark in line:
                    kernel.add(name)
    return {name: sorted(marks) for name, marks in found.items()}


def disassembler():
    """The path of nvdisasm, from its package."""
    import nvidia

    for folder in nvidia.__path__:
        for path in sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(path)
    raise RuntimeError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")


def digest(file, variant):
    """A short name for what is compiled: the source with its headers, and the switches."""
    of = SOURCES[file]
    return hashlib.sha256("\n".join([of.text, *of.options(variant)]).encode()).hexdigest()[:12]


def rows_of(job):
    """The rows of one file, variant and architecture."""
    importlib.import_module("tinytorch_gpu.cuda")
    file, variant, arch = job
    of = SOURCES[file]
    code, ptx, log = compile_for(of.text, file, of.options(variant), arch)
    marks, made = instructions(code), []
    for name, used in sorted(resources(log).items()):
        entry = ptx[ptx.index(f".entry {name}(") :]
        entry = entry[: entry.index("\n}")]
        threads = int(re.search(r"\.maxntid (\d+)", entry)[1])
        made.append({
            "file": file, "kernel": name, "variant": spelled(variant), "arch": arch,
            "source": digest(file, variant), **used, "dynamic": ".extern .shared" in ptx,
            "threads": threads,
            "occupancy": round(occupancy(arch, used["registers"], used["shared"], threads), 3),
            "uses": marks.get(name, []),
        })  # fmt: skip
    return made


def spelled(variant):
    """The switches of a variant as words."""
    return " ".join(map(str, variant.values()))


def everything(files=(), architectures=ARCHITECTURES):
    """Every (file, variant, architecture)."""
    importlib.import_module("tinytorch_gpu.cuda")
    return [(file, variant, arch) for file, of in sorted(SOURCES.items()) if not files or file in files
            for variant in of.variants for arch in architectures]  # fmt: skip


def sample(files=(), architectures=ARCHITECTURES):
    """Fewer: each variant for one architecture or more, each architecture for each file."""
    made = []
    for file in sorted({file for file, _, _ in everything(files)}):
        variants = SOURCES[file].variants
        count = max(len(variants), len(architectures))
        made += [(file, variants[i % len(variants)], architectures[i % len(architectures)])
                 for i in range(count)]  # fmt: skip
    return made


def compiled(jobs):
    """One row for each kernel of each job."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return [row for rows in pool.imap(rows_of, jobs, chunksize=1) for row in rows]


def unsaved(jobs, saved):
    """The jobs whose source is not the one in the saved table."""
    known = {(row["file"], row["variant"], row["arch"], row.get("source")) for row in saved}
    return [job for job in jobs
            if (job[0], spelled(job[1]), job[2], digest(*job[:2])) not in known]  # fmt: skip


def key(row):
    """What names a row."""
    return row["file"], row["kernel"], row["variant"], row["arch"]


def regressions(rows, saved):
    """What is worse than it was, in words."""
    before = {key(row): row for row in saved}
    for row in rows:
        label, old = " ".join(map(str, key(row))), before.get(key(row))
        if old is None:
            yield f"{label} is not in the saved table: run with --save"
            continue
        if row["spilled"] > old["spilled"]:
            yield f"{label} spills {row['spilled']} bytes, {old['spilled']} before"
        if row["registers"] > old["registers"]:
            yield f"{label} uses {row['registers']} registers, {old['registers']} before"
        if row["shared"] > old["shared"]:
            yield f"{label} uses {row['shared']} bytes of shared memory, {old['shared']} before"
        if lost := set(old["uses"]) - set(row["uses"]):
            yield f"{label} has lost: {', '.join(sorted(lost))}"


def saved_rows():
    """The rows of the saved table; none where NVRTC is another than it was made with."""
    path = RESULTS / "kernels.json"
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return saved["rows"] if saved.get("nvrtc") == version() else []


def version():
    """NVRTC's."""
    return ".".join(map(str, check(nvrtc.nvrtcVersion())))


def update(saved, jobs):
    """Compile those of ``jobs`` that are new or changed, file by file, and save with what is still true."""
    true = {(f, spelled(v), a, digest(f, v)) for f, v, a in everything()}
    rows = [r for r in saved if (r["file"], r["variant"], r["arch"], r.get("source")) in true]
    new = unsaved(jobs, rows)
    for file in sorted({job[0] for job in new}):
        rows += compiled([job for job in new if job[0] == file])
        save(sorted(rows, key=key))  # an interruption loses one file
    print(f"{len(new)} of {len(jobs)} compiled anew")
    return rows


def save(rows):
    """Write the table for programs and for people."""
    about = {"nvrtc": version(), "date": datetime.date.today().isoformat()}
    text = json.dumps({**about, "rows": rows}, indent=None, separators=(",", ":"))
    (RESULTS / "kernels.json").write_text(text.replace("},{", "},\n{") + "\n", encoding="utf-8")
    lines = [
        "# What the compiler makes of the kernels", "",
        f"NVRTC {version()}, {about['date']}, by profiling/kernel_table.py. Over the architectures "
        f"{', '.join(f'sm_{a}' for a in ARCHITECTURES)}: registers, the worst theoretical occupancy, the "
        "most that is spilled. Shared bytes with + do not count the dynamic ones.", "",
        "| kernel | variant | compiled for | threads | registers | spilled bytes | shared bytes | occupancy | machine code has |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    groups = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["variant"]), []).append(row)
    for (kernel, variant), of in groups.items():
        registers = sorted({row["registers"] for row in of})
        span = f"{registers[0]}-{registers[-1]}" if len(registers) > 1 else f"{registers[0]}"
        uses = ", ".join(sorted(set.union(*(set(row["uses"]) for row in of))))
        worst = min(row["occupancy"] for row in of)
        shared = f"{max(row['shared'] for row in of)}{'+' if of[0]['dynamic'] else ''}"
        archs = " ".join(str(row["arch"]) for row in of)
        spilled = max(row["spilled"] for row in of)
        cells = (kernel, variant, archs, of[0]["threads"], span, spilled, shared, f"{worst:.0%}", uses)  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    (RESULTS / "kernels.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def show(rows):
    """Print the rows."""
    for row in rows:
        print(f"{row['kernel']:36} {row['variant']:22} sm_{row['arch']:<4} {row['registers']:4} registers "
              f"{row['shared']:6} shared {row['spilled']:5} spilled {row['occupancy']:5.0%} "
              f"{', '.join(row['uses'])}")  # fmt: skip


def faults(saved):
    """Everything that is wrong with the saved table or with what is compiled now, in words."""
    stale = unsaved(sample(), saved)
    if stale:
        yield f"{len(stale)} variants are not in the saved table, {stale[0]} first: run make kernel-table"
        return
    yield from (f"{' '.join(map(str, key(row)))} spills" for row in saved if row["spilled"])
    yield from regressions(compiled(sample()), saved)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="*", default=ARCHITECTURES)
    parser.add_argument("--file", nargs="*", default=())
    parser.add_argument("--full", action="store_true", help="every variant for every architecture")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--save", action="store_true")
    what.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        found = list(faults(saved_rows()))
        sys.exit("\n".join(found) if found else 0)
    if arguments.save:
        rows = update(saved_rows(), everything() if arguments.full else sample())
    else:
        rows = compiled(everything(arguments.file, arguments.arch))
    if not arguments.save:
        show(rows)
    sys.exit("a kernel spills registers" if any(row["spilled"] for row in rows) else 0)


if __name__ == "__main__":
    main()
