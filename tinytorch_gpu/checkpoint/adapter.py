"""LoRA adapters as files: a folder as the ``peft`` library writes and reads it.

    adapter_model.safetensors   base_model.model.NAME.lora_A.weight (rank, in) and .lora_B.weight (out, rank)
    adapter_config.json         rank, alpha, target modules

NAME is Hugging Face's for the layer. Where a family keeps several of our groups in one layer (GPT-2's
c_attn), their adapters are written as one, side by side in A and on the diagonal of B: the same function.
``adapter_writer.py`` and ``adapter_reader.py`` go each way.
"""

import re
from pathlib import Path
from typing import NamedTuple

from ..core.lora import Part, Place, places
from ..core.transformers import Transformer
from .configs import family_of
from .errors import ModelFileError, quoted
from .families import FAMILIES
from .names import mapped_tensors
from .resolve import repository
from .saved_config import hf_type

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
_MATRIX = re.compile(r"((?:encoder\.)?transformer_blocks\.\d+)\.(.+)")
# The Linear of a block, by the end of the course's name of each matrix in it, and its group there.
_GROUPS = {
    "attention.w_q": ("attention.qkv", "q"), "attention.w_k": ("attention.qkv", "k"),
    "attention.w_v": ("attention.qkv", "v"), "attention.w_o": ("attention.out", "o"),
    "cross_attention.w_q": ("cross_attention.query", "q"), "cross_attention.w_k": ("cross_attention.memory", "k"),
    "cross_attention.w_v": ("cross_attention.memory", "v"), "cross_attention.w_o": ("cross_attention.out", "o"),
    "ffn.w_gate": ("ffn.rise", "gate"), "ffn.w1": ("ffn.rise", "up"), "ffn.w2": ("ffn.fall", "down"),
}  # fmt: skip


class Layer(NamedTuple):
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


def layers_of(model: Transformer) -> dict[str, Layer]:
    """Every layer that may have adapters, by the name that Hugging Face's model of it has."""
    family = family_of(hf_type(model.config), model.config)
    prefix, by_name, found = FAMILIES[family].prefix, dict(places(model)), {}
    for mapped in mapped_tensors(family, model.config):
        targets = [_MATRIX.fullmatch(name) for name in mapped.targets]
        inside = [_GROUPS.get(t[2]) if t else None for t in targets]
        if targets[0] and inside[0] and None not in inside:
            place = f"{targets[0][1]}.{inside[0][0]}"
            groups = tuple(group for _, group in filter(None, inside))
            name = prefix + mapped.source.removesuffix(".weight")
            found[name] = Layer(name, Place(place, by_name[place]), groups)
    return found


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
