"""What speculation gains on a CPU: the same greedy text with and without it, in turn.

SmolLM2-135M answers requests of three kinds: open talk, new code, and code to be changed, which repeats much of
what it has read. Prompt lookup is tried on the shipped 4-bit file; and in float32, where a token costs most, the 4-bit
file drafts for its own float32 weights. The text is that of the model alone: up to the rounding of passes over
several tokens, and how long it stays the same is in the table.

    python profiling/bench_speculation.py            # print the table
    python profiling/bench_speculation.py --save     # also write results/speculation.md
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench_generate import machine

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "speculation.md"
CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
"""
REQUESTS = {
    "open talk": "Why is the sky blue? Explain it to a child, and tell a little story about it.",
    "new code": "Write a Python class for a queue with push, pop and length, with a docstring for each.",
    "code to change": f"Repeat this code, with the name amount changed to money:\n\n{CODE}",
}


def timed(model: Any, ids: list[int], count: int, speculate: Any) -> tuple[float, list[int]]:
    """Seconds for the text behind a prompt's first token, and the text."""
    steps = model.generate([ids], count, temperature=0, stream=True, speculate=speculate)
    made = [int(next(steps).tokens[0])]
    start = time.perf_counter()
    made += [int(step.tokens[0]) for step in steps]
    return time.perf_counter() - start, made


def same(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def measure(name: str, model: Any, make: Any, given: argparse.Namespace, encode: Any) -> list[str]:
    """A line of the table for each request."""
    lines = []
    for request, text in REQUESTS.items():
        ids, ratios, guide = encode(text), [], make()
        for turn in range(given.windows + 1):
            alone, plain = timed(model, ids, given.tokens, None)
            helped, made = timed(model, ids, given.tokens, guide)
            if turn:  # the first is a warm-up
                ratios.append(alone / helped)
        share = guide.accepted / guide.drafted if guide.drafted else 0.0
        lines.append(
            f"| {name} | {request} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} "
            f"| {share:.0%} of {guide.drafted} | {same(plain, made)} of {len(plain)} "
            f"| {(given.tokens - 1) / alone:.0f} |"
        )
        print(lines[-1], file=sys.stderr)
    return lines


def table(given: argparse.Namespace) -> str:
    """All lines, as Markdown."""
    import numpy

    import tinytorch_gpu
    from tinytorch_gpu.checkpoint import open_model
    from tinytorch_gpu.generation import DraftModel, Lookup

    file = open_model("smollm2")
    tokenizer = file.tokenizer()

    def encode(text: str) -> list[int]:
        asked = tokenizer.apply_chat_template([{"role": "user", "content": text}])
        return tokenizer.encode(asked, add_special_tokens=False)

    small, exact = file.load("cpu", "stored"), file.load("cpu", "float32")
    lines = measure("lookup, 4 bit", small, Lookup, given, encode)
    lines += measure("lookup, float32", exact, Lookup, given, encode)
    lines += measure("4 bit drafts for float32", exact, lambda: DraftModel(small), given, encode)
    return "\n".join([
        "# What speculation gains", "",
        f"SmolLM2-135M on {machine()}, {given.threads} threads, {time.strftime('%Y-%m-%d')}, {given.tokens} tokens, "
        f"greedy; medians of {given.windows} pairs that ran in turn, by profiling/bench_speculation.py. A ratio above 1: "
        "faster with speculation.", "",
        "| | request | ratio | pairs | drafted tokens that came true | same text | tokens/s alone |",
        "|---|---|---|---|---|---|---|", *lines, "",
        f"Versions: tinytorch_gpu {tinytorch_gpu.__version__}, NumPy {numpy.__version__}.",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--windows", type=int, default=5, help="counted pairs of each request")
    parser.add_argument("--tokens", type=int, default=200, help="generated in a window")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--save", action="store_true", help="write results/speculation.md")
    given = parser.parse_args()
    os.environ["TINYTORCH_THREADS"] = str(given.threads)
    text = table(given)
    print(text)
    if given.save:
        RESULT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
