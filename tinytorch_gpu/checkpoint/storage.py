"""How each weight of a file is stored in the model, by the ``dtype`` that is asked for.

- "float32" and the other floating dtypes: all weights in it;
- "q4_0" and the other formats in blocks: the matrices in it, the rest in float32. A row that is no whole
  number of its blocks, and the head, get a finer one (``quantized.choice.fitting``);
- "stored": every matrix as the file has it;
- "auto": as the file has it where the device multiplies that without decoding it first, else float32.
"""

from typing import Any

from ..backend import FLOATS, float_dtype
from ..devices import Device, load_makers
from ..quantized import (
    BLOCKED,
    FORMATS,
    MULTIPLIED,
    Format,
    fitting,
    format_named,
    is_blocked,
    kept_dense,
)
from .families import SAME
from .gguf import TensorInfo
from .names import Mapped
from .quantization import stored_format

DTYPES = ("auto", "stored", *FLOATS, *BLOCKED)
_EMBEDDING = "token_embedding.weight"


class Storage:
    """What ``dtype`` means for the ``pairs`` (Mapped, TensorInfo) of a file on a device.

    ``dtype`` is the floating dtype of all that is not in blocks.
    """

    def __init__(self, dtype: Any, place: Device, pairs: list[tuple[Mapped, TensorInfo]]):
        self.wanted = str(getattr(dtype, "name", dtype))
        if self.wanted not in DTYPES:
            float_dtype(dtype)  # an error that names the floats
        load_makers(place.kind)
        self.direct = MULTIPLIED.get(place.kind, set())
        self.tied = not any("lm_head" in mapped.targets for mapped, _ in pairs)
        self.dtype = float_dtype(self._floats(pairs))

    def _floats(self, pairs: list[tuple[Mapped, TensorInfo]]) -> Any:
        if self.wanted in FLOATS:
            return self.wanted
        kinds = {stored_format(i.dtype_name, i.name).name for _, i in pairs if len(i.shape) > 1}
        # A file wholly in one dtype is a model wholly in it.
        whole = self.wanted == "stored" and len(kinds) == 1 and kinds <= set(FLOATS)
        return kinds.pop() if whole else "float32"

    def format_of(self, name: str, info: TensorInfo, width: int) -> Format:
        """The format of the weight ``name`` (a state's name) with rows of ``width``, stored as ``info``."""
        form = stored_format(info.dtype_name, info.name)
        floats = format_named(self.dtype.name)
        if self.wanted in FLOATS or kept_dense(name):
            return floats
        if is_blocked(self.wanted):
            head = name == "lm_head" or (self.tied and name == _EMBEDDING)
            return fitting(format_named(self.wanted), width, head)
        if self.wanted == "stored":
            return form
        return form if form.name in self.direct else floats

    def nbytes(self, pairs: list[tuple[Mapped, TensorInfo]]) -> int:
        """Bytes of all weights as they will be stored."""
        total = 0
        for mapped, info in pairs:
            shape = info.shape
            if len(shape) == 1:
                total += shape[0] * self.dtype.itemsize
                continue
            name = mapped.targets[0]
            turned = mapped.kind == SAME and name != _EMBEDDING and not kept_dense(name)
            width = shape[0] if turned else shape[1]
            form = self.format_of(name, info, width)
            total += shape[0] * shape[1] // width * form.row_bytes(width)
        return total

    def settled(self, formats: dict[str, Format]) -> dict[str, Format]:
        """The formats of the groups of one weight, seen together: "auto" keeps all of them or none."""
        mixed = any(form.blocked for form in formats.values()) and not all(
            form.blocked for form in formats.values()
        )
        if self.wanted == "auto" and mixed:
            return dict.fromkeys(formats, FORMATS["F32"])
        return formats
