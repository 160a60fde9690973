"""A Transformer to a folder in Hugging Face layout."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy

from ..backend import dtype_name, to_numpy
from ..core.lora import adapters
from .configs import OWN_TYPE, family_of
from .families import FAMILIES
from .names import mapped_tensors
from .safetensors_file import SINGLE
from .saved_config import hf_config


def save(model: Any, folder: str | os.PathLike[str], tokenizer: Any = None) -> Path:
    """Write ``model`` to ``folder`` (made if needed) and return the folder.

    GPT-2-like and LLaMA-like models get the names that ``transformers`` knows; any other keeps its
    own names, and only this library loads it. ``tokenizer`` (a ``Tokenizer``) adds tokenizer.json
    and its companions. What the folder
    held before is replaced only when everything new is safely on the disk: a full disk or Ctrl-C
    leaves it as it was. Weights that need turning or joining (GPT-2's) are copied meanwhile.
    """
    if adapters(model):
        raise ValueError(
            "the model has adapters beside its weights: merge_lora(model) first, or save_adapter(model, folder)"
        )
    if tokenizer is not None and not hasattr(tokenizer, "backend"):
        kind = type(tokenizer).__name__
        raise ValueError(f"a {kind} has no tokenizer.json: save a tokenizer of a model file")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    dtype = dtype_name(model.dtype)
    config = hf_config(model.config, dtype)
    if tokenizer is not None and config["model_type"] != OWN_TYPE:
        config |= {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": _one_or_list(tokenizer.eos_ids),
        }
    with Replacement(target) as new:
        _write_weights(model, config["model_type"], new.path(SINGLE))
        if tokenizer is not None:
            write_tokenizer(tokenizer, new.path)
        new.path("config.json").write_text(json_text(config), encoding="utf-8")
    return target


def json_text(values: dict[str, Any]) -> str:
    """How this library writes a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else (ids[0] if ids else None)


def write_tokenizer(tokenizer: Any, path: Callable[[str], Path]) -> None:
    """Write the three files that Hugging Face spreads a tokenizer over, each to ``path`` of its name."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    for name, token in (("bos", tokenizer.bos_id), ("eos", eos), ("pad", tokenizer.pad_id)):
        if token is not None:
            config[f"{name}_token"] = tokenizer.token(token)
    if tokenizer.chat_template:
        config["chat_template"] = tokenizer.chat_template
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": _one_or_list(tokenizer.eos_ids),
           "pad_token_id": tokenizer.pad_id}  # fmt: skip
    path("tokenizer.json").write_text(_tokenizerjson_text(tokenizer), encoding="utf-8")
    path("tokenizer_config.json").write_text(json_text(config), encoding="utf-8")
    path("generation_config.json").write_text(json_text(ids), encoding="utf-8")


def _tokenizerjson_text(tokenizer: Any) -> str:
    """Return tokenizer.json; a first token that our Tokenizer adds itself goes in as a rule."""
    text = tokenizer.backend.to_str(pretty=True)
    if not tokenizer.add_bos or tokenizer.bos_id is None:
        return text
    import tokenizers

    first = tokenizer.token(tokenizer.bos_id)
    copy = tokenizers.Tokenizer.from_str(text)
    copy.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_id)]
    )
    return copy.to_str(pretty=True)


def _write_weights(model: Any, model_type: str, path: Path) -> None:
    family = family_of(model_type, model.config)
    rules, state = FAMILIES[family], model.state_dict()
    tensors: dict[str, numpy.ndarray] = {}
    for mapped in mapped_tensors(family, model.config):
        prefix = "" if mapped.source in rules.unprefixed else rules.prefix
        tensors[prefix + mapped.source] = mapped.gathered(lambda name: to_numpy(state[name]))
    write_tensors(tensors, path, {"format": "pt"})


def write_tensors(
    tensors: Mapping[str, numpy.ndarray], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; a failure is an OSError, a missing library a ValueError."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError:
        raise ValueError("saving needs safetensors: pip install safetensors") from None
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=metadata)
        path.chmod(mode)  # the library makes files that only their owner may read
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from None


class Replacement:
    """New files beside old ones; leaving the block without an error puts them in their place."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.new: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def path(self, name: str) -> Path:
        """Return where to write the file that will be called ``name``."""
        return self.new.setdefault(self.folder / name, self.folder / f".{name}.{os.getpid()}.new")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for written in self.new.values():
                    flush(written)
                for final, written in self.new.items():
                    os.replace(written, final)
                flush(self.folder)
        finally:
            for written in self.new.values():
                written.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
