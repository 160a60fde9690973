"""Texts that are read as a whole: what a decoder writes about, and one vector for each."""

from typing import Any

import numpy

from .. import nvtx
from ..config import one_of
from ..core.cross_attention import Memory
from ..core.tensor import Tensor, no_grad, wrap
from .cache import Cache
from .prefill import padded
from .prompts import read_prompts

POOLINGS = ("mean", "first")


def cache_about(
    model: Any, sources: list[Any], count: int, cache: Cache | None, cache_dtype: Any
) -> Cache:
    """A cache for the start token and ``count`` more about each of ``sources``, which are read by the encoder
    now; the keys and values of them are worked out once for all steps."""
    if cache is not None:
        raise ValueError(
            "an encoder-decoder writes about the source it is given: it takes no cache"
        )
    made = Cache.for_model(model, len(sources), 1 + count, cache_dtype)
    made.memory = read(model, sources)
    return made


def read(model: Any, sources: list[Any]) -> Memory:
    """What the encoder makes of texts, with the keys and values of every decoder layer."""
    training = model.training
    model.eval()
    try:
        with model.device.active(), no_grad():
            memory = model.encode(padded(sources, 0), [len(source) for source in sources])
            with nvtx.span("cross", "phase"):
                known = [
                    block.cross_attention.keys_values(memory.states)
                    for block in model.transformer_blocks
                ]
    finally:
        model.train(training)
    return memory._replace(known=known)


def embed(model: Any, input_ids: Any, pooling: str = "mean", normalize: bool = True) -> Tensor:
    """One vector (B, embed_dim) for each text: the mean of its tokens' states, or the ``first`` one's.

    ``input_ids`` is (T,), (B, T) or a list of different lengths, which are padded: padding counts
    nowhere. With ``normalize`` each vector has length 1, so that the product of two is the cosine of
    their angle (Reimers and Gurevych 2019, "Sentence-BERT"). Gradients are recorded as in any pass.
    """
    one_of("pooling", pooling, POOLINGS)
    rows, _ = read_prompts(input_ids, model.config.vocab_size)
    lengths = numpy.array([len(row) for row in rows])
    ids = wrap(model.device.asarray(padded(rows, 0)))
    with model.device.active():
        if model.encoder is not None:
            states = model.encode(ids, lengths).states
        else:
            states, _ = model.hidden(ids, lengths=lengths)
        if pooling == "first":
            pooled = states[:, 0]
        else:
            real = numpy.arange(ids.shape[1]) < lengths[:, None]
            share = (real / lengths[:, None])[:, :, None].astype(str(states.dtype))
            pooled = (states * wrap(model.device.asarray(share))).sum(axis=1)
        return (
            pooled / (pooled * pooled).sum(axis=-1, keepdims=True).sqrt() if normalize else pooled
        )
