"""The course's tokenizers: characters, and byte-pair encoding trained on a few texts."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

_SPECIAL = ("<PAD>", "<UNK>", "<BOS>", "<EOS>")


class CharTokenizer:
    """One token per character of printable ASCII, and special tokens before them."""

    def __init__(self, special_tokens: Sequence[str] | None = None):
        self.special_tokens = list(_SPECIAL if special_tokens is None else special_tokens)
        if "<PAD>" not in self.special_tokens or "<UNK>" not in self.special_tokens:
            raise ValueError(f"special_tokens must have <PAD> and <UNK>: {self.special_tokens}")
        symbols = [*self.special_tokens, *map(chr, range(32, 127))]
        self.char_to_idx = {symbol: i for i, symbol in enumerate(symbols)}
        self.idx_to_char = dict(enumerate(symbols))
        self.vocab_size = len(symbols)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``, with <BOS> and <EOS> around it if they exist."""
        unknown = self.char_to_idx["<UNK>"]
        ids = [self.char_to_idx.get(char, unknown) for char in text]
        if not add_special_tokens:
            return ids
        first, last = (
            [self.char_to_idx[name]] if name in self.special_tokens else []
            for name in ("<BOS>", "<EOS>")
        )
        return first + ids + last

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ``tokens``; an unknown id reads as <UNK>."""
        symbols = (self.idx_to_char.get(int(token), "<UNK>") for token in tokens)
        hidden = set(self.special_tokens) if skip_special_tokens else set()
        return "".join(symbol for symbol in symbols if symbol not in hidden)

    def pad_sequences(
        self, seqs: Sequence[Sequence[int]], max_length: int | None = None
    ) -> list[list[int]]:
        """Return the sequences at one length, the longest's by default: filled with <PAD> on the
        right, or cut."""
        length = max(map(len, seqs), default=0) if max_length is None else max_length
        pad = self.char_to_idx["<PAD>"]
        return [[*seq[:length], *[pad] * (length - len(seq))] for seq in map(list, seqs)]


class BPETokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) over UTF-8 bytes, so that any text round-trips.

    Ids: the special tokens, then the 256 bytes, then one per merge. ``merges`` maps a pair of ids
    to the id of its union, in the order they were learned.
    """

    def __init__(self, vocab_size: int = 1000):
        least = len(_SPECIAL) + 256
        if vocab_size < least:
            raise ValueError(f"vocab_size must be at least {least} (bytes, specials): {vocab_size}")
        self.vocab_size, self.trained = vocab_size, False
        self.special_tokens = list(_SPECIAL)
        self.merges: dict[tuple[int, int], int] = {}
        self._bytes: dict[int, bytes] = {}

    def train(self, texts: Iterable[str] | str) -> None:
        """Learn merges of the most frequent pairs, the first in id order among equals."""
        first = len(_SPECIAL)
        self._bytes = {first + byte: bytes([byte]) for byte in range(256)}
        self.merges = {}
        counts: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            counts.update(_words(text))
        words = [([first + b for b in word.encode("utf-8")], n) for word, n in counts.items()]
        pairs, where = self._count(words)
        # The heap may hold counts of before: one that is no longer true is pushed back as it is.
        heap = [(-n, pair) for pair, n in pairs.items()]
        heapq.heapify(heap)
        while first + 256 + len(self.merges) < self.vocab_size and heap:
            count, pair = heapq.heappop(heap)
            now = pairs.get(pair, 0)
            if -count != now:
                if now:
                    heapq.heappush(heap, (-now, pair))
                continue
            if now < 2:
                break
            new = first + 256 + len(self.merges)
            self.merges[pair] = new
            self._bytes[new] = self._bytes[pair[0]] + self._bytes[pair[1]]
            for fresh in self._replace(words, pair, new, pairs, where):
                heapq.heappush(heap, (-pairs[fresh], fresh))
        self.trained = True

    @staticmethod
    def _count(words: list[tuple[list[int], int]]) -> tuple[Counter[Any], dict[Any, set[int]]]:
        """How often each pair stands in the words, and in which."""
        pairs: Counter[Any] = Counter()
        where: dict[Any, set[int]] = defaultdict(set)
        for i, (ids, count) in enumerate(words):
            for pair in pairwise(ids):
                pairs[pair] += count
                where[pair].add(i)
        return pairs, where

    @staticmethod
    def _replace(words: Any, pair: Any, new: int, pairs: Counter[Any], where: Any) -> set[Any]:
        """Merge ``pair`` in the words that have it and count only those anew; return the pairs
        that are new with it."""
        changed = set()
        for i in where.pop(pair):
            ids, count = words[i]
            merged = _merge(ids, pair, new)
            words[i] = (merged, count)
            for old in pairwise(ids):
                pairs[old] -= count
            for fresh in pairwise(merged):
                pairs[fresh] += count
                where[fresh].add(i)
                if new in fresh:
                    changed.add(fresh)
        return {fresh for fresh in changed if pairs[fresh]}

    def _check(self) -> None:
        if not self.trained:
            raise ValueError("this BPETokenizer is untrained: call train(texts) first")

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of ``text``, earliest learned merges first."""
        self._check()
        ids: list[int] = []
        for word in _words(text):
            part = [len(_SPECIAL) + byte for byte in word.encode("utf-8")]
            while len(part) > 1:
                known = [p for p in pairwise(part) if p in self.merges]
                if not known:
                    break
                best = min(known, key=self.merges.__getitem__)
                part = _merge(part, best, self.merges[best])
            ids += part
        return [2, *ids, 3] if add_special_tokens else ids

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ``tokens``; an id that was not learned is a ValueError."""
        self._check()
        parts = []
        for token in map(int, tokens):
            if 0 <= token < len(_SPECIAL):
                parts.append(b"" if skip_special_tokens else _SPECIAL[token].encode())
            elif token in self._bytes:
                parts.append(self._bytes[token])
            else:
                raise ValueError(f"token {token} is not one of the {self.vocab_size} ids")
        return b"".join(parts).decode("utf-8", errors="replace")


