"""Weights in blocks of a few bits: the formats, their decoding and encoding, and a matrix of them."""

from .choice import MULTIPLIED, fitting, kept_dense
from .encode import EncodeError, encode, encode_into, quantize
from .formats import BLOCKED, FORMATS, Format, format_named, is_blocked
from .matrix import Blocks, QuantizedMatrix

__all__ = [
    "BLOCKED",
    "FORMATS",
    "MULTIPLIED",
    "Blocks",
    "EncodeError",
    "Format",
    "QuantizedMatrix",
    "encode",
    "encode_into",
    "fitting",
    "format_named",
    "is_blocked",
    "kept_dense",
    "quantize",
]
