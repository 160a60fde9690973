"""Random numbers by counting: the same ones in array code and in CUDA, on every device.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter
and a key into four random words with no state in between. A draw is named by its seed, the offset
of the call and the index of the element, so dropout can be recomputed in a backward pass, a resumed
run repeats the interrupted one, and a captured step draws anew because its offset lives in an array.
"""

import os
from typing import Any

from .backend import namespace
from .devices import Device

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of four counter words and two key words.

    Each word is a uint64 array holding 32 bits; they broadcast. Returns four such arrays.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (right >> 32) ^ c1 ^ k0,
            right & _LOW,
            (left >> 32) ^ c3 ^ k1,
            left & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(state: Any, count: int, dtype: Any) -> Any:
    """``count`` numbers of ``dtype`` in (0, 1) for ``state`` = uint64 [seed, offset], or
    (count, 2): one for each number.

    Element i is word ``i % 4`` of the counter (i // 4, offset), so a kernel thread can make any
    four of them on its own.
    """
    xp = namespace(state)
    own = state.ndim == 2
    group = xp.arange(count if own else (count + 3) // 4, dtype=xp.uint64)
    group = group // 4 if own else group
    seed, offset = state[..., 0], state[..., 1]
    words = philox(
        (group & _LOW, group >> 32, offset & _LOW, offset >> 32), (seed & _LOW, seed >> 32)
    )
    table = xp.stack(words, axis=1)
    if own:
        bits = xp.take_along_axis(table, xp.arange(count)[:, None] % 4, axis=1)[:, 0]
    else:
        bits = xp.reshape(table, (-1,))[:count]
    # 23 bits and the half keep both 0 and 1 out, in float32 too.
    return (xp.astype(bits >> 9, dtype) + 0.5) * 2.0**-23


class Generator:
    """A stream of draws: ``next()`` gives the [seed, offset] array of one operation's numbers."""

    def __init__(self, device: Device, seed: int | None = None):
        self.seed = int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else _checked(seed)
        self.offset, self.device = 0, device

    def next(self) -> Any:
        """Return the uint64 array [seed, offset] for the next operation, on the device."""
        state = self.device.asarray([self.seed, self.offset], "uint64")
        self.offset += 1
        return state


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, not {seed!r}")
    return int(seed)
