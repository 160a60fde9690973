"""The course's names, signatures and numbers, as a reader of it types them."""

import inspect
from typing import Any

import numpy as np
import pytest

from tinytorch_gpu.core.attention import KVCache, MultiHeadAttention, ScaledDotProductAttention
from tinytorch_gpu.core.embeddings import (
    Embedding,
    LearnedPositionalEmbedding,
    PositionalEncoding,
)
from tinytorch_gpu.core.tensor import Tensor
from tinytorch_gpu.core.transformers import (
    LayerNorm,
    PositionwiseFeedForward,
    Transformer,
    TransformerBlock,
)

SIGNATURES: dict[Any, str] = {
    LayerNorm: "normalized_shape eps=1e-05",
    PositionwiseFeedForward: "embed_dim hidden_dim dropout=0.0",
    TransformerBlock: "embed_dim num_heads hidden_dim dropout=0.0 pre_norm=True",
    TransformerBlock.forward: "x mask=None return_attention_weights=False",
    Transformer: "vocab_size embed_dim num_heads num_layers hidden_dim max_seq_length=1024 "
    "dropout=0.0 pre_norm=True causal=True device='auto' dtype='float32' seed=None",
    Transformer.forward: "input_ids mask=None return_attention_weights=False cache=None",
    Transformer.generate: "input_ids max_new_tokens=50",
    ScaledDotProductAttention: "dropout=0.0 temperature=1.0",
    ScaledDotProductAttention.forward: "query key value mask=None return_attention_weights=False",
    MultiHeadAttention: "embed_dim num_heads dropout=0.0",
    MultiHeadAttention.forward: "query key=None value=None mask=None "
    "return_attention_weights=False",
    KVCache: "max_batch_size max_seq_length num_heads head_dim",
    KVCache.update: "batch_idx new_keys new_values",
    KVCache.reset: "batch_idx=None",
    Embedding: "vocab_size embedding_dim padding_idx=None init_type='uniform'",
    PositionalEncoding: "embedding_dim max_seq_length=5000 dropout=0.0",
    LearnedPositionalEmbedding: "max_seq_length embedding_dim",
}


def small(**options: Any) -> Transformer:
    return Transformer(50, 16, 4, 2, 32, 24, device="cpu", seed=0, **options)


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("thing", SIGNATURES, ids=lambda t: t.__qualname__)
def test_signatures(thing: Any) -> None:
    found = []
    for p in list(inspect.signature(thing).parameters.values()):
        if p.name != "self":
            default = "" if p.default is p.empty else f"={p.default!r}"
            found.append(p.name + default)
    wanted = SIGNATURES[thing].split()
    assert found[: len(wanted)] == wanted


# --- the whole model -------------------------------------------------------------------------


def _seeded(**options: Any) -> Transformer:
    """The course's own weights: float64 draws in its order, cast to float32."""
    model = Transformer(100, 32, 4, 2, 64, 64, device="cpu", **options)
    random = np.random.RandomState(0)

    def xavier(fan_in: int, fan_out: int) -> Any:
        bound = np.sqrt(6 / (fan_in + fan_out))
        return random.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32)

    bound = 1 / np.sqrt(32)
    model.token_embedding.weight.data[...] = random.uniform(-bound, bound, (100, 32))
    for block in model.transformer_blocks:
        for name in ("w_q", "w_k", "w_v", "w_o"):
            setattr(block.attention, name, random.normal(0, bound, (32, 32)).astype(np.float32))
        block.ffn.w1 = xavier(32, 64)
        block.ffn.w2 = xavier(64, 32)
    model.lm_head = xavier(32, 100)
    return model


@pytest.mark.parametrize(
    ("options", "total"),
    [({}, 114.2132), ({"causal": False}, 102.0192), ({"pre_norm": False}, 106.7591)],
)
def test_the_logits_are_the_courses_own(options: dict[str, Any], total: float) -> None:
    logits = _seeded(**options)(np.arange(8)).detach().numpy()
    assert logits.shape == (1, 8, 100)
    assert logits.sum(dtype=np.float64) == pytest.approx(total, abs=1e-3)
    if not options:
        expected = [0.04443216, 0.0439766, 0.48093575, 0.5205265]
        np.testing.assert_allclose(logits[0, -1, :4], expected, atol=2e-6)


