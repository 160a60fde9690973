"""LoRA adapters as files: a folder as the ``peft`` library writes and reads it.

    adapter_model.safetensors   base_model.model.NAME.lora_A.weight (rank, in) and .lora_B.weight (out, rank)
    adapter_config.json         rank, alpha, target modules

NAME is Hugging Face's for the layer. Where a family keeps several of our groups in one layer (GPT-2's
c_attn), their adapters are written as one, side by side in A and on the diagonal of B: the same function.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from ..backend import assign, to_numpy
from ..core.lora import Part, Place, adapters, attach, freeze, places
from ..core.transformers import Transformer
from .configs import FAMILY_OF
from .errors import ModelFileError, quoted
from .files import Fields, read_json
from .gguf import TensorInfo
from .names import FAMILIES, mapped_tensors
from .quantization import decoded_blocks, stored_format
from .resolve import repository
from .safetensors_file import read_safetensors
from .save import Replacement, json_text, write_tensors
from .saved_config import hf_type

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_MATRIX = re.compile(r"(transformer_blocks\.\d+)\.(.+)")
# The Linear of a block, by the end of the course's name of each matrix in it, and its group there.
_GROUPS = {
    "attention.w_q": ("attention.qkv", "q"), "attention.w_k": ("attention.qkv", "k"),
    "attention.w_v": ("attention.qkv", "v"), "attention.w_o": ("attention.out", "o"),
    "ffn.w_gate": ("ffn.rise", "gate"), "ffn.w1": ("ffn.rise", "up"), "ffn.w2": ("ffn.fall", "down"),
}  # fmt: skip


class _Layer(NamedTuple):
    """A linear layer of the file's family: its name, and the groups of one of our Linears that it is."""

    name: str
    place: Place
    groups: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Its outputs."""
        return sum(self.place.layer.weight.groups[g] for g in self.groups)

    @property
    def width(self) -> int:
        """Its inputs."""
        return self.place.layer.weight.shape[1]

    def parts(self) -> list[tuple[int, Part]]:
        """(first row here, part) of our adapters on it."""
        adapter, found, start = self.place.layer.adapter, [], 0
        if adapter is None:
            return []
        sizes = self.place.layer.weight.groups
        firsts = {}
        for group in self.groups:
            firsts[group] = start
            start += sizes[group]
        for groups, part in adapter.parts():
            if groups[0] in firsts:
                found.append((firsts[groups[0]], part))
        return found


def _layers(model: Transformer) -> dict[str, _Layer]:
    """Every layer that may have adapters, by the name that Hugging Face's model of it has."""
    family = FAMILY_OF[hf_type(model.config)]
    prefix, by_name, found = FAMILIES[family].prefix, dict(places(model)), {}
    for mapped in mapped_tensors(family, model.config):
        targets = [_MATRIX.fullmatch(name) for name in mapped.targets]
        inside = [_GROUPS.get(t[2]) if t else None for t in targets]
        if targets[0] and inside[0] and None not in inside:
            place = f"{targets[0][1]}.{inside[0][0]}"
            groups = tuple(group for _, group in filter(None, inside))
            name = prefix + mapped.source.removesuffix(".weight")
            found[name] = _Layer(name, Place(place, by_name[place]), groups)
    return found


# --- out ------------------------------------------------------------------------------------------


def save_adapter(model: Transformer, folder: str | os.PathLike[str], base: str = "") -> Path:
    """Write the adapters of ``model`` to ``folder`` (made if needed) as peft does; return the folder.

    ``base`` names the model they belong to. What the folder held is replaced only when everything new is on
    the disk. A model without adapters is a ValueError.
    """
    if not adapters(model):
        raise ValueError("the model has no adapters to save: add_lora(model, ...) first")
    tensors: dict[str, numpy.ndarray] = {}
    ranks: dict[str, tuple[int, float]] = {}
    layers = _layers(model)
    for name, layer in layers.items():
        parts = layer.parts()
        if parts:
            a, b, scale = _joined(layer, parts)
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
            ranks[name] = (len(a), scale * len(a))
    config = _config(layers, ranks, base, adapters(model)[0][1].dropout.p)
    if FAMILY_OF[hf_type(model.config)] == "gpt2":
        config["fan_in_fan_out"] = True  # GPT-2 keeps its weights as (in, out)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with Replacement(target) as new:
        write_tensors(tensors, new.path(WEIGHTS), {"format": "pt"})
        new.path(CONFIG).write_text(json_text(config), encoding="utf-8")
    return target


