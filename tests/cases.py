"""The one table of cases: inputs for every operation, from which the tests of all makers are made."""

from typing import Any

import numpy as np
from activation_cases import ACTIVATION, DROPOUT
from attention_cases import ATTENTION, turns
from cached_attention_cases import CACHED, EIGHT_BIT, ROTARY
from case_specs import (
    Case,
    DType,
    Floats,
    Given,
    array,
    distinct,
    fixed,
    ids,
    normal,
    positive,
    seen,
    state,
    states,
    weight,
)  # fmt: skip
from embedding_cases import EMBEDDING
from flash_cases import FLASH, FLASH_NOT_FINITE
from linear_cases import LINEAR
from lora_cases import LORA, LORA_KERNELS
from loss_cases import LOSS
from norm_cases import HEADS, NORM
from optimizer_cases import OPTIMIZER, OPTIMIZER_KERNELS
from sampling_cases import SAMPLING


def _norm_cases() -> list[Case]:
    made = []
    for name, extra in (("layer_norm", 2), ("rms_norm", 1)):
        fused = f"add_{name}"
        for shape in ((3, 7), (1, 5), (2, 3, 33), (1, 1, 8), (6,)):
            weights = (normal(shape[-1]),) * extra
            made.append(Case(name, f"{shape}", (normal(*shape), *weights)))
            made.append(
                Case(fused, f"{shape}", (normal(*shape), normal(*shape), *weights), roundings=3)
            )
        made.append(Case(name, "eps", (normal(2, 4), *(normal(4),) * extra), {"eps": 0.5}))
        made.append(Case(fused, "eps", (normal(2, 4),) * 2 + (normal(4),) * extra, {"eps": 0.5}))
    return made


def _elementwise_cases() -> list[Case]:
    made = []
    for name in ("add", "subtract", "multiply", "divide"):
        for note, a, b in (
            ("same shape", normal(2, 3), positive(2, 3)),
            ("rows of whole vectors", normal(5, 24), positive(5, 24)),
            ("broadcast right", normal(2, 3, 4), positive(4)),
            ("broadcast left", normal(3, 1), positive(2, 1, 4)),
            ("scalars of an array", normal(3), positive()),
            ("number right", normal(2, 3), 2.5),
            ("number left", -1.5, positive(3)),
            ("a few blocks", normal(3, 1111), positive(3, 1111)),
        ):
            made.append(Case(name, note, (a, b)))
    for name in (
        "exp",
        "tanh",
        "sigmoid",
        "absolute",
        "negative",
        "relu",
        "gelu",
        "gelu_tanh",
        "silu",
    ):
        for shape in ((3, 5), (1, 1), (7,)):
            made.append(Case(name, f"{shape}", (normal(*shape),)))
    wide = fixed([-30.0, -9.0, -5.0, -4.0, -0.47, 0.46, 0.0, 3.9, 4.1, 6.5, 20.0])
    for name in ("sigmoid", "tanh", "gelu", "gelu_tanh", "silu"):
        made.append(Case(name, "far from 0", (wide,)))
    for name in ("log", "sqrt"):
        made.append(Case(name, "(3, 5)", (positive(3, 5),)))
    for exponent in (2, 3, 0.5, -1):
        made.append(Case("power", f"{exponent}", (positive(2, 3),), {"exponent": exponent}))
    for name in ("swiglu", "geglu"):
        made += [Case(name, f"{s}", (normal(*s),)) for s in ((3, 6), (1, 2), (1, 1, 8), (2, 3, 14))]
    condition = seen(2, 3)
    made += [
        Case("where", "same shape", (condition, normal(2, 3), normal(2, 3))),
        Case("where", "broadcast", (seen(3, 1), normal(2), normal(1, 1))),
        Case("cast", "to float64", (normal(2, 3),), {"dtype": DType("float64")}),
        Case("concat", "three", (normal(2, 3), normal(1, 3), normal(4, 3))),
        Case("concat", "last axis", (normal(2, 3), normal(2, 1)), {"axis": -1}),
        Case("concat", "one", (normal(2, 3),), {"axis": 1}),
        Case("dropout", "(3, 7)", (normal(3, 7), state(5, 0)), {"p": 0.3}),
        Case("dropout", "big seed", (normal(5), state(2**63 + 11, 2**40)), {"p": 0.75}),
    ]
    return made


