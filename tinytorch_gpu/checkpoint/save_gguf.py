"""A Transformer to a GGUF file, as llama.cpp reads it. The file is laid out by the ``gguf`` package."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from ..backend import dtype_name, to_numpy
from ..config import TransformerConfig
from ..quantized import Format, QuantizedMatrix, format_named
from .errors import ModelFileError
from .families import INTERLEAVED
from .gguf import read_gguf
from .gguf_config import ARCHITECTURES, config_from_gguf, llama3_divisors
from .names import Mapped, interleaved, mapped_tensors
from .save import Replacement

_FREQUENCIES = "rope_freqs.weight"
# What is written anew, whatever a file that is converted says.
_OWN = ("general.architecture", "general.file_type", "general.quantization_version",
        "general.alignment")  # fmt: skip


def save_gguf(
    model: Any,
    path: str | os.PathLike[str],
    tokenizer: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model`` to the GGUF file ``path`` and return it.

    Weights in blocks are written as they are; vectors in float32, as llama.cpp wants them. ``tokenizer``
    (a ``Tokenizer``) goes along, or ``metadata``, the keys of the GGUF file that the model came from, of
    which ``general.*`` and ``tokenizer.*`` are kept. A model that GGUF has no architecture for is a
    ValueError; an old file is replaced only when the new one is whole and safely on the disk.
    """
    package, target = _package(), Path(path)
    architecture = _architecture(model.config)
    writer = package.GGUFWriter(None, architecture)
    _add(writer, _described(model.config, architecture))
    kept = {
        key: value
        for key, value in (metadata or {}).items()
        if key.startswith(("general.", "tokenizer.")) and key not in _OWN
    }
    if metadata is None and tokenizer is not None:
        from ..tokenizers.to_gguf import gguf_metadata

        kept = gguf_metadata(tokenizer, model.config.vocab_size)
    _add(writer, kept)
    formats: Counter[str] = Counter()
    for name, raw, form in _stored(model, ARCHITECTURES[architecture]):
        writer.add_tensor(name, raw, raw_dtype=package.GGMLQuantizationType[form.file_name])
        formats[form.file_name] += raw.nbytes if raw.ndim > 1 else 0
    _add_file_type(writer, package, formats.most_common(1)[0][0])
    with Replacement(target.parent) as new:
        _write(writer, new.path(target.name))
        _check(new.path(target.name), model.config)
    return target


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "writing GGUF needs the gguf package: pip install 'tinytorch-gpu[gguf]'"
        ) from None
    return gguf


def _architecture(config: TransformerConfig) -> str:
    """The name of the first architecture that has a place for all of a configuration's weights."""
    if config.position == "learned":
        return "gpt2"
    if config.position != "rotary" or config.norm != "rms" or config.activation != "swiglu":
        raise ValueError(
            f"GGUF has no architecture for {config.norm} norms, {config.position} positions and "
            f"{config.activation}: save this model as a folder"
        )
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias and not config.out_bias else "llama"


def _described(config: TransformerConfig, architecture: str) -> dict[str, Any]:
    """The configuration as metadata."""
    own: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_length,
        "embedding_length": config.embed_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.num_heads,
    }
    if architecture == "gpt2":
        own["attention.layer_norm_epsilon"] = float(config.norm_eps)
    else:
        own |= {
            "attention.head_count_kv": config.kv_heads,
            "attention.key_length": config.head_size,
            "attention.value_length": config.head_size,
            "attention.layer_norm_rms_epsilon": float(config.norm_eps),
            "rope.dimension_count": config.rotary,
            "rope.freq_base": float(config.rope_theta),
        }
    if config.sliding_window:
        own["attention.sliding_window"] = config.sliding_window
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    return {f"{architecture}.{key}": value for key, value in own.items()}


def _add(writer: Any, metadata: Mapping[str, Any]) -> None:
    """Add each value in the type that its Python type stands for."""
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _add_file_type(writer: Any, package: Any, most: str) -> None:
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    name = "ALL_F32" if most == "F32" else f"MOSTLY_{most}"
    kinds = package.LlamaFileType
    for candidate in (name, name + "_S"):  # what llama.cpp calls a plain file of Q4_K
        if candidate in kinds.__members__:
            writer.add_file_type(kinds[candidate])
            return


def _stored(model: Any, family: str) -> Any:
    """Yield (name, bytes or float32 values, format) of every tensor."""
    state = model.state_dict()
    for mapped in mapped_tensors(family, model.config):
        yield mapped.source, *_tensor(mapped, state)
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        divisors = llama3_divisors(scaling, model.config.rope_theta, model.config.rotary)
        yield _FREQUENCIES, numpy.array(divisors, numpy.float32), format_named("float32")


def _tensor(mapped: Mapped, state: dict[str, Any]) -> tuple[numpy.ndarray, Format]:
    views = [view for view, _, _ in mapped.parts(state.__getitem__)]
    if all(isinstance(view, QuantizedMatrix) for view in views):
        formats = {view.format for view in views}
        if len(formats) != 1 or None in formats:
            raise ValueError(f"{mapped.source} would hold several formats: convert it to one dtype")
        rows = numpy.concatenate([to_numpy(view.blocks) for view in views])
        if mapped.kind == INTERLEAVED:
            rows = interleaved(rows, mapped.head_dim)
        return numpy.ascontiguousarray(rows), views[0].format
    whole = mapped.gathered(lambda name: to_numpy(state[name]))
    if len(mapped.shape) == 1 or dtype_name(whole.dtype) not in ("float16", "bfloat16"):
        return whole.astype(numpy.float32), format_named("float32")
    return whole.view(numpy.uint8), format_named(dtype_name(whole.dtype))


def _write(writer: Any, path: Path) -> None:
    path.touch()  # a folder that cannot be written to is an error before the work
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(path: Path, config: TransformerConfig) -> None:
    """Read the file's header back: what it says must be what the model is."""
    try:
        found = config_from_gguf(read_gguf(path))[1]
    except ModelFileError as error:
        raise ValueError(f"GGUF cannot express this model: {error}") from None
    for name, value in config.to_dict().items():
        own = found.to_dict()[name]
        if name in ("dropout", "init_std", "num_kv_heads", "head_dim") or own == value:
            continue
        if not (isinstance(value, float) and abs(own - value) <= 1e-6 * abs(value)):
            raise ValueError(f"GGUF cannot express this model: {name} {value} would become {own}")
