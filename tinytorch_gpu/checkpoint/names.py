"""Which tensor of a file is which weight of the model, by the tables of ``families``."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from ..config import TransformerConfig
from .errors import ModelFileError, listed, quoted
from .families import FAMILIES, INTERLEAVED, SAME, Family
from .shapes import layered_shapes, outer_shapes


@dataclass(frozen=True)
class Mapped:
    """One tensor of a file: the weights it holds, its shape in the file and how it holds them."""

    source: str
    targets: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    head_dim: int

    def parts(self, view_of: Callable[[str], Any]) -> Iterator[tuple[Any, int, int]]:
        """Yield (view, start, stop): which rows (or columns, for SAME) of the file each target is.

        view_of: a target's name to its array; the view is that array with the file's orientation.
        """
        start = 0
        for name in self.targets:
            array = view_of(name)
            stop = start + array.shape[-1]
            yield (array if self.kind == SAME else array.T), start, stop
            start = stop

    def gathered(self, array_of: Callable[[str], numpy.ndarray]) -> numpy.ndarray:
        """Return the tensor as the file has it: ``parts`` backwards, a copy only where needed."""
        parts = [view for view, _, _ in self.parts(array_of)]
        axis = -1 if self.kind == SAME else 0
        whole = parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis)
        if self.kind == INTERLEAVED:
            whole = interleaved(whole, self.head_dim)
        return numpy.ascontiguousarray(whole)


def interleaved(rows: numpy.ndarray, head_dim: int) -> numpy.ndarray:
    """Reorder whole heads of rows from half-split to interleaved rotary pairs."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def half_split(rows: numpy.ndarray, head_dim: int) -> numpy.ndarray:
    """Reorder whole heads of rows from interleaved to half-split rotary pairs."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def mapped_tensors(family: str, config: TransformerConfig) -> list[Mapped]:
    """Return every tensor that a file of ``family`` holds for ``config``, without prefixes.

    A choice of ``config`` that the family has no name for is a ValueError.
    """
    layered = layered_shapes(config)
    shapes = {name: shape for block, _ in layered.values() for name, shape in block.items()}
    shapes |= outer_shapes(config)
    rows = FAMILIES[family].rows
    if rows is None:
        rows = tuple((name, name, SAME) for name in shapes)
    found: list[tuple[str, Mapped]] = []
    covered: set[str] = set()
    for source, target, kind in rows:
        targets = (target,) if isinstance(target, str) else target
        if not all(name in shapes for name in targets):
            continue
        covered.update(targets)
        widths = [shapes[name][-1] for name in targets]
        shape = (*shapes[targets[0]][:-1], sum(widths))
        shape = shape if kind == SAME else shape[::-1]
        layer = next((mark for mark in layered if mark in source), "")
        found.append((layer, Mapped(source, targets, kind, shape, config.head_size)))
    if covered != set(shapes):
        raise ValueError(f"{family} files have no name for {sorted(set(shapes) - covered)}")
    made = [each for layer, each in found if not layer]
    for mark, (_, count) in layered.items():
        made += [_in_layer(m, mark, i) for i in range(count) for layer, m in found if layer == mark]
    return made


def _in_layer(mapped: Mapped, mark: str, layer: int) -> Mapped:
    targets = tuple(name.replace(mark, str(layer)) for name in mapped.targets)
    source = mapped.source.replace(mark, str(layer))
    return Mapped(source, targets, mapped.kind, mapped.shape, mapped.head_dim)


def matched(
    family: str, config: TransformerConfig, tensors: Mapping[str, Any], where: str
) -> list[tuple[Mapped, Any]]:
    """Pair every expected tensor with the file's; ModelFileError if they do not fit.

    tensors: by name, each with a ``shape``. Missing, unexpected and wrongly shaped ones are named.
    """
    layers = config.num_layers + config.encoder_layers
    if layers > len(tensors):
        raise ModelFileError(f"{where}: {layers} layers, but only {len(tensors)} tensors")
    rules = FAMILIES[family]
    named: dict[str, Any] = {}
    for name, info in tensors.items():
        plain = name.removeprefix(rules.prefix)
        if plain in named:
            raise ModelFileError(f"{where}: tensor {quoted(plain)} occurs twice, with a prefix")
        named[plain] = info
    expected = {each.source: each for each in mapped_tensors(family, config)}
    missing = [name for name in expected if name not in named]
    unexpected = [
        name for name in named if name not in expected and not _harmless(name, rules, config)
    ]
    if missing or unexpected:
        found = [("missing", missing), ("unexpected", unexpected)]
        problem = "; ".join(f"{what} tensors: {listed(names)}" for what, names in found if names)
        raise ModelFileError(f"{where}: {problem}")
    for name, each in expected.items():
        if named[name].shape != each.shape:
            problem = f"has shape {named[name].shape}; the configuration asks for {each.shape}"
            raise ModelFileError(f"{where}: tensor {quoted(name)} {problem}")
    return [(each, named[name]) for name, each in expected.items()]


def _harmless(name: str, rules: Family, config: TransformerConfig) -> bool:
    if config.tie_embeddings and name in rules.unprefixed:
        return True  # a copy of the embedding
    return re.fullmatch(rules.ignored, name) is not None
