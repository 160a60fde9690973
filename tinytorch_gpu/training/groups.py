"""Groups of parameters that are stepped alike."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..core.module import Module
from ..core.tensor import Parameter

Params = Iterable[Any]


class Group:
    """Parameters that are stepped alike: ``rate`` multiplies the optimizer's, ``decay`` is theirs."""

    def __init__(self, params: list[tuple[str, Parameter]], rate: float, decay: float):
        self.params, self.rate, self.decay = params, rate, decay


def groups_of(params: Params, decay: float) -> list[Group]:
    """Parameters, (name, Parameter) pairs or dicts of them with their own settings, as groups. No
    parameters, an unknown setting or a name that comes twice is a ValueError."""
    given = list(params)
    if not given:
        raise ValueError("an optimizer needs at least one parameter")
    dicts: list[Any] = given if isinstance(given[0], Mapping) else [{"params": given}]
    made, count, seen = [], 0, set()
    for entry in dicts:
        unknown = set(entry) - {"params", "weight_decay", "lr"}
        if unknown:
            raise ValueError(
                f"a group has params, weight_decay and lr (a factor), not {sorted(unknown)}"
            )
        named = []
        for item in entry["params"]:
            name, parameter = item if isinstance(item, tuple) else (f"{count}", item)
            if not isinstance(parameter, Parameter):
                raise TypeError(f"{name} is a {type(parameter).__name__}, not a Parameter")
            if name in seen:
                raise ValueError(f"two parameters are called {name}")
            seen.add(name)
            named.append((name, parameter))
            count += 1
        made.append(
            Group(named, float(entry.get("lr", 1.0)), float(entry.get("weight_decay", decay)))
        )
    return made


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of a model's parameters: matrices decay; vectors (gains, biases) do not."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    apart: list[dict[str, Any]] = [
        {"params": [x for x in named if x[1].ndim > 1], "weight_decay": weight_decay},
        {"params": [x for x in named if x[1].ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in apart if group["params"]]
