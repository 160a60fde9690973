"""What the course's profilers share."""

from typing import Any

import numpy

from ...core.tensor import no_grad
from ..clock import seconds_of

MB = 2**20


def random_ids(vocab_size: int, batch: int, length: int) -> Any:
    """Token ids (batch, length), the same each time."""
    return numpy.random.default_rng(0).integers(0, vocab_size, (batch, length))


def milliseconds(run: Any, place: Any = "cpu") -> float:
    """The median time of a call without gradients."""
    with no_grad():
        return 1e3 * seconds_of(run, place)
