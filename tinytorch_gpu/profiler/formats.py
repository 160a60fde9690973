"""How a model's numbers are stored: bytes per weight of every dtype and block format, matrix by matrix.

The formats are those of ``quantized``: in blocks some weights share scales, so a weight takes a fraction of a
byte.
"""

from ..backend import DEVICES, compute_dtype, dtype
from ..quantized import FORMATS as BY_FILE_NAME
from ..quantized import Format, fitting, format_named, kept_dense
from ..quantized.cache import groups_of

# By the name of the dtype, or of the format in blocks.
FORMATS = {form.name: form for form in BY_FILE_NAME.values()}


def bytes_per_weight(form: Format) -> float:
    """Bytes of one weight, its share of the scales included."""
    return form.nbytes / form.elements


def bytes_in_cache(form: Format, head: int) -> float:
    """Bytes of a number of a key or value whose heads have ``head`` numbers: in 8 bit those share float16 scales."""
    if form.blocked:
        return 1 + 2 * groups_of(head) / head
    return bytes_per_weight(form)


def stored_as(form: Format, name: str, shape: tuple[int, ...], tied: bool) -> Format:
    """The format of one parameter (a vector, or a matrix (out, in)) of a model that is asked for in ``form``.

    As ``Transformer.to`` has it: only the matrices of blocks, embedding and head are in blocks, each in one
    that fits its rows, the head finer.
    """
    if not form.blocked:
        return form
    if len(shape) == 1 or kept_dense(name):
        return FORMATS["float32"]
    head = name == "lm_head" or (tied and name == "token_embedding")
    return fitting(form, shape[1], head)


def activation_format(weights: Format, where: str) -> Format:
    """That of activations, keys and values: on a GPU that of 16-bit weights, float16 under blocks; elsewhere
    what is computed in, float32 at least."""
    if weights.blocked:
        return FORMATS["float16" if where in DEVICES else "float32"]
    if weights.name == "bfloat16":  # asked for by name, so that it needs no package
        return weights if where in DEVICES else FORMATS["float32"]
    return FORMATS[str(compute_dtype(dtype(weights.name), where).name)]


__all__ = [
    "FORMATS",
    "Format",
    "activation_format",
    "bytes_in_cache",
    "bytes_per_weight",
    "format_named",
    "stored_as",
]
