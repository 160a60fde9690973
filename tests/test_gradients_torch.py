"""Every gradient of whole random models against PyTorch's, in float32 and to the last digits in float64.

The models are written out here in PyTorch's functions because ``transformers`` computes norms and rotary
tables in float32 whatever the weights are (test_hugging_face_parity.py compares with it). Weights and
gradients go over by the table of names that model files are read and written with.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import Transformer, TransformerConfig, ops
from tinytorch_gpu.backend import assign
from tinytorch_gpu.checkpoint.names import mapped_tensors

torch: Any = pytest.importorskip("torch", reason="PyTorch makes the gradients compared with")
functional: Any = torch.nn.functional
ALLOWED = {"float32": 1e-5, "float64": 1e-10}


def random_config(family: str, seed: int) -> TransformerConfig:
    """Sizes and choices drawn at random; a LLaMA's query heads share key heads."""
    draw = np.random.default_rng(seed)
    kv_heads, groups = int(draw.integers(1, 4)), int(draw.integers(2, 4))
    heads = kv_heads * groups if family == "llama" else int(draw.integers(1, 7))
    head_dim, layers = 2 * int(draw.integers(2, 13)), int(draw.integers(1, 5))
    sizes = (
        int(draw.integers(20, 90)),
        heads * head_dim,
        heads,
        layers,
        int(draw.integers(9, 120)),
        64,
    )
    common: dict[str, Any] = {"tie_embeddings": bool(draw.integers(2)), "init_std": 0.08}
    if family == "gpt2":
        return TransformerConfig(
            *sizes, position="learned", activation=str(draw.choice(["gelu", "gelu_tanh", "relu"])),
            qkv_bias=True, out_bias=True, **common,
        )  # fmt: skip
    return TransformerConfig(
        *sizes, norm="rms", position="rotary", activation="swiglu", ffn_bias=False,
        num_kv_heads=kv_heads, qkv_bias=bool(draw.integers(2)), rope_theta=float(draw.choice([1e4, 5e5])),
        sliding_window=[None, 5][draw.integers(2)], **common,
    )  # fmt: skip


def build(config: TransformerConfig, dtype: str, seed: int) -> Transformer:
    """The model, with norms and biases that are not the ones and zeros they begin with."""
    model = Transformer.from_config(config, "cpu", dtype, seed=seed)
    draw = np.random.default_rng(seed)
    for array in model.state_dict().values():
        if array.ndim == 1:
            assign(array, array + draw.normal(0, 0.1, array.shape))
    return model


def in_file_layout(family: str, model: Transformer) -> dict[str, np.ndarray]:
    """The model's weights by the names, and in the shapes, that a file of the family has."""
    state = model.state_dict()
    tensors = mapped_tensors(family, model.config)
    return {m.source: np.array(m.gathered(lambda name: state[name])) for m in tensors}


def gradients(family: str, model: Transformer) -> dict[str, np.ndarray]:
    """The same of its gradients."""
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, _ in weights:
        parameter.data = parameter.grad.data
    try:
        return in_file_layout(family, model)
    finally:
        for parameter, data in weights:
            parameter.data = data


# --- the models in PyTorch -------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def heads_of(x: Any, heads: int) -> Any:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def gpt2(w: dict[str, Any], ids: Any, c: TransformerConfig) -> Any:
    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(
            x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], c.norm_eps
        )

    x = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]
    for i in range(c.num_layers):
        h = f"h.{i}."

        def linear(x: Any, name: str, h: str = h) -> Any:
            return x @ w[f"{h}{name}.weight"] + w[f"{h}{name}.bias"]

        qkv = linear(norm(x, h + "ln_1"), "attn.c_attn").split(c.embed_dim, -1)
        q, k, v = (heads_of(y, c.num_heads) for y in qkv)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).flatten(2), "attn.c_proj")
        inner = ACTIVATIONS[c.activation](linear(norm(x, h + "ln_2"), "mlp.c_fc"))
        x = x + linear(inner, "mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def rotated(x: Any, c: TransformerConfig) -> Any:
    """Rotary positions (Su et al. 2021), the halves of a head as the pairs."""
    half = c.head_size // 2
    rates = c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rates
    # The tables are float32 in every model, rounded from float64.
    cos, sin = angles.cos().float().to(x.dtype), angles.sin().float().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def llama(w: dict[str, Any], ids: Any, c: TransformerConfig) -> Any:
    def norm(x: Any, name: str) -> Any:
        scale = (x.square().mean(-1, keepdim=True) + c.norm_eps).rsqrt()
        return x * scale * w[name + ".weight"]

    x = w["embed_tokens.weight"][ids]
    places = torch.arange(ids.shape[1])
    behind = places[:, None] - places
    seen = (behind >= 0) & (behind < (c.sliding_window or ids.shape[1]))
    for i in range(c.num_layers):
        h, y = f"layers.{i}.", norm(x, f"layers.{i}.input_layernorm")
        q, k, v = (
            heads_of(functional.linear(y, w[f"{h}self_attn.{n}_proj.weight"],
                                       w.get(f"{h}self_attn.{n}_proj.bias")), heads)
            for n, heads in (("q", c.num_heads), ("k", c.kv_heads), ("v", c.kv_heads))
        )  # fmt: skip
        k, v = (y.repeat_interleave(c.num_heads // c.kv_heads, 1) for y in (rotated(k, c), v))
        mixed = functional.scaled_dot_product_attention(rotated(q, c), k, v, seen)
        x = x + mixed.transpose(1, 2).flatten(2) @ w[f"{h}self_attn.o_proj.weight"].T
        y = norm(x, h + "post_attention_layernorm")
        gate, up = (y @ w[f"{h}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ w[f"{h}mlp.down_proj.weight"].T
    return norm(x, "norm") @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


# --- the comparison --------------------------------------------------------------------------


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_gradients(family: str, seed: int, dtype: str) -> None:
    config, draw = random_config(family, seed), np.random.default_rng(seed + 1000)
    model = build(config, dtype, seed)
    model.recompute = bool(seed % 2)
    shape = int(draw.integers(1, 4)), int(draw.integers(1, 40))
    ids, targets = (draw.integers(0, config.vocab_size, shape) for _ in range(2))
    targets.reshape(-1)[1::7] = -100
    smoothing = [0.0, 0.1][seed % 2]
    loss = ops.cross_entropy(
        model(ids).reshape(-1, config.vocab_size), targets.reshape(-1), label_smoothing=smoothing
    )
    loss.backward()

    weights = {
        n: torch.tensor(x, requires_grad=True) for n, x in in_file_layout(family, model).items()
    }
    run = {"gpt2": gpt2, "llama": llama}[family]
    theirs = functional.cross_entropy(
        run(weights, torch.tensor(ids), config).flatten(0, 1), torch.tensor(targets).flatten(),
        label_smoothing=smoothing,
    )  # fmt: skip
    theirs.backward()

    assert abs(loss.item() - theirs.item()) <= ALLOWED[dtype] * abs(theirs.item())
    ours = gradients(family, model)
    assert set(ours) == set(weights)
    # A key's bias moves all scores of a query alike: its gradient is 0 but for rounding, and so are
    # those of weights that nothing has reached; they are measured by the largest of all gradients.
    largest = max(float(w.grad.abs().max()) for w in weights.values())
    for name, weight in weights.items():
        wanted = weight.grad.numpy()
        if np.abs(wanted).max() > 1e-3 * largest:
            assert relative(ours[name], wanted) < ALLOWED[dtype], name
        else:
            assert np.abs(ours[name] - wanted).max() < ALLOWED[dtype] * 1e-2 * largest, name
