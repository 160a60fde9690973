"""The test of the tests: faulty variants of the kernels, which the suite must catch.

    python tests/mutants.py [--count 160] [--seed 0] [--file norm.cu ...] [--rule NAME] [--resume FILE] [--save]

Each mutant is one small change of one line (``mutant_rules.py``): a barrier dropped, a bound off by one, a
stride, a mask, a shuffle changed... The tests of that kernel run on the emulated device with the changed
copy (``TINYTORCH_KERNELS``); a mutant that passes them all has survived, one that does not compile is none.
With ``--resume`` what was found is kept in a file: it counts, and is not tried again while the kernels (and of
survivors, the tests) are the same. ``--save`` writes profiling/results/mutants.md. Changes that alter nothing but speed, or
nothing at all, are listed in EQUIVALENT with the reason. Needs a system that forks.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutant_rules import EQUIVALENT, KERNELS, Mutant, in_turn, includers

TESTS = Path(__file__).resolve().parent
RESULTS = TESTS.parent / "profiling" / "results"
# Files with makers that test_cuda_fused.py runs beside the operations.
FUSED = ("activation.cu", "embedding.cu", "loss.cu", "norm.cu", "optimizer.cu", "sampling.cu")
STILLBORN = "does not compile"
_QUIET = ["-q", "-p", "no:cacheprovider"]


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
    return [first, *([extra] if extra else []), rest]


@dataclass
class Run:
    """The tests of a mutant, in a process that was forked for it."""

    mutant: Mutant
    process: int
    folder: Path
    began: float

    def ended(self) -> str | None:
        """By what the tests fail with it ("" for not at all); None while they run. A hang counts."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        if not done:
            return None
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return ""
        if code == -signal.SIGXCPU:
            return "hangs"
        if code < 0:
            return f"dies of signal {-code}"
        text = (self.folder / "output").read_text(encoding="utf-8", errors="replace")
        said = [line for line in text.splitlines() if line.startswith("E  ")]
        if any("CompilerError" in line for line in said):
            return STILLBORN
        if code != 1:
            raise RuntimeError(f"{self.mutant}: pytest ended with {code}\n{text[-2000:]}")
        return said[0][1:].strip()[:100] if said else "fails"


def start(mutant: Mutant, stages: list[list[str]], cache: str, limit: int) -> Run:
    """Fork a process that runs the stages with the mutant until one fails, with so many seconds of a processor."""
    folder = Path(tempfile.mkdtemp(prefix="mutant"))
    copy = folder / "kernels"
    shutil.copytree(KERNELS, copy)
    path = copy / mutant.file
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[mutant.line - 1] = mutant.after
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    process = os.fork()
    if process:
        return Run(mutant, process, folder, time.monotonic())
    code: int = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        with (folder / "output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ.update(TINYTORCH_KERNELS=str(copy), XDG_CACHE_HOME=cache)
        for stage in stages:
            code = int(pytest.main(["-x", *_QUIET, *stage]))
            if code:
                break
        sys.stdout.flush()
    finally:
        os._exit(code)


def prepare(stages: dict[str, list[list[str]]]) -> None:
    """Import what the tests import, once for all forks; nothing of a kernel is read meanwhile."""
    os.chdir(TESTS.parent)
    files = sorted(
        {a for of in stages.values() for stage in of for a in stage if a.endswith(".py")}
    )
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        code = pytest.main(["--collect-only", *_QUIET, *files])
    if code:
        raise RuntimeError(f"the tests cannot be collected: pytest ended with {code}")


class Ledger:
    """What earlier runs found. A caught mutant stays caught; a survivor is tried again by new tests."""

    def __init__(self, path: Path | None):
        self.path = path
        known = path is not None and path.exists()
        self.found = json.loads(path.read_text(encoding="utf-8")) if known and path else {}
        texts = [p.read_bytes() for p in sorted(TESTS.glob("*.py")) if "mutant" not in p.name]
        self.tests = hashlib.sha256(b"".join(texts)).hexdigest()[:24]

    def get(self, mutant: Mutant) -> str | None:
        """By what it was caught, "" if it survived these very tests, None if nothing is known."""
        how, tests = self.found.get(mutant.key(), (None, None))
        return how if how or tests == self.tests else None

    def put(self, mutant: Mutant, how: str) -> None:
        self.found[mutant.key()] = (how, self.tests)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=0), encoding="utf-8")


