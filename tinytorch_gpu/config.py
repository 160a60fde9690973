"""What a transformer is made of: a few orthogonal choices, and the families that are presets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

Norm = Literal["layer", "rms", "none"]
Position = Literal["sinusoidal", "learned", "rotary", "relative", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"]
Scaling = Literal["linear", "llama3"]
GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those trained on.

    ``linear`` divides every frequency by ``factor`` (Chen et al. 2023); ``llama3`` divides the low
    ones only and blends in between (Llama 3.1).
    """

    kind: Scaling
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_length: int = 8192

    def __post_init__(self) -> None:
        one_of("rope scaling kind", self.kind, get_args(Scaling))
        if not self.factor > 0:
            raise ValueError(f"rope scaling factor must be above 0, not {self.factor}")


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer and the choices that tell one family from another.

    ``num_kv_heads`` below ``num_heads`` shares each key/value head among several query heads
    (grouped-query attention, Ainslie et al. 2023). ``head_dim`` defaults to
    ``embed_dim / num_heads``. ``rotary_dim`` rotates only the first that many of each head's
    dimensions. New weights are drawn as in
    the course, or, with ``init_std``, normal with that deviation (GPT-2 and LLaMA: 0.02). ``norm``
    "none" and ``residual`` False are there to see what the norms and the additions are for.

    ``encoder_layers`` above 0 is an encoder-decoder: so many blocks that look both ways read a source
    text, and each of the ``num_layers`` causal ones looks at it by cross-attention. Its text begins with the
    token ``start_token``. An encoder alone (BERT) is ``causal`` False without ``head``: its results are
    the states. ``embedding_norm`` is a norm behind the embeddings, ``token_types`` the number of kinds of
    token that have an embedding of their own. Relative positions add to each score a number learned for the
    distance, one for each of ``relative_buckets`` of them, of which the last begins at ``relative_distance``.
    ``attention_scale`` multiplies the scores, by default by 1 / sqrt(head_dim), ``head_scale`` the
    states before the head.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_layers: int
    hidden_dim: int
    max_seq_length: int = 1024
    dropout: float = 0.0
    pre_norm: bool = True
    causal: bool = True
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    position: Position = "sinusoidal"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    activation: Activation = "relu"
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = True
    head_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    tie_embeddings: bool = False
    encoder_layers: int = 0
    init_std: float | None = None
    residual: bool = True
    embedding_norm: bool = False
    final_norm: bool = True
    token_types: int = 0
    head: bool = True
    head_scale: float = 1.0
    attention_scale: float | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    start_token: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embed_dim", "num_heads", "hidden_dim", "max_seq_length"):
            whole(name, getattr(self, name), 1)
        for name in ("num_layers", "encoder_layers", "token_types", "start_token"):
            whole(name, getattr(self, name), 0)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        whole("num_kv_heads", self.num_kv_heads, 1)
        if self.head_dim is None:
            _multiple("embed_dim", self.embed_dim, "num_heads", self.num_heads)
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        whole("head_dim", self.head_dim, 1)
        _multiple("num_heads", self.num_heads, "num_kv_heads", self.kv_heads)
        one_of("norm", self.norm, get_args(Norm))
        one_of("position", self.position, get_args(Position))
        one_of("activation", self.activation, get_args(Activation))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.norm_eps >= 0:
            raise ValueError(f"norm_eps must not be below 0, not {self.norm_eps}")
        if self.sliding_window is not None:
            whole("sliding_window", self.sliding_window, 1)
        for name in ("head_scale", "attention_scale"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        self._check_rotary()
        self._check_relative()
        self._check_ends()

    def _check_relative(self) -> None:
        whole("relative_buckets", self.relative_buckets, 4)
        whole("relative_distance", self.relative_distance, 1)
        if self.relative_buckets % 4 or self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_buckets ({self.relative_buckets}) must be a multiple of 4, and "
                f"relative_distance ({self.relative_distance}) more than half of it"
            )

    def _check_ends(self) -> None:
        """What comes before the first block and after the last must fit together."""
        if not self.head and (self.tie_embeddings or self.head_bias):
            raise ValueError("tie_embeddings and head_bias need a head: head=True")
        if self.encoder_layers and not (self.causal and self.head):
            raise ValueError(
                f"an encoder-decoder (encoder_layers={self.encoder_layers}) writes: it needs causal=True "
                "and head=True; an encoder alone is num_layers with causal=False"
            )
        if self.encoder_layers and self.token_types:
            raise ValueError("token_types belong to an encoder alone: encoder_layers must be 0")
        if self.encoder_layers and not self.start_token < self.vocab_size:
            raise ValueError(
                f"start_token ({self.start_token}) must be below vocab_size ({self.vocab_size})"
            )

    def _check_rotary(self) -> None:
        if self.rotary_dim is None:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        if self.position != "rotary":
            return
        if self.rotary % 2 or not 0 < self.rotary <= self.head_size:
            raise ValueError(
                f"rotary_dim ({self.rotary}) must be even and at most head_dim ({self.head_size})"
            )
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta must be above 0, not {self.rope_theta}")

    # The optional fields as plain ints: __post_init__ has filled them.
    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def rotary(self) -> int:
        """How many of a head's dimensions are rotated."""
        return self.rotary_dim or self.head_size

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part multiplies its activation by a second projection."""
        return self.activation in GATED

    @property
    def decoder_only(self) -> bool:
        """Whether the model predicts the next token from those before it and nothing else."""
        return self.head and self.causal and not self.encoder_layers

    @property
    def encoder(self) -> "TransformerConfig":
        """Of an encoder-decoder, the encoder: the same blocks, which look both ways."""
        return self.replace(
            num_layers=self.encoder_layers, encoder_layers=0, causal=False, head=False,
            tie_embeddings=False, head_bias=False, sliding_window=None,
        )  # fmt: skip

    def replace(self, **changes: Any) -> "TransformerConfig":
        """Return a copy with ``changes``; sizes derived from a changed one are derived anew."""
        if {"embed_dim", "num_heads"} & set(changes):
            derived = self.embed_dim // self.num_heads == self.head_dim
            if derived and "head_dim" not in changes:
                changes.setdefault("head_dim", None)
            if self.num_kv_heads == self.num_heads:
                changes.setdefault("num_kv_heads", None)
        if self.rotary_dim == self.head_dim:
            changes.setdefault("rotary_dim", None)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``from_dict`` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TransformerConfig":
        """Build a config from ``to_dict``'s values; unknown names are a ValueError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            import difflib  # for this message only

            near = difflib.get_close_matches(unknown[0], known, 3)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"unknown config fields {unknown[:10]}{hint}")
        given = dict(values)
        if isinstance(given.get("rope_scaling"), Mapping):
            given["rope_scaling"] = RopeScaling(**given["rope_scaling"])
        return cls(**given)


