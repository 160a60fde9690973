"""``Report``: what was counted and measured for one model on one device, as plain values too.

Nothing of the machine but its processor's name gets in: no user, path or variable.
"""

import datetime
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy

from ...core.transformers import Transformer
from ..account import BACKWARD, Phase, decode, prefill, train_step
from ..calls import Setting
from ..deployment import Fit, deployment
from ..measured import MeasuredRow
from ..memory import InferenceMemory, TrainingMemory, inference_memory, saved_bytes, training_memory
from ..parameters import Component, parameters
from ..roofline import Roofline, roofline
from ..runs import Run, measure_generation, measure_training
from ..spec import DeviceSpec
from ..spec_table import DEVICES
from ..studies import Study, Workload, standard_studies, training_against_inference

WORKS = ("generate", "train", "ops")
FORMAT = 1  # of ``to_dict``'s values
STEPS = 2  # updates of a measured training


@dataclass(frozen=True)
class Asked:
    """What a report is about: ``batch`` rows; a prompt, or a window to learn from, of ``context`` tokens;
    ``tokens`` new ones."""

    work: str = "generate"
    batch: int = 1
    context: int = 128
    tokens: int = 16
    optimizer: str = "adamw"
    recompute: bool = False

    @property
    def generates(self) -> bool:
        """Whether generation is part of it."""
        return self.work != "train"

    @property
    def trains(self) -> bool:
        """Whether training is part of it."""
        return self.work != "generate"


@dataclass(frozen=True)
class Report:
    """One model on one device.

    ``rooflines`` by phase; ``memory`` predicted, by work; ``saved`` bytes that each role keeps for the
    backward; ``runs`` measured, by work: none for a device that is not here.
    """

    model: str
    setting: Setting
    asked: Asked
    device: DeviceSpec
    parameters: list[Component]
    rooflines: dict[str, Roofline]
    memory: dict[str, TrainingMemory | InferenceMemory]
    saved: dict[str, int]
    runs: dict[str, Run] = field(default_factory=dict)
    studies: list[Study] = field(default_factory=list)
    deployment: list[Fit] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT, "about": self.about, "model": self.model, "config": self.setting.config.to_dict(),
            "dtype": self.setting.dtype, "activations": self.setting.activations.name,
            "asked": {**vars(self.asked)}, "device": self.device.to_dict(),
            "parameters": [part.to_dict() for part in self.parameters],
            "phases": {name: one.to_dict() for name, one in self.rooflines.items()},
            "memory": {name: one.to_dict() for name, one in self.memory.items()}, "saved": self.saved,
            "lines": {name: lines(self, name) for name in self.rooflines},
            "runs": {name: run.to_dict() for name, run in self.runs.items()},
            "studies": [study.to_dict() for study in self.studies],
            "deployment": [fit.to_dict() for fit in self.deployment],
        }  # fmt: skip


def build_report(
    name: str, setting: Setting, device: DeviceSpec, asked: Asked, model: Transformer | None = None,
    studies: bool = False, timeline: bool = True,
) -> Report:  # fmt: skip
    """Count, and with a ``model`` (of ``setting``) measure, memory over time in a run of its own with
    ``timeline``; with ``studies`` also what its sizes do, and which devices hold it."""
    phases, memory = _counted(setting, asked)
    runs: dict[str, Run] = {}
    if model is not None and asked.generates:
        runs["generate"] = measure_generation(
            model, device, asked.batch, asked.context, asked.tokens, timeline
        )
    if model is not None and asked.trains:
        runs["train"] = measure_training(
            model,
            device,
            asked.batch,
            asked.context,
            STEPS,
            asked.optimizer,
            asked.recompute,
            timeline,
        )
    return Report(
        name, setting, asked, device, parameters(setting),
        {phase.name: roofline(phase, setting, device) for phase in phases}, memory,
        saved_bytes(setting, asked.batch, asked.context) if asked.trains else {}, runs,
        _studies(setting, device, asked) if studies else [],
        _deployment(name, setting, asked) if studies else [], about(),
    )  # fmt: skip