def _joined(layer: _Layer, parts: list[tuple[int, Part]]) -> tuple[Any, Any, float]:
    """(A, B, scale) of one layer from the parts on it. Their scales differ only if ranks do, and go into B
    then."""
    scale, rank = parts[0][1].scale, sum(part.rank for _, part in parts)
    a = numpy.concatenate([to_numpy(part.a.data) for _, part in parts])
    b = numpy.zeros((layer.rows, rank), a.dtype)
    column = 0
    for first, part in parts:
        values = to_numpy(part.b.data)
        if part.scale != scale:
            values = values * (part.scale / scale)
        b[first : first + len(values), column : column + part.rank] = values
        column += part.rank
    return numpy.ascontiguousarray(a), b, scale


def _config(
    layers: Mapping[str, Any], ranks: Mapping[str, tuple[int, float]], base: str, dropout: float
) -> dict[str, Any]:
    """``adapter_config.json``: most layers' rank and alpha, and the patterns of those that differ."""
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0]
    short = {name: _short(name, layers, ranks) for name in ranks}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or None,
        "r": rank, "lora_alpha": _whole(alpha), "lora_dropout": dropout, "bias": "none",
        "target_modules": sorted(set(short.values())), "fan_in_fan_out": False, "inference_mode": True,
        "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "rank_pattern": {short[n]: r for n, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {short[n]: _whole(a) for n, (_, a) in ranks.items() if a != alpha},
    }  # fmt: skip


def _whole(value: float) -> float | int:
    """Without a fraction where there is none, up to the rounding of alpha / rank."""
    near = round(value)
    return near if abs(value - near) < 1e-9 * max(1.0, value) else value


def _short(name: str, layers: Mapping[str, Any], ranks: Mapping[str, Any]) -> str:
    """The end of a name that means this layer in every block and no other, or the whole name."""
    parts = name.split(".")
    for count in (1, 2):
        end = ".".join(parts[-count:])
        same = [n for n in layers if n.endswith("." + end)]
        kinds = {re.sub(r"\d+", "", n) for n in same}
        if len(kinds) == 1 and all(ranks.get(n) == ranks[name] for n in same):
            return end
    return name


# --- in -------------------------------------------------------------------------------------------


def adapter_folder(name_or_path: str | Path) -> Path:
    """The folder of adapters that a path, a training run or a Hugging Face repository means."""
    path = Path(name_or_path).expanduser()
    if (path / CONFIG).exists():
        return path
    steps = sorted(p for p in (path / "checkpoints").glob("step-*") if (p / CONFIG).exists())
    if steps:
        return steps[-1]
    if not path.exists() and repository(str(name_or_path)) is not None:
        return adapter_folder(repository(str(name_or_path)) or path)
    problem = "does not exist" if not path.exists() else f"has no {CONFIG}"
    raise ModelFileError(
        f"no adapter at {quoted(name_or_path, 200)}: it {problem}; name a folder or run with {WEIGHTS}"
    )


