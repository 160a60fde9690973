"""The test of the tests: faulty variants of the kernels, which the suite must catch.

    python tests/mutants.py [--count 80] [--seed 0] [--file norm.cu ...] [--save]

Each mutant is one small change of one line: a barrier dropped, a bound off by one, a stride, a mask, a
shuffle changed... The tests of that kernel run on the emulated device with the changed copy
(``TINYTORCH_KERNELS``); a mutant that passes them all has survived. ``--save`` writes
profiling/results/mutants.md. Changes that alter nothing but speed, or nothing at all, are listed in
EQUIVALENT with the reason.
"""

import argparse
import datetime
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
# Files with makers that test_cuda_fused.py runs beside the operations.
FUSED = ("activation.cu", "embedding.cu", "loss.cu", "norm.cu", "optimizer.cu", "sampling.cu")
# Mutants that no test can catch: a part of the changed line, and why.
EQUIVALENT: list[tuple[str, str]] = [
    (
        "return fits && column + n < width",
        "the last chunk of a row goes element by element: slower only",
    ),
    ("if (column > s.width) break;", "one more step that multiplies zeros"),
    ("i += stride + 1) out[i] =", "a tail is shorter than a stride: each thread makes one turn"),
    ("uniform(word_of(words, j)) > p", "no uniform number equals a p of a few digits"),
    ("start < goal", "the number drawn would have to fall exactly on a bound of a 60-bit sum"),
    ("goal <= reached + sum", "the same"),
    (
        "(float)(bits >> 9) - 0.5f",
        "one in eight million draws is negative, the others move by a last digit",
    ),
    ("span = (classes + warps + 1) / warps", "warps share a row otherwise, and still cover it"),
]


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


def operations(files: list[str]) -> set[str]:
    """The operations whose kernels are in one of ``files``."""
    from tinytorch_gpu import devices
    from tinytorch_gpu.core.op import OPS
    from tinytorch_gpu.cuda.launch import Source

    devices.load_makers("emulated")
    names = set()
    for name, op in OPS.items():
        maker = next(iter(op.makers.get("cuda", ())), None)
        if maker is None:
            continue
        module = sys.modules[maker.forward.__module__]
        of = {v.file for v in vars(module).values() if isinstance(v, Source)}
        if of & set(files) or f"{module.__name__.rpartition('.')[2]}.cu" in files:
            names.add(name)
    return names


def stages_of(file: str) -> list[list[str]]:
    """The arguments of one pytest run after another: first the few variants in float32, which catch
    most, then all that runs what the file is part of."""
    wanted = includers(file)
    ours = " or ".join(sorted(operations(wanted)))
    extra = sorted(str(p) for cu in wanted for p in TESTS.glob(f"test_cuda_{Path(cu).stem}*.py"))
    if any(cu in FUSED for cu in wanted):
        extra.append(str(TESTS / "test_cuda_fused.py"))
    if not ours:
        return [extra] if extra else []
    table, odd = str(TESTS / "test_op_makers_emulated.py"), str(TESTS / "test_misaligned.py")
    same = f"does_what_its_reference and ({ours})"
    first = [table, "-k", f"{same} and float32 and not float16"]
    rest = [table, odd, "-k", f"({same}) or (odd_address and ({ours}))"]
    return [first, rest, *([extra] if extra else [])]


def caught(mutant: Mutant, stages: list[list[str]], limit: float, cache: str) -> tuple[str, float]:
    """By what the tests fail with this mutant ("" for not at all), and the seconds it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(KERNELS, copy)
        path = copy / mutant.file
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[mutant.line - 1] = mutant.after
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        environment = {**os.environ, "TINYTORCH_KERNELS": str(copy), "XDG_CACHE_HOME": cache}
        how = ""
        for stage in stages:
            how = how or _failure(mutant, stage, environment, limit)
    return how, time.monotonic() - began


def _failure(
    mutant: Mutant, arguments: list[str], environment: dict[str, str], limit: float
) -> str:
    """The error that ends one pytest run, "" if it passes. A hang counts, and what does not compile."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              timeout=limit, check=False, cwd=TESTS.parent)  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"dies of signal {-done.returncode}"
    said = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
    if done.returncode == 1 or "CompilerError" in done.stdout + done.stderr:
        return said[0][1:].strip()[:100] if said else "fails"
    raise RuntimeError(f"{mutant}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")


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


def report(found: list[tuple[Mutant, str]], seed: int) -> str:
    """The page of results: what was caught and by what, and what was not."""
    kinds: dict[str, list[bool]] = {}
    for mutant, how in found:
        kinds.setdefault(mutant.rule, []).append(bool(how))
    lost = [mutant for mutant, how in found if not how]
    lines = [
        "# Mutants: is a broken kernel noticed?", "",
        f"{len(found) - len(lost)} of {len(found)} caught ({1 - len(lost) / max(1, len(found)):.1%}), "
        f"{datetime.date.today().isoformat()}, seed {seed}, by tests/mutants.py.", "",
        "| change | made | caught |", "|---|---:|---:|",
        *(f"| {kind} | {len(hits)} | {sum(hits)} |" for kind, hits in sorted(kinds.items())), "",
    ]  # fmt: skip
    lines += ["Survivors:", "", *(f"- {mutant}" for mutant in lost), ""] if lost else []
    lines += ["Not made, since they change nothing that a result shows:", ""]
    lines += [f"- `{part}`: {why}" for part, why in EQUIVALENT]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", nargs="*")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one stage of tests")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    files = arguments.file or sorted(p.name for p in KERNELS.glob("*.cu*"))
    stages = {file: stages_of(file) for file in files}
    picked = chosen([file for file in files if stages[file]], arguments.count, arguments.seed)
    found = []
    with ThreadPoolExecutor(2) as pool, tempfile.TemporaryDirectory() as cache:
        runs = pool.map(lambda m: (m, *caught(m, stages[m.file], arguments.limit, cache)), picked)
        for mutant, how, seconds in runs:
            print(
                f"{'caught  ' if how else 'SURVIVED'} {seconds:5.0f} s  {mutant}  {how}", flush=True
            )
            found.append((mutant, how))
    share = sum(bool(how) for _, how in found) / max(1, len(found))
    print(f"{share:.1%} of {len(found)} mutants caught")
    if arguments.save:
        (RESULTS / "mutants.md").write_text(report(found, arguments.seed), encoding="utf-8")
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
