"""The walk through a model: the list of operation calls that it makes.

``forward_calls`` walks a configuration as ``core/transformers.py`` walks a model; a test holds its calls equal
to recorded ones.
"""

from typing import Any

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

    def all(self) -> list[Call]:
        config = self.config
        x = self._embed()
        layers = min(1, config.num_layers) if self.run.repeat else config.num_layers
        for i in range(layers):
            self.layer, self.times = i, config.num_layers if self.run.repeat else 1
            x = self._block(x)
        self.part, self.layer, self.times = "final_norm", None, 1
        x = self._norm("final_norm", x)
        self.part = "lm_head"
        if self.run.last:
            x = Array((self.run.batch, config.embed_dim), self.width, base=x)
        weight = self.embedding if config.tie_embeddings else self.setting.weight(
            "lm_head", config.vocab_size, config.embed_dim
        )  # fmt: skip
        bias = self._bias("lm_head", config.vocab_size, config.head_bias)
        if config.tie_embeddings:
            bias = None
        self._linear("head", x, weight, bias)
        return self.calls

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
        if config.position in ("learned", "sinusoidal"):
            size = (config.max_seq_length, config.embed_dim)
            learned = config.position == "learned"
            table = self.setting.weight("pos_encoding", *size) if learned else Array(size, 4, "table")  # fmt: skip
            rows = Array(shape[1:], self.width, "activation" if learned else "table")
            self._call("embedding", "position", (self.positions, table), rows)
            x = self._call("add", "position", (x, rows), self.activation(*shape))
        return self._dropout(x)

    def _block(self, x: Array) -> Array:
        if self.config.pre_norm:
            self.part = "norm1"
            inner = self._norm("norm1", x)
            self.part = "attention"
            x = self._attention(inner, x if self.config.residual else None)
            self.part = "norm2"
            inner = self._norm("norm2", x)
            self.part = "ffn"
            return self._feed_forward(inner, x if self.config.residual else None)
        self.part = "attention"
        attended = self._attention(x, None)
        self.part = "norm1"
        inner = self._norm("norm1", attended, x if self.config.residual else None)
        self.part = "ffn"
        fed = self._feed_forward(inner, None)
        self.part = "norm2"
        return self._norm("norm2", fed, inner if self.config.residual else None)

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
        if run.cached and not config.qk_norm:
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
        width = bytes_per_weight(self.setting.cache)
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
        rotary, norm = config.position == "rotary", config.qk_norm
        if rotary and not norm:
            packed = self._turned(packed, heads + shared)
        q, k, v = self._view("split_heads", packed, *((*rows, n, head) for n in (heads, shared, shared)))  # fmt: skip
        if norm:
            q, k = self._head_norm("q_norm", q), self._head_norm("k_norm", k)
            if rotary:
                q, k = self._turned(q, None), self._turned(k, None)
        if run.cached:  # the cache takes copies; attention reads it all
            shape = (run.batch, run.past + run.tokens, shared, head)
            width = bytes_per_weight(self.setting.cache)
            k, v = (Array(shape, width, "cache", n) for n in ("keys", "values"))
        lse = Array((run.batch, heads, run.tokens, 1), max(4, self.width))
        dropout = config.dropout if run.gradients else 0.0
        out = self._call(
            "attention", "attention", (q, k, v), self.activation(*q.shape), keeps=(lse,),
            causal=config.causal, window=config.sliding_window, dropout=dropout,
        )  # fmt: skip
        flat = (*rows, heads * head)
        if not dropout:
            return self._view("reshape", out, flat)[0]
        # With dropout a reference makes it, head by head: to have it token by token is a copy.
        return self._call("reshape", "view", (out,), self.activation(*flat))

    def _head_norm(self, name: str, x: Array) -> Array:
        """The norm of queries or keys, which is always RMS."""
        weight = self.setting.weight(f"attention.{name}", x.shape[-1])
        statistics = (Array((*x.shape[:-1], 1), max(4, self.width)),)
        return self._call(
            "rms_norm", "qk_norm", (x, weight), self.activation(*x.shape), keeps=statistics
        )

    def _turned(self, x: Array, heads: int | None) -> Array:
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