def load_adapter(model: Transformer, name_or_path: str | Path) -> None:
    """Put the adapters of a folder, a run or a repository beside the weights of ``model``, which are frozen.

    A model that has adapters gets their values instead, if they fit. What this library does not do (DoRA,
    trained biases, other kinds of adapter), a layer that the model lacks or another shape is a ModelFileError,
    and nothing has changed then.
    """
    folder = adapter_folder(name_or_path)
    settings = _Settings(folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise ModelFileError(
            f"{folder} has no {WEIGHTS}: a pickled adapter must be converted first"
        )
    layers, factors = _layers(model), _factors(read_safetensors(folder / WEIGHTS), str(folder))
    pairs = [_fitting(layers, name, both, str(folder)) for name, both in factors.items()]
    if adapters(model):
        _fill(layers, pairs, settings, str(folder))
        return
    freeze(model)
    for layer, a, b in pairs:
        scale = settings.scale(layer.name, len(a))
        attach(model, layer.place, layer.groups, a, b, scale, settings.dropout)


class _Settings:
    """What ``adapter_config.json`` asks for."""

    def __init__(self, path: Path):
        fields = Fields(read_json(path), str(path))
        kind = fields.text("peft_type")
        if kind != "LORA":
            raise fields.error("peft_type", f"is {quoted(kind)}; only LORA is supported")
        fields.require("bias", "none", "biases are not trained here")
        fields.require("use_dora", False, "DoRA rescales the weights")
        fields.require("modules_to_save", None, "whole layers do not come with an adapter here")
        fields.require("lora_bias", False, "B has no bias here")
        self.alpha, self.rooted = fields.number("lora_alpha", 8), fields.flag("use_rslora")
        self.dropout = fields.number("lora_dropout", 0.0)
        if not 0 <= self.dropout < 1:
            raise fields.error("lora_dropout", f"must be from 0 to below 1, not {self.dropout}")
        patterns = fields.table("alpha_pattern")
        for name in patterns.values:
            if not re.fullmatch(r"[\w.]+", name):  # peft allows any expression; files hold names
                raise fields.error("alpha_pattern", f"has {quoted(name)}, which is no layer's name")
        self.alphas = {name: patterns.number(name) for name in patterns.values}

    def scale(self, layer: str, rank: int) -> float:
        """What the product of a layer's factors is multiplied by; rsLoRA (Kalajdzievski 2023) divides by
        the root of the rank."""
        keys = [k for k in self.alphas if f".{layer}".endswith(f".{k}")]
        alpha = self.alphas[keys[0]] if keys else self.alpha
        return alpha / (rank**0.5 if self.rooted else rank)


def _factors(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, dict[str, Any]]:
    """The two factors of each layer, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for name, info in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
        if match is None or len(info.shape) != 2 or 0 in info.shape:
            raise ModelFileError(f"{where}: tensor {quoted(name)} is no factor of a LoRA adapter")
        found.setdefault(match[1], {})[match[2]] = _array(info, where)
    if not found:
        raise ModelFileError(f"{where}: {WEIGHTS} holds nothing")
    return found


def _array(info: TensorInfo, where: str) -> numpy.ndarray:
    form = stored_format(info.dtype_name, info.name)
    made = numpy.concatenate([rows for _, rows in decoded_blocks(info.raw(), form, info.shape)])
    if not numpy.isfinite(made).all():
        raise ModelFileError(f"{where}: {quoted(info.name)} has NaN or infinite values")
    return made


def _fitting(
    layers: Mapping[str, _Layer], name: str, both: Mapping[str, Any], where: str
) -> tuple[_Layer, Any, Any]:
    """(layer, A, B) if the model has the layer and it has their shapes."""
    layer = layers.get(name)
    if layer is None:
        example = next(iter(layers), "none")
        raise ModelFileError(
            f"{where}: the model has no layer {quoted(name)} (its are called like {quoted(example)}): the "
            "adapter belongs to another model, or adapts what is not adapted here"
        )
    if set(both) != {"A", "B"}:
        raise ModelFileError(f"{where}: {quoted(name)} has only one of its two factors")
    a, b = both["A"], both["B"]
    if a.shape[1] != layer.width or b.shape != (layer.rows, len(a)):
        raise ModelFileError(
            f"{where}: the factors of {quoted(name)} have shapes {a.shape} and {b.shape}; the layer maps "
            f"{layer.width} to {layer.rows}: the adapter belongs to another model"
        )
    return layer, a, b


def _fill(layers: Mapping[str, _Layer], pairs: Any, settings: _Settings, where: str) -> None:
    """Give the adapters that are there the values of a file that fits them part by part."""
    given = {layer.name: (a, b) for layer, a, b in pairs}
    ours = {name: layer.parts() for name, layer in layers.items() if layer.parts()}
    if set(given) != set(ours):
        raise ModelFileError(f"{where}: it adapts other layers than the model has adapters on")
    targets = []
    for name, parts in ours.items():
        a, b = given[name]
        taken = numpy.zeros_like(b, dtype=bool)
        for (first, part), column in zip(parts, _columns(parts), strict=True):
            rows = slice(first, first + part.b.shape[0])
            taken[rows, column] = True
            same = abs(settings.scale(name, len(a)) - part.scale) <= 1e-9 * part.scale
            if column.stop > len(a) or not same:
                raise ModelFileError(f"{where}: {quoted(name)} has another rank or alpha")
            targets += [(part.a.data, a[column]), (part.b.data, b[rows, column])]
        if b[~taken].any() or len(a) != sum(part.rank for _, part in parts):
            raise ModelFileError(f"{where}: {quoted(name)} is adapted in another way")
    for array, values in targets:
        assign(array, values)


def _columns(parts: list[tuple[int, Part]]) -> Iterator[slice]:
    """Which of a layer's ranks are each part's."""
    start = 0
    for _, part in parts:
        yield slice(start, start + part.rank)
        start += part.rank