def about() -> dict[str, str]:
    """When and by which versions a report was made."""
    from ... import __version__

    return {
        "date": datetime.date.today().isoformat(), "tinytorch_gpu": __version__,
        "numpy": numpy.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _counted(
    setting: Setting, asked: Asked
) -> tuple[list[Phase], dict[str, TrainingMemory | InferenceMemory]]:
    phases: list[Phase] = []
    memory: dict[str, TrainingMemory | InferenceMemory] = {}
    batch, context = asked.batch, asked.context
    if asked.generates:
        middle = context + asked.tokens // 2  # the step that the average one is like
        phases += [prefill(setting, batch, context), decode(setting, batch, middle)]
        memory["generate"] = inference_memory(setting, batch, context + asked.tokens)
    if asked.trains:
        phases.append(train_step(setting, batch, context, asked.optimizer, asked.recompute))
        memory["train"] = training_memory(setting, batch, context, asked.optimizer, asked.recompute)
    return phases, memory


def _studies(setting: Setting, device: DeviceSpec, asked: Asked) -> list[Study]:
    work = Workload(asked.batch, asked.context, setting.dtype)
    found = standard_studies(setting.config, device, work)
    if not setting.weights.blocked:
        found.append(training_against_inference(setting.config, device, work))
    return found


def _deployment(name: str, setting: Setting, asked: Asked) -> list[Fit]:
    dtypes = dict.fromkeys((setting.dtype, "float16", "q8_0", "q4_0"))
    context = min(setting.config.max_seq_length, max(asked.context, 2048))
    return deployment({name: setting.config}, DEVICES.values(), dtypes, (1, 8), (context,))


def lines(report: Report, phase: str, which: str = "typical") -> list[dict[str, Any]]:
    """A phase by direction and role, with what was measured of one such phase beside it.

    In a run an activation is part of the linear map that it ends, so the two are one line there. ``which``
    seconds: ``typical`` or ``best`` (see ``MeasuredRow``). ``seconds`` and ``share_of_roofline`` are None where nothing ran.
    """
    measured = _measured(report, phase, which)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for timed in report.rooflines[phase].rows:
        row = timed.row
        role = row.role
        if measured and role == "activation":
            role = "gate_up" if report.setting.config.gated else "up"
        line = found.setdefault((row.direction, role), {
            "direction": row.direction, "role": role, "calls": 0, "flops": 0.0, "bytes": 0.0,
            "least_seconds": 0.0, "bounds": {},
        })  # fmt: skip
        line["calls"] += row.calls
        line["flops"] += row.cost.flops
        line["bytes"] += row.cost.bytes
        line["least_seconds"] += timed.seconds
        line["bounds"][timed.bound] = line["bounds"].get(timed.bound, 0.0) + timed.seconds
    for key, line in found.items():
        bounds = line.pop("bounds")
        line["bound"] = max(bounds, key=lambda kind: bounds[kind])
        line["intensity"] = line["flops"] / line["bytes"] if line["bytes"] else 0.0
        seconds = line["seconds"] = measured.get(key)
        line["share_of_roofline"] = line["least_seconds"] / seconds if seconds else None
    return sorted(found.values(), key=_order)


def total_line(report: Report, phase: str) -> dict[str, Any]:
    """The whole phase, in the form of one of its ``lines``."""
    one = report.rooflines[phase]
    run = next((run for run in report.runs.values() if phase in run.rows), None)
    spent = None if run is None else sum(run.phases[phase]) / len(run.phases[phase])
    return {
        "direction": "forward", "role": "all", "calls": "", "flops": one.phase.cost.flops,
        "bytes": one.phase.cost.bytes, "intensity": one.phase.cost.intensity, "least_seconds": one.seconds,
        "bound": one.bound, "seconds": spent, "share_of_roofline": one.seconds / spent if spent else None,
    }  # fmt: skip


def _order(line: dict[str, Any]) -> tuple[int, int]:
    directions = ("forward", "recompute", BACKWARD, "update")
    return directions.index(line["direction"]), 0


def _measured(report: Report, phase: str, which: str) -> dict[tuple[str, str], float]:
    """Seconds of each direction and role in one phase of the run."""
    for run in report.runs.values():
        if phase in run.rows:
            return by_role(run.rows[phase], len(run.phases[phase]), which)
    return {}


def by_role(
    rows: Iterable[MeasuredRow], phases: int, which: str = "typical"
) -> dict[tuple[str, str], float]:
    """Seconds (``typical`` or ``best``) of each direction and role in one of ``phases`` phases."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        key = row.direction, row.role
        found[key] = found.get(key, 0.0) + getattr(row, which) / phases
    return found
