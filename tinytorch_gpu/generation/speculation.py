"""Guesses at the next tokens, for the model to check several in one pass.

The check changes nothing of what comes out: at each position the model chooses its own token, by the
same random numbers as without speculation, and a draft is worth its tokens up to the first that differs
from the model's choice. This is speculative sampling (Leviathan et al. 2023; Chen et al. 2023) with
the draft and the model coupled by common random numbers (Daliri et al. 2024, "Coupling without
communication and drafter-invariant speculative decoding"): the text does not depend on the draft at
all, so a seed gives the same text with any draft, of any length, or none.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy

from ..backend import namespace, to_numpy
from ..core.tensor import no_grad, wrap
from .cache import Cache
from .capture import CapturedPass, DecodeStep, capture
from .pace import Pace
from .prefill import prefill
from .sampler import Sampler

USUAL = 2  # tokens that a draft model has to read first, if it drafted before: its own last, and the model's
MOST = 7  # with the token before them eight, what the kernels for attention through a cache take at once


class Speculation(ABC):
    """Where drafts come from, and how they fared: ``drafted`` tokens of which ``accepted`` came true, in
    ``rounds`` passes. ``most`` bounds a draft; ``adaptive=False`` drafts as much always, where
    otherwise measured times and the share that came true decide (``Pace``).

    ``before`` are tokens of each row that a given cache holds already, to be set before each call, whose
    ``begin`` uses them up.

    One may be used for many calls of ``generate``, one after the other, and learns from each.
    """

    watched = False  # whether drafts cost nothing and are compared with ordinary steps too

    def __init__(self, most: int = MOST, adaptive: bool = True):
        if not hasattr(most, "__index__") or most < 1:
            raise ValueError(f"most must be a whole number from 1 on, not {most!r}")
        self.most, self.adaptive = operator.index(most), adaptive
        self.pace = Pace(self.most, self.watched)
        self.drafted = self.accepted = self.rounds = 0
        self.before: Sequence[Sequence[int]] = ()

    def check(self, model: Any) -> None:  # noqa: B027  most drafts are for any model
        """A ValueError if drafts cannot be for ``model``."""

    @abstractmethod
    def begin(self, rows: list[list[int]], sampler: Sampler, room: int) -> None:
        """A generation begins after the tokens ``rows``, with at most ``room`` tokens a row in all."""

    @abstractmethod
    def learn(self, row: int, tokens: list[int], accepted: int) -> None:
        """These tokens were added to a row; ``accepted`` of them by its last draft."""

    def prepare(self, sampler: Sampler) -> None:  # noqa: B027  most have nothing to prepare
        """Do before a draft what the next one need not do again: its time is no price of a round."""

    @abstractmethod
    def draft(self, count: int, limits: Any, sampler: Sampler) -> tuple[Any, Any]:
        """Guess up to ``count`` next tokens of each row, and no more than ``limits`` (B,) of it.

        Returns ids (B, K), on the host or on the model's device, and how many of each row are there
        (B,); K is at least the largest of them. ``sampler`` is the model's, to be looked at only. An id on the host
        that is not in the vocabulary makes ``generate`` raise a ValueError.
        """


def speculation_of(given: Any, model: Any) -> Speculation | None:
    """The ``speculate`` of ``generate``; what cannot be one is a ValueError."""
    if given is None or isinstance(given, Speculation):
        made = given
    elif isinstance(given, str):
        if given != "lookup":
            raise ValueError(f'speculate must be "lookup", a model or a Speculation, not {given!r}')
        made = Lookup()
    elif hasattr(given, "hidden") and hasattr(given, "config"):
        made = DraftModel(given)
    else:
        raise ValueError(f'speculate must be "lookup", a model or a Speculation, not {given!r}')
    if made is not None:
        made.check(model)
    return made


class Lookup(Speculation):
    """Prompt lookup (Saxena 2023): where the last tokens of a row stood before in it, what followed
    there may follow again. The longest of ``ngrams`` counts that is found decides, and of its places the
    last. While ordinary steps are taken it guesses too, and ``pace`` learns how that goes.
    """

    watched = True

    def __init__(
        self, most: int = MOST, adaptive: bool = True, ngrams: Sequence[int] = (4, 3, 2)
    ):  # fmt: skip
        super().__init__(most, adaptive)
        if not ngrams or any(not hasattr(n, "__index__") or n < 1 for n in ngrams):
            raise ValueError(f"ngrams must be whole numbers from 1 on, not {ngrams!r}")
        self.ngrams = sorted(set(ngrams), reverse=True)
        self._rows: list[list[int]] = []
        self._places: list[dict[tuple[int, ...], int]] = []
        # Of each row, what no pass looks at; its first token last.
        self._guesses: list[list[int]] = []

    def begin(self, rows: list[list[int]], sampler: Sampler, room: int) -> None:
        self._rows, self._places = [[] for _ in rows], [{} for _ in rows]
        self._guesses = [[] for _ in rows]
        before, self.before = self.before, ()
        for row, tokens in enumerate(rows):
            held = list(before[row]) if row < len(before) else []
            self.learn(row, held + tokens, 0)

    def learn(self, row: int, tokens: list[int], accepted: int) -> None:
        known, places = self._rows[row], self._places[row]
        self._watch(row, tokens)
        for token in tokens:
            # What ends here is noted only now that something follows it.
            for n in self.ngrams:
                if len(known) >= n:
                    places[tuple(known[-n:])] = len(known)
            known.append(token)
        if not self._guesses[row]:
            self._guesses[row] = self._follow(row, self.most)[::-1]

    def _watch(self, row: int, tokens: list[int]) -> None:
        """Compare the guess at these tokens, as far as there is one."""
        guess = self._guesses[row]
        for token in tokens:
            if not guess:
                return
            right = guess.pop() == token
            self.pace.seen(1, int(right))
            if not right:
                guess.clear()

    def draft(self, count: int, limits: Any, sampler: Sampler) -> tuple[Any, Any]:
        self._guesses = [[] for _ in self._rows]  # what comes is compared by the pass
        ids = numpy.full((len(self._rows), count), -1, numpy.int64)
        counts = numpy.zeros(len(self._rows), numpy.int64)
        for row, limit in enumerate(limits):
            found = self._follow(row, min(count, int(limit)))
            counts[row] = len(found)
            ids[row, : len(found)] = found
        return ids, counts

    def _follow(self, row: int, count: int) -> list[int]:
        known, places = self._rows[row], self._places[row]
        for n in self.ngrams if count > 0 else ():
            start = places.get(tuple(known[-n:])) if len(known) >= n else None
            if start is not None:
                # A text that repeats itself goes on from its own draft.
                period = len(known) - start
                return [known[start + i % period] for i in range(count)]
        return []


class DraftModel(Speculation):
    """A smaller ``model`` with the same vocabulary writes the drafts, with the sampling and the random
    numbers of the model that checks them.

    It keeps its own cache, of at most ``capacity`` tokens a row, and takes from one call to the next what
    stays the same: a model whose weights have changed drafts better as a new ``DraftModel`` (texts never change).
    """

    def __init__(
        self, model: Any, most: int = MOST, adaptive: bool = True, capacity: int | None = None
    ):  # fmt: skip
        super().__init__(most, adaptive)
        self.model, self.capacity = model, capacity
        self._cache: Cache | None = None
        self._sampler: Sampler | None = None
        self._step: DecodeStep | None = None
        self._rows: list[list[int]] = []
        self._valid, self._count = numpy.zeros(0, numpy.int64), 1
        self._recorded = False
        self._pass: CapturedPass | None = None

    def check(self, model: Any) -> None:
        if not self.model.config.decoder_only:
            raise ValueError(
                "a draft model must be a decoder alone: it does not see what others read"
            )
        ours, theirs = self.model.config.vocab_size, model.config.vocab_size
        if ours != theirs:
            raise ValueError(
                f"the draft model has a vocabulary of {ours} tokens, the model one of {theirs}: "
                "they must share it"
            )

    def begin(self, rows: list[list[int]], sampler: Sampler, room: int) -> None:
        held = [list(r) for r in self.before] or [[] for _ in rows]
        self.before = ()
        rows = [before + row for before, row in zip(held, rows, strict=True)]
        room = max(room, max(map(len, rows)) + 1)
        old, kept = self._rows, numpy.zeros(len(rows), numpy.int64)
        if self._cache is None or self._cache.batch != len(rows) or self._cache.capacity < room:
            wanted = max(room, self.capacity or 0)
            self._cache = Cache.for_model(self.model, len(rows), wanted)
            self._pass = CapturedPass(self.model, self._cache, USUAL)
        else:
            pairs = zip(old, rows, self._valid, strict=True)
            kept = numpy.array([shared(a[: int(n)], b) for a, b, n in pairs])
            self._cache.rollback(self._cache.lengths - kept)
        self._rows, self._valid = rows, kept
        self._sampler = sampler.fork(self.model.device)
        self._step = capture(self.model, len(rows), self._cache, self._sampler)
        self._recorded = False

    def learn(self, row: int, tokens: list[int], accepted: int) -> None:
        self._rows[row] += tokens
        # What was fed of a draft that came true stays in the cache; its last token was not fed.
        self._valid[row] += min(accepted, self._count - 1)

    def prepare(self, sampler: Sampler) -> None:
        """Feed the prompt, or what came while nothing was drafted, and record the step."""
        cache, own, step = self._cache, self._sampler, self._step
        assert cache is not None and own is not None and step is not None
        lengths = numpy.array([len(row) for row in self._rows])
        behind = int((lengths - self._valid).max())
        if (behind <= USUAL and self._recorded) or lengths.min() < 2:
            return
        if lengths.max() >= cache.capacity:
            return
        kept = numpy.minimum(self._valid, lengths - 2)
        cache.rollback(cache.lengths - kept)
        todo = [row[int(n) : -1] for row, n in zip(self._rows, kept, strict=True)]
        with no_grad(), self.model.device.active():
            logits = prefill(self.model, todo, cache)
            if not self._recorded:
                own.follow(sampler)
                own(logits)
                step()
                cache.rollback(1)
        self._valid, self._recorded = lengths - 1, True
        self.model.device.synchronize()

    def draft(self, count: int, limits: Any, sampler: Sampler) -> tuple[Any, Any]:
        cache, own = self._cache, self._sampler
        assert cache is not None and own is not None and self._step is not None
        room = cache.capacity - max(map(len, self._rows))
        count = min(count, int(max(limits)), room)
        counts = numpy.minimum(limits, count)
        if count < 1:
            return numpy.zeros((len(limits), 0), numpy.int64), numpy.zeros_like(limits)
        return self._write(cache, own, self._step, count, sampler), counts

    def _write(
        self, cache: Cache, own: Sampler, step: DecodeStep, count: int, sampler: Sampler
    ) -> Any:
        """Draft ``count`` tokens of each row: ids (B, count)."""
        lengths = numpy.array([len(row) for row in self._rows])
        # At least one token must be fed to get an answer.
        kept = numpy.minimum(self._valid, lengths - 1)
        cache.rollback(cache.lengths - kept)
        own.follow(sampler)
        todo = [row[int(n) :] for row, n in zip(self._rows, kept, strict=True)]
        made = []
        with no_grad(), self.model.device.active():
            self._first(cache, own, step, todo)
            for _ in range(count - 1):
                made.append(own.ids.copy())
                step()
            ids = namespace(own.ids).concat([*made, own.ids], axis=1)
        self._valid, self._count = lengths, count
        return ids if sampler.place == self.model.device else sampler.place.asarray(to_numpy(ids))

    def _first(self, cache: Cache, own: Sampler, step: DecodeStep, todo: list[list[int]]) -> None:
        """Feed what each row has not read yet, and choose the first token of a draft."""
        assert self._pass is not None
        counts = {len(row) for row in todo}
        if counts == {1}:
            step([row[0] for row in todo])
        elif counts == {USUAL}:
            logits = self._pass(self.model.device.asarray(todo, "int64"))
            own(wrap(logits.data[:, -1]))
        else:
            own(prefill(self.model, todo, cache))


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginnings."""
    same = min(len(a), len(b))
    return next((i for i in range(same) if a[i] != b[i]), same)
