"""Attention through a cache, and rotary positions, where their kernels have edges: splits of the keys,
sets of queries, head sizes, rows apart, places that nobody sees."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, Given, array, normal

from tinytorch_gpu import devices
from tinytorch_gpu.quantized.cache import EightBit


def _tables(rotated: int, places: int) -> tuple[Floats, Floats]:
    angles = np.arange(places)[:, None] * 0.7 ** np.arange(rotated // 2)
    return (
        Floats(lambda random: np.cos(angles), gradient=False),
        Floats(lambda random: np.sin(angles), gradient=False),
    )


def _case(
    note: str, batch: int, tokens: int, heads: int, kv: int, width: int, capacity: int, stop: int,
    starts: Any, lengths: Any = None, rotated: int = 0, times: float = 1.0, eight: bool = False,
    spoilt: float | None = None, **options: Any,
) -> Case:  # fmt: skip
    """``heads`` query heads and ``kv`` key heads; the tables are ``capacity`` long. ``eight``: a cache in 8 bit.
    ``spoilt`` is the first number of the last value, and all new numbers are ``times`` those of a normal draw."""
    cache: Any = normal(batch, capacity, kv, width, gradient=False)
    if eight:
        cache = Given(lambda random, draw=cache.draw: in_eight_bits(draw(random)))
    packed = normal(batch, tokens, heads + 2 * kv, width, gradient=False)
    if times != 1.0:
        packed = Floats(lambda random, draw=packed.draw: draw(random) * times, gradient=False)
    if spoilt is not None:
        packed = Floats(
            lambda random, draw=packed.draw: _spoilt(draw(random), spoilt), gradient=False
        )
    tables: tuple[Any, ...] = ()
    if rotated:
        first = np.reshape(np.asarray(starts), (-1, 1))
        places = first + np.arange(tokens)
        tables = (*_tables(rotated, capacity), array(places if len(places) > 1 else places[0]))
    given = (
        starts if isinstance(starts, int) else array(starts),
        None if lengths is None else array(lengths),
    )
    specs = (packed, cache, cache, *given, *tables)
    # New keys are rounded once more than old ones; of a prompt tensor cores take the weights in 16 bits.
    return Case(
        "cached_attention", note, specs, {"heads": heads, "stop": stop, **options},
        roundings=3 if tokens > 8 else 2, unit=EIGHT_BITS if eight and rotated else 0.0,
    )  # fmt: skip


# A turned key that differs in its last bit may be rounded to the next of 254 steps.
EIGHT_BITS = 1 / 254


def in_eight_bits(values: Any, place: Any = "cpu") -> EightBit:
    """Numbers (B, capacity, K, D) as a cache in 8 bit on a device."""
    made = EightBit.zeros(values.shape, place)
    made[...] = devices.device(place).asarray(values)
    return made


def _spoilt(packed: Any, by: float) -> Any:
    packed[-1, -1, -1, 0] = by
    return packed


CACHED: list[Case] = [
    # Splits of the keys.
    _case("three splits", 1, 1, 4, 2, 8, 400, 389, 388, rotated=8),
    _case("one key more than a split", 1, 1, 2, 2, 8, 70, 65, 64),
    _case("more sums of splits than threads", 1, 1, 8, 1, 128, 300, 290, 289),
    _case("splits of three sets of queries", 2, 1, 20, 1, 8, 400, 390, [200, 389], [201, 390], rotated=8),
    _case("splits of rows apart", 2, 1, 6, 2, 16, 300, 300, [40, 290], [41, 291], rotated=8),
    _case("a row of no keys", 2, 1, 2, 1, 8, 300, 270, [0, 269], [0, 270]),
    _case("no keys at all", 2, 1, 2, 1, 8, 80, 70, [0, 6], [0, 0]),
    _case("the whole capacity offered", 3, 1, 3, 1, 8, 512, 512, [5, 200, 511], [6, 201, 512], rotated=8),
    _case("new tokens over two splits", 1, 8, 2, 1, 8, 300, 260, 252, rotated=8),
    _case("the last split holds one key", 1, 3, 1, 1, 8, 200, 194, 191),
    _case("windowed splits", 1, 2, 4, 2, 8, 500, 450, 448, window=200),
    _case("a window of one", 2, 3, 2, 2, 8, 90, 90, [7, 80], [10, 83], window=1),
    _case("a window of none", 1, 1, 2, 2, 8, 90, 80, 79, window=0),
    _case("a window of rows apart", 3, 2, 3, 1, 16, 200, 200, [0, 60, 190], [2, 62, 192], 16, window=40),
    _case("all keys both ways", 1, 3, 2, 1, 8, 300, 290, 287, causal=False),
    _case("both ways in a window", 2, 3, 2, 1, 8, 90, 80, [3, 70], [6, 73], causal=False, window=20),
    _case("keys behind the new ones", 2, 2, 2, 1, 8, 100, 90, [10, 40], [60, 42], causal=False),
    _case("lengths without starts", 2, 2, 2, 1, 8, 100, 90, 20, [60, 22]),
    _case("padded queries", 2, 4, 2, 1, 8, 100, 90, [10, 70], [11, 73], rotated=8),
    _case("more offered than held", 1, 2, 2, 1, 8, 100, 90, 20),
    # Queries that share a key head.
    _case("eight heads to one", 1, 2, 8, 1, 32, 64, 40, 38, rotated=32),
    _case("three heads to one, five tokens", 2, 5, 9, 3, 64, 40, 33, [20, 28], [25, 33], rotated=64),
    _case("seven heads to one", 2, 1, 7, 1, 16, 200, 150, [30, 149], [31, 150], rotated=16),
    _case("twenty heads to one", 1, 1, 20, 1, 8, 100, 90, 89, rotated=8),
    *(
        _case(f"{heads} heads to one, {tokens} tokens", 1, tokens, heads, 1, 8, 100, 90, 90 - tokens, rotated=8)
        for heads, tokens in ((1, 2), (1, 4), (3, 3), (4, 7), (8, 1), (1, 6))
    ),
    # Heads of all sizes.
    *(
        _case(f"heads of {width}", 1, 2, 2, 1, width, 80, 70, 68, rotated=width // 2 * 2)
        for width in (1, 2, 6, 7, 8, 20, 32, 64, 80, 100, 128, 200, 256)
    ),
    _case("half of a head turned", 2, 2, 4, 2, 64, 40, 33, [20, 31], [22, 33], rotated=32),
    _case("a third of a head turned", 1, 1, 2, 1, 48, 40, 33, 32, rotated=16),
    _case("an odd head", 1, 2, 2, 1, 7, 12, 9, 7, rotated=6),
    # Numbers.
    _case("large scores", 1, 1, 4, 2, 16, 200, 180, 179, rotated=16, times=10.0),
    _case("no scores", 1, 1, 4, 2, 16, 200, 180, 179, times=0.0),
    _case("a scale of its own", 2, 2, 4, 2, 16, 200, 180, [40, 178], [42, 180], rotated=16, scale=1.0),
    # Prompts.
    _case("the first token", 1, 1, 2, 2, 8, 4, 1, 0, rotated=8),
    _case("the first eight", 1, 8, 2, 2, 8, 8, 8, 0, rotated=8),
    _case("a prompt of nine", 2, 9, 4, 2, 16, 30, 14, 5, rotated=16),
    _case("a prompt that is not turned", 2, 9, 4, 2, 16, 30, 14, 5),
    _case("a prompt, half of it turned", 1, 33, 3, 1, 32, 40, 33, 0, rotated=16),
    _case("a prompt of rows apart", 2, 12, 4, 2, 8, 40, 30, [3, 18], [15, 28], rotated=4),
    _case("a prompt in a window", 1, 20, 2, 1, 8, 60, 50, 30, rotated=8, window=5),
    _case("a prompt with a scale of its own", 2, 20, 4, 2, 16, 30, 25, 5, rotated=16, scale=0.7),
    _case("a prompt of odd heads", 2, 10, 2, 1, 7, 30, 30, [0, 20], [10, 30], rotated=6),
]  # fmt: skip


def _eight(note: str, *sizes: Any, **options: Any) -> Case:
    return _case(f"8 bit, {note}", *sizes, eight=True, **options)


# The same places where numbers share scales: heads of several groups, of one, and none that 32 divides.
EIGHT_BIT: list[Case] = [
    _eight("three splits", 1, 1, 4, 2, 64, 400, 389, 388, rotated=64),
    _eight("one key more than a split", 1, 1, 2, 2, 8, 70, 65, 64),
    _eight("more sums of splits than threads", 1, 1, 8, 1, 128, 300, 290, 289),
    _eight("splits of rows apart", 2, 1, 6, 2, 64, 300, 300, [40, 290], [41, 291], rotated=64),
    _eight("a row of no keys", 2, 1, 2, 1, 32, 300, 270, [0, 269], [0, 270]),
    _eight("the whole capacity offered", 3, 1, 3, 1, 64, 512, 512, [5, 200, 511], [6, 201, 512], rotated=64),
    _eight("new tokens over two splits", 1, 8, 2, 1, 64, 300, 260, 252, rotated=64),
    _eight("the last split holds one key", 1, 3, 1, 1, 64, 200, 194, 191),
    _eight("windowed splits", 1, 2, 4, 2, 64, 500, 450, 448, window=200),
    _eight("a window of rows apart", 3, 2, 3, 1, 96, 200, 200, [0, 60, 190], [2, 62, 192], window=40),
    _eight("all keys both ways", 1, 3, 2, 1, 64, 300, 290, 287, causal=False),
    _eight("padded queries", 2, 4, 2, 1, 64, 100, 90, [10, 70], [11, 73], rotated=64),
    _eight("eight heads to one", 1, 2, 8, 1, 32, 64, 40, 38, rotated=32),
    _eight("three heads to one, five tokens", 2, 5, 9, 3, 64, 40, 33, [20, 28], [25, 33], rotated=64),
    _eight("twenty heads to one", 1, 1, 20, 1, 64, 100, 90, 89, rotated=64),
    *(
        _eight(f"heads of {width}", 1, 2, 2, 1, width, 80, 70, 68, rotated=width // 2 * 2)
        for width in (1, 2, 7, 8, 20, 32, 64, 80, 96, 100, 128, 160, 200, 224, 256)
    ),
    _eight("half of a head turned", 2, 2, 4, 2, 64, 40, 33, [20, 31], [22, 33], rotated=32),
    _eight("large scores", 1, 1, 4, 2, 64, 200, 180, 179, rotated=64, times=10.0),
    _eight("a scale of its own", 1, 1, 4, 2, 64, 200, 180, 179, rotated=64, scale=0.05),
    _eight("new numbers of zero", 1, 1, 4, 2, 64, 200, 180, 179, times=0.0),
    _eight("new numbers too small for a scale", 1, 2, 4, 2, 64, 100, 80, 78, times=1e-7),
    _eight("NaN", 2, 2, 4, 2, 64, 100, 80, 78, spoilt=np.nan),
    _eight("infinity", 2, 2, 4, 2, 64, 100, 80, 78, spoilt=-np.inf),
    _eight("a number too large for a scale", 1, 1, 4, 2, 40, 100, 80, 79, spoilt=1e30),
    _eight("the first token", 1, 1, 2, 2, 32, 4, 1, 0, rotated=32),
    _eight("the first eight", 1, 8, 2, 2, 32, 8, 8, 0, rotated=32),
    _eight("a prompt of nine", 2, 9, 4, 2, 64, 30, 14, 5, rotated=64),
    _eight("a prompt that is not turned", 2, 9, 4, 2, 64, 30, 14, 5),
    _eight("a prompt of rows apart", 2, 12, 6, 2, 32, 40, 30, [3, 18], [15, 28], rotated=16),
    _eight("a prompt in a window", 1, 20, 2, 1, 64, 60, 50, 30, rotated=64, window=5),
    _eight("a prompt of odd heads", 2, 10, 2, 1, 7, 30, 30, [0, 20], [10, 30], rotated=6),
    _eight("a prompt of wide heads", 1, 9, 2, 1, 200, 30, 20, 11, rotated=200),
    _eight("a prompt with NaN", 1, 9, 4, 2, 64, 30, 14, 5, spoilt=np.nan),
]  # fmt: skip


def _rotary(
    note: str,
    shape: tuple[int, ...],
    rotated: int,
    places: Any,
    dtype: str = "int64",
    **options: Any,
) -> Case:
    count = int(np.max(places, initial=0)) + 1
    return Case(
        "rotary", note, (normal(*shape), *_tables(rotated, count), array(places, dtype)), options
    )


ROTARY: list[Case] = [
    _rotary("heads of 64", (2, 3, 3, 64), 64, [5, 6, 7]),
    _rotary("heads of 128, half turned", (1, 2, 3, 128), 64, [[9, 0]]),
    _rotary("heads of 80, a fifth turned", (1, 3, 2, 80), 16, [0, 1, 2]),
    _rotary("halves of four", (2, 2, 2, 16), 8, [[3, 1], [0, 2]]),
    _rotary("queries and keys of three", (1, 5, 15, 64), 64, np.arange(5), heads=12),
    _rotary("no heads", (1, 2, 3, 8), 8, [1, 2], heads=0),
    _rotary("many short heads", (3, 70, 2, 2), 2, np.arange(70)),
    _rotary("many tokens, rows apart", (2, 40, 3, 16), 16, np.arange(80).reshape(2, 40) % 50),
    _rotary("a wide token", (1, 2, 40, 256), 256, [1, 3]),
    _rotary("short integers", (1, 3, 2, 8), 8, [2, 0, 1], "int32"),
    _rotary("no tokens", (2, 0, 2, 8), 8, np.zeros(0)),
    _rotary("nothing turned", (1, 2, 2, 8), 0, [0, 1]),
]  # fmt: skip