def whole(name: str, value: Any, least: int) -> None:
    """A ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _multiple(name: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name} ({value}) must be a multiple of {of} ({divisor})")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """A ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


# A family is a set of choices; a preset is a family at a size.
FAMILIES: dict[str, dict[str, Any]] = {
    "course": {},
    "gpt2": dict(position="learned", activation="gelu_tanh", qkv_bias=True, out_bias=True,
                 tie_embeddings=True, init_std=0.02),
    "llama": dict(norm="rms", norm_eps=1e-5, position="rotary", activation="swiglu",
                  ffn_bias=False, init_std=0.02),
    "bert": dict(pre_norm=False, causal=False, norm_eps=1e-12, position="learned", activation="gelu",
                 qkv_bias=True, out_bias=True, embedding_norm=True, final_norm=False, token_types=2,
                 head=False, init_std=0.02),
    "t5": dict(norm="rms", norm_eps=1e-6, position="relative", activation="geglu", ffn_bias=False,
               attention_scale=1.0),
}  # fmt: skip


def _preset(family: str, *sizes: Any, **choices: Any) -> TransformerConfig:
    return TransformerConfig(*sizes, **{**FAMILIES[family], **choices})


PRESETS: dict[str, TransformerConfig] = {
    "course": _preset("course", 10000, 512, 8, 6, 2048, 512),
    "shakespeare-char": _preset("gpt2", 65, 128, 4, 4, 512, 64, qkv_bias=False, out_bias=False,
                                ffn_bias=False),
    "gpt2": _preset("gpt2", 50257, 768, 12, 12, 3072, 1024),
    "gpt2-medium": _preset("gpt2", 50257, 1024, 16, 24, 4096, 1024),
    "gpt2-large": _preset("gpt2", 50257, 1280, 20, 36, 5120, 1024),
    "gpt2-xl": _preset("gpt2", 50257, 1600, 25, 48, 6400, 1024),
    "smollm2-135m": _preset("llama", 49152, 576, 9, 30, 1536, 8192, num_kv_heads=3,
                            rope_theta=100000.0, tie_embeddings=True),
    "smollm2-360m": _preset("llama", 49152, 960, 15, 32, 2560, 8192, num_kv_heads=5,
                            rope_theta=100000.0, tie_embeddings=True),
    "llama-3.2-1b": _preset("llama", 128256, 2048, 32, 16, 8192, 131072, num_kv_heads=8,
                            rope_theta=500000.0, tie_embeddings=True,
                            rope_scaling=RopeScaling("llama3", 32.0)),
    "llama-3.1-8b": _preset("llama", 128256, 4096, 32, 32, 14336, 131072, num_kv_heads=8,
                            rope_theta=500000.0, rope_scaling=RopeScaling("llama3", 8.0)),
    "bert-base": _preset("bert", 30522, 768, 12, 12, 3072, 512),
    "minilm-l6": _preset("bert", 30522, 384, 12, 6, 1536, 512),
    "t5-small": _preset("t5", 32128, 512, 8, 6, 2048, 512, encoder_layers=6, activation="relu",
                        tie_embeddings=True, head_scale=512**-0.5),
    "flan-t5-small": _preset("t5", 32128, 512, 6, 8, 1024, 512, encoder_layers=8, head_dim=64),
    "qwen2.5-0.5b": _preset("llama", 151936, 896, 14, 24, 4864, 32768, num_kv_heads=2,
                            norm_eps=1e-6, rope_theta=1000000.0, qkv_bias=True,
                            tie_embeddings=True),
}  # fmt: skip


def preset(name: str, **changes: Any) -> TransformerConfig:
    """Return the named preset with ``changes``; an unknown name is a ValueError."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
