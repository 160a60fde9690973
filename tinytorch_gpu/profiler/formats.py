"""How numbers are stored: bytes per weight of every dtype and block format.

The block formats are ggml's: some weights share a scale, a minimum or both, so a weight takes a fraction of a
byte. Vectors (norms, biases) stay in float32 there.
"""

from dataclasses import dataclass

from ..backend import DEVICES, compute_dtype, dtype


@dataclass(frozen=True)
class Format:
    """``elements`` weights stored in ``nbytes`` bytes; ``compute`` names the dtype of a product with it in
    a table of peak rates."""

    name: str
    elements: int
    nbytes: int
    compute: str = "float16"

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight, its share of the scales included."""
        return self.nbytes / self.elements

    @property
    def quantized(self) -> bool:
        """Whether weights lie in blocks."""
        return self.elements > 1


FORMATS = {
    made.name: made
    for made in (
        Format("float64", 1, 8, "float64"),
        Format("float32", 1, 4, "float32"),
        Format("float16", 1, 2, "float16"),
        Format("bfloat16", 1, 2, "bfloat16"),
        Format("q8_0", 32, 34),
        Format("q6_k", 256, 210),
        Format("q5_1", 32, 24),
        Format("q5_0", 32, 22),
        Format("q5_k", 256, 176),
        Format("q4_1", 32, 20),
        Format("q4_0", 32, 18),
        Format("q4_k", 256, 144),
        Format("q3_k", 256, 110),
        Format("q2_k", 256, 84),
    )
}


def weight_format(name: str) -> Format:
    """The format called ``name``, in any case; an unknown one is a ValueError."""
    found = FORMATS.get(str(name).lower())
    if found is None:
        raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return found


def activation_dtype(weights: Format, where: str) -> str:
    """The dtype of activations, keys and values: on a GPU that of 16-bit weights, else what they are computed
    in, float32 at least; float16 on a GPU, float32 elsewhere under blocks."""
    if weights.quantized:
        return "float16" if where in DEVICES else "float32"
    if weights.name == "bfloat16":  # asked for by name, so that it needs no package
        return "bfloat16" if where in DEVICES else "float32"
    return str(compute_dtype(dtype(weights.name), where).name)
