"""Named ranges for Nsight: one NVTX domain, built once per name, nothing when no tool listens.

``push``/``pop`` are for hot code that tests ``nvtx.on`` itself; ``span`` is the context manager
for everything else. Names follow one scheme: phases (``prefill``, ``decode``, ``train.step``),
layers (``layer.03``), block parts (``norm1``, ``attention``), operations (``op.linear``) and
transfers (``load``, ``h2d``). What varies from step to step goes into the payload, because a tool
keeps every new string for ever.
"""

import os
import threading
from types import TracebackType
from typing import Any

DOMAIN = "tinytorch_gpu"
COLORS = {"phase": "blue", "layer": "green", "part": "orange", "op": "purple", "io": "red"}

on = False
_domain: Any = None
_attributes: dict[tuple[str, str], Any] = {}
Range = tuple[str, str, int | None]


class _Open(threading.local):
    """What ``push`` was called with for the ranges that this thread has open."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []


_open = _Open()


def _open_domain() -> Any:
    """Return a domain that records, or None when no tool is attached."""
    try:
        import nvtx
        from nvtx._lib import DummyDomain
    except ImportError:
        return None
    domain = nvtx.get_domain(DOMAIN)
    if not isinstance(domain, DummyDomain):
        return domain
    if not os.environ.get("NVTX_INJECTION64_PATH") or os.environ.get("NVTX_DISABLE"):
        return None
    # Some tools answer "disabled" to newer nvtx packages although they record.
    try:
        from nvtx._lib.lib import Domain

        return Domain(DOMAIN)
    except Exception:  # a private class: any change of it must not break the library
        return None


def enable(domain: Any = None) -> bool:
    """Turn ranges on if a tool listens (or on ``domain``, for tests); return whether they are."""
    global on, _domain, _open
    _attributes.clear()
    _open = _Open()
    _domain = domain if domain is not None else _open_domain()
    on = _domain is not None
    return on


def disable() -> None:
    """Turn ranges off."""
    global on, _domain
    on, _domain = False, None


def push(name: str, category: str = "op", payload: int | None = None) -> None:
    """Open a range. Call it only when ``nvtx.on``."""
    attributes = _attributes.get((name, category))
    if attributes is None:
        attributes = _domain.get_event_attributes(
            message=name, color=COLORS[category], category=category
        )
        _attributes[name, category] = attributes
    if payload is not None:
        attributes.payload = payload
    _domain.push_range(attributes)
    _open.ranges.append((name, category, payload))


def pop() -> None:
    """Close the range opened last. Call it only when ``nvtx.on``."""
    _domain.pop_range()
    if _open.ranges:
        _open.ranges.pop()


def opened() -> tuple[Range, ...]:
    """The ranges this thread is in, outermost first, but for phases and transfers: what says which
    part of a model an operation belongs to. Each can be given to ``push`` again."""
    return tuple(each for each in _open.ranges if each[1] not in ("phase", "io"))


class span:  # noqa: N801 - it reads as a statement
    """``with span("decode", "phase", position):`` opens a range around the block."""

    __slots__ = ("args", "opened")

    def __init__(self, name: str, category: str = "op", payload: int | None = None):
        self.args = (name, category, payload)

    def __enter__(self) -> None:
        self.opened = on
        if on:
            push(*self.args)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.opened and on:
            pop()


enable()
