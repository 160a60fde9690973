"""Reuse of what is the same at the beginning: prompts that share it feed it once."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..core.tensor import no_grad
from .cache import Cache
from .engine import generate
from .prefill import prefill
from .prompts import Step, collected, read_prompts, token_count
from .speculation import shared, speculation_of


class PrefixCache:
    """The keys and values of one sequence of tokens, ``ids``, and generation that begins with them.

    Each call of ``generate`` takes whole prompts and feeds only what lies behind their common beginning
    with ``ids``; the results are those without it, to rounding. ``capacity`` bounds the tokens
    (default: the model's context), ``dtype`` is that of keys and values. ``saved`` counts the prompt tokens
    that did not have to be fed.
    """

    def __init__(self, model: Any, capacity: int | None = None, dtype: Any = None):
        self.model, self.cache = model, Cache.for_model(model, 1, capacity, dtype)
        self.ids: list[int] = []
        self.dtype, self.saved = dtype, 0

    def generate(self, input_ids: Any, max_new_tokens: int = 50, **options: Any) -> Any:
        """As ``generation.generate``. One prompt is kept with its answer, as far as they were fed;
        of several what all of them begin with, which is fed once and copied to all."""
        if options.pop("cache", None) is not None:
            raise ValueError("a PrefixCache has its own cache: leave cache out")
        prompts, ragged = read_prompts(input_ids, self.model.config.vocab_size)
        rows = [[int(token) for token in prompt] for prompt in prompts]
        stream = options.pop("stream", False)
        begin = self._one if len(rows) == 1 else self._many
        steps = begin(rows, token_count(max_new_tokens), options)
        return steps if stream else collected(prompts, list(steps), ragged, self.model.device)

    def feed(self, ids: Sequence[int]) -> None:
        """Hold exactly these tokens."""
        (row,), _ = read_prompts([list(ids)], self.model.config.vocab_size)
        same = self._keep(shared(self.ids, row))
        rest = [int(token) for token in row[same:]]
        if same + len(rest) > self.cache.capacity:
            raise ValueError(f"{len(row)} tokens exceed the capacity of {self.cache.capacity}")
        if rest:
            with no_grad(), self.model.device.active():
                prefill(self.model, [rest], self.cache)
            self.ids += rest

    def reusable(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt need not be fed; the last one must be, to get an answer."""
        return min(shared(self.ids, ids), len(ids) - 1)

    def save(self, path: Any) -> None:
        """Write ``ids`` and their keys and values to a safetensors file, whole or not at all."""
        from .prefix_file import save

        save(self, path)

    def load(self, path: Any) -> None:
        """Hold what ``save`` wrote. A file that is damaged, of another model or too long is a
        ValueError, and leaves everything as it was."""
        from .prefix_file import load

        load(self, path)

    def _keep(self, count: int) -> int:
        """Forget all but the first ``count`` tokens; return that count."""
        self.cache.rollback(self.cache.lengths - count)
        del self.ids[count:]
        return count

    def _one(self, rows: list[list[int]], count: int, options: dict[str, Any]) -> Iterator[Step]:
        row = rows[0]
        same = self._keep(self.reusable(row))
        options = {**options, "speculate": self._told(options.get("speculate"), [row[:same]])}
        steps = generate(
            self.model, [row[same:]], count, cache=self.cache, stream=True, **options
        )  # fmt: skip
        self.saved += same
        return self._noting(steps, row)

    def _noting(self, steps: Any, row: list[int]) -> Iterator[Step]:
        """The steps; afterwards ``ids`` says what the cache holds, however they ended."""
        made: list[int] = []
        try:
            for step in steps:
                made.append(int(step.tokens[0]))
                yield step
        finally:
            steps.close()
            self.ids = (row + made)[: int(self.cache.lengths[0])]

    def _many(self, rows: list[list[int]], count: int, options: dict[str, Any]) -> Iterator[Step]:
        same = min(len(row) - 1 for row in rows)
        same = min(same, *(shared(rows[0], row) for row in rows[1:]))
        had = min(shared(self.ids, rows[0]), same)
        if same:
            self.feed(rows[0][:same])
        longest, room = max(map(len, rows)), self.model.config.max_seq_length
        if longest > room:
            raise ValueError(f"{longest} prompt tokens exceed the context of {room}")
        dtype = options.pop("cache_dtype", None) or self.dtype
        cache = Cache.for_model(self.model, len(rows), min(room, longest + count), dtype)
        if same:
            cache.restore(self.cache.save())
        told = self._told(options.pop("speculate", None), [row[:same] for row in rows])
        self.saved += had + (len(rows) - 1) * same
        return generate(
            self.model, [row[same:] for row in rows], count, cache=cache, stream=True,
            speculate=told, **options,
        )  # fmt: skip

    def _told(self, speculate: Any, before: list[list[int]]) -> Any:
        """The speculation, told what the cache holds already."""
        found = speculation_of(speculate, self.model)
        if found is not None:
            found.before = before
        return found