class OptimizedTokenizer:
    """A tokenizer that remembers the texts it has encoded."""

    def __init__(self, base: Any):
        self.base = base
        self._cache: dict[str, list[int]] = {}
        self._hits = self._misses = 0

    def encode_with_cache(self, text: str) -> list[int]:
        """Return the ids of ``text``, from memory if it came before."""
        if text in self._cache:
            self._hits += 1
        else:
            self._misses += 1
            self._cache[text] = self.base.encode(text)
        return list(self._cache[text])

    def batch_encode(self, texts: Sequence[str], pad_to_max: bool = True) -> list[list[int]]:
        """Return the ids of each text, filled on the right to one length if ``pad_to_max``."""
        rows = [self.encode_with_cache(text) for text in texts]
        if not pad_to_max:
            return rows
        length = max(map(len, rows), default=0)
        return [row + [0] * (length - len(row)) for row in rows]

    def get_cache_stats(self) -> dict[str, Any]:
        """Return how often the memory helped."""
        asked = self._hits + self._misses
        return {
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "hit_rate": self._hits / asked if asked else 0.0,
            "cache_size": len(self._cache),
        }


def tokenize(text: str, tokenizer: Any = None) -> Any:
    """Return the ids of ``text`` as a Tensor (1, T), by ``tokenizer`` or a CharTokenizer."""
    from ..core.tensor import Tensor

    ids = (CharTokenizer() if tokenizer is None else tokenizer).encode(text)
    if not ids:
        raise ValueError("the text is empty: there is nothing to tokenize")
    return Tensor([ids])


def _words(text: str) -> list[str]:
    """The text cut before each run of spaces: merges never cross a cut."""
    words: list[str] = []
    for char in text:
        if words and not (char.isspace() and not words[-1][-1].isspace()):
            words[-1] += char
        else:
            words.append(char)
    return words


def _merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
