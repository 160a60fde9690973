"""How the next token is chosen, with every parameter in device memory."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from .. import nvtx, ops
from ..core.tensor import Tensor
from ..devices import Device
from ..rng import Generator


@dataclass(frozen=True)
class Sampling:
    """The choices of a generation; a value out of range is a ValueError.

    ``temperature`` 0 takes the likeliest token; None or 0 for ``top_k``, None or 1 for ``top_p``,
    None or 0 for ``min_p`` and None or 1 for ``repetition_penalty`` turn them off.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Real) and (value is not None or name == "temperature"):
                raise ValueError(f"{name} must be a number, not {value!r}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or above, not {self.temperature}")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k must be a whole number, 0 or above, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 to 1, not {self.min_p}")
        penalty = self.repetition_penalty
        if penalty is not None and not 0 < penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0, not {penalty}")


class Sampler:
    """Chooses tokens for a batch; remembers which each row has seen if there is a penalty."""

    def __init__(self, sampling: Sampling, batch: int, vocab_size: int, place: Device, seed: Any):
        self.greedy = sampling.temperature == 0

        def per_row(value: float, dtype: str = "float32") -> Any:
            return place.asarray([value] * batch, dtype)

        self.temperature = per_row(sampling.temperature)
        self.top_k = per_row(sampling.top_k or 0, "int64")
        self.top_p = per_row(sampling.top_p or 1.0)
        self.min_p = per_row(sampling.min_p or 0.0)
        self.state = Generator(place, seed).next()
        self._tick = place.asarray([0, 1], "uint64")
        self.penalty = self.seen = None
        if sampling.repetition_penalty not in (None, 1.0):
            self.penalty = per_row(float(sampling.repetition_penalty or 1.0))
            self.seen = place.zeros((batch, vocab_size), "bool")

    def see(self, ids: Any) -> None:
        """Remember tokens (B, T) for the repetition penalty; -1 is none."""
        if self.seen is not None:
            ops.mark_seen(self.seen, ids)

    def __call__(self, logits: Tensor) -> Any:
        """Return the next token of each row of ``logits`` (B, V): ids (B,) on the device."""
        with nvtx.span("sample", "op", logits.tokens):
            if self.seen is not None:
                logits = ops.penalize(logits, self.seen, self.penalty)
            if self.greedy:
                ids = ops.argmax(logits).data
            else:
                ids = ops.sample(
                    logits, self.temperature, self.top_k, self.top_p, self.min_p, self.state
                ).data
                self.state = self.state + self._tick
            self.see(ids[:, None])
        return ids
