"""Which format a weight gets when a model is quantized."""

from .formats import FORMATS, Format

# Formats whose products the makers of a device kind do on the blocks themselves. They add theirs when
# they are loaded; any other is decoded first, which is correct, memory-lean and slow.
MULTIPLIED: dict[str, set[str]] = {"cpu": set(), "cuda": set(), "emulated": set()}

# What stands in where rows are no whole number of blocks of 256: the next finer one of 32.
_FINER = {"q4_k": "Q5_0", "q5_k": "Q5_1", "q6_k": "Q8_0"}


def fitting(form: Format, width: int, head: bool = False) -> Format:
    """The format for rows of ``width`` where ``form`` is wanted: itself if its blocks divide them, else a
    finer one whose blocks do, else float16.

    The ``head`` (or the embedding, if it serves as one) decides between neighbours in the vocabulary, so
    it gets six bits at least.
    """
    if head and form.blocked and form.name != "q8_0":
        form = FORMATS["Q6_K"]
    if width % form.elements and form.name in _FINER:
        form = FORMATS[_FINER[form.name]]
    return form if width % form.elements == 0 else FORMATS["F16"]


def kept_dense(name: str) -> bool:
    """Whether a matrix (by its name in a model's state) is never in blocks: the small tables that are looked up,
    of positions, of distances, of kinds of token."""
    return any(part in ("pos_encoding", "relative", "type_embedding") for part in name.split("."))
