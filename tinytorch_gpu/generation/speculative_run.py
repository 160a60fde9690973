"""A generation in which several tokens are checked in one pass (see ``speculation``)."""

from collections.abc import Iterator
from time import perf_counter as clock
from typing import Any

import numpy

from .. import nvtx
from ..backend import DEVICES, namespace, to_numpy
from ..core.tensor import Tensor, no_grad, wrap
from .capture import CapturedPass
from .prompts import Step
from .run import Run, check_finite
from .speculation import Speculation


class SpeculativeRun(Run):
    """Each row goes on at its own pace; a ``Step`` is handed out when all rows have its token."""

    def __init__(self, *given: Any):
        *rest, speculation = given
        super().__init__(*rest)
        self.speculation: Speculation = speculation
        self.made: list[list[int]] = [[] for _ in self.prompts]
        self.done = self.left == 0
        self.passes: dict[int, CapturedPass] = {}  # by the number of tokens

    def _decode(self) -> Iterator[Step]:
        rows = [[int(token) for token in prompt] for prompt in self.prompts]
        self.speculation.begin(rows, self.sampler, self.cache.capacity)
        self.speculation.pace.begin()
        first = to_numpy(self.sampler.ids)
        check_finite(self.step.logits.data, first[:, 0], ~self.done)
        self._add(numpy.where(self.done[:, None], -1, first), numpy.zeros(len(rows), numpy.int64))
        count = 0
        while True:
            while all(done or len(row) > count for done, row in self._rows()):
                yield self._hand_out(count)
                count += 1
                if all(done and len(row) <= count for done, row in self._rows()):
                    return
            self._round()

    def _rows(self) -> Iterator[tuple[bool, list[int]]]:
        return zip(self.done.tolist(), self.made, strict=True)

    def _hand_out(self, count: int) -> Step:
        """The step with token ``count`` of each row."""
        tokens = [row[count] if count < len(row) else self.pad_id for row in self.made]
        finished = [done and len(row) <= count + 1 for done, row in self._rows()]
        self.given += [count < len(row) for row in self.made]
        return Step(numpy.array(tokens, numpy.int64), numpy.array(finished))

    def _round(self) -> None:
        """Make one token or more of each row that is not done."""
        started, guide = clock(), self.speculation
        alive = ~self.done
        # The model adds one token to what came true, so one less is of use.
        limits = numpy.where(alive, self.left - [len(row) for row in self.made] - 1, 0)
        room = self.cache.capacity - int(self.cache.lengths.max()) - 1
        left = int(limits.max())
        most = min(guide.most, left, room)
        wanted = guide.pace.choose(most, left) if guide.adaptive else most
        drafts: Any = None
        counts, ready = numpy.zeros_like(limits), started
        if wanted > 0:
            with nvtx.span("draft", "phase", wanted):
                guide.prepare(self.sampler)
                ready = clock()
                drafts, counts = guide.draft(wanted, limits, self.sampler)
        if not counts.any():
            self._plain()
            guide.pace.step(clock() - ready)
            return
        longest = int(counts.max())
        with no_grad(), nvtx.span("verify", "phase", longest + 1):
            tested, accepted = self._check(drafts[:, :longest], counts)
        guide.rounds += 1
        guide.drafted += int(counts.sum())
        guide.accepted += accepted
        guide.pace.round(longest, tested, accepted, clock() - ready, ready - started)

    def _plain(self) -> None:
        """An ordinary step."""
        self._next()
        tokens = numpy.where(self.done, -1, to_numpy(self.sampler.ids)[:, 0])
        check_finite(self.step.logits.data, tokens, ~self.done)
        self.cache.rollback(self.done.astype(numpy.int64))
        self._add(tokens[:, None], numpy.zeros_like(tokens))

    def _check(self, drafts: Any, counts: Any) -> tuple[int, int]:
        """One pass over the last token and the draft of each row, ``counts`` (B,) tokens long: how many
        drafted tokens were looked at, and how many came true."""
        place, alive = self.model.device, ~self.done
        fed = numpy.where(alive, counts + 1, 0)
        width = drafts.shape[1]
        vocabulary = self.model.config.vocab_size
        if isinstance(drafts, numpy.ndarray) and drafts.size and drafts.max() >= vocabulary:
            raise ValueError(f"a draft has token {drafts.max()}, and the vocabulary {vocabulary}")
        there = place.asarray(drafts)
        if (counts < width).any():  # nothing stands behind a shorter draft
            beyond = place.asarray(numpy.arange(width)[None] >= counts[:, None])
            there = namespace(there).where(beyond, -1, there)
        ids = namespace(there).concat([self.sampler.ids, there], axis=1)
        ids = namespace(ids).maximum(ids, 0 * ids)
        uniform = bool((fed == width + 1).all())
        logits = self._logits(ids, None if uniform else fed)
        chosen, drafts = self._read(self.sampler.after_each(logits, there), drafts)
        inside = numpy.arange(width)[None] < counts[:, None]
        right = numpy.logical_and.accumulate((chosen[:, :-1] == drafts) & inside, axis=1)
        accepted = right.sum(axis=1)
        tokens = self._kept(chosen, accepted)
        self._check_finite_rows(logits, tokens)
        self.sampler.keep(tokens)
        self.cache.rollback(fed - (tokens >= 0).sum(axis=1))
        self._add(tokens, accepted)
        return int(numpy.minimum(accepted + 1, counts).sum()), int(accepted.sum())

    def _logits(self, ids: Any, counts: Any) -> Tensor:
        """Those behind all tokens (B, T). A pass of a usual width is recorded: the widths near the end of a text come
        once."""
        width = ids.shape[1]
        if counts is None and (width & (width - 1) == 0 or width == self.speculation.most + 1):
            if width not in self.passes:
                self.passes[width] = CapturedPass(self.model, self.cache, width)
            return self.passes[width](ids)
        hidden, _ = self.model.hidden(wrap(ids), cache=self.cache, counts=counts)
        return self.model.logits(hidden)

    def _read(self, chosen: Any, drafts: Any) -> tuple[Any, Any]:
        """Both on the host, by one copy if both are on the device."""
        if self.model.device.kind not in DEVICES or isinstance(drafts, numpy.ndarray):
            return to_numpy(chosen), to_numpy(drafts)
        both = to_numpy(namespace(chosen).concat([chosen, drafts], axis=1))
        return both[:, : chosen.shape[1]], both[:, chosen.shape[1] :]

    def _kept(self, chosen: Any, accepted: Any) -> Any:
        """What is added to each row, -1 behind it: the tokens that came true and the model's next one, up
        to a stop token and to what the row has left."""
        places = numpy.arange(chosen.shape[1])[None]
        stops = numpy.isin(chosen, self.stop)
        stopped = numpy.cumsum(stops, axis=1) - stops > 0
        left = self.left - [len(row) for row in self.made]
        kept = (places <= accepted[:, None]) & ~stopped & (places < left[:, None])
        return numpy.where(kept & ~self.done[:, None], chosen, -1)

    def _check_finite_rows(self, logits: Tensor, tokens: Any) -> None:
        for t in range(tokens.shape[1]):
            check_finite(logits.data[:, t], tokens[:, t], tokens[:, t] >= 0)

    def _add(self, tokens: Any, accepted: Any) -> None:
        """Add ``tokens`` (B, T), those that are not -1, to the rows, and see which are done."""
        for row, new in enumerate(tokens):
            found = [int(token) for token in new[new >= 0]]
            self.made[row] += found
            self.speculation.learn(row, found, int(accepted[row]))
            stopped = bool(found) and found[-1] in self.stop
            self.done[row] = self.done[row] or stopped or len(self.made[row]) >= self.left[row]
