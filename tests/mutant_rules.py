"""How to break a kernel: small changes of one line, of the kinds that happen, and those that change nothing."""

import functools
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
# What the rules call a value: a name, a member, an element.
_VALUE = r"[A-Za-z_][\w.]*(?:\[[\w.]+\])*"
# (name, what is looked for in a line of code, what takes its place)
RULES: list[tuple[str, str, str]] = [
    # Threads that wait for each other.
    ("drop a block barrier", r"__syncthreads\(\);", ";"),
    ("drop a warp barrier", r"__syncwarp\(\);", ";"),
    ("drop a fence", r"__threadfence\(\);", ";"),
    ("wait for one copy fewer", r"copy_wait<0>\(\)", "copy_wait<1>()"),
    ("do not wait for copies", r"copy_wait<[^>]*>\(\);", ";"),
    ("do not close a group of copies", r"copy_commit\(\);", ";"),
    ("add without an atomic", r"atomicAdd\(&?([\w.]+(?:\[[^\]]*\])?), (\w+)\)", r"((\1 += \2) - \2)"),
    ("do not count back to zero", r"atomicInc\((.*), \(unsigned\)splits - 1\)", r"atomicAdd(\1, 1u)"),
    # Bounds and loops.
    ("bound one too far", r"(\w|\)) < (\w+)(?=[;)\s&?])", r"\1 <= \2"),
    ("bound one too near", r"(\w|\)) < (\w+)(?=[;)\s&?])", r"\1 < \2 - 1"),
    ("mask edge moved", r"(\w|\)) <= (\w+)", r"\1 < \2"),
    ("greater or equal", r"(\w|\)) >= (\w+)", r"\1 > \2"),
    ("skip the tail", r"; (\w+) < ([\w.]+); \1 \+= ([\w.]+(?: \* [\w.]+)*)\)", r"; \1 + \3 <= \2; \1 += \3)"),
    ("start one late", r"= (lane|threadIdx\.x|first|begin);", r"= \1 + 1;"),
    ("stride one longer", r"\+= (blockDim\.x|gridDim\.x|32|warps|stride)", r"+= \1 + 1"),
    ("drop an early exit", r"\) (?:continue|return|break);", ") ;"),
    ("clamp dropped", r"\b(?:min|max)\(([^(),]+), ([^(),]+)\)", r"(\1)"),
    ("clamp of the other side", r"\b(?:min|max)\(([^(),]+), ([^(),]+)\)", r"(\2)"),
    # Conditions.
    ("negate a condition", r"if \((\w+)\) ", r"if (!\1) "),
    ("drop a negation", r"if \(!(\w+)\)", r"if (\1)"),
    ("and becomes or", r" && ", " || "),
    ("or becomes and", r" \|\| ", " && "),
    ("equal becomes unequal", r" == ", " != "),
    ("always the first choice", r"(= |return )([^=?;]*[^=?; ]) \? ([^:;?]+) : ([^;?]+);", r"\1\3;"),
    ("always the second choice", r"(= |return )([^=?;]*[^=?; ]) \? ([^:;?]+) : ([^;?]+);", r"\1\4;"),
    # Places.
    ("wrong lane", r"& 31\b", "& 15"),
    ("wrong warp", r">> 5\b", ">> 4"),
    ("another axis of the grid", r"(blockIdx|threadIdx)\.x", r"\1.y"),
    ("the first row of the batch for all", r"\[batch\]", "[0]"),
    ("always the first row", r"\b(row|batch) \* ", "0 * "),
    ("no group of heads", r" / group\b", ""),
    ("divide no more", rf" / ({_VALUE})", ""),
    ("remainder dropped", rf" % ({_VALUE})", ""),
    ("the other stage", r" \^ 1\b", ""),
    ("shift by one less", r"(>>|<<) ([2-9]\d?)\b", r"\1 (\2 - 1)"),
    # Sums and shuffles.
    ("shuffle by half", r"__shfl_xor_sync\(FULL_WARP, ([^;]+), (\w+)\)", r"__shfl_xor_sync(FULL_WARP, \1, \2 / 2)"),
    ("shuffle the other way", r"__shfl_up_sync", "__shfl_down_sync"),
    ("reduction begins late", r"step = 16;", "step = 8;"),
    ("forget to accumulate", r"(?<![<>=!+\-*/|&^]) \+= (?=[^();]*(?:\([^()]*\)[^();]*)*;)", " = "),
    ("forget the sum so far", rf"fmaf\(([^;]+), ({_VALUE})\);", r"fmaf(\1, 0.0f);"),
    ("subtract instead", r"(\w|\)|\]) \+ (\w+\b)(?!\()", r"\1 - \2"),
    ("add instead", r"(\w|\)|\]) - (\w+)", r"\1 + \2"),
    ("multiply wrongly", r"(\w|\)|\]) \* (\w+)", r"\1 + \2"),
    # Arithmetic.
    ("skip the scale", r" \* (?:\w+\.)?scale\b", ""),
    ("scale by one", r"\*= (?:\w+\.)?(?:scale|kept)\b", "*= 1.0f"),
    ("sign dropped", r"(?:\w+\.)?sign \* ", ""),
    ("no epsilon", r" \+ (?:\w+\.)?eps\b", ""),
    ("epsilon outside the root", r"sqrtf\((.*) \+ ((?:\w+\.)?eps)\)", r"(sqrtf(\1) + \2)"),
    ("epsilon inside the root", r"\(sqrtf\(([^()]+)\) \+ eps\)", r"sqrtf(\1 + eps)"),
    ("no bias in the last output", r"if \(after\.bias\)", "if (after.bias && j + 1 < outs)"),
    ("no logarithm of the sum", r" \+ logf\(\w+\)", ""),
    ("the other base", r"exp2f\(", "expf("),
    ("maximum becomes minimum", r"fmaxf\(", "fminf("),
    ("zero for minus infinity", r"-INFINITE", "0.0f"),
    ("zero for infinity", r"(?<!-)\bINFINITE\b", "0.0f"),
    ("zero for NaN", r"\bNOT_A_NUMBER\b", "0.0f"),
    ("blind to NaN", r"(\b\w+\b) != \1\b", "false"),
    ("another constant", r"0\.044715f", "0.0447f"),
    ("half a constant", r"\b0\.5f", "0.25f"),
    ("another word of the counter", r"word_of\((\w+), (\w)\)", r"word_of(\1, \2 ^ 1)"),
    ("words of the counter swapped", r"\bc\.z\b", "c.w"),
    ("a round fewer", r"round < 10", "round < 9"),
    ("another side of a cast", r"\? 0\.0f : ", "? 1.0f : "),
]  # fmt: skip
# Mutants that no test can catch: a part of the changed line, and why.
EQUIVALENT: list[tuple[str, str]] = [
    (
        "return fits && column + n < width",
        "the last chunk of a row goes element by element: slower only",
    ),
    ("whole = first + NEIGHBOURS < count", "the last chunk goes element by element: slower only"),
    (
        "? 1.0f : exp2f(top - highest)",
        "a split that saw no key has sums of zero, whatever they are multiplied by",
    ),
    ("bool whole = width == 0", "every row goes element by element: slower only"),
    ("/ most) + TILE - 1) * TILE", "splits are longer: slower only"),
    ("(a == b && i <= j)", "no place is compared with itself"),
    ("size = (max(least, (seen + most - 1)) + TILE", "a row is one split: slower only"),
    ("CHUNKS = ELEMENTS / N, SUMS = 2;", "one more sum, of which nothing is made"),
    ("na && (!nb || i <= j)", "no place is compared with itself"),
    ("i <= NEIGHBOURS; i++) {", "an element that is not `present` is not written"),
    ("const int CHUNKS = ELEMENTS;", "more registers than a row has elements: slower only"),
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
    ("over = first + OTHER > query_stop", "one more tile of queries, all hidden: slower only"),
    ("(seen + most + 1) / most", "splits are otherwise long, and still cover the keys"),
    ("stop < end && !has_fresh", "the first keys are read a little later: slower only"),
    ("turned_heads > heads), turning", "threads for parts that no turned head has: they leave"),
    ("4 * blockDim.x / (size)", "a head of no elements is never launched"),
    ("4 * blockDim.x / (1u)", "a block takes more tokens at a time"),
    ("(first + step) < s.outs) ;", "sums are written at every turn: slower only"),
    (
        "if (place.group < 32) return;",
        "the sum of a warp goes through shared memory too: slower only",
    ),
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

    def key(self) -> str:
        """The same for the same change of the same kernels, whatever else has moved."""
        texts = "".join(map(_with_headers, includers(self.file)))
        return hashlib.sha256(f"{self}\0{texts}".encode()).hexdigest()[:24]


@functools.cache
def _with_headers(file: str) -> str:
    text = (KERNELS / file).read_text(encoding="utf-8")
    return text + "".join(map(_with_headers, re.findall(r'#include "([\w.]+)"', text)))


def mutants(file: str) -> list[Mutant]:
    """Every mutant of a file that the rules make."""
    found: dict[tuple[int, str], Mutant] = {}  # two rules may make the same
    for number, line in enumerate((KERNELS / file).read_text(encoding="utf-8").splitlines(), 1):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "template", "asm", "extern")):
            continue
        for rule, pattern, to in RULES:
            for match in re.finditer(pattern, code):
                changed = code[: match.start()] + match.expand(to) + code[match.end() :]
                if changed != code:
                    mutant = Mutant(file, number, rule, code, changed)
                    found.setdefault((number, changed), mutant)
    return list(found.values())


def equivalent(mutant: Mutant) -> str | None:
    """Why no test can catch it, if that is so."""
    return next((why for part, why in EQUIVALENT if part in str(mutant)), None)


@functools.cache
def includers(file: str) -> list[str]:
    """The ``.cu`` files that a file is part of."""
    if file.endswith(".cu"):
        return [file]
    quoted = f'#include "{file}"'
    direct = [p.name for p in sorted(KERNELS.glob("*.cu*")) if quoted in p.read_text("utf-8")]
    return sorted({cu for name in direct for cu in includers(name)})


def in_turn(files: list[str], seed: int, rule: str = "") -> Iterator[Mutant]:
    """All mutants but the equivalent ones, one of each file and rule before the next of any; the same
    order for the same seed."""
    draw = random.Random(seed)
    groups: dict[tuple[str, str], list[Mutant]] = {}
    for file in files:
        for mutant in mutants(file):
            if rule in mutant.rule and equivalent(mutant) is None:
                groups.setdefault((file, mutant.rule), []).append(mutant)
    keys = sorted(groups)
    draw.shuffle(keys)
    while keys:
        for key in list(keys):
            yield groups[key].pop(draw.randrange(len(groups[key])))
            if not groups[key]:
                keys.remove(key)
