"""Counting the tokens of a step."""

from typing import Any

from ..ops import advance


def _forward(starts: Any, ends: Any, *, count: int) -> Any:
    starts += count
    ends += count
    return ends


def _plan(out: Any, starts: Any, ends: Any, *, count: int) -> Any:
    def run() -> None:
        _forward(starts, ends, count=count)

    return run


advance.maker("cpu", _forward, plan=_plan)
