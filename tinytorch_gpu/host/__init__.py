"""The CPU's makers in NumPy: importing this package registers them for NumPy arrays.

Where the references make a temporary for every step, these write into buffers, work in blocks that
stay in cache, and choose the product that suits the layout.
"""

from . import (
    activation,
    attention,
    decode,
    dropout,
    elementwise,
    embedding,
    lengths,
    linear,
    lora,
    loss,
    norm,
    optimizer,
    rotary,
    sampling,
    shape,
)
from .buffers import keep_freed_memory

__all__ = [
    "activation",
    "attention",
    "decode",
    "dropout",
    "elementwise",
    "embedding",
    "lengths",
    "linear",
    "lora",
    "loss",
    "norm",
    "optimizer",
    "rotary",
    "sampling",
    "shape",
]

keep_freed_memory()
