"""More cases of choosing tokens: long rows, ties at the edges, extreme logits, every cut."""

from typing import Any

import numpy as np
from case_specs import Case, Floats, array, fixed, normal, seen, state

_SHAPES = ((2, 257), (1, 1000), (2, 1501), (1, 5003))


def _sample(
    note: str, logits: Floats, temperature: Any, top_k: Any, top_p: Any, min_p: Any, seed: int = 11
) -> Case:
    rows = len(np.asarray(logits.draw(np.random.default_rng(0))))

    def each(value: Any, dtype: str) -> Any:
        return array(np.broadcast_to(value, rows), dtype)

    row = (each(temperature, "float32"), each(top_k, "int64"),
           each(top_p, "float32"), each(min_p, "float32"))  # fmt: skip
    return Case("sample", note, (logits, *row, state(seed, 2**33)))


def _spread(shape: tuple[int, ...], by: float) -> Floats:
    return Floats(lambda random: random.standard_normal(shape) * by)


def _coarse(*shape: int) -> Floats:
    """Logits of which many are equal."""
    return Floats(lambda random: np.round(random.standard_normal(shape) * 2) / 2)


def _crowded(*shape: int) -> Floats:
    """Logits nearly equal but for one far below, so that one of the bins has all the others."""

    def draw(random: Any) -> Any:
        made = random.standard_normal(shape) * 1e-3
        made[:, 7] = -40
        return made

    return Floats(draw)


def _sample_cases() -> list[Case]:
    steep, flat, hidden = np.zeros((2, 300)), np.full((2, 50), -1.5), np.zeros((2, 70))
    steep[:, 17] = 60
    hidden[0, ::2], hidden[1, 3:] = -np.inf, -np.inf
    cuts = (("top k", 40, 1.0, 0.0), ("top p", 0, 0.9, 0.0), ("min p", 0, 1.0, 0.1),
            ("all cuts", 20, 0.8, 0.02), ("nothing cut", 0, 1.0, 0.0))  # fmt: skip
    made = [
        _sample(f"{note}, {shape}", _spread(shape, 2.0), 0.9, k, p, m)
        for shape in _SHAPES
        for note, k, p, m in cuts
    ]
    return [
        *made,
        _sample("one class", normal(3, 1), 1.0, [0, 1, 5], [1.0, 0.5, 0.9], 0.0),
        _sample("two classes", normal(3, 2), [1.0, 0.0, 5.0], [0, 1, 2], [0.4, 1.0, 0.9], 0.0),
        _sample("ties, top k", _coarse(4, 90), 1.0, [1, 2, 7, 30], 1.0, 0.0),
        _sample("ties, top p", _coarse(4, 90), 0.7, 0, [0.1, 0.5, 0.9, 0.99], 0.0),
        _sample("ties, both", _coarse(4, 90), 0.7, [3, 10, 20, 60], [0.1, 0.5, 0.9, 0.99], 0.0),
        _sample("one stands out", fixed(steep), 1.0, [0, 5], [0.9, 1.0], 0.0),
        _sample("all equal", fixed(flat), 1.0, [7, 0], [1.0, 0.3], 0.0),
        _sample("hidden classes", fixed(hidden), 1.0, [10, 60], [0.9, 0.5], 0.0),
        _sample("nearly equal", _spread((2, 300), 1e-3), 1.0, [25, 0], [0.7, 0.6], 0.0),
        # An edge among more logits of one bin than a block has threads, and than are listed. A logit missed
        # moves what is drawn by part of a place.
        _sample("crowded", _crowded(8, 1500), 1.0, np.arange(1100, 1500, 50), 1.0, 0.0),
        _sample("crowded, top p", _crowded(8, 1500), 1.0, 0, np.linspace(0.75, 0.97, 8), 0.0),
        _sample("overfull", _crowded(3, 5000), 1.0, [4400, 4700, 0], [1.0, 1.0, 0.93], 0.0),
        _sample("far apart", _spread((2, 300), 300.0), 1.0, [25, 0], [0.7, 0.6], 0.0),
        _sample("nearly cold", _spread((2, 300), 2.0), 1e-3, [25, 0], [0.7, 0.6], 0.0),
        _sample("hot", _spread((2, 300), 2.0), 50.0, [25, 0], [0.7, 0.6], 0.0),
        _sample("a long row", _spread((1, 40000), 1.0), 1.0, 0, 1.0, 0.0),
        _sample("more rows than a group", _spread((7, 40), 2.0), 1.3, 9, 0.95, 0.01),
        *(_sample(f"seed {s}", _spread((5, 60), 1.0), 1.0, 50, 0.95, 0.0, s) for s in range(4)),
    ]


_MARKED = np.arange(120).reshape(2, 60) * 7 % 50 - 1  # with repetitions, and -1

SAMPLING: list[Case] = [
    *_sample_cases(),
    *(Case("argmax", f"{shape}", (_spread(shape, 3.0),)) for shape in ((1, 1), *_SHAPES)),
    Case("argmax", "ties", (_coarse(3, 90),)),
    Case("argmax", "all equal", (fixed(np.full((2, 600), 2.5)),)),
    Case("argmax", "infinite", (fixed([[0.0, np.inf, 1], [-np.inf] * 3]),)),
    Case("argmax", "not a number", (fixed([[0.0, 5, np.nan, np.nan], [np.inf, 1, 2, np.nan]]),)),
    Case("mark_seen", "many", (seen(2, 55), array(_MARKED))),
    Case("mark_seen", "one int32", (seen(3, 7), array([[6], [0], [-1]], "int32"))),
    Case("mark_seen", "none before", (array(np.zeros((3, 7)), "bool"), array([[0], [6], [3]]))),
    Case("mark_seen", "no ids", (seen(2, 5), array(np.zeros((2, 0))))),
    *(
        Case("penalize", f"{shape}", (normal(*shape), seen(*shape), array(factor, "float32")),
             roundings=0)
        for shape, factor in (((1, 1), [1.5]), ((3, 33), [0.5, 1, 2]), ((2, 1025), [1.1, 9.0]))
    ),
]  # fmt: skip
