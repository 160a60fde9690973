"""Generation and training on an NVIDIA GPU, against PyTorch on the same card.

    python profiling/bench_gpu.py                           # all rows
    python profiling/bench_gpu.py --only train --windows 3
    python profiling/bench_gpu.py --save                    # also write results/gpu.json and the README

Generation: one sequence and eight, of random tokens, after a prompt of 16; then a prompt of 512 up to its first
token. Its peer is transformers' ``generate`` of a model of the same shape. Training: a whole step of GPT-2 by 8 x
1024 tokens with clipping and AdamW; its peer is the same model by PyTorch's own means (torch_twin.py: fused attention
and AdamW, autocast for bfloat16, not compiled). All engines share one process and take turns, window by window.
Weights are random: they change no time. Without PyTorch only ours is measured.
"""

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch_twin import gpt, parameter_groups, torch_on_a_gpu

from tinytorch_gpu import Transformer, devices
from tinytorch_gpu.config import TransformerConfig, preset
from tinytorch_gpu.generation import Cache
from tinytorch_gpu.training import TrainingConfig
from tinytorch_gpu.training.step import Stepper

RESULT = Path(__file__).parent / "results" / "gpu.json"
README = Path(__file__).resolve().parent.parent / "README.md"
PROMPT, NEW, PREFILL = 16, 128, 512
MODELS = (("smollm2-135m", "float16"), ("llama-3.2-1b", "float16"))
BATCH, LENGTH, LR, BETAS, DECAY, CLIP = 8, 1024, 6e-4, (0.9, 0.95), 0.1, 1.0


@dataclass
class Row:
    """One thing to time: ``ours`` and ``peer`` do it and return once the device is done."""

    name: str
    tokens: int
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None
    least_bytes: int = 0  # that must be read for it


# --- generation ------------------------------------------------------------------------------------


def generations(torch: Any, name: str, dtype: str) -> Iterator[Row]:
    """Decoding, and a prompt."""
    config = preset(name)
    model = Transformer.from_config(config, device="cuda", dtype=dtype, seed=0)
    twin = None if torch is None else llama(torch, config, dtype)
    random = np.random.default_rng(0)
    for rows in (1, 8):
        ids = random.integers(0, config.vocab_size, (rows, PROMPT))
        yield Row(
            f"{name} {dtype}, decode, {rows} at once", rows * NEW, decoding(model, ids, NEW),
            continued(torch, twin, ids, NEW), NEW * model.nbytes,
        )  # fmt: skip
    ids = random.integers(0, config.vocab_size, (1, PREFILL))
    yield Row(
        f"{name} {dtype}, prompt of {PREFILL}", PREFILL, decoding(model, ids, 1),
        continued(torch, twin, ids, 1), model.nbytes,
    )  # fmt: skip


def decoding(model: Transformer, ids: Any, count: int) -> Callable[[], Any]:
    """``count`` tokens after ``ids``, the prompt's own pass included."""
    cache = Cache.for_model(model, len(ids), ids.shape[1] + count)

    def run() -> None:
        cache.reset()
        model.generate(ids, count, temperature=0, cache=cache)
        model.device.synchronize()

    return run


def llama(torch: Any, config: TransformerConfig, dtype: str) -> Any:
    """A LLaMA of that shape by transformers, on the card."""
    import transformers

    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.embed_dim, intermediate_size=config.hidden_dim,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, max_position_embeddings=config.max_seq_length,
        tie_word_embeddings=config.tie_embeddings, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    with torch.device("cuda"):
        return transformers.LlamaForCausalLM(shape).to(getattr(torch, dtype)).eval()


def continued(torch: Any, twin: Any, ids: Any, count: int) -> Callable[[], Any] | None:
    """``count`` tokens by transformers."""
    if twin is None:
        return None
    given = torch.from_numpy(ids).cuda()

    def run() -> None:
        twin.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        torch.cuda.synchronize()

    return run


# --- training --------------------------------------------------------------------------------------


def trainings(torch: Any) -> Iterator[Row]:
    """A step of GPT-2 in each precision."""
    for dtype in ("float32", "bfloat16"):
        peer = None if torch is None else torch_step(torch, preset("gpt2"), dtype)
        yield Row(
            f"gpt2 {dtype}, step of {BATCH} x {LENGTH}", BATCH * LENGTH, our_step(dtype), peer
        )


def our_step(dtype: str) -> Callable[[], Any]:
    """A whole update, as a ``Trainer`` makes it; in 16 bits of float32 master weights."""
    model = Transformer.from_config(preset("gpt2"), device="cuda", dtype=dtype, seed=0)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, 2_000_000)
    config = TrainingConfig(
        batch=BATCH, length=LENGTH, lr=LR, betas=BETAS, weight_decay=DECAY, clip=CLIP
    )
    stepper = Stepper(model, tokens.astype(np.uint16), config)
    return stepper.step  # it waits for the loss


