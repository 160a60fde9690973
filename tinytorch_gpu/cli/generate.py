"""``generate``: continue a prompt. Tokens go to stdout, all else to stderr."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
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

DEFAULT_PROMPT = "Tell a short story about a lighthouse keeper and a storm."


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    prompt = read_prompt(arguments)
    file = open_file(arguments)
    tokenizer = file.tokenizer()
    ids = encode_prompt(tokenizer, prompt, arguments.raw)
    room = file.config.max_seq_length
    if len(ids) >= room:
        raise ValueError(f"the prompt has {len(ids)} tokens; the model's context is {room}")
    session = open_session(arguments, file)
    prefix = _prompt_cache(arguments, session)
    spared = 0 if prefix is None else prefix.reusable(ids)
    timing, made, text = Timing(len(ids) - spared), [], []
    streaming = not (arguments.no_stream or arguments.json)
    interrupted = False
    try:
        for new, piece in stream_text(
            session, ids, timing, arguments.stop, prefix, **sampling_options(arguments)
        ):
            made += new
            text.append(piece)
            if streaming:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    _finish(arguments, session, prompt, made, "".join(text), timing, spared)
    if prefix is not None and prefix.ids and not interrupted:
        prefix.save(arguments.prompt_cache)
    return 130 if interrupted else 0


def read_prompt(arguments: argparse.Namespace) -> str:
    """Return the prompt from where the arguments say; an empty one is a ValueError."""
    given = [x for x in (arguments.prompt, arguments.file, arguments.stdin) if x is not None]
    if len(given) > 1:
        raise ValueError("give the prompt once: with -p, with -f, or - for standard input")
    if arguments.file is not None:
        prompt = Path(arguments.file).read_bytes().decode("utf-8")
    elif arguments.stdin is not None:
        prompt = sys.stdin.buffer.read().decode("utf-8")
    else:
        prompt = DEFAULT_PROMPT if arguments.prompt is None else arguments.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty: give some text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the prompt is not valid UTF-8") from None
    return prompt


def encode_prompt(tokenizer: Any, prompt: str, raw: bool) -> list[int]:
    """Return the ids of a prompt, as a user's message where the model was trained for that."""
    if raw or not tokenizer.chat_template:
        ids = tokenizer.encode(prompt)
    else:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ValueError("the prompt has no tokens: give some text")
    return ids


def _prompt_cache(arguments: argparse.Namespace, session: Session) -> PrefixCache | None:
    """The cache of ``--prompt-cache``, with what its file holds if there is one."""
    if arguments.prompt_cache is None:
        return None
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError("--prompt-cache needs safetensors: pip install safetensors")
    target = Path(arguments.prompt_cache)
    if not target.parent.is_dir():
        raise ValueError(f"--prompt-cache: there is no folder {target.parent}")
    prefix = PrefixCache(session.model, dtype=arguments.cache_dtype)
    if target.exists():
        prefix.load(target)
    return prefix


def _finish(
    arguments: argparse.Namespace,
    session: Session,
    prompt: str,
    made: list[int],
    text: str,
    timing: Timing,
    spared: int,
) -> None:
    """Print what was not streamed, and the figures."""
    figures = {**session.figures(timing), "reused_prompt_tokens": spared}
    if arguments.json:
        record = {
            "model": str(session.file.path), "device": str(session.model.device),
            "dtype": arguments.dtype, "prompt": prompt, "text": text, "tokens": made, **figures,
        }  # fmt: skip
        print(json.dumps(record, ensure_ascii=False))
    elif arguments.no_stream:
        print(text)
    else:
        print(flush=True)
    print(f"tinytorch-gpu: {describe_figures(figures)}", file=sys.stderr)
