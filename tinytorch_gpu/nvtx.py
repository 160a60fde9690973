"""Named ranges for Nsight: one NVTX domain, built once per name, nothing when no tool listens.

Names follow one scheme: phases (``prefill``, ``decode``, ``train.step``), layers (``layer.03``),
block parts (``norm1``, ``attention``), operations (``op.linear``) and transfers (``load``, ``h2d``,
``d2h``). What varies from step to step goes into the payload, because a tool keeps every new string
for ever.

Three ways to open a range: ``span`` is the context manager for what happens a few times a step;
``enter``/``leave`` for layers and parts, one after another; ``push``/``pop`` beneath both. The hot
ones are called only ``if nvtx.on``, which is all that they cost without a tool.
"""

import os
import threading
from types import TracebackType
from typing import Any

DOMAIN = "tinytorch_gpu"
COLORS = {"phase": "blue", "layer": "green", "part": "orange", "op": "purple", "io": "red"}

on = False
# Repeat captured steps though a tool listens: one range a step then, nothing of its layers.
graphs = False
# The tool called the domain disabled, and is given ranges nevertheless.
overruled = False
_domain: Any = None
Range = tuple[str, str, int | None]


class _Thread(threading.local):
    """What this thread has open, as ``push`` was told, and its own event attributes by name."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.attributes: dict[tuple[str, str], Any] = {}


_thread = _Thread()


def attached() -> bool:
    """Whether a tool has put itself in place to receive the ranges of this process."""
    path = os.environ.get("NVTX_INJECTION64_PATH", "")
    found = os.path.exists(path) or (path != "" and os.path.basename(path) == path)
    return found and not os.environ.get("NVTX_DISABLE")


def _open_domain() -> Any:
    """Return a domain that records, or None when no tool is attached."""
    global overruled
    overruled = False
    if os.environ.get("NVTX_DISABLE"):
        return None
    try:
        import nvtx
    except ImportError:
        return None
    domain = nvtx.get_domain(DOMAIN)
    if not hasattr(domain, "handle"):  # nvtx's stand-in that records nothing
        domain = _overruling() if attached() else None
        overruled = domain is not None
    return domain


def _overruling() -> Any:
    """A true domain, though the tool says that it is disabled.

    Nsight Systems 2022.4 and 2023.4 say so to nvtx 0.2.12 and later, since they fail to set up an
    extension of NVTX, and record all the same.
    """
    try:
        from nvtx._lib.lib import Domain, DomainHandle

        domain = object.__new__(Domain)  # Domain() would return the stand-in again
        domain.handle = DomainHandle(DOMAIN)
        domain.__init__(DOMAIN)
    except Exception:  # private classes: any change of theirs must not break the library
        return None
    return domain


def enable(domain: Any = None) -> bool:
    """Turn ranges on if a tool listens (or on ``domain``, for tests); return whether they are."""
    global on, _domain, _thread
    _thread = _Thread()
    _domain = domain if domain is not None else _open_domain()
    on = _domain is not None
    return on


def disable() -> None:
    """Turn ranges off."""
    global on, _domain
    on, _domain = False, None


def push(name: str, category: str = "op", payload: int | None = None) -> None:
    """Open a range. Call it only when ``nvtx.on``."""
    thread = _thread
    attributes = thread.attributes.get((name, category))
    if attributes is None:
        attributes = _domain.get_event_attributes(
            message=name, color=COLORS[category], category=category
        )
        thread.attributes[name, category] = attributes
    attributes.payload = payload
    _domain.push_range(attributes)
    thread.ranges.append((name, category, payload))


def pop() -> None:
    """Close the range opened last. Call it only when ``nvtx.on``."""
    _domain.pop_range()
    if _thread.ranges:
        _thread.ranges.pop()


def enter(name: str, category: str, payload: int | None = None) -> None:
    """Go on to the next layer, or to the next part of one: the range of the last one ends.

    Call it only when ``nvtx.on``, and ``leave`` after the last one, whatever happens.
    """
    leave(category)
    push(name, category, payload)


def leave(category: str) -> None:
    """End the part that is open ("part"), or the layer and its part ("layer"), if one is."""
    ended = ("part",) if category == "part" else ("part", "layer")
    while _thread.ranges and _thread.ranges[-1][1] in ended:
        pop()


def opened() -> tuple[Range, ...]:
    """The ranges this thread is in, outermost first, but for phases and transfers: what says which
    part of a model an operation belongs to. Each can be given to ``push`` again."""
    return tuple(each for each in _thread.ranges if each[1] not in ("phase", "io"))


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
