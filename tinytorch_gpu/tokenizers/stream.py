"""Text out of ids that come one by one."""

from collections.abc import Callable


class StreamDecoder:
    """Gives out text as soon as its bytes are complete; the pieces join to the whole text.

    Each push decodes only the few last ids: a token's text can depend on the one before it. Text
    that ends in U+FFFD waits, as the next id may complete it.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []  # the ids given out last, then those still held back
        self._given = 0

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is complete now, often "" or one word."""
        self._ids.append(int(token_id))
        text = self._decode(self._ids)
        return "" if text.endswith("\ufffd") else self._give(text)

    def flush(self) -> str:
        """Return what is still held back, incomplete characters as U+FFFD."""
        return self._give(self._decode(self._ids)) if len(self._ids) > self._given else ""

    def _give(self, text: str) -> str:
        before = self._decode(self._ids[: self._given])
        piece = text[len(before) :]
        if piece:  # ids without text, such as skipped special ones, are no context for the next
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
        return piece
