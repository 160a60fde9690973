"""``generate``: checks what it is given and hands it to a run."""

from collections.abc import Sequence
from typing import Any

import numpy

from .cache import Cache
from .encoder import cache_about
from .prompts import collected, read_prompts, token_count, token_ids
from .run import Run
from .sampler import Sampler, Sampling
from .speculation import speculation_of
from .speculative_run import SpeculativeRun


def generate(
    model: Any,
    input_ids: Any,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    stream: bool = False,
    pad_id: int = 0,
    cache: Cache | None = None,
    cache_dtype: Any = None,
    speculate: Any = None,
) -> Any:
    """Continue prompts with up to ``max_new_tokens`` tokens each. An encoder-decoder reads
    them instead, and what it writes begins with its start token: a Tensor (B, 1 + n).

    ``input_ids`` (T,) or (B, T) gives a Tensor (B, T + n); a list of prompts of different lengths
    gives a list of 1-D Tensors. A row stops at one of ``stop_tokens`` (kept) or at
    ``max_seq_length``; rows that stop early are filled with ``pad_id``. ``stream=True`` returns an
    iterator of ``Step`` instead. ``temperature`` 0 is greedy; ``top_k``, ``top_p``, ``min_p`` and
    ``repetition_penalty`` as in ``Sampling``; a ``seed`` makes it repeatable on a device. With a
    ``cache`` the prompt continues what it holds, and the cache stays usable: afterwards it has of
    each row all tokens but the last one generated; else ``cache_dtype`` ("float16") says how keys and
    values are kept. ``speculate`` is "lookup", a smaller model with
    the same vocabulary, or a ``Speculation``: several tokens a pass where that is quicker, and the
    same tokens. Bad arguments are a ValueError at once.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    count = token_count(max_new_tokens)
    if not hasattr(pad_id, "__index__"):
        raise ValueError(f"pad_id must be a token id, not {pad_id!r}")
    if not model.config.head:
        raise ValueError(
            "this model has no head, so it does not write: model.embed(ids) is what it does"
        )
    prompts, ragged = read_prompts(input_ids, model.config.vocab_size)
    if model.encoder is not None:
        cache = cache_about(model, prompts, count, cache, cache_dtype)
        prompts, ragged = [numpy.array([model.config.start_token])] * len(prompts), False
    batch, speculation = len(prompts), speculation_of(speculate, model)
    own_draws = speculation is not None and batch > 1  # rows go on at their own pace
    sampler = Sampler(sampling, batch, model.config.vocab_size, model.device, seed, own_draws)
    given = (model, prompts, count, sampler, token_ids(stop_tokens), pad_id, cache, cache_dtype)
    run = Run(*given) if speculation is None else SpeculativeRun(*given, speculation)
    steps = run.steps()
    if stream:
        return steps
    return collected(prompts, list(steps), ragged, model.device)
