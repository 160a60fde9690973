"""What devices can do at most: operations a second by dtype, bytes a second, memory."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..config import one_of

KINDS = ("gpu", "cpu")


@dataclass(frozen=True)
class DeviceSpec:
    """Peak rates of a device.

    ``memory`` bytes; ``bandwidth`` bytes a second; ``matrix`` operations a second in matrix products by dtype
    (float32, tf32, float16, bfloat16, float64), dense; ``vector`` of other float32 arithmetic; ``special``
    exponentials and the like a second; ``call`` the least seconds of one operation, where known. ``source`` says
    where the numbers are from, ``date`` when they were looked up or measured.
    """

    name: str
    kind: str
    memory: float
    bandwidth: float
    matrix: Mapping[str, float]
    vector: float
    special: float
    call: float = 0.0
    capability: str = ""
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        numbers = {"memory": self.memory, "bandwidth": self.bandwidth, "vector": self.vector,
                   "special": self.special, **{f"matrix {k}": v for k, v in self.matrix.items()}}  # fmt: skip
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{self.name}: {name} must be a number above 0, not {value!r}")
        if "float32" not in self.matrix:
            raise ValueError(f"{self.name}: matrix needs a rate for float32")

    @property
    def where(self) -> str:
        """The kind of device as the library calls it."""
        return "cuda" if self.kind == "gpu" else "cpu"

    def peak(self, dtype: str) -> float:
        """Operations a second in products of ``dtype``; of one it has no units for, as float32."""
        return self.matrix.get(dtype, self.matrix["float32"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` takes back."""
        return {**asdict(self), "matrix": dict(self.matrix)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DeviceSpec":
        """Of ``to_dict``'s values: ``vector`` is by default the float32 rate, ``special`` a sixteenth of it.
        What is missing, unknown or no positive number is a ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError("a device is a JSON object")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted({"name", "kind", "memory", "bandwidth", "matrix"} - set(values))
        if unknown or missing or not isinstance(values["matrix"], Mapping):
            raise ValueError(
                f"a device needs name, kind (gpu or cpu), memory, bandwidth and matrix (rates by dtype); "
                f"missing {missing}, unknown {unknown}"
            )
        base = values["matrix"].get("float32", 0)
        return cls(**{"vector": base, "special": base / 16, **values})


def read_spec(path: str | Path) -> DeviceSpec:
    """A device from a JSON file with ``DeviceSpec``'s fields; bad contents are a ValueError."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return DeviceSpec.from_dict(json.loads(text))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
