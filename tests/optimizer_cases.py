"""The cases of the optimizer's operations. Moments and masters are float32 whatever the parameter is."""

from typing import Any

import numpy as np
from case_specs import Case, Given, array, fixed, normal


def _float32(scale: float, *shape: int, squared: bool = False) -> Given:
    def draw(random: np.random.Generator) -> Any:
        values = random.standard_normal(shape) * scale
        return (values * values if squared else values).astype(np.float32)

    return Given(draw)


def _adamw(
    note: str, *shape: int, step: int = 3, scale: float = 1.0, rate: float = 1e-2,
    master: bool = False, moments: Any = None, **options: Any,
) -> Case:  # fmt: skip
    first, second = moments or (_float32(0.1, *shape), _float32(0.1, *shape, squared=True))
    numbers = (array(rate, "float32"), array(step), array(scale, "float32"))
    specs = (normal(*shape), normal(*shape), first, second)
    return Case("adamw", note, (*specs, _float32(1, *shape) if master else None, *numbers), options)


def _sgd(note: str, *shape: int, scale: float = 1.0, master: bool = False, **options: Any) -> Case:
    velocity = _float32(0.1, *shape) if options.get("momentum") else None
    specs = (normal(*shape), normal(*shape), velocity, _float32(1, *shape) if master else None)
    return Case("sgd", note, (*specs, array(0.05, "float32"), array(scale, "float32")), options)


_ZEROS = (_float32(0.0, 5, 3), _float32(0.0, 5, 3))

# For every test of operations.
OPTIMIZER: list[Case] = [
    *(_adamw(f"{shape}", *shape) for shape in ((1,), (7,), (2, 3, 5))),
    _adamw("masters", 9, 8, master=True),
    _adamw("the first step", 5, 3, step=1, moments=_ZEROS),
    _adamw("a step skipped", 40, scale=0.0, master=True),
    _sgd("plain", 3, 5),
    _sgd("decay and masters", 7, weight_decay=0.1, master=True),
    _sgd("momentum", 2, 9, momentum=0.9),
    _sgd("a step skipped", 8, scale=0.0, momentum=0.9),
    _sgd("nesterov", 33, momentum=0.8, nesterov=True, weight_decay=0.01, scale=0.5),
    Case("gradient_norm", "one", (normal(3, 5),)),
    Case("gradient_norm", "three", (normal(33), normal(2, 8), normal(1))),
    *(
        Case("clip_scale", f"{norm}", (array(norm, "float32"),), {"max_norm": 1.0})
        for norm in (0.0, 0.25, 7.5, np.inf)
    ),
]

# For kernels.
OPTIMIZER_KERNELS: list[Case] = [
    *(_adamw(f"{shape}", *shape) for shape in ((3, 8), (2053,))),
    *(_adamw(f"{shape} with masters", *shape, master=True) for shape in ((1,), (33,))),
    _adamw("more than a chunk", 8197),
    _adamw("one more than a chunk", 8193),
    _adamw("a late step", 40, step=1_000_000),
    _adamw("a scaled gradient", 40, scale=0.125, master=True),
    _adamw("no decay", 40, weight_decay=0.0),
    _adamw("no moments", 40, beta1=0.0, beta2=0.0, eps=1e-3),
    _adamw("other betas", 40, beta1=0.95, beta2=0.9, eps=1e-6, weight_decay=0.3, rate=0.5),
    _adamw("nothing", 0),
    _sgd("more than a chunk", 8193, momentum=0.9, weight_decay=0.1, master=True),
    _sgd("nothing", 0),
    Case("gradient_norm", "a number", (normal(),)),
    Case("gradient_norm", "more than a chunk", (normal(8201), normal(5))),
    Case("gradient_norm", "zeros", (fixed([0.0, 0, 0]),)),
    Case("gradient_norm", "nothing in one", (normal(0), normal(4))),
    Case("gradient_norm", "infinite", (fixed([1.0, np.inf]),)),
    Case("gradient_norm", "not a number", (fixed([1.0, 2]), fixed([np.nan]))),
    *(
        Case("clip_scale", f"{norm}", (array(norm, "float32"),), {"max_norm": 1.0})
        for norm in (1.0, 3e37, np.nan)
    ),
]
