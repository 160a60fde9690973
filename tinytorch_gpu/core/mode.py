"""Whether operations are recorded for ``backward``: each thread's own choice."""

import contextlib
import threading
from typing import Any


class _Mode(threading.local):
    grad = True


_mode = _Mode()


def grad_enabled() -> bool:
    """Whether operations of this thread are recorded for ``backward``."""
    return _mode.grad


class no_grad(contextlib.ContextDecorator):  # noqa: N801 - PyTorch's name
    """Record nothing inside: as a context manager or a decorator."""

    enabled = False

    def _recreate_cm(self) -> "no_grad":
        return type(self)()  # a decorated function may call itself, or run in several threads

    def __enter__(self) -> None:
        self.before, _mode.grad = _mode.grad, self.enabled

    def __exit__(self, *error: Any) -> None:
        _mode.grad = self.before


class enable_grad(no_grad):  # noqa: N801 - PyTorch's name
    """Record again inside a ``no_grad`` block."""

    enabled = True
