"""The folder of a run: checkpoints that are whole or not there, and metrics, one JSON object a line.

    RUN/training.json              what the run was told
    RUN/metrics.jsonl              a line for each logged step
    RUN/checkpoints/step-00000500  a model in Hugging Face layout, or its adapters only, as peft has them,
                                   with optimizer.safetensors and state.json

A checkpoint is written under another name, flushed to the disk, and renamed: whatever interrupts it, a folder
called ``step-...`` is complete.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy

from ..backend import to_numpy
from ..checkpoint.files import read_json
from ..checkpoint.safetensors_file import read_safetensors
from ..checkpoint.save import flush, write_tensors

ABOUT, METRICS, STATE, OPTIMIZER = (
    "training.json",
    "metrics.jsonl",
    "state.json",
    "optimizer.safetensors",
)
_NAME = re.compile(r"step-(\d{8,})")


class Run:
    """A folder that one training run writes to."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def create(cls, folder: str | os.PathLike[str], about: Mapping[str, Any]) -> "Run":
        """Begin a run in a folder that holds none; else a ValueError. One that ended before its first
        checkpoint is begun anew."""
        run = cls(folder)
        run.check_new()
        run.forget_after(-1)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        _write_json(run.folder / ABOUT, about)
        return run

    def check_new(self) -> None:
        """A ValueError if the folder holds a run that can go on."""
        if self.newest() is not None:
            raise ValueError(
                f"{self.folder} holds a run: go on with --resume {self.folder}, or name another folder"
            )

    def about(self) -> dict[str, Any]:
        """What the run was told; no run is a ValueError."""
        if not (self.folder / ABOUT).is_file():
            raise ValueError(f"{self.folder} holds no run: it has no {ABOUT}")
        return read_json(self.folder / ABOUT)

    def tell(self, about: Mapping[str, Any]) -> None:
        """Change what the run was told."""
        new = self.folder / f".{ABOUT}.new"
        _write_json(new, about)
        os.replace(new, self.folder / ABOUT)

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = (_NAME.fullmatch(p.name) for p in self.checkpoints.iterdir() if p.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.checkpoints / f"step-{step:08d}"

    def save(
        self,
        step: int,
        write_model: Callable[[Path], Any],
        optimizer: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint and return its folder; one of this step that is there already stays.
        ``write_model`` puts the model into a folder. An error leaves the checkpoints before as they were."""
        target = self.path(step)
        if target.exists():
            return target
        new = self.checkpoints / f".{target.name}.{os.getpid()}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            write_model(new)
            arrays = {n: numpy.ascontiguousarray(to_numpy(x)) for n, x in optimizer.items()}
            write_tensors(arrays, new / OPTIMIZER)
            _write_json(new / STATE, state)
            for written in (new / OPTIMIZER, new / STATE, new):
                flush(written)
            os.rename(new, target)
            flush(self.checkpoints)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return target

    def tidy(self, keep: int, best: int | None) -> None:
        """Remove all checkpoints but the newest ``keep`` and the best, and what interruptions left."""
        for step in self.steps()[:-keep]:
            if step != best:
                shutil.rmtree(self.path(step), ignore_errors=True)
        for left in self.checkpoints.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)

    def load(self, step: int | None = None) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """(folder, optimizer arrays, state) of the newest checkpoint, or of a step's."""
        path = self.newest() if step is None else self.path(step)
        if path is None or not path.is_dir():
            raise ValueError(
                f"{self.folder} has no complete checkpoint{'' if step is None else f' of step {step}'}"
            )
        return path, _read_arrays(path / OPTIMIZER), read_json(path / STATE)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line of metrics."""
        with open(self.folder / METRICS, "a", encoding="utf-8") as out:
            out.write(json.dumps(values, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines that are whole: the last one may have been cut short."""
        file = self.folder / METRICS
        found = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [line for line in found if isinstance(line, dict) and "step" in line]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run makes again."""
        if not (self.folder / METRICS).is_file():
            return
        kept = [line for line in self.metrics() if line["step"] <= step]
        new = self.folder / f".{METRICS}.new"
        new.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(new, self.folder / METRICS)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_arrays(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    read_safetensors(path)  # strict: what is truncated or lies ends here, in words
    return dict(load_file(path))
