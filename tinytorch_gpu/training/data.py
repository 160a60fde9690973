"""Token datasets: text files to one memory-mapped file of ids, and batches of windows out of it.

A dataset is a folder: tokens.bin (uint16 or uint32, little endian), dataset.json, tokenizer.json. It may be
larger than memory on both ways: texts are read and tokens written piece by piece, and a batch touches the
pages of its own windows only.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..checkpoint.files import read_json
from ..checkpoint.save import flush, write_tokenizer
from ..tokenizers import Tokenizer

PIECE = 1 << 20  # characters that are encoded at a time
TOKENS, ABOUT = "tokens.bin", "dataset.json"
_VERSION = 1


class TokenDataset:
    """Tokens of some texts: ``train``, their beginning, and ``val``, what follows, as 1-D arrays on the disk."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        tokens = numpy.memmap(folder / TOKENS, dtype=about["dtype"], mode="r")
        self.train, self.val = tokens[: about["train"]], tokens[about["train"] :]
        self.vocab_size: int = about["vocab_size"]

    def __repr__(self) -> str:
        return f"TokenDataset({str(self.folder)!r}, {len(self.train)} + {len(self.val)} tokens)"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made it."""
        return Tokenizer.from_folder(self.folder)

    @property
    def digest(self) -> str:
        """A name for exactly these tokens: of the texts, the tokenizer and the split."""
        return str(self.about["digest"])

    @classmethod
    def build(
        cls,
        sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
        tokenizer: Tokenizer,
        folder: str | os.PathLike[str],
        *,
        val_fraction: float = 0.1,
        progress: Callable[[int, int], None] | None = None,
    ) -> "TokenDataset":
        """Encode text files, or all of a folder's, into ``folder``, and open it.

        What is there already is used again if it was made of the same. The last ``val_fraction`` of
        the tokens are for validation. ``progress`` is told bytes done and in all. Texts that are not
        UTF-8 or too short are a ValueError; an interruption leaves nothing that opens.
        """
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), not {val_fraction}")
        files, target = text_files(sources), Path(folder)
        digest = _digest(files, tokenizer, val_fraction)
        if (target / ABOUT).is_file():
            found = cls.open(target)
            if found.digest == digest:
                return found
        target.mkdir(parents=True, exist_ok=True)
        (target / ABOUT).unlink(missing_ok=True)  # last in, first out: without it nothing opens
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        count = _write_tokens(files, tokenizer, target / TOKENS, dtype, progress)
        if count < 2:
            raise ValueError(
                f"{files[0]} and {len(files) - 1} more hold {count} tokens: too few to learn from"
            )
        write_tokenizer(tokenizer, lambda name: target / name)
        about = {
            "version": _VERSION, "dtype": dtype, "tokens": count, "train": int(count * (1 - val_fraction)),
            "vocab_size": tokenizer.vocab_size, "digest": digest, "sources": [f.name for f in files],
        }  # fmt: skip
        new = target / f".{ABOUT}.new"
        new.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for written in (target / TOKENS, new):
            flush(written)
        os.replace(new, target / ABOUT)
        flush(target)
        return cls.open(target)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "TokenDataset":
        """Open a folder that ``build`` made; anything else is a ValueError that says what is wrong."""
        path = Path(folder)
        if not (path / ABOUT).is_file():
            raise ValueError(f"{path} is no token dataset: it has no {ABOUT}")
        about = read_json(path / ABOUT)
        _check(path, about)
        return cls(path, about)


def _check(path: Path, about: dict[str, Any]) -> None:
    where = path / ABOUT
    if about.get("version") != _VERSION:
        raise ValueError(f"{where} is of another version: build the dataset anew")
    if about.get("dtype") not in ("<u2", "<u4"):
        raise ValueError(f"{where}: dtype must be <u2 or <u4, not {about.get('dtype')!r}")
    for name in ("tokens", "train", "vocab_size"):
        if type(about.get(name)) is not int or about[name] < 1:
            raise ValueError(
                f"{where}: {name} must be a whole number above 0, not {about.get(name)!r}"
            )
    if about["train"] > about["tokens"]:
        raise ValueError(
            f"{where}: {about['train']} tokens to train on, of {about['tokens']} in all"
        )
    if not isinstance(about.get("digest"), str):
        raise ValueError(f"{where} has no digest: build the dataset anew")
    file = path / TOKENS
    size = file.stat().st_size if file.is_file() else 0
    if size != about["tokens"] * int(about["dtype"][-1]):
        raise ValueError(
            f"{file} has {size} bytes, {about['tokens']} tokens take {about['tokens'] * int(about['dtype'][-1])}: build the dataset anew"
        )


def text_files(sources: Any) -> list[Path]:
    """The files of paths: a folder stands for the files in and below it, by name. None is a ValueError."""
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found: list[Path] = []
    for source in map(Path, given):
        if source.is_dir():
            inside = sorted(
                p for p in source.rglob("*") if p.is_file() and not p.name.startswith(".")
            )
            if not inside:
                raise ValueError(f"folder {source} holds no file")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise ValueError(f"no text at {source}: give a file or a folder of files")
    if not found:
        raise ValueError("give at least one text to learn from")
    return found


def pieces(file: Path) -> Iterator[tuple[str, int]]:
    """The text of a file in pieces that end between lines where it has any, and the bytes so far."""
    held = ""
    with open(file, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as stream:
        while True:
            try:
                more = stream.read(PIECE)
            except UnicodeDecodeError as error:
                bad = error.object[error.start]
                raise ValueError(
                    f"{file} is not UTF-8 text: byte {bad:#04x}; convert it first"
                ) from None
            held += more
            # The last line may go on in the next piece; one without an end is cut anywhere.
            cut = (
                len(held)
                if not more
                else held.rfind("\n") + 1 or (len(held) if len(held) > 4 * PIECE else 0)
            )
            if cut:
                yield held[:cut], raw.tell()
            held = held[cut:]
            if not more:
                return


def _write_tokens(
    files: list[Path], tokenizer: Tokenizer, to: Path, dtype: str, progress: Any
) -> int:
    """Encode all texts one after the other, each ended by the token that ends one, if there is such."""
    total, before, count = sum(f.stat().st_size for f in files), 0, 0
    end = tokenizer.eos_ids[:1]
    with open(to, "wb") as out:
        for file in files:
            for text, done in pieces(file):
                ids = numpy.asarray(tokenizer.encode(text, add_special_tokens=False), numpy.int64)
                count += len(ids)
                out.write(ids.astype(dtype).tobytes())
                if progress is not None:
                    progress(before + done, total)
            before += file.stat().st_size
            if end:
                out.write(numpy.asarray(end, dtype).tobytes())
                count += 1
    return count


def _digest(files: list[Path], tokenizer: Tokenizer, val_fraction: float) -> str:
    found = hashlib.sha256(tokenizer.backend.to_str().encode())
    found.update(repr((val_fraction, tokenizer.eos_ids[:1])).encode())
    for file in files:
        with open(file, "rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:32]


def char_tokenizer(sources: Any) -> Tokenizer:
    """A tokenizer whose tokens are the characters of the texts, in their order of code points."""
    from ..tokenizers.characters import of_characters

    found: set[str] = set()
    for file in text_files(sources):
        for text, _ in pieces(file):
            found |= set(text)
    if not found:
        raise ValueError(f"{sources} holds no text")
    return of_characters(sorted(found))
