"""``tinytorch-gpu``: reads the arguments, runs a command, and ends every mistake in one line."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .arguments import COMMANDS, build_parser


class UsageError(Exception):
    """Arguments that do not fit."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    traceback = "--traceback" in (sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="tinytorch-gpu: %(message)s", level=logging.WARNING)
    try:
        arguments = build_parser(_Parser).parse_args(argv)
        if arguments.command is None:
            raise UsageError(f"give a command: {', '.join(COMMANDS)} (see tinytorch-gpu --help)")
        command = importlib.import_module(f".{arguments.command}", __package__)
        code = command.run(arguments)
        sys.stdout.flush()
        return int(code or 0)
    except BrokenPipeError:
        # The reader has gone (| head): there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except Exception as error:
        if traceback:
            raise
        return _fail(error)


# What a user can cause. Anything else is our mistake, and its traceback is worth having.
_EXPECTED = (UsageError, ValueError, OSError, ImportError, NotImplementedError, MemoryError,
             FloatingPointError)  # fmt: skip


def _fail(error: Exception) -> int:
    from ..devices import DeviceError

    if not isinstance(error, (*_EXPECTED, DeviceError)):
        raise error
    print(f"tinytorch-gpu: error: {describe(error)}", file=sys.stderr)
    return 2


def describe(error: Any) -> str:
    """Return an error as one line that names what it is about."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error}): choose a smaller model, context or --dtype bfloat16"
    if isinstance(error, UnicodeDecodeError):
        return f"the prompt is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