def test_the_seed_configuration() -> None:
    model = Transformer(
        vocab_size=10000, embed_dim=512, num_heads=8, num_layers=6, hidden_dim=2048,
        max_seq_length=512, device="cpu",
    )  # fmt: skip
    usage = model.get_memory_usage()
    assert usage["total_parameters"] == model.count_parameters() == 29_143_040
    assert round(usage["total_memory_mb"], 2) == 111.17
    assert sum(p.size for p in model.parameters()) == 29_143_040
    assert usage["embedding_memory_mb"] == pytest.approx(10000 * 512 * 4 / 2**20)
    assert usage["lm_head_memory_mb"] == pytest.approx(10000 * 512 * 4 / 2**20)
    parts = ("embedding", "transformer_blocks", "lm_head", "final_norm")
    whole = sum(usage[f"{part}_memory_mb"] for part in parts)
    assert usage["total_memory_mb"] == pytest.approx(whole)
    assert {"vocab_size", "embed_dim", "num_heads", "num_layers"} <= set(usage)


def test_attributes() -> None:
    model = small(dropout=0.1)
    for name, value in {
        "vocab_size": 50, "embed_dim": 16, "num_heads": 4, "num_layers": 2, "hidden_dim": 32,
        "max_seq_length": 24, "dropout": 0.1, "pre_norm": True, "causal": True, "seed": 0,
        "device": "cpu", "dtype": "float32",
    }.items():  # fmt: skip
        assert getattr(model, name) == value
    assert model.lm_head.shape == (16, 50)
    assert isinstance(model.token_embedding, Embedding)
    assert isinstance(model.pos_encoding, PositionalEncoding)
    assert isinstance(model.final_norm, LayerNorm)
    block = model.transformer_blocks[1]
    assert isinstance(block, TransformerBlock) and len(model.transformer_blocks) == 2
    assert isinstance(block.attention, MultiHeadAttention) and block.pre_norm
    assert isinstance(block.norm1, LayerNorm) and isinstance(block.norm2, LayerNorm)
    assert isinstance(block.ffn, PositionwiseFeedForward)


@pytest.mark.parametrize(
    "ids", [[1, 2, 3], [[1, 2, 3]], np.array([1, 2, 3]), np.array([[1, 2, 3]], np.int32),
            np.array([1, 2, 3], np.uint8), Tensor([1, 2, 3]), Tensor([[1.0, 2.0, 3.0]]), (1, 2, 3)],
    ids=lambda ids: type(ids).__name__,
)  # fmt: skip
def test_ids_in_every_form(ids: Any) -> None:
    model = small()
    out = model(ids)
    assert isinstance(out, Tensor) and out.shape == (1, 3, 50)
    expected = model(np.array([[1, 2, 3]])).detach().numpy()
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    assert model.generate(ids, 2, temperature=0).shape == (1, 5)


