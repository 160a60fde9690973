"""A model file's tensors into a new Transformer, a block of rows at a time."""

from typing import TYPE_CHECKING, Any

import numpy

from .. import nvtx
from ..backend import assign
from ..config import TransformerConfig
from ..core.transformers import Transformer
from ..devices import Device
from ..devices import device as device_called
from ..quantized import EncodeError, Format, QuantizedMatrix, encode_into
from ..weight import PendingRows
from .errors import ModelFileError, quoted
from .families import INTERLEAVED, SAME
from .gguf import TensorInfo
from .names import Mapped, half_split, matched
from .quantization import decoded_blocks, stored_format
from .storage import Storage

if TYPE_CHECKING:
    from .model_file import ModelFile


def load_model(file: "ModelFile", device: Any = "auto", dtype: Any = "auto") -> Transformer:
    """Return the model of ``file`` with its weights in ``dtype`` (see ``storage``) on ``device``, ready
    to generate.

    Names, shapes and formats are checked before anything is allocated, so that memory is never
    more than the model itself and one block (about 1 MB and its temporaries). A missing or
    unexpected tensor, or one with a value that is not finite, is a ModelFileError.
    """
    where = str(file.path)
    tensors = {info.name: info for info in file.tensors}
    pairs = matched(file.family, file.config, tensors, where)
    for _, info in pairs:
        stored_format(info.dtype_name, info.name)
    place = device_called(device)
    storage = Storage(dtype, place, pairs)
    model = _allocated(file.config, place, storage.dtype, where)
    _give_storage(model, pairs, storage)
    state = model.state_dict()
    with (
        nvtx.span("load", "io", sum(info.nbytes for _, info in pairs)),
        model.device.active(),
    ):
        for mapped, info in pairs:
            _fill(state, mapped, info, where)
    model.eval()
    return model


def _allocated(config: TransformerConfig, place: Device, dtype: Any, where: str) -> Transformer:
    try:
        return Transformer.from_config(config, device=place, dtype=dtype, storage=False)
    except NotImplementedError as error:
        raise ModelFileError(f"{where}: {error}") from None


def _give_storage(
    model: Transformer, pairs: list[tuple[Mapped, TensorInfo]], storage: Storage
) -> None:
    """Allocate every matrix, its groups in the formats that they are to have."""
    state = model.state_dict()
    chosen: dict[int, tuple[Any, dict[str, Format]]] = {}
    for mapped, info in pairs:
        for name in mapped.targets:
            rows = state[name]
            if isinstance(rows, PendingRows):
                _, formats = chosen.setdefault(id(rows.weight), (rows.weight, {}))
                formats[rows.group] = storage.format_of(name, info, rows.weight.shape[1])
    for weight, formats in chosen.values():
        formats = storage.settled(formats)
        kinds = {form.name for form in formats.values()}
        dense = kinds.pop() if len(kinds) == 1 else storage.dtype
        weight.allocate(model.device, formats, dense)


def _fill(state: dict[str, Any], mapped: Mapped, info: TensorInfo, where: str) -> None:
    """Read one tensor of the file into the weights that it holds."""
    form = stored_format(info.dtype_name, info.name)
    turned = mapped.kind == INTERLEAVED
    parts = list(mapped.parts(state.__getitem__))
    try:
        if form.blocked and _same_blocks(parts, form, mapped.kind):
            _copy_blocks(parts, mapped, info, where)
            return
        # Rows that will be encoded come in whole blocks along the axis that the blocks run along.
        multiple = mapped.head_dim if turned else 256 if _is_turned(parts, mapped.kind) else 1
        # An overflow here is a weight that the wanted dtype, narrower than the file's, cannot hold.
        with numpy.errstate(over="raise", invalid="ignore"):
            for first, block in decoded_blocks(info.raw(), form, info.shape, multiple):
                if not _finite(block):
                    raise ModelFileError(f"{where}: {quoted(info.name)} has NaN or infinite values")
                rows = half_split(block, mapped.head_dim) if turned else block
                _place(parts, rows, first, mapped.kind)
    except FloatingPointError:
        dtype = parts[0][0].dtype
        problem = f"has values too large for {dtype}; choose another dtype"
        raise ModelFileError(f"{where}: {quoted(info.name)} {problem}") from None
    except EncodeError as error:
        raise ModelFileError(f"{where}: {quoted(info.name)}: {error}") from None
    finally:
        info.release()


def _is_turned(parts: list[tuple[Any, int, int]], kind: str) -> bool:
    """Whether a file has rows of blocks as columns: GPT-2's projections, (in, out)."""
    view = parts[0][0]
    return kind == SAME and isinstance(view, QuantizedMatrix) and view.turned


def _same_blocks(parts: list[tuple[Any, int, int]], form: Format, kind: str) -> bool:
    """Whether the model keeps a tensor in the blocks that it has."""
    views = [view for view, _, _ in parts]
    return not _is_turned(parts, kind) and all(
        isinstance(view, QuantizedMatrix) and view.format == form for view in views
    )


def _copy_blocks(
    parts: list[tuple[Any, int, int]], mapped: Mapped, info: TensorInfo, where: str
) -> None:
    """Copy whole rows of blocks, which any order of rows leaves as they are."""
    form = stored_format(info.dtype_name, info.name)
    raw = info.raw()
    if not form.finite(raw.reshape(-1, form.nbytes)):
        raise ModelFileError(f"{where}: {quoted(info.name)} has NaN or infinite values")
    rows = raw.reshape(info.shape[0], -1)
    if mapped.kind == INTERLEAVED:
        rows = half_split(rows, mapped.head_dim)
    for view, start, stop in parts:
        blocks = view.parts[0].data
        assign(blocks, rows if mapped.kind == SAME else rows[start:stop])


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
            if isinstance(view, QuantizedMatrix) and view.turned:
                encode_into(view.T, block[:, start:stop].T, first)
                continue
            target = view[first:last] if len(view.shape) > 1 else view
            _write(target, block[..., start:stop])
            continue
        low, high = max(first, start), min(last, stop)
        if low < high:
            _write(view[low - start : high - start], block[low - first : high - first])


def _write(target: Any, values: numpy.ndarray) -> None:
    if isinstance(target, QuantizedMatrix):
        encode_into(target, values)
    else:
        assign(target, values)
