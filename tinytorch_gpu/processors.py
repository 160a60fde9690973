"""How many threads the CPU's work may use: what the user says, or what the system allows."""

import contextlib
import os

chosen: int | None = None  # by ``set_threads``


def set_threads(count: int | None) -> None:
    """Use ``count`` threads on the CPU from now on; None is what the process is allowed."""
    global chosen
    if count is not None and count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    chosen = count


def threads() -> int:
    """How many threads to use on the CPU: what ``set_threads`` or TINYTORCH_THREADS says, else as many
    processors as the process may run on (its affinity) and its control group pays for (cpu.max)."""
    if chosen is not None:
        return chosen
    wanted = os.environ.get("TINYTORCH_THREADS")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"TINYTORCH_THREADS must be a number from 1 on, not {wanted!r}")
        return int(wanted)
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _quota(allowed)))


def _quota(most: int) -> int:
    """Processors that the control group (cgroup v2) may use at once, ``most`` where it has no limit."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as lines:
            group = next((x.strip()[3:] for x in lines if x.startswith("0::")), "/")
        folder = "/sys/fs/cgroup" + group.rstrip("/")
        while folder.startswith("/sys/fs/cgroup"):
            with contextlib.suppress(FileNotFoundError), open(f"{folder}/cpu.max") as limit:
                quota, period = limit.read().split()
                if quota != "max":
                    most = min(most, -(-int(quota) // int(period)))
            folder = folder.rpartition("/")[0]
    except (OSError, ValueError):
        pass
    return most
