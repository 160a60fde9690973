"""The walk through a model: the list of operation calls that it makes.

``forward_calls`` walks a configuration as ``core/transformers.py`` walks a model; a test holds its calls equal
to recorded ones.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import native
from ..host.attention import keeps_weights
from .calls import IDS, Array, Call, Pass, Setting
from .formats import bytes_per_weight


def forward_calls(setting: Setting, run: Pass) -> list[Call]:
    """The calls of a forward pass, from token ids to logits."""
    return _Walk(setting, run).all()


class _Walk:
    """The calls made so far, and what the walk is about."""

    def __init__(self, setting: Setting, run: Pass):
        self.setting, self.run, self.config = setting, run, setting.config
        self.width = bytes_per_weight(setting.activations)
        self.part, self.layer, self.times = "embed", None, 1  # type: tuple[str, int | None, int]
        self.calls: list[Call] = []
        self.positions = Array((run.tokens,), IDS, "ids", "positions")
        self.embedding = setting.weight(
            "token_embedding", self.config.vocab_size, self.config.embed_dim
        )
        size = (self.config.max_seq_length, self.config.embed_dim)
        learned = self.config.position == "learned"
        self.places = setting.weight("pos_encoding", *size) if learned else Array(size, 4, "table")
        self.distances: Array | None = None

    def all(self) -> list[Call]:
        config, memory = self.config, None
        if config.encoder_layers and not self.run.cached:
            memory = self._encoded()
        x = self._stack(self._embed(), memory)
        if not config.head:
            return self.calls
        self.part = "lm_head"
        if self.run.last:
            x = Array((self.run.batch, config.embed_dim), self.width, base=x)
        if config.head_scale != 1.0:
            x = self._call("multiply", "scale", (x, None), self.activation(*x.shape))
        weight = self.embedding if config.tie_embeddings else self.setting.weight(
            "lm_head", config.vocab_size, config.embed_dim
        )  # fmt: skip
        bias = self._bias("lm_head", config.vocab_size, config.head_bias)
        if config.tie_embeddings:
            bias = None
        self._linear("head", x, weight, bias)
        return self.calls

    def _encoded(self) -> Array:
        """The states of the source: the walk through the encoder."""
        own, self.config = self.config, self.config.encoder
        run, self.run = self.run, replace(self.run, tokens=self.run.read, past=0, last=False)
        mine, self.positions = self.positions, Array((self.run.tokens,), IDS, "ids", "positions")
        memory = self._stack(self._embed(), None)
        self.config, self.run, self.positions = own, run, mine
        return memory

    def _stack(self, x: Array, memory: Array | None) -> Array:
        config = self.config
        self.distances = self._relative() if config.position == "relative" else None
        layers = min(1, config.num_layers) if self.run.repeat else config.num_layers
        for i in range(layers):
            self.layer, self.times = i, config.num_layers if self.run.repeat else 1
            x = self._block(x, memory)
        self.part, self.layer, self.times = "final_norm", None, 1
        return self._norm("final_norm", x) if config.final_norm else x

    def _relative(self) -> Array:
        """What distances add to the scores (1, H, T, S)."""
        config, run = self.config, self.run
        self.part, self.layer, self.times = "relative", None, 1
        table = self.setting.weight("relative", config.relative_buckets, config.num_heads)
        pairs = (1, run.tokens, run.past + run.tokens)
        looked_up = self.activation(*pairs, config.num_heads)
        self._call("embedding", "distances", (Array(pairs, IDS, "ids"), table), looked_up)
        return self._view("permute", looked_up, (1, config.num_heads, *pairs[1:]))[0]

    # --- what calls are made of ---
    def activation(self, *shape: int) -> Array:
        return Array(shape, self.width)

    def _call(
        self, op: str, role: str, arrays: Any, *outputs: Array, keeps: Any = (), **options: Any
    ) -> Array:
        kept = tuple(keeps) if self.run.gradients else ()
        self.calls.append(
            Call(op, role, self.part, self.layer, tuple(arrays), outputs, options, kept, self.times)
        )
        return outputs[0]

    def _view(self, op: str, x: Array, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
        outputs = tuple(Array(shape, x.width, base=x) for shape in shapes)
        if (
            op != "reshape" or self.run.gradients
        ):  # a Tensor's reshape is a call only where it is recorded
            self._call(op, "view", (x,), *outputs)
        return outputs

    def _bias(self, name: str, size: int, wanted: bool) -> Array | None:
        return self.setting.weight(f"{name}.bias", size) if wanted else None

    def _linear(
        self, role: str, x: Array, weight: Array, bias: Array | None,
        residual: Array | None = None, activation: str | None = None,
    ) -> Array:  # fmt: skip
        rows, width = x.shape[:-1], weight.shape[0]
        gated = activation in ("swiglu", "geglu")
        out = self.activation(*rows, width // 2 if gated else width)
        keeps = (self.activation(*rows, width),) if activation is not None else ()
        arrays = (x, weight, bias, residual)
        return self._call("linear", role, arrays, out, keeps=keeps, activation=activation)

    def _norm(self, name: str, x: Array, added: Array | None = None) -> Array:
        """A norm over the last axis; with ``added``, of the sum."""
        if self.config.norm == "none":
            return (
                x
                if added is None
                else self._call("add", "add", (x, added), self.activation(*x.shape))
            )
        layer, width = self.config.norm == "layer", x.shape[-1]
        names = ("gamma", "beta") if layer else ("gamma",)
        weights = [self.setting.weight(f"{name}.{n}", width) for n in names]
        statistics = [Array((*x.shape[:-1], 1), max(4, self.width)) for _ in names]
        out = self.activation(*x.shape)
        op = "layer_norm" if layer else "rms_norm"
        if added is None:
            return self._call(op, "norm", (x, *weights), out, keeps=statistics)
        total = self.activation(*x.shape)
        self._call(f"add_{op}", "norm", (x, added, *weights), total, out, keeps=statistics)
        return out

    def _dropout(self, x: Array) -> Array:
        if not self.config.dropout or not self.run.gradients:
            return x
        state = Array((2,), 8, "ids", "random")
        return self._call(
            "dropout", "dropout", (x, state), self.activation(*x.shape), p=self.config.dropout
        )

    def _projected(
        self, role: str, x: Array, weight: Array, bias: Any, residual: Array | None
    ) -> Array:
        """A linear map, dropout and the residual: one call when nothing is dropped."""
        if not self.config.dropout or not self.run.gradients:
            return self._linear(role, x, weight, bias, residual)
        dropped = self._dropout(self._linear(role, x, weight, bias))
        if residual is None:
            return dropped
        return self._call("add", "add", (dropped, residual), self.activation(*x.shape[:-1], weight.shape[0]))  # fmt: skip

    # --- the parts of a model ---
    def _embed(self) -> Array:
        config, run = self.config, self.run
        shape = (run.batch, run.tokens, config.embed_dim)
        ids = Array((run.batch, run.tokens), IDS, "ids", "tokens")
        x = self._call(
            "embedding", "embedding", (ids, self.embedding), self.activation(*shape), keeps=()
        )
        if config.token_types:
            table = self.setting.weight("type_embedding", config.token_types, config.embed_dim)
            kinds = self.activation(*shape)
            self._call("embedding", "embedding", (Array(ids.shape, IDS, "ids"), table), kinds)
            x = self._call("add", "embedding", (x, kinds), self.activation(*shape))
        if config.position in ("learned", "sinusoidal"):
            learned = config.position == "learned"
            rows = Array(shape[1:], self.width, "activation" if learned else "table")
            self._call("embedding", "position", (self.positions, self.places), rows)
            x = self._call("add", "position", (x, rows), self.activation(*shape))
        if config.embedding_norm:
            x = self._norm("embedding_norm", x)
        return self._dropout(x)

    def _block(self, x: Array, memory: Array | None) -> Array:
        x = self._part(x, "norm1", "attention", self._attention)
        if self.config.encoder_layers:
            x = self._part(
                x, "cross_norm", "cross_attention", lambda y, r: self._cross(y, r, memory)
            )
        return self._part(x, "norm2", "ffn", self._feed_forward)

    def _part(
        self, x: Array, norm: str, part: str, run: Callable[[Array, Array | None], Array]
    ) -> Array:
        """A part of a block with its norm before or after it."""
        residual = x if self.config.residual else None
        if self.config.pre_norm:
            self.part = norm
            inner = self._norm(norm, x)
            self.part = part
            return run(inner, residual)
        self.part = part
        made = run(x, None)
        self.part = norm
        return self._norm(norm, made, residual)

    def _feed_forward(self, x: Array, residual: Array | None) -> Array:
        config, setting = self.config, self.setting
        rise = config.hidden_dim * (2 if config.gated else 1)
        up = setting.weight("ffn.rise", rise, config.embed_dim)
        down = setting.weight("ffn.fall", config.embed_dim, config.hidden_dim)
        role = "gate_up" if config.gated else "up"
        bias = self._bias("ffn.rise", rise, config.ffn_bias)
        hidden = self._linear(role, x, up, bias, activation=config.activation)
        bias = self._bias("ffn.fall", config.embed_dim, config.ffn_bias)
        return self._projected("down", hidden, down, bias, residual)

    def _attention(self, x: Array, residual: Array | None) -> Array:
        config, run, setting = self.config, self.run, self.setting
        heads, shared, head = config.num_heads, config.kv_heads, config.head_size
        rows, total = (run.batch, run.tokens), config.num_heads + 2 * config.kv_heads
        weight = setting.weight("attention.qkv", total * head, config.embed_dim)
        bias = self._bias("attention.qkv", total * head, config.qkv_bias)
        packed = self._linear("qkv", x, weight, bias)
        (packed,) = self._view("reshape", packed, (*rows, total, head))
        if config.qk_norm:
            packed = self._normed_heads(packed)
        if run.cached and self.distances is None:
            mixed = self._cached(packed)
        else:
            mixed = self._apart(packed, heads, shared)
        weight = setting.weight("attention.out", config.embed_dim, heads * head)
        bias = self._bias("attention.out", config.embed_dim, config.out_bias)
        return self._projected("out", mixed, weight, bias, residual)

    def _tables(self) -> tuple[Array, Array]:
        """The cosines and sines of the positions in use."""
        shape = (self.run.past + self.run.tokens, self.config.rotary // 2)
        return Array(shape, 4, "table", "cos"), Array(shape, 4, "table", "sin")

    def _cached(self, packed: Array) -> Array:
        """Turn, append and attend in one call."""
        config, run = self.config, self.run
        stop = run.past + run.tokens
        shape = (run.batch, stop, config.kv_heads, config.head_size)
        width = self.setting.cache_width
        keys, values = (Array(shape, width, "cache", n) for n in ("keys", "values"))
        tables = (*self._tables(), self.positions) if config.position == "rotary" else (None,) * 3
        out = self.activation(run.batch, run.tokens, config.num_heads * config.head_size)
        return self._call(
            "cached_attention", "attention", (packed, keys, values, None, None, *tables), out,
            heads=config.num_heads, causal=config.causal, window=config.sliding_window,
        )  # fmt: skip

    def _apart(self, packed: Array, heads: int, shared: int) -> Array:
        config, run = self.config, self.run
        rows, head = packed.shape[:2], config.head_size
        if config.position == "rotary":
            packed = self._turned(packed, heads + shared)
        q, k, v = self._view("split_heads", packed, *((*rows, n, head) for n in (heads, shared, shared)))  # fmt: skip
        if run.cached:  # the cache takes copies; attention reads it all
            shape = (run.batch, run.past + run.tokens, shared, head)
            width = self.setting.cache_width
            k, v = (Array(shape, width, "cache", n) for n in ("keys", "values"))
        return self._attend(q, k, v, self.distances, config.causal, config.sliding_window)

    def _attend(
        self, q: Array, k: Array, v: Array, bias: Array | None, causal: bool, window: int | None
    ) -> Array:
        """The mix of values, heads side by side."""
        batch, tokens, heads, head = q.shape
        dropout = self.config.dropout if self.run.gradients else 0.0
        arrays = (q, k, v) if bias is None else (q, k, v, None, bias)
        on_cpu = self.setting.where == "cpu"
        by_library = on_cpu and self.width <= 4 and native.library() is not None
        plain = bias is None and (by_library or not dropout)
        weights = plain and on_cpu and not by_library and keeps_weights(q, k)
        saved = Array((batch, heads, tokens, k.shape[1] if weights else 1), max(4, self.width))
        out = self._call(
            "attention", "attention", arrays, self.activation(*q.shape), keeps=(saved,),
            causal=causal, window=window, dropout=dropout,
        )  # fmt: skip
        flat = (batch, tokens, heads * head)
        if plain:
            return self._view("reshape", out, flat)[0]
        # A reference makes it, head by head: to have it token by token is a copy.
        if not self.run.gradients:
            return self.activation(*flat)
        return self._call("reshape", "view", (out,), self.activation(*flat))

    def _cross(self, x: Array, residual: Array | None, memory: Array | None) -> Array:
        """Attention to the states of the source, or to keys and values that were made of them before."""
        config, run = self.config, self.run
        heads, shared, head = config.num_heads, config.kv_heads, config.head_size
        name, rows = "cross_attention.", (run.batch, run.tokens)
        weight = self.setting.weight(name + "query", heads * head, config.embed_dim)
        bias = self._bias(name + "query", heads * head, config.qkv_bias)
        q = self._view("reshape", self._linear("query", x, weight, bias), (*rows, heads, head))[0]
        if config.qk_norm:
            q = self._head_norm("q_norm", q)
        if memory is None:
            shape = (run.batch, run.read, shared, head)
            width = bytes_per_weight(self.setting.activations)
            k, v = (Array(shape, width, "memory", n) for n in ("keys", "values"))
        else:
            k, v = self._keys_values(memory)
        mixed = self._attend(q, k, v, None, False, None)
        weight = self.setting.weight(name + "out", config.embed_dim, heads * head)
        bias = self._bias(name + "out", config.embed_dim, config.out_bias)
        return self._projected("out", mixed, weight, bias, residual)

    def _keys_values(self, memory: Array) -> tuple[Array, Array]:
        config = self.config
        shared, head = config.kv_heads, config.head_size
        batch, length, embed = memory.shape
        weight = self.setting.weight("cross_attention.memory", 2 * shared * head, embed)
        bias = self._bias("cross_attention.memory", 2 * shared * head, config.qkv_bias)
        packed = self._linear("memory", memory, weight, bias)
        (packed,) = self._view("reshape", packed, (batch, length, 2 * shared, head))
        sizes = ((batch, length, n, head) for n in (0, shared, shared))
        _, k, v = self._view("split_heads", packed, *sizes)
        return (self._head_norm("k_norm", k) if config.qk_norm else k), v

    def _normed_heads(self, packed: Array) -> Array:
        """The norm of queries and keys beside the values."""
        heads, (*rows, total, head) = self.config.num_heads, packed.shape
        gains = [self.setting.weight(f"attention.{name}", head) for name in ("q_norm", "k_norm")]
        statistics = (Array((*rows, (heads + total) // 2, 1), max(4, self.width)),)
        return self._call(
            "norm_heads", "qk_norm", (packed, *gains), self.activation(*packed.shape),
            keeps=statistics, heads=heads,
        )  # fmt: skip

    def _head_norm(self, name: str, x: Array) -> Array:
        """The norm of queries or keys to another text, which is always RMS."""
        weight = self.setting.weight(f"attention.{name}", x.shape[-1])
        statistics = (Array((*x.shape[:-1], 1), max(4, self.width)),)
        return self._call(
            "rms_norm", "qk_norm", (x, weight), self.activation(*x.shape), keeps=statistics
        )

    def _turned(self, x: Array, heads: int) -> Array:
        arrays = (x, *self._tables(), self.positions)
        return self._call("rotary", "rotary", arrays, self.activation(*x.shape), heads=heads)


def loss_calls(setting: Setting, run: Pass, logits: Array) -> list[Call]:
    """The loss of every token, after ``forward_calls``: the flat view of its logits, and cross entropy."""
    rows, classes = run.batch * run.tokens, setting.config.vocab_size
    flat = Array((rows, classes), logits.width, base=logits)
    targets = Array((rows,), IDS, "ids", "targets")
    wide = max(4, logits.width)
    # What it saves: the targets that count, the share of each, and the log-sum-exp of its row.
    keeps = (Array((rows,), IDS), Array((rows,), wide), Array((rows, 1), wide))
    return [
        Call("reshape", "view", "loss", None, (logits,), (flat,)),
        Call("cross_entropy", "loss", "loss", None, (flat, targets), (Array((), wide),), keeps=keeps),
    ]  # fmt: skip


def sampling_calls(setting: Setting, batch: int, logits: Array, greedy: bool = False) -> list[Call]:
    """The choice of the next token of each row."""
    ids = Array((batch,), IDS, "ids")
    op = "argmax" if greedy else "sample"
    return [Call(op, "sampling", "sample", None, (logits,), (ids,))]
