"""What each CUDA kernel did in a run on the emulated device: one row for a kernel, from counted launches."""

from collections.abc import Callable
from typing import Any


def kernel_rows(launches: list[Any]) -> list[dict[str, Any]]:
    """One row for each kernel, the one that wastes most memory traffic first.

    ``over`` is sectors of global memory over the fewest that their bytes lie in, ``conflicts`` shared
    memory's wavefronts over the fewest, ``where`` the line that wastes most sectors.
    """
    from ..emulated import Counters
    from ..emulated.runtime import source_line

    kernels: dict[str, Any] = {}
    for launch in launches:
        entry = kernels.setdefault(launch.kernel, [Counters(launches=0), {}])
        entry[0].add(launch.counters)
        for site in launch.sites:
            key = site["library"], site["pc"]
            waste = 0 if site["shared"] else site["wavefronts"] - site["ideal"]
            entry[1][key] = entry[1].get(key, 0) + waste
    rows = [_row(name, counters, sites, source_line) for name, (counters, sites) in kernels.items()]
    return sorted(rows, key=lambda row: -row["wasted_bytes"])


def _row(name: str, c: Any, sites: dict[Any, int], place: Callable[..., str]) -> dict[str, Any]:
    sectors = c.read_sectors + c.written_sectors
    worst = max(sites, key=lambda key: sites[key], default=None)
    return {
        "kernel": name,
        "launches": c.launches,
        "threads": c.threads,
        "read_bytes": c.read_bytes,
        "written_bytes": c.written_bytes,
        "wasted_bytes": 32 * (sectors - c.ideal_sectors),
        "over": round(sectors / max(1, c.ideal_sectors), 3),
        "conflicts": round(c.shared_wavefronts / max(1, c.ideal_wavefronts), 3),
        "worst_conflict": c.worst_conflict,
        "barriers": c.barriers,
        "shuffles": c.shuffles,
        "matrix": c.matrix,
        "copies": c.copies,
        "atomics": c.atomics,
        "absent_lanes": c.absent_lanes,
        "where": place(*worst) if worst and sites[worst] else "",
    }
