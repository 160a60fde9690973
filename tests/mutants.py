"""The test of the tests: faulty variants of the kernels, which the suite must catch.

    python tests/mutants.py [--count 80] [--seed 0] [--file norm.cu ...] [--save]

Each mutant is one small change of one line: a barrier dropped, a bound off by one, a stride, a mask, a
shuffle changed... The tests of that kernel run on the emulated device with the changed copy
(``TINYTORCH_KERNELS``); a mutant that passes them all has survived. ``--save`` writes
profiling/results/mutants.md. Changes that alter nothing but speed, or nothing at all, are listed in
EQUIVALENT with the reason.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
KERNELS = TESTS.parent / "kernels"
RESULTS = TESTS.parent / "profiling" / "results"
# (name, what is looked for in a line of code, what takes its place)
RULES: list[tuple[str, str, str]] = [
    ("drop a block barrier", r"__syncthreads\(\);", ";"),
    ("drop a warp barrier", r"__syncwarp\(\);", ";"),
    ("drop a fence", r"__threadfence\(\);", ";"),
    ("wait for one copy fewer", r"copy_wait<0>\(\)", "copy_wait<1>()"),
    ("do not wait for copies", r"copy_wait<\w+>\(\);", ";"),
    ("bound one too far", r"(\w|\)) < (\w+)(?=[;)\s&?])", r"\1 <= \2"),
    ("bound one too near", r"(\w|\)) < (\w+)(?=[;)\s&?])", r"\1 < \2 - 1"),
    ("mask edge moved", r"(\w|\)) <= (\w+)", r"\1 < \2"),
    ("greater or equal", r"(\w|\)) >= (\w+)", r"\1 > \2"),
    ("start one late", r"= (lane|threadIdx\.x|first|begin);", r"= \1 + 1;"),
    ("shuffle by half", r"__shfl_xor_sync\(FULL_WARP, (\w+), (\w+)\)",
     r"__shfl_xor_sync(FULL_WARP, \1, \2 / 2)"),
    ("reduction begins late", r"step = 16;", "step = 8;"),
    ("forget to accumulate", r"(?<![<>=!+\-*/|&^]) \+= ", " = "),
    ("subtract instead", r"(\w|\)) \+ (\w+\b)(?!\()", r"\1 - \2"),
    ("add instead", r"(\w|\)|\]) - (\w+)", r"\1 + \2"),
    ("multiply wrongly", r"(\w|\)|\]) \* (\w+)", r"\1 + \2"),
    ("stride one longer", r"\+= (blockDim\.x|gridDim\.x|32|warps|stride)", r"+= \1 + 1"),
    ("wrong lane", r"& 31\b", "& 15"),
    ("wrong warp", r">> 5\b", ">> 4"),
    ("negate a condition", r"if \((\w+)\) ", r"if (!\1) "),
    ("and becomes or", r" && ", " || "),
    ("zero for minus infinity", r"-INFINITE", "0.0f"),
    ("skip the scale", r" \* scale\b", ""),
    ("maximum becomes minimum", r"fmaxf\(", "fminf("),
]  # fmt: skip
# Mutants that no test can catch: a part of the changed line, and why.
EQUIVALENT: list[tuple[str, str]] = []


@dataclass(frozen=True)
class Mutant:
    """One changed line of one file."""

    file: str
    line: int
    rule: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.rule}: `{self.before.strip()}` -> `{self.after.strip()}`"


def mutants(file: str) -> list[Mutant]:
    """Every mutant of a file that the rules make."""
    found = []
    for number, line in enumerate((KERNELS / file).read_text(encoding="utf-8").splitlines(), 1):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "template", "asm", "extern")):
            continue
        for rule, pattern, to in RULES:
            for match in re.finditer(pattern, code):
                changed = code[: match.start()] + match.expand(to) + code[match.end() :]
                if changed != code:
                    found.append(Mutant(file, number, rule, code, changed))
    return found


def equivalent(mutant: Mutant) -> str | None:
    """Why no test can catch it, if that is so."""
    return next((why for part, why in EQUIVALENT if part in str(mutant)), None)


def includers(file: str) -> list[str]:
    """The ``.cu`` files that a file is part of."""
    if file.endswith(".cu"):
        return [file]
    quoted = f'#include "{file}"'
    direct = [p.name for p in sorted(KERNELS.glob("*.cu*")) if quoted in p.read_text("utf-8")]
    return sorted({cu for name in direct for cu in includers(name)})


def tests_of(file: str) -> list[str]:
    """The pytest arguments that run what a file is part of: its operations, fastest first."""
    sys.path.insert(0, str(TESTS))
    from tinytorch_gpu import backend
    from tinytorch_gpu.core.op import OPS
    from tinytorch_gpu.cuda.launch import Source

    backend.load_makers("emulated")
    wanted, names, extra = includers(file), set(), set()
    for name, op in OPS.items():
        maker = op.makers.get("cuda")
        module = sys.modules[maker.forward.__module__] if maker else None
        sources = (
            {v.file for v in vars(module).values() if isinstance(v, Source)} if module else set()
        )
        if sources & set(wanted) or (
            module and f"{module.__name__.rpartition('.')[2]}.cu" in wanted
        ):
            names.add(name)
    for cu in wanted:
        stem = cu.removesuffix(".cu")
        extra |= {str(p) for p in TESTS.glob(f"test_cuda_{stem}*.py")}
    chosen = " or ".join(f'"does_what_its_reference_does[{name}:"' for name in sorted(names))
    first = [str(TESTS / "test_op_makers_emulated.py")] if names else []
    return [*first, *sorted(extra), *(["-k", _keywords(names, extra)] if chosen else [])]


def _keywords(names: set[str], extra: set[str]) -> str:
    """pytest's -k takes words: the names of the operations, or anything in the extra files."""
    ours = " or ".join(sorted(names))
    files = " or ".join(Path(f).stem for f in sorted(extra))
    return f"(test_op_makers_emulated and does_what and ({ours}))" + (
        f" or {files}" if files else ""
    )