def like(mutants: list[Mutant], texts: list[str]) -> list[Mutant]:
    """The first mutant for each of ``texts``: a file and, after a space, a part of what is said of it."""
    found = []
    for text in texts:
        file, _, part = text.partition(" ")
        first = next((m for m in mutants if m.file == file and part in str(m)), None)
        if first is None:
            raise SystemExit(f"no mutant of {file} is like {part!r}: the kernel has changed")
        found.append(first)
    return found


def tried(
    files: list[str], arguments: argparse.Namespace, ledger: Ledger
) -> Iterator[tuple[Mutant, str, float]]:
    """Mutants, by what each was caught, and the seconds it took, as they end."""
    stages = {file: stages_of(file) for file in files}
    in_order = in_turn([file for file in files if stages[file]], arguments.seed, arguments.rule)
    # Whatever was tried before counts, caught or not.
    queue = iter(sorted(in_order, key=lambda m: m.key() not in ledger.found))
    if arguments.like:
        queue = iter(like(list(queue), arguments.like))
    left, running = arguments.count, list[Run]()
    prepare(stages)
    with tempfile.TemporaryDirectory() as cache:
        while left > 0 or running:
            while len(running) < min(arguments.workers, left):
                mutant = next(queue, None)
                if mutant is None:
                    left = len(running)
                    break
                how = ledger.get(mutant)
                if how is None:
                    running.append(start(mutant, stages[mutant.file], cache, arguments.limit))
                elif how != STILLBORN:
                    left -= 1
                    yield mutant, how, 0.0
            for run in list(running):
                how = run.ended()
                if how is None:
                    continue
                running.remove(run)
                shutil.rmtree(run.folder, ignore_errors=True)
                ledger.put(run.mutant, how)
                if how != STILLBORN:
                    left -= 1
                    yield run.mutant, how, time.monotonic() - run.began
            time.sleep(0.05)


def report(found: list[tuple[Mutant, str]], seed: int) -> str:
    """The page of results: what was caught and by what, and what was not."""
    kinds: dict[str, list[bool]] = {}
    files: dict[str, list[bool]] = {}
    for mutant, how in found:
        kinds.setdefault(mutant.rule, []).append(bool(how))
        files.setdefault(mutant.file, []).append(bool(how))
    lost = [mutant for mutant, how in found if not how]
    lines = [
        "# Mutants: is a broken kernel noticed?", "",
        f"{len(found) - len(lost)} of {len(found)} caught ({1 - len(lost) / max(1, len(found)):.1%}), "
        f"{datetime.date.today().isoformat()}, seed {seed}, by tests/mutants.py. "
        "Cases were added for what earlier runs missed: this is the suite as it is now, not a first try.",
    ]  # fmt: skip
    for title, groups in (("change", kinds), ("file", files)):
        lines += ["", f"| {title} | made | caught |", "|---|---:|---:|"]
        lines += [f"| {of} | {len(hits)} | {sum(hits)} |" for of, hits in sorted(groups.items())]
    lines += ["", "Survivors:", "", *(f"- {mutant}" for mutant in lost)] if lost else []
    lines += ["", "Not made, since they change nothing that a result shows:", ""]
    lines += [f"- `{part}`: {why}" for part, why in EQUIVALENT]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", nargs="*")
    parser.add_argument("--rule", default="", help="a part of the names of the rules to use")
    parser.add_argument("--like", nargs="*", metavar="'FILE TEXT'", help="only these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, default=600, help="seconds of a processor for a mutant's tests"
    )
    parser.add_argument("--resume", type=Path, help="a file that remembers what was found")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    files = arguments.file or sorted(p.name for p in KERNELS.glob("*.cu*"))
    found = []
    for mutant, how, seconds in tried(files, arguments, Ledger(arguments.resume)):
        word = "caught  " if how else "SURVIVED"
        print(f"{word} {seconds:5.0f} s  {mutant}  {how}", flush=True)
        found.append((mutant, how))
    share = sum(bool(how) for _, how in found) / max(1, len(found))
    print(f"{share:.1%} of {len(found)} mutants caught")
    if arguments.save:
        (RESULTS / "mutants.md").write_text(report(found, arguments.seed), encoding="utf-8")
    sys.exit(share < 0.95)


if __name__ == "__main__":
    main()