def _reduction_cases() -> list[Case]:
    made = []
    axes: tuple[dict[str, Any], ...] = (
        {}, {"axis": 0}, {"axis": -1, "keepdims": True}, {"axis": (0, 2)}, {"keepdims": True},
    )  # fmt: skip
    for options in axes:
        note = str(options)
        made += [Case(name, note, (normal(2, 3, 4),), options) for name in ("sum", "mean")]
        made.append(Case("max", note, (distinct(2, 3, 4),), options))
    equal = fixed([[1.0, 3, 3], [2, 2, 2]])
    made.append(Case("max", "equal ones", (equal,), {"axis": 1}, smooth=False))
    made += [
        Case("softmax", f"axis {a}", (normal(2, 3, 5),), {"axis": a}, roundings=2) for a in (-1, 1)
    ]
    made.append(Case("softmax", "far apart", (fixed([[-90.0, 0, 90], [50, 50, 49]]),), roundings=2))
    hidden = fixed([[-np.inf, -np.inf], [0, -np.inf]])
    made.append(Case("softmax", "a row of -inf", (hidden,), smooth=False, roundings=2))
    return made


def _linear_cases() -> list[Case]:
    made = []
    for shape, out in (
        ((3, 5), 7),
        ((1, 5), 3),
        ((2, 3, 4), 1),
        ((9, 6), 5),
        ((1, 1, 7), 4),
        ((4,), 3),
    ):
        made.append(Case("linear", f"{shape} to {out}", (normal(*shape), weight(out, shape[-1]))))
        made.append(
            Case("linear", f"{shape} to {out}, bias",
                 (normal(*shape), weight(out, shape[-1]), normal(out)))
        )  # fmt: skip
    for activation in ("relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"):
        made.append(
            Case(
                "linear",
                activation,
                (normal(2, 3), weight(8, 3), normal(8)),
                {"activation": activation},
            )
        )
    made += [
        Case("linear", "residual", (normal(1, 3, 4), weight(5, 4), None, normal(1, 3, 5))),
        Case(
            "linear",
            "all",
            (normal(3, 4), weight(6, 4), normal(6), normal(3, 3)),
            {"activation": "swiglu"},
        ),
    ]
    frozen = Floats(weight(8, 4).draw, weight=True, gradient=False)
    options = {"activation": "swiglu", "needs": (True, False)}
    made.append(Case("linear", "a frozen weight", (normal(3, 4), frozen), options))
    columns = Floats(lambda random: np.asfortranarray(random.standard_normal((5, 4))), weight=True)
    made += [Case("linear", f"by columns, {n} rows", (normal(n, 4), columns)) for n in (1, 3, 9)]
    for a, b in (
        ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((2, 1, 2, 3), (4, 3, 1)),
        ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3,)), ((3,), (5, 3, 4)),
        ((1,), (1,)), ((4, 1), (1,)),
    ):  # fmt: skip
        made.append(Case("matmul", f"{a} {b}", (normal(*a), normal(*b))))
    table = weight(9, 4)
    made += [
        Case("embedding", "twice the same", (array([[1, 5, 1], [8, 0, 1]]), table)),
        Case("embedding", "one", (array([[3]]), table)),
        Case("embedding", "padding", (array([2, 0, 2]), table), {"padding": 2}, smooth=False),
        Case("embedding", "scale", (ids(9, 2, 2), table), {"scale": 3.0}),
        Case("embedding", "dtype", (ids(9, 5), table), {"dtype": DType("float64")}),
        Case("embedding", "int32", (array([7, 7], "int32"), table)),
    ]
    return made


def _rotary_case(
    note: str, shape: tuple[int, ...], places: Given, rotated: int, **options: Any
) -> Case:
    return Case("rotary", note, (normal(*shape), *turns(rotated), places), options)


