"""The operations: one file per family, each with its reference forward and backward.

Plain array code in the array API standard's spelling, so the same lines run on NumPy, CuPy and
array-api-strict. Fast versions for one device live in ``native/``, ``host/`` and ``cuda/``.
"""

from .activation import geglu, gelu, gelu_tanh, relu, silu, swiglu
from .attention import attention, attention_with_weights, cached_attention
from .dropout import dropout
from .elementwise import (
    absolute,
    add,
    cast,
    concat,
    divide,
    exp,
    log,
    multiply,
    negative,
    power,
    sigmoid,
    sqrt,
    subtract,
    tanh,
    where,
)
from .embedding import embedding
from .lengths import advance
from .linear import linear, matmul
from .lora import lora
from .loss import cross_entropy
from .norm import add_layer_norm, add_rms_norm, layer_norm, norm_heads, rms_norm
from .optimizer import adamw, clip_scale, gradient_norm, sgd
from .reduction import max, mean, softmax, sum
from .rotary import rotary
from .sampling import argmax, feed, mark_seen, penalize, sample
from .shape import getitem, permute, reshape, split_heads

__all__ = [
    "absolute", "adamw", "add", "add_layer_norm", "add_rms_norm", "advance", "argmax", "attention",
    "attention_with_weights", "cached_attention", "cast", "clip_scale", "concat", "cross_entropy", "divide", "dropout", "embedding",
    "exp", "feed", "geglu", "gelu", "gelu_tanh", "getitem", "gradient_norm", "layer_norm", "linear", "log", "lora", "mark_seen", "matmul", "max",
    "mean", "multiply", "negative", "norm_heads", "penalize", "permute", "power", "relu", "reshape", "rms_norm",
    "rotary", "sample", "sgd", "sigmoid", "silu", "softmax", "split_heads", "sqrt", "subtract", "sum", "swiglu", "tanh",
    "where",
]  # fmt: skip
