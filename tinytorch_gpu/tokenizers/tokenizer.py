"""The tokenizer that belongs to a model, over Hugging Face's ``tokenizers`` library."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .chat_template import render
from .stream import StreamDecoder


def library() -> Any:
    """Return the ``tokenizers`` library; an ImportError says how to install it."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "a model's tokenizer needs the tokenizers library: pip install 'tinytorch-gpu[demo]'"
        ) from None
    return tokenizers


class Tokenizer:
    """Ids of text and text of ids.

    ``bos_id`` and ``pad_id`` are ids or None, ``eos_ids`` the ids that end a text, and
    ``chat_template`` the model's Jinja2 template or None. Text that spells a special token, such
    as ``<|im_end|>``, becomes that token, as in Hugging Face's tokenizers.
    """

    def __init__(
        self,
        backend: Any,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        pad_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ):
        self.backend, self.bos_id, self.pad_id = backend, bos_id, pad_id
        self.eos_ids, self.add_bos = tuple(dict.fromkeys(eos_ids)), add_bos
        self.chat_template = chat_template

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Build the tokenizer that a GGUF file's metadata describes; what is broken or not
        supported is a ValueError."""
        from .gguf import build

        return build(metadata)

    @classmethod
    def from_folder(cls, path: Any, model: Mapping[str, Any] | None = None) -> "Tokenizer":
        """Read ``tokenizer.json`` and its companions from a folder in Hugging Face layout. Where these do not
        say which tokens end a text, the configuration of the ``model`` does."""
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{folder} has no tokenizer.json")
        try:
            backend = library().Tokenizer.from_file(str(file))
        except ImportError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{file} is no valid tokenizer: {_line(error)}") from None
        # A file may say to cut or fill texts to the length that its model was trained with.
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(folder / "special_tokens_map.json")
        config |= _read_json(folder / "tokenizer_config.json")
        generation = _read_json(folder / "generation_config.json")
        eos = generation.get("eos_token_id", (model or {}).get("eos_token_id"))
        ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(type(i) is int for i in ids):
            raise ValueError(f"{folder}: eos_token_id must be an id or a list of ids, not {eos!r}")
        named = {
            key: _token_id(backend, config.get(f"{key}_token")) for key in ("bos", "eos", "pad")
        }
        if named["eos"] is not None:
            ids = [named["eos"], *ids]
        template_file = folder / "chat_template.jinja"
        template = config.get("chat_template")
        if template_file.is_file():
            template = template_file.read_text(encoding="utf-8")
        if isinstance(template, list):  # several named templates
            named_default = (
                t for t in template if isinstance(t, dict) and t.get("name") == "default"
            )
            template = next(named_default, {}).get("template")
        return cls(
            backend, bos_id=named["bos"], eos_ids=ids, pad_id=named["pad"],
            chat_template=template if isinstance(template, str) else None,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``; with ``add_special_tokens`` those that the model's texts
        begin with come first."""
        # The library's own error depends on its version, so look first.
        if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
            raise ValueError("the text holds lone surrogates: it is no valid Unicode")
        try:
            ids = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # the library raises bare Exceptions
            if not isinstance(text, str):
                raise
            raise ValueError(f"no tokens for {_short(text)}: {_line(error)}") from None
        if self.add_bos and add_special_tokens and self.bos_id is not None:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        known = [int(i) for i in ids]
        bad = [i for i in known if not 0 <= i < 2**32]
        if bad:
            raise ValueError(f"token id {bad[0]} is out of range")
        return self.backend.decode(known, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder that takes ids one by one."""
        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens))

    def token(self, token_id: int | None) -> str:
        """The text of one token as the vocabulary spells it; "" for None."""
        return "" if token_id is None else self.backend.id_to_token(token_id) or ""

    def apply_chat_template(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation ([{"role": ..., "content": ...}]) as the model was trained to read
        it. No template, or one that fails, is a ValueError."""
        if not self.chat_template:
            raise ValueError("this model has no chat template: give it plain text")
        return render(
            self.chat_template,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self.token(self.bos_id),
            eos_token=self.token(self.eos_ids[0] if self.eos_ids else None),
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, not {type(found).__name__}")
    return found


def _token_id(backend: Any, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if isinstance(text, str) else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