def _model_cases() -> list[Case]:
    return [
        _rotary_case("whole heads", (2, 3, 4, 6), array([0, 1, 2]), 6),
        _rotary_case("rows apart", (2, 3, 1, 4), array([[0, 1, 2], [7, 8, 9]]), 4),
        _rotary_case("part of a head", (1, 2, 3, 7), array([3, 4]), 4),
        _rotary_case("some heads", (2, 2, 5, 4), array([10, 11]), 4, heads=3),
        _rotary_case("one token", (1, 1, 2, 2), array([5]), 2),
        Case("split_heads", "grouped", (normal(2, 3, 8, 5),), {"sizes": (4, 2, 2)}),
        Case("split_heads", "even", (normal(1, 1, 3, 2),), {"sizes": (1, 1, 1)}),
        Case("split_heads", "in vectors", (normal(2, 9, 6, 16),), {"sizes": (2, 2, 2)}),
        Case("split_heads", "keys and values", (normal(1, 5, 4, 24),), {"sizes": (0, 2, 2)}),
        Case("reshape", "to 2", (normal(2, 3, 4),), {"shape": (4, -1)}),
        Case("permute", "3 axes", (normal(2, 3, 4),), {"axes": (2, 0, 1)}),
        Case("getitem", "slices", (normal(4, 5),), {"index": (slice(1, 3), slice(None, None, 2))}),
        Case("getitem", "a row", (normal(4, 5),), {"index": (2, slice(None))}),
        Case("getitem", "ellipsis and new axis", (normal(4, 5),), {"index": (None, ..., 1)},
             standard=False),
        Case("getitem", "twice the same", (normal(4, 5),),
             {"index": (np.array([3, 0, 3]), np.array([1, 1, 1]))},
             standard=False),
        Case("cross_entropy", "plain", (normal(5, 7), ids(7, 5)), roundings=0),
        Case("cross_entropy", "one row", (normal(1, 3), ids(3, 1)), roundings=0),
        Case("cross_entropy", "smoothing", (normal(4, 6), ids(6, 4)), {"label_smoothing": 0.1}, roundings=0),
        Case("cross_entropy", "ignored", (normal(4, 6), array([1, -100, 5, -100])), roundings=0),
        Case("cross_entropy", "ignored class", (normal(4, 6), array([1, 2, 2, 0])),
             {"ignore_index": 2, "label_smoothing": 0.3}, roundings=0),
        Case("cross_entropy", "all ignored", (normal(2, 3), array([-100, -100])), roundings=0),
        Case("cross_entropy", "far apart", (fixed([[900.0, -900, 0]]), array([0])), roundings=0),
    ]  # fmt: skip


def _sampling_cases() -> list[Case]:
    def case(
        note: str, temperature: Any, top_k: Any, top_p: Any, min_p: Any, rows: int = 3
    ) -> Case:
        single = [array([value] * rows, "float32") for value in (temperature, top_p, min_p)]
        row = (single[0], array([top_k] * rows), *single[1:])
        return Case("sample", note, (normal(rows, 11), *row, state(7, 3)))

    return [
        Case("advance", "two rows", (array([3, 0]), array([4, 1])), {"count": 1}),
        Case("advance", "many rows", (ids(99, 70), ids(99, 70)), {"count": 5}),
        Case("argmax", "(3, 7)", (normal(3, 7),)),
        Case("argmax", "equal ones", (fixed([[1.0, 2, 2]]),)),
        Case("feed", "one draw", (ids(50, 3, 1), ids(50, 3), state(7, 2**32 - 1))),
        Case("feed", "a draw a row", (ids(50, 70, 1), ids(50, 70), states(70))),
        Case("mark_seen", "two tokens", (seen(2, 6), array([[1, 5], [2, -1]]))),
        Case("mark_seen", "none", (seen(1, 3), array([[-1]]))),
        Case("penalize", "(2, 6)", (normal(2, 6), seen(2, 6), array([1.3, 0.8], "float32")), roundings=0),
        case("plain", 1.0, 0, 1.0, 0.0),
        case("cold", 0.3, 0, 1.0, 0.0),
        case("greedy", 0.0, 0, 1.0, 0.0),
        case("top k", 1.5, 4, 1.0, 0.0),
        case("top p", 1.0, 0, 0.6, 0.0),
        case("min p", 2.0, 0, 1.0, 0.3),
        case("all of them", 0.8, 6, 0.8, 0.05, rows=9),
        case("k above V", 1.0, 50, 0.9, 0.0),
        Case("sample", "rows apart",
             (normal(3, 5), array([0.0, 1.0, 2.0], "float32"), array([1, 0, 2]),
              array([1.0, 0.5, 1.0], "float32"), array([0.0, 0.1, 0.0], "float32"), state(1, 2))),
        Case("sample", "a draw a row",
             (normal(9, 11), *(array([v] * 9, t) for v, t in ((1.0, "float32"), (6, "int64"),
              (0.9, "float32"), (0.01, "float32"))), states(9))),
    ]  # fmt: skip


CASES: list[Case] = [
    *ATTENTION, *OPTIMIZER,
    *_norm_cases(), *HEADS, *_elementwise_cases(), *_reduction_cases(), *_linear_cases(),
    *_model_cases(), *LORA, *_sampling_cases(),
]  # fmt: skip
# What only kernels need to be asked: sizes around their tiles, strange numbers. Too large for numeric
# gradients; makers are compared with their references on them too.
KERNEL_CASES: list[Case] = [
    *ACTIVATION, *CACHED, *DROPOUT, *EIGHT_BIT, *EMBEDDING, *FLASH, *FLASH_NOT_FINITE, *LINEAR, *LORA_KERNELS, *LOSS, *NORM,
    *OPTIMIZER_KERNELS, *ROTARY, *SAMPLING,
    *(Case("cast", f"to {d}", (normal(5, 107),), {"dtype": DType(d)}) for d in ("float32", "float16")),
]  # fmt: skip
