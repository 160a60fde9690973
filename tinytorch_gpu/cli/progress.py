"""What ``train`` shows while it runs: how far the text is encoded, and a line that lives, or many that do not."""

import sys
import time
from typing import Any

from ..training import StepResult, Trainer
from ..training.pace import flops_per_token, peak_flops

# Columns of a terminal that has room for a bar.
WIDE = 104


def encoding() -> Any:
    """Tells how far the encoding of a long text is, once in two seconds."""
    last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 2:
            last = time.monotonic()
            print(
                f"encoding: {done / max(total, 1):.0%} of {total / 2**20:.1f} MB", file=sys.stderr
            )

    return told


class Display:
    """The progress of a run on stderr: live where that is a terminal and rich is there, else lines."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.began, self.first = trainer, time.monotonic(), trainer.steps_done
        model, config = trainer.model, trainer.config
        trained = sum(p.size for _, p in trainer.named)
        self.flops = flops_per_token(
            model.config,
            model.count_parameters(),
            config.length,
            model.count_parameters() - trained,
        )
        self.peak = peak_flops(
            model.device, model.dtype if model.device.kind == "cuda" else "float32"
        )
        self.pace, self.val = 0.0, None
        self.bar: Any = None
        some = "" if trained == model.count_parameters() else f" ({trained:,} trained)"
        print(f"{model.count_parameters():,} parameters{some}, {len(trainer.dataset.train):,} tokens to learn from, "
              f"{len(trainer.dataset.val):,} to check with, on {model.device}", file=sys.stderr)  # fmt: skip
        if sys.stderr.isatty():
            self._open()

    def _open(self) -> None:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.table import Column
        except ImportError:
            return
        console, digits = Console(stderr=True), len(str(self.trainer.config.steps))
        columns = [
            MofNCompleteColumn(table_column=Column(min_width=2 * digits + 1)),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(min_width=7)),
        ]
        if console.width >= WIDE:  # else the figures need all of the line
            columns.insert(1, BarColumn(20))
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("", total=self.trainer.config.steps, completed=self.first)
        self.bar.start()

    def __call__(self, found: StepResult, extra: dict[str, Any]) -> None:
        """Show an update, with what its line of ``metrics.jsonl`` has besides."""
        self.pace = (
            found.tokens_per_second
            if not self.pace
            else 0.9 * self.pace + 0.1 * found.tokens_per_second
        )
        self.val = extra.get("val_loss", self.val)
        config = self.trainer.config
        text = self._line(found)
        if self.bar is not None:
            self.bar.update(self.task, completed=found.step, description=text)
        elif extra or config.due(found.step, config.log_every):
            print(
                f"step {found.step}/{config.steps}  {text}  {self._left(found.step)}",
                file=sys.stderr,
                flush=True,
            )
        if config.sample_every and config.due(found.step, config.sample_every):
            self._sample(found.step)

    def _line(self, found: StepResult) -> str:
        share = self.pace * self.flops / self.peak
        memory = self.trainer.model.device.memory()["peak"] / 2**20
        val = "" if self.val is None else f"  val {self.val:.3f}"
        skipped = "  skipped: gradients not finite" if found.skipped else ""
        return f"loss {found.loss:.3f}{val}  {self.pace:,.0f} tokens/s ({share:.0%} of peak)  {memory:.0f} MB{skipped}"

    def _left(self, step: int) -> str:
        seconds = (
            (time.monotonic() - self.began)
            / (step - self.first)
            * (self.trainer.config.steps - step)
        )
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02} left"

    def _sample(self, step: int) -> None:
        text = self.trainer.dataset.tokenizer.decode(self.trainer.sample())
        assert self.trainer.run is not None
        with open(self.trainer.run.folder / "samples.txt", "a", encoding="utf-8") as out:
            out.write(f"--- step {step}\n{text}\n")
        self.say(f"--- step {step}\n{text}\n---")

    def say(self, text: str) -> None:
        """Print beside the live display."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr)

    def close(self) -> None:
        """End the live display."""
        if self.bar is not None:
            self.bar.stop()
