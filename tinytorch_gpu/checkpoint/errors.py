"""The one error of this folder, and how names from an untrusted file appear in its messages."""

from collections.abc import Collection


class ModelFileError(ValueError):
    """A model file that cannot be used; the message is one line that says what is wrong."""


def quoted(text: object, limit: int = 60) -> str:
    """Return ``text`` in quotes, on one line and cut to ``limit`` characters."""
    shown = str(text)
    return repr(shown if len(shown) <= limit else shown[:limit] + "...")


def listed(names: Collection[str], most: int = 5) -> str:
    """Return the first few ``names`` in quotes, and how many more there are."""
    first = ", ".join(quoted(name) for _, name in zip(range(most), names, strict=False))
    return first + (f" and {len(names) - most} more" if len(names) > most else "")