def caught(mutant: Mutant, arguments: list[str], limit: float, cache: str) -> tuple[bool, float]:
    """Whether the tests fail with this mutant (a hang counts), and the seconds it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(KERNELS, copy)
        path = copy / mutant.file
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[mutant.line - 1] = mutant.after
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
        environment = {**os.environ, "TINYTORCH_KERNELS": str(copy), "XDG_CACHE_HOME": cache}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True,
                                  timeout=limit, check=False, cwd=TESTS.parent)  # fmt: skip
            failed = done.returncode == 1
            if done.returncode not in (0, 1):
                # A source that no longer compiles while tests are collected is caught as well.
                failed = "CompilerError" in done.stdout + done.stderr
                if not failed:
                    raise RuntimeError(
                        f"{mutant}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
                    )
        except subprocess.TimeoutExpired:
            failed = True
    return failed, time.monotonic() - began


def chosen(files: list[str], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants spread over the files and the rules, the same for the same seed."""
    draw = random.Random(seed)
    groups: dict[tuple[str, str], list[Mutant]] = {}
    for file in files:
        for mutant in mutants(file):
            if equivalent(mutant) is None:
                groups.setdefault((file, mutant.rule), []).append(mutant)
    picked: list[Mutant] = []
    keys = sorted(groups)
    draw.shuffle(keys)
    while keys and len(picked) < count:
        for key in list(keys):
            picked.append(groups[key].pop(draw.randrange(len(groups[key]))))
            if not groups[key]:
                keys.remove(key)
            if len(picked) == count:
                break
    return picked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", nargs="*")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one mutant")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    files = arguments.file or sorted(p.name for p in KERNELS.glob("*.cu*"))
    files = [file for file in files if tests_of(file)]
    tests = {file: tests_of(file) for file in files}
    picked = chosen(files, arguments.count, arguments.seed)
    survivors = []
    with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory() as cache:
        runs = pool.map(lambda m: (m, *caught(m, tests[m.file], arguments.limit, cache)), picked)
        for mutant, failed, seconds in runs:
            print(f"{'caught  ' if failed else 'SURVIVED'} {seconds:5.0f} s  {mutant}", flush=True)
            if not failed:
                survivors.append(mutant)
    share = 1 - len(survivors) / max(1, len(picked))
    summary = f"{len(picked) - len(survivors)} of {len(picked)} mutants caught ({share:.1%})"
    print(summary)
    if arguments.save:
        lines = ["# Mutants", "", f"{summary}, seed {arguments.seed}, by tests/mutants.py.", ""]
        lines += ["Survivors:", "", *(f"- {m}" for m in survivors)] if survivors else []
        (RESULTS / "mutants.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
