"""Random-weight models against Hugging Face transformers: logits and every gradient."""

from typing import Any

import numpy as np
import pytest

from tinytorch_gpu import RopeScaling, Transformer, TransformerConfig, ops
from tinytorch_gpu.backend import assign

torch: Any = pytest.importorskip("torch", reason="PyTorch runs transformers")
hf: Any = pytest.importorskip("transformers", reason="transformers is what these compare with")

VOCAB, WIDTH, HEADS, LAYERS, HIDDEN = 61, 32, 4, 2, 48
LLAMA: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": HIDDEN,
                         "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                         "num_key_value_heads": HEADS, "rms_norm_eps": 1e-5}  # fmt: skip
OURS: dict[str, Any] = {"norm": "rms", "position": "rotary", "activation": "swiglu",
                        "ffn_bias": False}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def _default(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# name -> (their config, our choices, number of positions)
MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "gpt2": (
        lambda: hf.GPT2Config(
            vocab_size=VOCAB, n_positions=40, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            n_inner=HIDDEN, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        ),
        {"position": "learned", "activation": "gelu_tanh", "qkv_bias": True, "out_bias": True,
         "tie_embeddings": True}, 40,
    ),
    "llama": (lambda: hf.LlamaConfig(**LLAMA), OURS, 40),
    "llama, grouped heads, tied": (
        lambda: hf.LlamaConfig(**{**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
        {**OURS, "num_kv_heads": 2, "tie_embeddings": True}, 40,
    ),
    "llama, long, another theta": (
        lambda: hf.LlamaConfig(**LLAMA, max_position_embeddings=2048, **_default(500000.0)),
        {**OURS, "rope_theta": 500000.0}, 1500,
    ),
    "llama 3 scaling": (
        lambda: hf.LlamaConfig(**LLAMA, max_position_embeddings=512, rope_parameters=LLAMA3),
        {**OURS, "rope_theta": 500.0,
         "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64)}, 200,
    ),
    "linear scaling, one key head": (
        lambda: hf.LlamaConfig(
            **{**LLAMA, "num_key_value_heads": 1}, max_position_embeddings=512,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        {**OURS, "num_kv_heads": 1, "rope_scaling": RopeScaling("linear", 4.0)}, 100,
    ),
    "qwen2": (
        lambda: hf.Qwen2Config(**{**LLAMA, "num_key_value_heads": 2}, **_default(10000.0)),
        {**OURS, "num_kv_heads": 2, "qkv_bias": True}, 40,
    ),
    "qwen3": (
        lambda: hf.Qwen3Config(**{**LLAMA, "num_key_value_heads": 2}, head_dim=10, **_default(10000.0)),
        {**OURS, "num_kv_heads": 2, "head_dim": 10, "qk_norm": True}, 40,
    ),
    "mistral": (
        lambda: hf.MistralConfig(**LLAMA, sliding_window=7, **_default(10000.0)),
        {**OURS, "sliding_window": 7}, 40,
    ),
}  # fmt: skip
# Ours -> theirs; a matrix of ours is (in, out), and so is GPT-2's, the others' are (out, in).
LLAMA_NAMES = {
    "norm1.gamma": "input_layernorm.weight", "norm2.gamma": "post_attention_layernorm.weight",
    "attention.w_q": "self_attn.q_proj.weight", "attention.w_k": "self_attn.k_proj.weight",
    "attention.w_v": "self_attn.v_proj.weight", "attention.w_o": "self_attn.o_proj.weight",
    "attention.b_q": "self_attn.q_proj.bias", "attention.b_k": "self_attn.k_proj.bias",
    "attention.b_v": "self_attn.v_proj.bias", "attention.q_norm.gamma": "self_attn.q_norm.weight",
    "attention.k_norm.gamma": "self_attn.k_norm.weight", "ffn.w_gate": "mlp.gate_proj.weight",
    "ffn.w1": "mlp.up_proj.weight", "ffn.w2": "mlp.down_proj.weight",
}  # fmt: skip
GPT2_NAMES = {
    "norm1.gamma": "ln_1.weight", "norm1.beta": "ln_1.bias", "norm2.gamma": "ln_2.weight",
    "norm2.beta": "ln_2.bias", "attention.w_o": "attn.c_proj.weight",
    "attention.b_o": "attn.c_proj.bias", "ffn.w1": "mlp.c_fc.weight", "ffn.b1": "mlp.c_fc.bias",
    "ffn.w2": "mlp.c_proj.weight", "ffn.b2": "mlp.c_proj.bias",
}  # fmt: skip


def _theirs(name: str, values: dict[str, Any]) -> Any:
    """The array of ``values`` (theirs, by name) for our parameter ``name``."""
    if "transformer.wte.weight" in values:
        return _gpt2(name, values)
    top = {
        "token_embedding.weight": "model.embed_tokens.weight",
        "final_norm.gamma": "model.norm.weight",
    }
    if name in top:
        return values[top[name]]
    if name == "lm_head":
        return values["lm_head.weight"].T
    _, layer, rest = name.split(".", 2)
    found = values[f"model.layers.{layer}.{LLAMA_NAMES[rest]}"]
    return found.T if found.ndim == 2 else found


def _gpt2(name: str, values: dict[str, Any]) -> Any:
    top = {"token_embedding.weight": "wte.weight", "pos_encoding.weight": "wpe.weight",
           "final_norm.gamma": "ln_f.weight", "final_norm.beta": "ln_f.bias"}  # fmt: skip
    if name in top:
        return values[f"transformer.{top[name]}"]
    _, layer, rest = name.split(".", 2)
    start = f"transformer.h.{layer}."
    if rest in GPT2_NAMES:
        return values[start + GPT2_NAMES[rest]]
    kind, which = rest.removeprefix("attention.").split("_")
    packed = values[start + f"attn.c_attn.{'weight' if kind == 'w' else 'bias'}"]
    return np.split(packed, 3, axis=-1)["qkv".index(which)]


@pytest.fixture(params=MODELS, scope="module")
def pair(request: Any) -> tuple[Transformer, Any, int]:
    """Our model and theirs with the same weights, and how many positions to try."""
    make, choices, length = MODELS[request.param]
    config = make()
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = Transformer.from_config(
        TransformerConfig(VOCAB, WIDTH, HEADS, LAYERS, HIDDEN, max(length, 64) if length > 40 else 40,
                          **choices),
        device="cpu", init=False,
    )  # fmt: skip
    values = {name: p.detach().numpy() for name, p in theirs.state_dict().items()}
    for name, view in ours.state_dict().items():
        assign(view, _theirs(name, values))
    assert ours.count_parameters() == sum(p.numel() for p in theirs.parameters())
    return ours, theirs, length


def test_logits(pair: tuple[Transformer, Any, int]) -> None:
    ours, theirs, length = pair
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, length))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours(ids).detach().numpy(), expected, atol=1e-4)


def test_greedy_text(pair: tuple[Transformer, Any, int]) -> None:
    ours, theirs, _ = pair
    ids = [[1, 2, 3, 4, 5]]
    with torch.no_grad():
        for _ in range(20):
            last = theirs(torch.tensor(ids)).logits[0, -1]
            ids = [[*ids[0], int(last.argmax())]]
    assert ours.generate([ids[0][:5]], 20, temperature=0).numpy().tolist() == ids


def test_gradients(pair: tuple[Transformer, Any, int]) -> None:
    ours, theirs, _ = pair
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 12))
    ours.zero_grad()
    theirs.zero_grad()
    loss = ops.cross_entropy(ours(ids[:, :-1]).reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    loss.backward()
    out = theirs(torch.tensor(ids[:, :-1])).logits.reshape(-1, VOCAB)
    expected = torch.nn.functional.cross_entropy(out, torch.tensor(ids[:, 1:].reshape(-1)))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    values = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    for name, gradient in _gradients(ours).items():
        np.testing.assert_allclose(gradient, _theirs(name, values), atol=1e-5, err_msg=name)


def _gradients(model: Transformer) -> dict[str, Any]:
    """Our gradients by the names of the state: the state's own views of them."""
    parameters, data = model.parameters(), [p.data for p in model.parameters()]
    try:
        for parameter in parameters:
            parameter.data = parameter.grad.data
        return {name: np.array(view) for name, view in model.state_dict().items()}
    finally:
        for parameter, kept in zip(parameters, data, strict=True):
            parameter.data = kept