@pytest.mark.parametrize(
    ("ids", "words"),
    [([50], "50.*50"), ([-1], "-1"), ([], "T at least 1|integers"), ([[[1]]], r"\(1, 1, 1\)"),
     ([1.5], "integers"), (list(range(25)), r"25 .*24")],
)  # fmt: skip
def test_bad_ids_are_named(ids: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small()(ids)


def test_attention_weights_of_every_layer() -> None:
    logits, weights = small()([[1, 2, 3], [4, 5, 6]], return_attention_weights=True)
    assert logits.shape == (2, 3, 50) and len(weights) == 2
    for layer in weights:
        assert layer.shape == (2, 4, 3, 3)
        values = layer.detach().numpy()
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
        assert not np.triu(values, 1).any(), "causal"
    _, weights = small(causal=False)([[1, 2, 3]], return_attention_weights=True)
    assert np.triu(weights[0].detach().numpy(), 1).any()


def test_the_future_changes_nothing() -> None:
    model = small()
    one, two = (model([1, 2, 3, last]).detach().numpy() for last in (4, 5))
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert (one[:, 3] != two[:, 3]).any()


def test_masks_are_joined_with_the_causal_rule() -> None:
    model, both_ways = small(), small(causal=False)
    ids, ones = [[1, 2, 3, 4]] * 2, np.ones((4, 4))
    plain = model(ids).detach().numpy()
    np.testing.assert_allclose(model(ids, mask=ones).detach().numpy(), plain, atol=1e-6)
    causal = np.tril(ones)
    for mask in (causal, np.stack([causal] * 2), np.broadcast_to(causal, (2, 4, 4, 4)),
                 causal.astype(bool), Tensor(causal), causal.tolist()):  # fmt: skip
        found = both_ways(ids, mask=mask).detach().numpy()
        np.testing.assert_allclose(found, plain, atol=1e-6)
    for bad in (np.ones((3, 3)), np.ones((3, 4, 4)), np.ones((2, 3, 4, 4)), np.ones(4)):
        with pytest.raises(ValueError, match="mask"):
            model(ids, mask=bad)


def test_generate_keeps_the_prompt_and_stops_in_time() -> None:
    model = small()
    out = model.generate(Tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=50, seed=0)
    assert isinstance(out, Tensor) and out.shape == (2, 24)  # max_seq_length
    np.testing.assert_array_equal(out.numpy()[:, :3], [[1, 2, 3], [4, 5, 6]])
    ragged = model.generate([[1, 2], [3, 4, 5]], 4, temperature=0)
    assert isinstance(ragged, list) and [row.shape for row in ragged] == [(6,), (7,)]
    assert len(list(model.generate([1, 2], 4, stream=True))) == 4


# --- modules ---------------------------------------------------------------------------------

MODULES: dict[str, Any] = {
    "LayerNorm": lambda: (LayerNorm(8), (floats(2, 3, 8),)),
    "LayerNorm of two axes": lambda: (LayerNorm((3, 8)), (floats(2, 3, 8),)),
    "PositionwiseFeedForward": lambda: (PositionwiseFeedForward(8, 16), (floats(2, 3, 8),)),
    "TransformerBlock": lambda: (TransformerBlock(8, 2, 16), (floats(2, 3, 8),)),
    "TransformerBlock, post-norm": lambda: (
        TransformerBlock(8, 2, 16, pre_norm=False), (floats(2, 3, 8),)),
    "MultiHeadAttention": lambda: (MultiHeadAttention(8, 2), (floats(2, 3, 8),)),
    "Embedding": lambda: (Embedding(10, 8), (np.array([[1, 2]]),)),
    "PositionalEncoding": lambda: (PositionalEncoding(8, 20), (floats(2, 3, 8),)),
    "LearnedPositionalEmbedding": lambda: (LearnedPositionalEmbedding(20, 8), (floats(2, 3, 8),)),
    "Transformer": lambda: (small(), (np.array([[1, 2]]),)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_module_answers_the_same_questions(name: str) -> None:
    module, inputs = MODULES[name]()
    out = module(*inputs)
    np.testing.assert_array_equal(out.data, module.forward(*inputs).data)
    parameters = dict(module.named_parameters())
    assert [id(p) for p in parameters.values()] == [id(p) for p in module.parameters()]
    assert module.train().training and not module.eval().training
    assert module.to("cpu") is module
    state = {key: np.array(value) for key, value in module.state_dict().items()}
    assert sum(v.size for v in state.values()) == module.count_parameters()
    for view in module.state_dict().values():
        view[...] = 0
    module.load_state_dict(state)
    np.testing.assert_array_equal(module(*inputs).data, out.data)
    if parameters:
        out.sum().backward()
        assert all(p.grad is not None for p in parameters.values())
        module.zero_grad()
        assert all(p.grad is None for p in parameters.values())
        with pytest.raises(ValueError, match="missing"):
            module.load_state_dict({})
        key = next(iter(state))
        with pytest.raises(ValueError, match=key):
            module.load_state_dict({**state, key: np.zeros((1, 2, 3))})


def test_the_same_seed_gives_the_same_model() -> None:
    states = [Transformer(50, 16, 4, 2, 32, device="cpu", seed=s).state_dict() for s in (1, 1, 2)]
    for key, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][key])
    assert (states[0]["lm_head"] != states[2]["lm_head"]).any()


def test_kv_cache() -> None:
    cache = KVCache(max_batch_size=2, max_seq_length=5, num_heads=3, head_dim=4)
    k, v = floats(3, 2, 4), floats(3, 2, 4, seed=1)
    cache.update(0, k[:, :1], v[:, :1])
    keys, values = cache.update(0, k[:, 1:], v[:, 1:])
    np.testing.assert_array_equal(keys.data, k)
    np.testing.assert_array_equal(values.data, v)
    cache.update(1, k, v)
    assert list(cache.cache_lengths) == [2, 2]
    usage = cache.get_memory_usage()
    assert usage["total_cache_memory_mb"] == 2 * 2 * 5 * 3 * 4 * 4 / 2**20
    assert usage["memory_per_sequence_mb"] == usage["total_cache_memory_mb"] / 2
    assert usage["cache_utilization"] == 0.4
    assert usage["num_heads"] == 3 and usage["head_dim"] == 4
    assert usage["max_batch_size"] == 2 and usage["max_seq_length"] == 5
    with pytest.raises(ValueError, match=r"row 0 holds 2.*4 more.*\(5\)"):
        cache.update(0, np.zeros((3, 4, 4)), np.zeros((3, 4, 4)))
    assert list(cache.cache_lengths) == [2, 2]
    for bad in ((2, k, v), (0, k[:2], v[:2]), (0, k, v[:, :1]), (-1, k, v)):
        with pytest.raises(ValueError):
            cache.update(*bad)
    cache.reset(0)
    assert list(cache.cache_lengths) == [0, 2]
    cache.reset()
    assert list(cache.cache_lengths) == [0, 0]
