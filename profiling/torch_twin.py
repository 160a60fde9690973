"""The model of a run, and the run, in PyTorch: what ours is compared with.

``gpt`` is a GPT-2 of a config, ``Twin`` one that begins with the weights of a model of ours and is trained as
``Trainer`` trains it: same batches, schedule, clipping and AdamW, all by PyTorch's own means.
"""

from typing import Any


def torch_on_a_gpu() -> Any:
    """PyTorch, if it is installed and has the card too."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def gpt(torch: Any, config: Any) -> Any:
    """The GPT-2 of a config as a PyTorch module."""
    nn, functional = torch.nn, torch.nn.functional
    width, heads, bias = config.embed_dim, config.num_heads, config.ffn_bias

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, config.norm_eps) for _ in range(2))
            self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
            self.out = nn.Linear(width, width, bias=config.out_bias)
            self.rise = nn.Linear(width, config.hidden_dim, bias=bias)
            self.fall = nn.Linear(config.hidden_dim, width, bias=bias)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            q, k, v = (
                y.reshape(batch, length, heads, -1).transpose(1, 2)
                for y in self.qkv(self.norm1(x)).split(width, dim=2)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            inner = functional.gelu(self.rise(self.norm2(x)), approximate="tanh")
            return x + self.fall(inner)

    class Model(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(config.vocab_size, width)
            self.places = nn.Embedding(config.max_seq_length, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(config.num_layers)))
            self.norm = nn.LayerNorm(width, config.norm_eps)
            self.head = nn.Linear(width, config.vocab_size, bias=False)
            if config.tie_embeddings:
                self.head.weight = self.tokens.weight
            for p in self.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, std=0.02)

        def forward(self, ids: Any) -> Any:
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
            return self.head(self.norm(self.blocks(x)))

    return Model()


def copy_weights(torch: Any, module: Any, model: Any) -> None:
    """Give a module of ``gpt`` the weights of a Transformer of the same config."""

    def put(target: Any, array: Any) -> None:
        with torch.no_grad():
            target.copy_(torch.from_numpy(array.copy()))

    def linear(target: Any, layer: Any) -> None:
        put(target.weight, layer.weight.data)
        if layer.bias is not None:
            put(target.bias, layer.bias.data)

    def norm(target: Any, layer: Any) -> None:
        put(target.weight, layer.gamma.data)
        put(target.bias, layer.beta.data)

    put(module.tokens.weight, model.token_embedding.weight.data)
    put(module.places.weight, model.pos_encoding.weight.data)
    for theirs, ours in zip(module.blocks, model.transformer_blocks, strict=True):
        norm(theirs.norm1, ours.norm1)
        norm(theirs.norm2, ours.norm2)
        linear(theirs.qkv, ours.attention.qkv)
        linear(theirs.out, ours.attention.out)
        linear(theirs.rise, ours.ffn.rise)
        linear(theirs.fall, ours.ffn.fall)
    norm(module.norm, model.final_norm)
    if model.head is not None:
        linear(module.head, model.head)


def parameter_groups(module: Any, decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    apart: list[list[Any]] = [[], []]
    for p in module.parameters():
        apart[p.ndim > 1].append(p)
    return [{"params": p, "weight_decay": decay * i} for i, p in enumerate(apart)]


class Twin:
    """``model`` (on a CPU) trained by PyTorch, on ``dataset`` by the training ``config``."""

    def __init__(self, model: Any, dataset: Any, config: Any):
        import torch

        from tinytorch_gpu.training import DataLoader

        self.torch, self.dataset, self.config = torch, dataset, config
        self.module = gpt(torch, model.config).to(getattr(torch, model.dtype.name))
        copy_weights(torch, self.module, model)
        self.loader = DataLoader(dataset.train, config.batch, config.length, seed=config.seed)
        self.schedule, self.steps_done = config.make_schedule(), 0
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.module, config.weight_decay), betas=config.betas, eps=config.eps
        )

    def _loss(self, inputs: Any, targets: Any) -> Any:
        torch = self.torch
        logits = self.module(torch.from_numpy(inputs))
        flat = torch.from_numpy(targets).reshape(-1)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), flat)

    def step(self) -> float:
        """One update; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.steps_done)
        loss = self._loss(*self.loader.next())
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        return float(loss.detach())

    def evaluate(self) -> float:
        """The mean loss of every token of the validation part."""
        from tinytorch_gpu.training.batches import windows

        total, count = 0.0, 0
        with self.torch.no_grad():
            for inputs, targets in windows(self.dataset.val, self.config.batch, self.config.length):
                total += float(self._loss(inputs, targets)) * targets.size
                count += targets.size
        return total / count
