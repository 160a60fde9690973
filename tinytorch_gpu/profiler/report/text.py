"""Numbers for a reader."""

import math
from typing import Any

ROLES = {"gate_up": "gate and up", "qk_norm": "q/k norm", "gradient_norm": "gradient norm"}


def name_of(line: dict[str, Any]) -> str:
    """What an operation of ``data.lines`` is called."""
    role: str = ROLES.get(line["role"], line["role"])
    return role if line["direction"] in ("forward", "update") else f"{role}, {line['direction']}"


def cells(line: dict[str, Any], ran: bool) -> list[str]:
    """A line of ``data.lines`` for a table: name, calls, FLOP, bytes, FLOP/B, least, bound; and, where it
    ``ran``, measured, FLOP/s, of least."""
    made = [
        name_of(line), str(line["calls"]), number(line["flops"]), number(line["bytes"]), f"{line['intensity']:.1f}",
        seconds(line["least_seconds"]), line["bound"],
    ]  # fmt: skip
    spent = line["seconds"]
    if ran and spent:
        share = f"{100 * line['share_of_roofline']:.0f} %"
        return [*made, seconds(spent), number(line["flops"] / spent), share]
    return [*made, "", "", ""] if ran else made


def number(value: float) -> str:
    """A count with a prefix of thousands, such as "12.3 G"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{_short(value)} {prefix}"


def seconds(value: float) -> str:
    """A time with a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 0.9995 or unit == "us":
            break
    return f"{_short(value * factor)} {unit}"


def _short(value: float) -> str:
    """Three digits."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 2)}f}"


def size(count: float) -> str:
    """Bytes in units of 1024, such as "93.8 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""
