"""The scores of attention in blocks of queries, and their powers: what its forward and its backward share.

Rows of the batch that follow each other and have one length are worked on together, others each as
its own problem, so a batch of different lengths does no work for the padding; keys that no query of
a block may see are never looked at.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

# Queries per block: enough rows for the matrix product, and little of a causal block is hidden.
QUERIES = 128
# Scores per block, the heads and rows together: 1 MB of float32. One head may need more by itself.
SCORES = 1 << 18
# Scores no further from 0 are raised to powers as they are, from 1e-7 to 1e7: a row's largest one is looked for,
# and taken off, for the sake of greater ones only.
MILD = 16


class Block(NamedTuple):
    """Queries and key heads of some rows of the batch, and the keys that some of them may see."""

    rows: slice
    queries: slice
    heads: slice
    keys: slice
    position: int  # of the first query


class Scores:
    """The scores of one part of a call, block by block.

    The query heads of one key head are stacked, so that a product is (K, G T, D) by (K, D, S), for each
    of the R rows of a block. Scores are made in ``kept`` (B, K, G T, S) if that is given, which needs all queries in
    one block.
    """

    def __init__(
        self, inputs: Any, causal: bool, scale: float | None, window: int | None, kept: Any = None
    ):
        self.q, self.k, _, _, _, lengths, starts, _ = inputs
        batch, _, heads, width = self.q.shape
        self.kv_heads = self.k.shape[2]
        self.groups = heads // self.kv_heads
        self.causal, self.window = causal, window
        self.scale = self.q.dtype.type(width**-0.5 if scale is None else scale)
        # Scaled queries are fewer than scores, and by a power of two exact; any other scale would
        # round each of them, and large scores would not be the reference's.
        self.exact = is_exact(self.scale)
        self.lengths = None if lengths is None else _per_row(lengths, batch)
        self.starts = None if starts is None else _per_row(starts, batch)
        self.kept = kept
        self._scratch: dict[str, Any] = {}
        # Those of one block: mostly the next one's too.
        self._masks: tuple[Any, list[_Hidden]] = (None, [])

    def blocks(self, part: slice) -> Iterator[Block]:
        """All queries of rows of the batch, a block at a time; of a block that sees nothing the keys
        are empty."""
        rows, keys = self.q.shape[1], self.k.shape[1]
        for (length, start), same in self._runs(part):
            for first in range(0, rows, QUERIES):
                queries = slice(first, min(first + QUERIES, rows))
                high = max(0, min(length, keys, start + queries.stop if self.causal else keys))
                low = 0 if self.window is None else max(0, start + first - self.window + 1)
                span = slice(min(low, high), high)
                each = self.groups * (queries.stop - first) * max(1, high - span.start)
                for part, heads in self._shares(same, max(1, SCORES // each)):
                    yield Block(part, queries, heads, span, start + first)

    def _runs(self, part: slice) -> Iterator[tuple[tuple[int, int], slice]]:
        """Rows of the batch that follow each other with one (length, start)."""
        rows, keys = self.q.shape[1], self.k.shape[1]
        if self.lengths is None and self.starts is None:
            yield (keys, keys - rows), part
            return
        lengths = [keys] * len(self.q) if self.lengths is None else self.lengths
        starts = [n - rows for n in lengths] if self.starts is None else self.starts
        first = part.start
        for key, run in itertools.groupby(zip(lengths[part], starts[part], strict=True)):
            stop = first + len(list(run))
            yield key, slice(first, stop)
            first = stop

    def _shares(self, rows: slice, count: int) -> Iterator[tuple[slice, slice]]:
        """Rows and key heads, at most ``count`` heads together: several rows or a part of one."""
        each = max(1, count // self.kv_heads)
        for first in range(rows.start, rows.stop, each):
            for head in range(0, self.kv_heads, count):
                heads = slice(head, min(head + count, self.kv_heads))
                yield slice(first, min(first + each, rows.stop)), heads

    def buffer(self, name: str, *shape: int) -> Any:
        """An array to write to, of the same memory each time."""
        size, held = math.prod(shape), self._scratch.get(name)
        if held is None or held.size < size:
            held = self._scratch[name] = numpy.empty(size, self.q.dtype)
        return held[:size].reshape(shape)

    def by_head(self, x: Any, block: Block) -> Any:
        """The view (R, K, G, T, ...) of a block's queries in ``x`` (B, T, H, ...)."""
        part = x[block.rows, block.queries]
        apart = part.reshape(*part.shape[:2], self.kv_heads, self.groups, part.shape[3])
        return apart[:, :, block.heads].transpose(0, 2, 3, 1, 4)

    def stacked(self, x: Any, block: Block, name: str, factor: Any = None) -> Any:
        """A block's queries in ``x`` (B, T, H, D), times ``factor``, as (R, K, G T, D)."""
        view = self.by_head(x, block)
        if factor is None and self.groups == 1 and _for_blas(view):
            return view[:, :, 0]
        out = self.buffer(name, *view.shape)
        if factor is None:
            numpy.copyto(out, view)
        else:
            numpy.multiply(view, factor, out=out)
        return out.reshape(*out.shape[:2], -1, out.shape[4])

    def queries(self, block: Block) -> Any:
        """The queries (R, K, G T, D) of a block: scaled, if that is exact."""
        return self.stacked(self.q, block, "queries", self.scale if self.exact else None)

    def held(self, block: Block, rows: int) -> Any:
        """Where the scores of a block's ``rows`` queries go (R, K, G, rows, S)."""
        batch, heads, keys = (x.stop - x.start for x in (block.rows, block.heads, block.keys))
        shape = batch, heads, self.groups, rows, keys
        if self.kept is None:
            return self.buffer("scores", *shape)
        return self.kept[block.rows, block.heads, :, block.keys].reshape(shape)

    def flat(self, x: Any) -> Any:
        """(R, K, G, T, S) as (R, K, G T, S)."""
        return x.reshape(*x.shape[:2], -1, x.shape[4])

    def powers(self, block: Block, queries: Any, shift: Any = None) -> tuple[Any, Any]:
        """e to the power of the scores (R, K, G, T, S) of ``queries()``, 0 where hidden, and what was taken off the
        scores before (R, K, G, T, 1): nothing (None) if they are mild, else ``shift``, or each row's largest."""
        scores = self._products(block, queries)
        hidden = self._hidden(block)
        if _mild(scores):
            numpy.exp(scores, out=scores)
            for hide in hidden:
                scores[..., hide.keys] *= hide.seen
            return scores, None
        for hide in hidden:
            numpy.copyto(scores[..., hide.keys], -numpy.inf, where=hide.where)
        if shift is None:
            shift = numpy.maximum.reduce(scores, axis=-1, keepdims=True)
            shift[~numpy.isfinite(shift)] = 0
        scores -= shift
        return numpy.exp(scores, out=scores), shift

    def _products(self, block: Block, queries: Any) -> Any:
        """The scores of a block's queries with all its keys."""
        known = self.k[block.rows, block.keys, block.heads].transpose(0, 2, 3, 1)
        rows = block.queries.stop - block.queries.start
        scores = self.held(block, rows)
        if rows == 1:
            # Few query heads of a key head are a worse shape for the BLAS than each alone.
            numpy.matmul(queries[:, :, :, None], known[:, :, None], out=scores)
        else:
            numpy.matmul(queries, known, out=scores.reshape(*queries.shape[:3], known.shape[3]))
        if not self.exact:
            scores *= self.scale
        return scores

    def _hidden(self, block: Block) -> list["_Hidden"]:
        """Later keys and those a window away, looked for only where there can be any."""
        rows = block.queries.stop - block.queries.start
        key = (block.position, rows, block.keys.start, block.keys.stop)
        known, found = self._masks
        if known != key:
            found = list(self._hide(*key))
            self._masks = key, found
        return found

    def _hide(self, position: int, rows: int, low: int, high: int) -> Iterator["_Hidden"]:
        causal = self.causal and position + 1 < high
        query = numpy.arange(position, position + rows)[:, None]
        if causal:
            first = max(low, position)  # this key is seen: all of a square block lie side by side
            where = numpy.arange(first, high) > query
            yield _Hidden(slice(first - low, None), where, (~where).astype(self.q.dtype))
        if self.window is not None:
            stop = max(low, min(high, position + rows - self.window))
            where = query - numpy.arange(low, stop) >= self.window
            yield _Hidden(slice(0, stop - low), where, (~where).astype(self.q.dtype))


class _Hidden(NamedTuple):
    """Keys of a block, by their place in it, that some of its queries may not see: ``where`` (T, S), and 1 where they
    may, ``seen``."""

    keys: slice
    where: Any
    seen: Any


def is_exact(scale: float) -> bool:
    """Whether a factor is a power of two, which rounds no number."""
    return abs(math.frexp(scale)[0]) == 0.5


def _mild(scores: Any) -> bool:
    """Whether all are close to 0; not if one is no number."""
    low, high = numpy.minimum.reduce(scores, axis=None), numpy.maximum.reduce(scores, axis=None)
    return bool(low >= -MILD and high <= MILD)


def _for_blas(view: Any) -> bool:
    """Whether the BLAS takes the last two axes as they lie in memory."""
    return bool(
        view.strides[-1] == view.itemsize and view.strides[-2] >= view.shape[-1] * view.itemsize
    )


def _per_row(numbers: Any, batch: int) -> list[int]:
    """Lengths or starts on the host, of all rows; one number is that of all."""
    found = numbers.reshape(-1).tolist()
    return found * batch if len(found) == 1 else found