def torch_step(torch: Any, config: TransformerConfig, dtype: str) -> Callable[[], Any]:
    """The same by PyTorch."""
    with torch.device("cuda"):
        module = gpt(torch, config)
    optimizer = torch.optim.AdamW(parameter_groups(module, DECAY), lr=LR, betas=BETAS, fused=True)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (BATCH, LENGTH + 1))

    def step() -> float:
        given = torch.from_numpy(tokens).cuda()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = module(given[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), given[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


# --- the table -------------------------------------------------------------------------------------


def timed(run: Callable[[], Any]) -> float:
    """Its seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(row: Row, windows: int) -> dict[str, Any]:
    """Medians of windows in turn, after one that is not counted."""
    engines = [row.ours] if row.peer is None else [row.ours, row.peer]
    found: list[list[float]] = [[] for _ in engines]
    for window in range(windows + 1):
        for run, of in zip(engines, found, strict=True):
            seconds = timed(run)
            if window:
                of.append(seconds)
    ours, peer = found[0], found[-1] if row.peer else None
    pairs = [p / o for o, p in zip(ours, peer or [], strict=False)]
    return {
        "name": row.name, "tokens": row.tokens, "seconds": statistics.median(ours),
        "peer_seconds": statistics.median(peer) if peer else None,
        "ratio": statistics.median(pairs) if pairs else None, "windows": ours, "peer_windows": peer,
        "gb_s": row.least_bytes / statistics.median(ours) / 1e9 if row.least_bytes else None,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    theirs = "" if row["ratio"] is None else f"{row['tokens'] / row['peer_seconds']:.0f}"
    read = "" if row["gb_s"] is None else f"{row['gb_s']:.0f}"
    ours = f"{row['tokens'] / row['seconds']:.0f}"
    return f"| {row['name']} | {ratio} | {ours} | {theirs} | {row['seconds'] * 1e3:.1f} | {read} |"


def table(result: dict[str, Any]) -> str:
    """All as Markdown, the ratio first."""
    return "\n".join([
        f"{result['card']}, {result['date']}; medians of {result['windows']} windows in turn. A ratio above 1 means "
        "that tinytorch_gpu is faster. GB/s: the weights alone, once a step.",
        "",
        "| | ratio | tokens/s | PyTorch's | ms | GB/s |",
        "|---|---|---|---|---|---|",
        *(line(row) for row in result["rows"]),
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + ".",
    ])  # fmt: skip


def versions(place: Any, torch: Any) -> dict[str, str]:
    """Of what took part."""
    import tinytorch_gpu

    made = {"tinytorch_gpu": tinytorch_gpu.__version__, "CuPy": place.xp.__version__}
    if torch is not None:
        import transformers

        made |= {"PyTorch": torch.__version__, "transformers": transformers.__version__}
    return made


def save(result: dict[str, Any]) -> None:
    """Write the results file, and the README's figures between their markers."""
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    begin, end = "<!-- gpu:begin -->", "<!-- gpu:end -->"
    head, _, rest = README.read_text("utf-8").partition(begin)
    README.write_text(f"{head}{begin}\n{table(result)}\n{end}{rest.partition(end)[2]}", "utf-8")


def works(torch: Any, only: str | None, models: list[str] | None) -> Iterator[Row]:
    """What is asked for, the largest model last."""
    chosen = [m for m in MODELS if not models or m[0].startswith(tuple(models))]
    if only != "train":
        for model in chosen[:-1]:
            yield from generations(torch, *model)
    if only != "generate":
        yield from trainings(torch)
    if only != "train" and chosen:
        yield from generations(torch, *chosen[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=("generate", "train"), help="default: both")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--model", nargs="*", help="generate: only models that begin so")
    parser.add_argument("--save", action="store_true", help="after each row")
    given = parser.parse_args()
    place, torch = devices.device("cuda"), torch_on_a_gpu()
    rows: list[dict[str, Any]] = []
    name = place.xp.cuda.runtime.getDeviceProperties(place.index)["name"].decode()
    result = {
        "card": name, "date": datetime.date.today().isoformat(), "windows": given.windows,
        "versions": versions(place, torch), "rows": rows,
    }  # fmt: skip
    for row in works(torch, given.only, given.model):
        rows.append(measured(row, given.windows))
        print(line(rows[-1]), flush=True)
        if given.save:
            save(result)
    print(table(result))


if __name__ == "__main__":
    main()
