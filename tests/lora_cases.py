"""The cases of low-rank adapters: ranks, parts and rows around what their kernels take at once."""

from typing import Any

from case_specs import Case, normal, weight


def _case(
    note: str, shape: tuple[int, ...], out: int, spans: Any, ranks: Any, **options: Any
) -> Case:
    sizes = [(r, shape[-1], stop - start) for r, (start, stop) in zip(ranks, spans, strict=True)]
    factors = (f for r, width, rows in sizes for f in (weight(r, width), weight(rows, r)))
    scales = tuple(0.5 + i for i in range(len(ranks)))
    base = normal(*shape[:-1], out)
    x = normal(*shape, gradient=options.get("needs", (True, True))[1])
    options = {"spans": spans, "scales": scales, **options}
    return Case("lora", note, (base, x, *factors), options, roundings=6)


LORA: list[Case] = [
    _case("all columns", (3, 5), 4, ((0, 4),), (2,)),
    _case("two of three groups", (2, 3, 8), 12, ((0, 6), (9, 12)), (2, 3)),
    _case("one row, rank 1", (1, 5), 3, ((1, 2),), (1,)),
    _case("a vector", (6,), 5, ((2, 5),), (2,)),
    _case("a frozen input", (4, 6), 5, ((0, 2), (2, 5)), (2, 2), needs=(True, False)),
    _case("many rows", (19, 40), 24, ((8, 24),), (8,)),
]
# Three parts at most, up to 16 rows, 4 at a time; 8 numbers in an access, 32 columns a warp, 128 a block.
LORA_KERNELS: list[Case] = [
    _case("query, key and value", (1, 1, 64), 96, ((0, 64), (64, 80), (80, 96)), (8, 8, 8)),
    _case("ranks apart", (2, 1, 40), 300, ((3, 130), (130, 131), (140, 299)), (1, 33, 5)),
    _case("parts out of order", (3, 24), 70, ((40, 70), (0, 30)), (4, 6)),
    _case("a rank over a warp", (5, 72), 40, ((0, 40),), (70,)),
    _case("more numbers than a block takes at once", (2, 2056), 33, ((1, 33),), (3,)),
    _case("an odd width", (4, 131), 129, ((0, 129),), (16,)),
    _case("sixteen rows", (16, 32), 48, ((0, 16), (32, 48)), (2, 4)),
    _case("seventeen rows", (17, 32), 48, ((0, 16), (32, 48)), (2, 4)),
    _case("four parts", (2, 16), 32, ((0, 8), (8, 16), (16, 24), (24, 30)), (2, 2, 3, 1)),
]
