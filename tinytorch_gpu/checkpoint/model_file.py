"""A model file that is open: what it says about itself, without its weights."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend import compute_dtype
from ..backend import dtype as dtype_of
from ..config import TransformerConfig
from ..core.transformers import Transformer
from ..devices import device as device_called
from ..quantized import format_named
from .configs import config_from_hf, family_of
from .encoder_configs import with_head_of_file
from .errors import ModelFileError, quoted
from .files import read_json
from .gguf import TensorInfo, read_gguf
from .gguf_config import config_from_gguf
from .load import load_model
from .names import matched
from .onnx_file import is_export, read_export
from .resolve import DEFAULT_MODEL, resolve
from .safetensors_file import read_folder
from .shapes import count_weights
from .storage import Storage

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer

# For the estimate: positions whose activations exist at one time, and the bytes of modules, the
# vocabulary and the header.
PREFILL_CHUNK = 512
FIXED_BYTES = 16 << 20


class ModelFile:
    """A GGUF file, a folder in Hugging Face layout or a T5 exported to ONNX, of which only the header has been
    read (of the last, which has none, all).

    ``format`` is "gguf", "safetensors" or "onnx"; ``tensors`` the list of TensorInfo; ``metadata`` the
    GGUF's keys or the contents of config.json; ``family`` the table of tensor names that it uses.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        family: str,
        config: TransformerConfig,
        tensors: dict[str, TensorInfo],
        metadata: dict[str, Any],
    ):
        self.path, self.format, self.family, self.config = path, format, family, config
        self.tensors, self.metadata = list(tensors.values()), metadata

    def __repr__(self) -> str:
        return f"ModelFile({str(self.path)!r}, {self.format}, {len(self.tensors)} tensors)"

    def load(self, device: Any = "auto", dtype: Any = "auto") -> Transformer:
        """Return the model with its weights in ``dtype`` on ``device``: see ``storage`` for what it may
        be. "auto" leaves weights in blocks where the device multiplies them as they are."""
        return load_model(self, device, dtype)

    @functools.cached_property
    def _tokenizer(self) -> "Tokenizer":
        from ..tokenizers import Tokenizer

        try:
            if self.format == "gguf":
                return Tokenizer.from_gguf(self.metadata)
            return Tokenizer.from_folder(self.path, self.metadata)
        except ModelFileError:
            raise
        except ValueError as error:
            raise ModelFileError(f"{self.path}: {quoted(error, 200)[1:-1]}") from None

    def tokenizer(self) -> "Tokenizer":
        """Return the tokenizer that came with the weights; a bad one is a ModelFileError."""
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation; None for a model that was not trained for it."""
        if self.format == "gguf":
            found = self.metadata.get("tokenizer.chat_template")
            return found if isinstance(found, str) else None
        return self.tokenizer().chat_template

    def memory_needed(
        self,
        batch: int = 1,
        context: int | None = None,
        dtype: Any = "float32",
        cache_dtype: Any = None,
    ) -> dict[str, int]:
        """Return the bytes that generating takes: ``weights``, ``cache``, ``workspace``, ``total``.

        batch: rows; context: tokens of each, prompt and answer (default max_seq_length); dtype: of
        the weights, as for ``load``; cache_dtype: of keys and values (default: what ``dtype`` computes
        in, float32 for the 16-bit ones). The workspace is an estimate.
        """
        tensors = {info.name: info for info in self.tensors}
        pairs = matched(self.family, self.config, tensors, str(self.path))
        storage = Storage(dtype, device_called("cpu"), pairs)
        needed = memory_needed(self.config, batch, context, storage.dtype, cache_dtype)
        weights = storage.nbytes(pairs)
        return needed | {"weights": weights, "total": needed["total"] + weights - needed["weights"]}


def memory_needed(
    config: TransformerConfig,
    batch: int = 1,
    context: int | None = None,
    dtype: Any = "float32",
    cache_dtype: Any = None,
) -> dict[str, int]:
    """Return ``ModelFile.memory_needed`` for a configuration."""
    context = config.max_seq_length if context is None else context
    for name, value in (("batch", batch), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if context > config.max_seq_length:
        limit = config.max_seq_length
        raise ValueError(f"context ({context}) exceeds the model's max_seq_length ({limit})")
    held = config.num_layers * batch * context * 2 * config.kv_heads * config.head_size
    form = format_named(cache_dtype or compute_dtype(dtype_of(dtype)).name)
    cache = held * form.nbytes // form.elements
    weights = count_weights(config) * dtype_of(dtype).itemsize
    rows = batch * min(context, PREFILL_CHUNK)
    attention = (2 * config.num_heads + 2 * config.kv_heads) * config.head_size
    widths = 4 * config.embed_dim + 3 * config.hidden_dim + attention
    scores = 2 * rows * context  # of one head at a time
    workspace = 4 * (rows * widths + scores + 2 * batch * config.vocab_size) + FIXED_BYTES
    return {
        "weights": weights,
        "cache": cache,
        "workspace": workspace,
        "total": weights + cache + workspace,
    }


def open_model(name_or_path: str | Path = DEFAULT_MODEL) -> ModelFile:
    """Open a GGUF file, a Hugging Face folder or repository, or an installed demo model.

    Only the header is read. What cannot be used is a ModelFileError of one line.
    """
    path = resolve(name_or_path)
    if path.is_dir():
        where = path / "config.json"
        form = "safetensors" if where.exists() or not is_export(path) else "onnx"
        if form == "onnx":
            values, tensors = read_export(path)
        else:
            values, tensors = read_json(where), None
        config = config_from_hf(values, str(where))
        kind, tensors = values["model_type"], tensors or read_folder(path)
        if kind == "t5":
            config = with_head_of_file(config, tensors)
        return ModelFile(path, form, family_of(kind, config), config, tensors, values)
    header = read_gguf(path)
    family, config = config_from_gguf(header)
    return ModelFile(path, "gguf", family, config, header.tensors, header.metadata)


def load(
    name_or_path: str | Path = DEFAULT_MODEL, device: Any = "auto", dtype: Any = "auto"
) -> Transformer:
    """Return the model that ``name_or_path`` means, with its weights in ``dtype`` on ``device``."""
    return open_model(name_or_path).load(device, dtype)
