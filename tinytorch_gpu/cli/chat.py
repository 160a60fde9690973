"""``chat``: a conversation whose keys and values stay in the cache between turns."""

import argparse
import sys
from typing import Any

from ..generation import PrefixCache
from .session import (
    Session,
    Timing,
    describe_figures,
    open_file,
    open_session,
    sampling_options,
    stream_text,
)

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def run(arguments: argparse.Namespace) -> int:
    """Run the command until the input ends; return the exit code."""
    file = open_file(arguments)
    if not file.chat_template:
        raise ValueError(f"{file.path.name} has no chat template: use generate")
    talk = Conversation(open_session(arguments, file), arguments)
    _note(HELP)
    while True:
        try:
            line = _read_line()
        except KeyboardInterrupt:
            _note("\n" + HELP)
            continue
        if line is None or line in ("/exit", "/quit"):
            return 0
        if line == "/reset":
            talk.reset()
        elif line.startswith("/"):
            _note(HELP)
        elif line:
            talk.answer(line)


class Conversation:
    """The messages so far, and the cache that holds their tokens."""

    def __init__(self, session: Session, arguments: argparse.Namespace):
        self.session, self.arguments = session, arguments
        self.prefix = PrefixCache(session.model, arguments.context, arguments.cache_dtype)
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message, whose tokens stay in the cache."""
        system = self.arguments.system
        self.messages: list[dict[str, str]] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    def answer(self, text: str) -> None:
        """Print the model's answer to ``text``; Ctrl-C keeps what it has said."""
        self.messages.append({"role": "user", "content": text})
        ids = self._ids()
        room = self.prefix.cache.capacity
        if len(ids) >= room:
            self.messages.pop()
            _note(f"that makes {len(ids)} tokens, the context has {room}: /reset, or say less")
            return
        timing, pieces = Timing(len(ids) - self.prefix.reusable(ids)), []
        options = sampling_options(self.arguments)
        try:
            for _, piece in stream_text(self.session, ids, timing, [], self.prefix, **options):
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            _note("\n(stopped)")
        print(flush=True)
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        if sys.stdin.isatty():
            _note(describe_figures(self.session.figures(timing)))

    def _ids(self) -> list[int]:
        tokenizer = self.session.tokenizer
        return tokenizer.encode(
            tokenizer.apply_chat_template(self.messages), add_special_tokens=False
        )


def _read_line() -> str | None:
    """The next line of input, None at its end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _note(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
