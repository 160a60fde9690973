"""What norms and residuals are for: gradients by depth, and a short training, with and without them.

Models of one width and several depths differ in one thing: a norm before each part, after it, or none, and
whether a part is added to its input or takes its place. Measured are the length of the gradient of each
block's parameters before the first step, and the loss over the steps of a short training without warm-up or
clipping, on the prose that comes with Python.

    python profiling/depth_study.py            # measure, and print the table
    python profiling/depth_study.py --save     # also write results/depth.json, results/depth.png and the docs
"""

import argparse
import datetime
import itertools
import json
import math
import pydoc_data.topics
from pathlib import Path
from typing import Any

import numpy as np
from bench_generate import machine

import tinytorch_gpu
from tinytorch_gpu import Transformer, TransformerConfig
from tinytorch_gpu.training import AdamW, CrossEntropyLoss

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "training.md"
DEPTHS = (4, 16, 48)
WIDTH, HEADS, LENGTH, BATCH, SEEDS = 48, 4, 16, 8, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"pre_norm": False},
    "no norm": {"norm": "none"},
    "norm, no residual": {"residual": False},
    "neither": {"norm": "none", "residual": False},
}
WARMED = "post-norm, warm-up"
COLOURS = dict(
    zip(VARIANTS, ("tab:green", "tab:blue", "tab:red", "tab:orange", "tab:gray"), strict=True)
)


def text() -> tuple[np.ndarray, int]:
    """The prose as ids of its characters, and how many characters there are."""
    prose = "\n".join(pydoc_data.topics.topics.values())
    characters, ids = np.unique(list(prose), return_inverse=True)
    return ids, len(characters)


def model_of(variant: str, depth: int, vocab: int, seed: int) -> Transformer:
    """Weights drawn so that each linear map keeps the size of what goes through it (the course's way)."""
    config = TransformerConfig(
        vocab, WIDTH, HEADS, depth, 4 * WIDTH, LENGTH, position="learned", activation="relu", qkv_bias=True,
        out_bias=True, **VARIANTS[variant],
    )  # fmt: skip
    return Transformer.from_config(config, device="cpu", seed=seed)


