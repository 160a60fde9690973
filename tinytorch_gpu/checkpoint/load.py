"""A model file's tensors into a new Transformer, a block of rows at a time."""

from typing import TYPE_CHECKING, Any

import numpy

from .. import nvtx
from ..backend import assign, float_dtype
from ..config import TransformerConfig
from ..core.transformers import Transformer
from .errors import ModelFileError, quoted
from .gguf import TensorInfo
from .names import INTERLEAVED, SAME, Mapped, half_split, matched
from .quantization import decoded_blocks, stored_format

if TYPE_CHECKING:
    from .model_file import ModelFile


def load_model(file: "ModelFile", device: Any = "auto", dtype: Any = "float32") -> Transformer:
    """Return the model of ``file`` with its weights in ``dtype`` on ``device``, ready to generate.

    Names, shapes and formats are checked before anything is allocated, so that memory is never
    more than the model itself and one block (about 1 MB and its temporaries). A missing or
    unexpected tensor, or one with a value that is not finite, is a ModelFileError.
    """
    where = str(file.path)
    wanted = float_dtype(dtype)
    tensors = {info.name: info for info in file.tensors}
    pairs = matched(file.family, file.config, tensors, where)
    for _, info in pairs:
        stored_format(info.dtype_name, info.name)
    model = _allocated(file.config, device, wanted, where)
    state = model.state_dict()
    with (
        nvtx.span("load", "io", sum(info.nbytes for _, info in pairs)),
        model.device.active(),
    ):
        for mapped, info in pairs:
            _fill(state, mapped, info, where)
    model.eval()
    return model


def _allocated(config: TransformerConfig, device: Any, dtype: Any, where: str) -> Transformer:
    try:
        return Transformer.from_config(config, device=device, dtype=dtype, init=False)
    except NotImplementedError as error:
        raise ModelFileError(f"{where}: {error}") from None


def _fill(state: dict[str, Any], mapped: Mapped, info: TensorInfo, where: str) -> None:
    """Decode one tensor of the file into the weights that it holds."""
    raw = info.raw()
    form = stored_format(info.dtype_name, info.name)
    turned = mapped.kind == INTERLEAVED
    multiple = mapped.head_dim if turned else 1
    parts = list(mapped.parts(state.__getitem__))
    try:
        # An overflow here is a weight that the wanted dtype, narrower than the file's, cannot hold.
        with numpy.errstate(over="raise", invalid="ignore"):
            for first, block in decoded_blocks(raw, form, info.shape, multiple):
                if not _finite(block):
                    raise ModelFileError(f"{where}: {quoted(info.name)} has NaN or infinite values")
                rows = half_split(block, mapped.head_dim) if turned else block
                _place(parts, rows, first, mapped.kind)
    except FloatingPointError:
        dtype = parts[0][0].dtype
        problem = f"has values too large for {dtype}; choose another dtype"
        raise ModelFileError(f"{where}: {quoted(info.name)} {problem}") from None
    finally:
        info.release()


def _finite(block: numpy.ndarray) -> bool:
    """Whether all values are finite: their sum is NaN or infinite unless they are."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        total = block.sum()
    # The sum of huge finite values may overflow, which only a look at each of them can tell.
    return bool(numpy.isfinite(total)) or bool(numpy.isfinite(block).all())


def _place(parts: list[tuple[Any, int, int]], block: numpy.ndarray, first: int, kind: str) -> None:
    """Copy ``block``, which starts at row ``first`` of the file's tensor, to the parts it meets."""
    last = first + block.shape[0]
    for view, start, stop in parts:
        if kind == SAME:
            target = view[first:last] if view.ndim > 1 else view
            assign(target, block[..., start:stop])
            continue
        low, high = max(first, start), min(last, stop)
        if low < high:
            assign(view[low - start : high - start], block[low - first : high - first])