def batch(ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Windows at random places: (inputs, next tokens), each (BATCH, LENGTH)."""
    starts = random.integers(0, len(ids) - LENGTH - 1, BATCH)
    rows = np.stack([ids[s : s + LENGTH + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


def gradient_norms(variant: str, depth: int, ids: np.ndarray, vocab: int) -> list[float]:
    """The length of the gradient of each block's parameters, first block first: the geometric mean over
    SEEDS models before their first step."""
    found = []
    for seed in range(SEEDS):
        model = model_of(variant, depth, vocab, seed)
        inputs, targets = batch(ids, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            CrossEntropyLoss()(model(inputs), targets).backward()
            found.append([_length(block) for block in model.transformer_blocks])
    return np.exp(np.mean(np.log(np.maximum(found, 1e-300)), axis=0)).tolist()


def _length(block: Any) -> float:
    """Squares are summed in float64: of what is tiny, float32 would lose them."""
    squares = (
        np.square(p.grad.numpy(), dtype=np.float64).sum()
        for p in block.parameters()
        if p.grad is not None
    )
    return math.sqrt(sum(squares))


def losses(
    variant: str, depth: int, ids: np.ndarray, vocab: int, steps: int, warmup: int
) -> list[float]:
    """The loss of each step of AdamW at 1e-3, up to the first that is not finite."""
    model, random = model_of(variant, depth, vocab, 0), np.random.default_rng(1)
    optimizer, criterion, found = AdamW(model.parameters(), lr=1e-3), CrossEntropyLoss(), []
    for step in range(steps):
        optimizer.lr = 1e-3 * min(1.0, (step + 1) / max(warmup, 1))
        inputs, targets = batch(ids, random)
        with np.errstate(all="ignore"):
            loss = criterion(model(inputs), targets)
            value = loss.item()
            if not math.isfinite(value):
                break
            found.append(value)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
    return found


def measure(steps: int) -> dict[str, Any]:
    """Everything, by variant and depth."""
    ids, vocab = text()
    made: dict[str, Any] = {
        "setting": f"width {WIDTH}, {HEADS} heads, {BATCH} windows of {LENGTH} characters, AdamW 1e-3 without "
                   "clipping, float32",
        "steps": steps, "uniform": math.log(vocab), "machine": machine(),
        "date": datetime.date.today().isoformat(), "gradients": {}, "losses": {},
        "versions": {"tinytorch_gpu": tinytorch_gpu.__version__, "NumPy": np.__version__},
    }  # fmt: skip
    for variant in VARIANTS:
        norms = {str(d): gradient_norms(variant, d, ids, vocab) for d in DEPTHS}
        made["gradients"][variant] = norms
    runs = [(name, name, 0) for name in VARIANTS] + [(WARMED, "post-norm", steps // 3)]
    for depth, (name, variant, warmup) in itertools.product(DEPTHS, runs):
        found = losses(variant, depth, ids, vocab, steps, warmup)
        made["losses"].setdefault(name, {})[str(depth)] = found
        print(f"{depth} layers, {name}: {end(found):.3f}", flush=True)
    return made


def end(found: list[float]) -> float:
    """The mean loss of the last twenty steps."""
    return float(np.mean(found[-20:])) if found else math.nan


def table(made: dict[str, Any]) -> str:
    """The figures of the docs."""
    steps = made["steps"]
    lines = [
        f"Gradient of the first block over that of the last, before the first step; mean loss of the last 20 of {steps} "
        f"steps ({made['uniform']:.2f} is what guessing gets).", "",
        "| | gradient, 4 layers | 16 | 48 | loss, 4 layers | 16 | 48 |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, by_depth in made["losses"].items():
        ratios = ["", "", ""]
        if name in made["gradients"]:
            ratios = [_ratio(made["gradients"][name][str(d)]) for d in DEPTHS]
        ends = [_ended(by_depth[str(d)], steps) for d in DEPTHS]
        lines.append(f"| {name} | {' | '.join([*ratios, *ends])} |")
    versions = ", ".join(f"{n} {v}" for n, v in made["versions"].items())
    return "\n".join([*lines, "", f"{made['setting']}; {versions}; {made['date']}."])


def _ratio(norms: list[float]) -> str:
    if not np.isfinite(norms).all():
        return "not finite"
    if norms[0] < 1e-290:
        return "0"
    return f"{norms[0] / norms[-1]:.2g}"


def _ended(found: list[float], steps: int) -> str:
    if len(found) < steps:
        return f"not finite at step {len(found) + 1}"
    return f"{end(found):.2f}" if end(found) < 100 else f"{end(found):,.0f}"


def draw(made: dict[str, Any], to: Path) -> None:
    """Gradients by block, a panel for each depth; then losses by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1)
    panels = above.subplots(1, len(DEPTHS), sharey=True)
    for axes, depth in zip(panels, DEPTHS, strict=True):
        for name, by_depth in made["gradients"].items():
            axes.plot(
                range(1, depth + 1),
                by_depth[str(depth)],
                color=COLOURS[name],
                marker=".",
                markersize=4,
            )
        axes.set(title=f"{depth} layers, before training", xlabel="block", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("length of the block's gradient")
    panels = below.subplots(1, len(DEPTHS), sharey=True)
    for axes, depth in zip(panels, DEPTHS, strict=True):
        for name, by_depth in made["losses"].items():
            line = "--" if name == WARMED else "-"
            axes.plot(smooth(by_depth[str(depth)]), label=name, linestyle=line, linewidth=1.2,
                      color=COLOURS.get(name, COLOURS["post-norm"]))  # fmt: skip
        axes.set(title=f"{depth} layers, training", xlabel="step", ylim=(2.8, 5.2))
        axes.axhline(made["uniform"], color="black", linewidth=0.6, linestyle=":")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("loss per character (nats)")
    handles = panels[0].get_legend_handles_labels()
    below.legend(*handles, loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(to, dpi=90)


def smooth(found: list[float], window: int = 10) -> np.ndarray:
    """The mean of each ``window`` steps."""
    if len(found) < window:
        return np.array(found)
    return np.convolve(found, np.ones(window) / window, "valid")


def save(made: dict[str, Any]) -> None:
    """The results file, the picture, and the docs' table between its markers."""
    results = HERE / "results"
    rounded = json.loads(json.dumps(made), parse_float=lambda x: float(f"{float(x):.4g}"))
    (results / "depth.json").write_text(json.dumps(rounded) + "\n", "utf-8")
    draw(made, results / "depth.png")
    document, begin, finish = DOCS.read_text("utf-8"), "<!-- depth:begin -->", "<!-- depth:end -->"
    head, rest = document.split(begin)
    DOCS.write_text(f"{head}{begin}\n{table(made)}\n{finish}{rest.split(finish)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="write results/ and docs/training.md")
    arguments = parser.parse_args()
    made = measure(arguments.steps)
    print(table(made))
    if arguments.save:
        save(made)


if __name__ == "__main__":
    main()
